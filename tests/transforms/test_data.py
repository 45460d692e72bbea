"""What a user gives as data: read as batches, again and again, and refused by name where it is not what is needed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from edgedi.transforms.data import CHUNK, Batch, Data

X = torch.arange(12.0).reshape(6, 2)
Y = torch.tensor([0, 1, 0, 1, 0, 1])


def inputs(data: Data) -> list[Tensor]:
    return [batch.arguments[0] for batch in data]


def test_a_tensor_is_taken_in_chunks():
    data = Data(torch.arange(2.0 * CHUNK + 1).reshape(-1, 1), "calibration", labelled=False)
    assert [batch.size for batch in data] == [CHUNK, CHUNK, 1]
    assert torch.cat(inputs(data)).flatten().tolist() == list(range(2 * CHUNK + 1))


def test_it_is_read_as_often_as_one_likes():
    data = Data([X[:4], X[4:]], "calibration", labelled=False)
    for _ in range(2):
        assert [batch.arguments[0].tolist() for batch in data] == [X[:4].tolist(), X[4:].tolist()]


def test_batches_with_labels():
    (batch,) = Data(DataLoader(TensorDataset(X, Y), batch_size=6), "validate", labelled=True, ordered=True)
    assert torch.equal(batch.arguments[0], X)
    assert torch.equal(batch.labels, Y)


def test_labels_are_left_out_where_none_are_needed():
    (batch,) = Data([(X, Y)], "calibration", labelled=False)
    assert batch == Batch((X,))


@pytest.mark.parametrize("element", [(X, X + 1, Y), ((X, X + 1), Y), [[X, X + 1], Y]])
def test_models_of_two_arguments(element: Any):
    (batch,) = Data([element], "train", num_arguments=2, labelled=True)
    assert [argument.tolist() for argument in batch.arguments] == [X.tolist(), (X + 1).tolist()]
    assert batch.labels is Y


def test_labels_may_be_anything():
    boxes = [{"boxes": X}]
    (batch,) = Data([(X, boxes)], "train", labelled=True)
    assert batch.labels is boxes


@pytest.mark.parametrize("empty", [[], torch.empty(0, 2), [torch.empty(0, 2)]])
def test_no_data(empty: Any):
    with pytest.raises(ValueError, match="calibration is empty; give at least one batch"):
        Data(empty, "calibration", labelled=False)


def test_what_can_be_read_only_once():
    with pytest.raises(ValueError, match="train can be read only once; give a list or a DataLoader"):
        Data(iter([X]), "train", labelled=False)
    with pytest.raises(ValueError, match="train can be read only once"):
        Data((batch for batch in [X]), "train", labelled=False)


def test_what_cannot_be_read():
    with pytest.raises(TypeError, match="train is a int; give a tensor, a list of batches or a DataLoader"):
        Data(3, "train", labelled=False)


@pytest.mark.parametrize("label", [np.zeros((3, 4)), "a street", {"boxes": np.ones((2, 4))}, None])
def test_labels_that_stay_may_be_anything(label: object):
    batches = [(X, [label, label]), (X, [label])]
    found = list(Data(batches, "validate", labelled=True, ordered=True))
    assert [len(batch.labels) for batch in found] == [2, 1]


def test_labels_that_change_are_told_from_those_that_stay():
    class Shuffled:
        """A new order of its boxes with each pass."""

        passes = 0

        def __iter__(self) -> Iterator[tuple[Tensor, list[object]]]:
            self.passes += 1
            yield X, [np.full((2, 4), self.passes)]

    with pytest.raises(ValueError, match="validate shuffles"):
        Data(Shuffled(), "validate", labelled=True, ordered=True)


def test_a_loader_that_shuffles():
    torch.manual_seed(0)
    loader = DataLoader(TensorDataset(torch.randn(64, 2), torch.zeros(64)), batch_size=8, shuffle=True)
    with pytest.raises(ValueError, match=r"validate shuffles: .* DataLoader\(..., shuffle=False\)"):
        Data(loader, "validate", labelled=True, ordered=True)
    assert Data(loader, "train", labelled=True).name == "train"


@pytest.mark.parametrize(
    ("given", "labelled", "message"),
    [
        (X, True, r"validate yields tensors of shape \[6, 2\]; each batch must be \(inputs, labels\)"),
        ([(X, Y, Y)], True, r"validate yields tuples of 3; each batch must be \(inputs, labels\)"),
        ([(X, Y, Y)], False, r"validate yields tuples of 3; each batch must be inputs, or \(inputs, labels\)"),
        ([{"x": X}], False, "validate yields dicts; each batch must be inputs"),
        ([5], False, "validate yields ints; "),
    ],
)
def test_batches_of_another_structure(given: Any, labelled: bool, message: str):
    with pytest.raises(ValueError, match=message):
        Data(given, "validate", labelled=labelled)


def test_too_few_arguments():
    with pytest.raises(ValueError, match=r"train yields tuples of 2; .* inputs are a tuple of 2 arguments"):
        Data([(X, Y)], "train", num_arguments=2, labelled=True)


def test_a_later_batch_of_another_structure_is_found_when_it_comes():
    data = Data([(X, Y), X], "validate", labelled=True)
    with pytest.raises(ValueError, match="validate yields tensors"):
        list(data)


def test_an_epoch_has_the_rows_of_a_tensor_or_the_batches_of_a_list_in_an_order_of_its_seed():
    rows = torch.cat([batch.arguments[0] for batch in Data(X, "train", labelled=False).epoch(1)])
    assert rows.tolist() != X.tolist()
    assert sorted(rows.tolist()) == X.tolist()
    batches = [X[n : n + 1] for n in range(6)]
    one, same, other = (
        [batch.arguments[0].tolist() for batch in Data(batches, "train", labelled=False).epoch(seed)]
        for seed in (1, 1, 2)
    )
    assert one == same
    assert sorted(one) == sorted(other) == [batch.tolist() for batch in batches]
    assert one != other


def test_the_size_of_a_batch_is_its_first_dimension():
    assert Batch((X, 3)).size == 6
    assert Batch((torch.tensor(1.0),)).size == 1
