"""Weights reordered for oneDNN: held once, given back bit for bit, shared between programs."""

from __future__ import annotations

import pytest
import torch

from edgedi.runtime.execution.weights import WeightStore, weight_digest
from edgedi.runtime.kernels import fused

pytestmark = pytest.mark.skipif(not fused.available(), reason="this torch has no fused oneDNN operators")

GEOMETRIES = [
    (64, 64, 3, 1, 1, 56),
    (64, 3, 7, 1, 2, 224),
    (128, 64, 1, 1, 1, 28),
    (32, 1, 3, 32, 1, 28),
    (24, 5, 3, 2, 1, 7),
]


def arguments(kernel: int, groups: int, stride: int, size: list[int]) -> tuple[object, ...]:
    return ([kernel // 2] * 2, [stride] * 2, [1, 1], groups, size)


@pytest.mark.parametrize(("out", "per_group", "kernel", "groups", "stride", "height"), GEOMETRIES)
def test_reordering_loses_nothing(out: int, per_group: int, kernel: int, groups: int, stride: int, height: int) -> None:
    weight = torch.randn(out, per_group, kernel, kernel)
    size = [1, per_group * groups, height, height]
    packed = fused.Packer().pack(weight, arguments(kernel, groups, stride, size))
    assert torch.equal(fused.plain(packed), weight)


def test_a_store_keeps_what_was_reordered_in_that_form_only_and_lends_the_original() -> None:
    packer = fused.Packer()
    store = WeightStore(packer=packer)
    weight, bias = torch.randn(64, 32, 3, 3), torch.randn(64)
    digest, other = weight_digest(weight), weight_digest(bias)
    store.add(digest, weight)
    store.add(other, bias)
    geometry = arguments(3, 1, 1, [1, 32, 28, 28])
    first = packer.pack(store.lend(digest), geometry)
    store.lend(other)
    store.settle([digest, other])
    assert store._tensors[digest] is first
    assert store._tensors[other] is bias
    assert torch.equal(store[digest], weight)
    again = packer.pack(store.lend(digest), geometry)
    store.settle([digest])
    assert again is first, "a second program must share the first one's weights"
    assert packer.num_bytes == weight.numel() * 4


def test_forgetting_a_weight_forgets_every_layout() -> None:
    packer = fused.Packer()
    store = WeightStore(limit_bytes=1, packer=packer)
    weight = torch.randn(64, 32, 1, 1)
    digest = weight_digest(weight)
    store.add(digest, weight)
    store.use([digest])
    packer.pack(store.lend(digest), arguments(1, 1, 1, [1, 32, 14, 14]))
    store.settle([digest])
    store.release([digest])
    assert digest not in store
    assert packer.num_bytes == 0
