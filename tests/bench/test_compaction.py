"""Verdicts of the bench for ``compact``, and the training images that it draws."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.compaction import Row, control_of, reached, verdict
from bench.compaction_cases import Augmented, Case, Setting, on_imagenet, precision_of, top_1
from bench.pretrained import normalised, resnet50
from bench.vgg_cifar import Images
from edgedi.transforms.score import Score

CASE = Case(
    name="x",
    set_up=on_imagenet(resnet50, normalised, 0.5),
    least_cut=0.5,
    most_fall=0.005,
    most_s=60.0,
    least_parameter_cut=0.9,
)


def row(macs: int, parameters: int, after: float, control: float | None = None, seconds: float = 60.0) -> Row:
    return Row(
        case="x", number=0, parameters=(1000, parameters), macs=(1000, macs), num_bytes=(1, 1), exact_macs=990,
        before=Score(value=0.8, count=500), after=Score(value=after, count=500),
        control=None if control is None else Score(value=control, count=500), training_steps=0, seconds=seconds,
        steps="",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "held"),
    [
        ([row(500, 100, 0.795)], True),
        ([row(500, 100, 0.9)], True),  # better than before
        ([row(501, 100, 0.8)], False),
        ([row(500, 101, 0.8)], False),
        ([row(400, 90, 0.794)], False),
        ([row(400, 90, 0.89, control=0.9)], False),  # the control counts, where there is one
        ([row(400, 90, 0.6, control=0.6)], True),
        ([row(500, 100, 0.79), row(500, 100, 0.8)], True),  # the mean of the runs
        ([row(500, 100, 0.78), row(500, 100, 0.8)], False),
        ([row(500, 100, 0.8), row(501, 100, 0.8)], False),  # each is small enough
        ([row(500, 100, 0.8), row(500, 100, 0.8, seconds=61.0)], False),  # and there in time
    ],
)
def test_a_bar_is_reached_where_all_of_it_is(rows: list[Row], held: bool):
    assert reached(CASE, rows) is held
    assert ("PASS" in verdict(CASE, rows)) is held


class Counted:
    """A list of batches that knows how many were read."""

    def __init__(self) -> None:
        x = torch.randn(8, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
        self.batches, self.num_read = [(batch, batch.mean((1, 2, 3)).gt(0).long()) for batch in x], 0

    def __iter__(self):
        for batch in self.batches:
            self.num_read += 1
            yield batch


@pytest.mark.parametrize("helps", [True, False])
def test_the_control_has_as_many_steps_and_is_no_worse_than_the_original(tmp_path: Path, helps: bool):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), torch.nn.Flatten(), torch.nn.Linear(16, 2)).eval()
    train, lines = Counted(), list[str]()
    right = [(x, labels if helps else model(x).argmax(1)) for x, labels in train.batches]
    options = {"train": train, "validate": right, "loss": torch.nn.functional.cross_entropy}
    setting = Setting(model=model, example=right[0][0], judge=lambda network: Score(value=0.0), options=options)
    before, read = copy.deepcopy(model.state_dict()), train.num_read
    found = control_of(setting, 3, tmp_path, 40, lines.append)
    assert lines[-1].startswith("control: step 40 of 40")
    assert train.num_read - read >= 40
    assert (found is model) != helps
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert (tmp_path / "control-40").is_dir()
    assert control_of(setting, 3, tmp_path, 0, lines.append) is model


@pytest.mark.parametrize(
    ("trains", "first", "count", "numbers"),
    [(False, 0, 2, [0, 1]), (False, 1, 1, [1]), (False, 1, 2, [1]), (False, 2, 1, []), (True, 1, 2, [1, 2])],
)
def test_there_are_two_halves_and_any_number_of_seeds(trains: bool, first: int, count: int, numbers: list[int]):
    assert list(replace(CASE, trains=trains).numbers(first, count)) == numbers


def test_training_images_come_in_whole_batches_in_another_order_each_time():
    pixels = torch.arange(10.0)[:, None, None, None].expand(10, 3, 16, 16).contiguous()
    images = Augmented(Images(pixels=pixels, labels=torch.arange(10)), batch=4)
    passes = [list(images) for _ in range(2)]
    for batches in passes:
        assert [(tuple(x.shape), len(labels)) for x, labels in batches] == [((4, 3, 16, 16), 4)] * 2
        for x, labels in batches:
            assert torch.equal(x[:, 0, 8, 8].long(), labels)  # the middle is never shifted out
    orders = [[int(label) for _, labels in batches for label in labels] for batches in passes]
    assert orders[0] != orders[1]
    assert all(len(set(order)) == 8 for order in orders)


def test_top_1_counts_over_all_batches():
    x = torch.eye(4)
    score = top_1(x.split(3), torch.tensor([0, 1, 2, 0]))(torch.nn.Identity())
    assert (score.value, score.count) == (0.75, 4)


def test_a_detector_is_scored_over_all_batches(monkeypatch: pytest.MonkeyPatch):
    box = np.array([[0.0, 0.0, 1.0, 1.0]])
    answers = {1.0: [(box, np.array([0.9]), np.array([2]))], 2.0: [(box[:0], np.zeros(0), np.zeros(0, int))]}
    monkeypatch.setattr("bench.compaction_cases.detections", lambda model, x, heads, least: answers[float(x)])
    data = [(torch.tensor(1.0), [(box, np.array([2]))]), (torch.tensor(2.0), [(box, np.array([2]))])]
    assert precision_of([])(torch.nn.Identity(), data) == pytest.approx(0.5)
