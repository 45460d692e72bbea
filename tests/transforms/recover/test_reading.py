"""Training batches are the same for the same seed, wherever one begins, and nobody else's random numbers change."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from edgedi.transforms.data import Data
from edgedi.transforms.numbers import generator_of
from edgedi.transforms.recover.reading import Reader

X = torch.arange(10.0).reshape(10, 1)


class Noisy:
    """Batches that draw from every global generator, as augmentation does."""

    def __iter__(self) -> Iterator[Tensor]:
        for _ in range(5):
            yield torch.tensor([[torch.rand(()).item(), np.random.rand(), random.random()]])


def loader() -> DataLoader:
    return DataLoader(TensorDataset(X), batch_size=2, shuffle=True)


def loader_of_its_own() -> DataLoader:
    return DataLoader(TensorDataset(X), batch_size=2, shuffle=True, generator=torch.Generator())


def whole() -> Tensor:
    return torch.arange(100.0).reshape(100, 1)


def batches() -> list[Tensor]:
    return list(X.split(2))


SOURCES = [Noisy, loader, loader_of_its_own, whole, batches]


def read(given: object, count: int, seed: int = 0, **place: int) -> list[list[list[float]]]:
    reader = Reader(Data(given, "train", labelled=False), seed, **place)
    return [batch.arguments[0].tolist() for batch in reader.some(count)]


@pytest.mark.parametrize("source", SOURCES)
def test_the_same_seed_gives_the_same_batches_and_another_seed_others(source: type):
    torch.manual_seed(1)
    found = read(source(), 12)
    seed_all(2)
    assert read(source(), 12) == found
    assert read(source(), 12, seed=1) != found


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("count", [0, 3, 4, 5, 7])
def test_reading_goes_on_at_any_place(source: type, count: int):
    reader = Reader(Data(source(), "train", labelled=False), 0)
    reader.some(count)
    rest = [batch.arguments[0].tolist() for batch in reader.some(6)]
    again = Reader(Data(source(), "train", labelled=False), 0)
    again.some(count)
    assert read(source(), 6, **again.place) == rest


def test_each_epoch_has_an_order_of_its_own_and_all_inputs():
    epochs = [read(loader(), 10)[:5], read(loader(), 10)[5:]]
    for epoch in epochs:
        assert sorted(value for batch in epoch for (value,) in batch) == X.flatten().tolist()
    assert epochs[0] != epochs[1]


def seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def drawn() -> tuple[float, float, float]:
    return torch.rand(()).item(), np.random.rand(), random.random()


@pytest.mark.parametrize("source", SOURCES)
def test_random_numbers_outside_are_as_if_nothing_had_been_read(source: type):
    given = source()
    seed_all(3)
    expected = [drawn(), drawn()]
    seed_all(3)
    reader = Reader(Data(given, "train", labelled=False), 0)
    reader.some(3)
    found = [drawn()]
    reader.some(4)
    assert [*found, drawn()] == expected


def test_a_loaders_own_generator_is_set_back():
    given = loader_of_its_own()
    data = Data(given, "train", labelled=False)
    before = given.generator.get_state()
    Reader(data, 0).some(7)
    assert torch.equal(given.generator.get_state(), before)


def test_a_loader_that_shuffles_is_read_in_the_same_order_each_time_where_order_is_all_that_matters():
    data = Data(loader(), "calibration", labelled=False)
    one, other = ([batch.arguments[0].tolist() for batch in data] for _ in range(2))
    assert one == other


def test_generators_of_words():
    one, other = (torch.rand(3, generator=generator_of(0, word)).tolist() for word in ("a", "b"))
    assert one != other
    assert torch.rand(3, generator=generator_of(0, "a")).tolist() == one
