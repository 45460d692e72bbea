"""Weights by content: checked, shared, pinned while used, forgotten in order."""

from __future__ import annotations

import pytest
import torch

from edgedi.runtime.execution import weights as module
from edgedi.runtime.execution.weights import WeightStore, weight_digest


def tensor(value: int, count: int = 100) -> torch.Tensor:
    return torch.full((count,), float(value))  # 400 bytes


def filled(store: WeightStore, *values: int) -> list[str]:
    digests = []
    for value in values:
        digests.append(weight_digest(tensor(value)))
        store.add(digests[-1], tensor(value))
    return digests


def test_a_digest_names_content_shape_and_type() -> None:
    x = torch.arange(12.0)
    digests = {weight_digest(t) for t in (x, x.reshape(3, 4), x.double(), x.bfloat16(), x + 1)}
    assert len(digests) == 5
    assert weight_digest(x) == weight_digest(x.clone())
    assert weight_digest(x.reshape(3, 4).T) == weight_digest(x.reshape(3, 4).T.contiguous())
    assert weight_digest(torch.tensor(1.0)) != weight_digest(torch.tensor([1.0]))
    channels_last = torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    assert weight_digest(channels_last) == weight_digest(channels_last.contiguous())


def test_content_that_is_not_what_its_name_says_is_refused() -> None:
    store = WeightStore()
    with pytest.raises(ValueError, match="have other content"):
        store.add(weight_digest(tensor(1)), tensor(2))
    assert store.num_bytes == 0
    assert weight_digest(tensor(1)) not in store


def test_missing_names_each_once_and_in_order() -> None:
    store = WeightStore()
    (one,) = filled(store, 1)
    assert store.missing(["b", one, "a", "b"]) == ("b", "a")
    assert torch.equal(store[one], tensor(1))


def test_bytes_are_counted_once() -> None:
    store = WeightStore()
    one, two = filled(store, 1, 2)
    assert store.num_bytes == 800
    assert store.bytes_of([one, one, two]) == 800
    assert store.pinned_bytes == 0
    store.use([one])
    store.use([one, one])
    assert store.pinned_bytes == 400
    with pytest.raises(KeyError):
        store.bytes_of(["nothing"])


def test_unused_weights_go_oldest_first_until_the_rest_fits() -> None:
    store = WeightStore(limit_bytes=1_000)
    one, two, three = filled(store, 1, 2, 3)
    _ = store[one]  # used just now, so no longer the oldest
    store.trim()
    assert store.missing([one, two, three]) == (two,)


def test_used_weights_stay_whatever_the_limit() -> None:
    store = WeightStore(limit_bytes=500)
    one, two = filled(store, 1, 2)
    store.use([one, two])
    store.trim()
    assert store.missing([one, two]) == ()
    store.use([two])
    store.release([one, two])
    assert store.missing([one, two]) == (one,)
    assert store.pinned_bytes == 400
    store.release([two])
    assert store.missing([two]) == (), "nobody uses it, and it fits"


def test_weights_to_come_may_be_pinned_before_they_are_there() -> None:
    store = WeightStore(limit_bytes=500)
    coming = weight_digest(tensor(2))
    store.use([coming])
    assert store.pinned_bytes == 0
    one, two = filled(store, 1, 2)
    store.trim()
    assert (store.missing([one]), store.missing([two])) == ((one,), ())


def test_without_a_limit_so_much_stays_for_a_next_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETAINED_BYTES", 900)
    store = WeightStore()
    digests = filled(store, 1, 2, 3, 4)
    store.use(digests)
    store.trim()
    assert store.missing(digests) == ()
    store.release(digests)
    assert store.missing(digests) == tuple(digests[:2])
    assert store.num_bytes == 800


def test_releasing_more_often_than_using_is_harmless() -> None:
    store = WeightStore(limit_bytes=10_000)
    (one,) = filled(store, 1)
    store.release([one])
    store.use([one])
    assert store.pinned_bytes == 400
