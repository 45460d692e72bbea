"""Dead channels that training left in published networks are found, and the answers to real images stay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.pretrained import cifar, imagenet, mobilenet, normalised, plus_minus_one, resnet50
from bench.pretrained import resnet_cifar as resnet_of
from edgedi.transforms.compact import compact
from edgedi.transforms.measure import difference
from tests.transforms.planted import widths

pytestmark = pytest.mark.data
IMAGES = 8


def narrower(model: nn.Module, small: nn.Module) -> dict[str, tuple[int, int]]:
    before = widths(model)
    return {name: width for name, width in widths(small).items() if width != before[name]}


def check(model: nn.Module, x: Tensor, expected: dict[str, tuple[int, int]]) -> nn.Module:
    small = compact(model, x[:1])
    assert narrower(model, small) == expected
    with torch.no_grad():
        found, own = small(x), model(x)
    assert difference(found, own) <= 1e-5
    assert torch.equal(found.argmax(1), own.argmax(1))
    return small


@pytest.mark.parametrize(
    ("build", "prepare", "expected", "macs"),
    [
        (
            mobilenet,
            plus_minus_one,
            {
                "features.0.0": (3, 23), "features.1.conv.0.0": (23, 23), "features.1.conv.1": (23, 16),
                "features.3.conv.0.0": (24, 143), "features.3.conv.1.0": (143, 143), "features.3.conv.2": (143, 24),
            },
            (300_774_272, 294_724_928),
        ),
        (
            resnet50,
            normalised,
            {
                "conv1": (3, 63), "layer1.0.conv1": (63, 63), "layer1.0.conv2": (63, 64),
                "layer1.0.downsample.0": (63, 256),
            },
            (4_089_184_256, 4_084_332_864),
        ),
    ],
    ids=["MobileNetV2", "ResNet-50"],
)  # fmt: skip
def test_networks_of_imagenet(
    data: Path,
    build: Callable[[Path], nn.Module],
    prepare: Callable[[np.ndarray], Tensor],
    expected: dict[str, tuple[int, int]],
    macs: tuple[int, int],
):
    small = check(build(data), prepare(imagenet(data)[0][:IMAGES]), expected)
    (step,) = small.compaction.steps
    assert (step.before.macs, step.after.macs) == macs


@pytest.mark.parametrize("depth", [20, 56])
def test_networks_of_cifar_have_no_dead_channel(data: Path, depth: int):
    check(resnet_of(data, depth), cifar(data)[0][:IMAGES], {})
