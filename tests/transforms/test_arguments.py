"""Wrong arguments of ``compact`` are named, with what to give instead, before anything is computed."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from edgedi.errors import CompactionError
from edgedi.transforms import compact as module
from edgedi.transforms.compact import compact
from edgedi.transforms.score import Score
from edgedi.transforms.task import Outcome, Task

X, Y = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2])


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3)).eval()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": ("recover",)}, r"the step 'recover' needs data: pass train=\.\.\."),
        ({"steps": ("recover",), "validate": [(X, Y)]}, r"the step 'recover' needs data: pass train=\.\.\."),
        (
            {"steps": ("scar",), "train": X},
            r"how far the step 'scar' may go: pass validate=\.\.\. or calibration=\.\.\.",
        ),
        (
            {"steps": ("prune",), "train": X},
            r"nothing says how far the step 'prune' may go: pass validate=.* or target=",
        ),
        ({"seed": "a"}, r"seed is 'a'; give a whole number, from 0 to 2\*\*63 - 1"),
        ({"seed": 1.5}, r"seed is 1\.5; give a whole number"),
        ({"seed": None}, "seed is None; give a whole number"),
        ({"seed": True}, "seed is True; give a whole number"),
        ({"seed": -1}, "seed is -1; give a whole number"),
        ({"steps": (["prune"],)}, r"steps hold \['prune'\]; there is 'simplify'"),
        ({"steps": ("shrink",)}, "steps hold 'shrink'; there is 'simplify'"),
        ({"tolerance": -0.1}, r"tolerance is -0.1; give how much the metric may fall"),
        ({"tolerance": float("nan")}, "tolerance is nan"),
        ({"tolerance": "1 %"}, "tolerance is '1 %'"),
        ({"tolerance": True}, "tolerance is True; give how much"),
        ({"tolerance": 1}, "tolerance is 1; it is a share of 1: give 0.005 for half a point of accuracy"),
        ({"tolerance": 0.5 + 0.5, "validate": [(X, Y)]}, "tolerance is 1.0; it is a share of 1"),
        ({"validate": [(X, Y)], "metric": "recall"}, "metric is 'recall'; give \"accuracy\", or a callable"),
        ({"metric": "recall"}, "metric is 'recall'"),
        ({"metric": lambda m, v: 1.0}, r"metric is a callable of .*, and there is no validate: pass validate=\.\.\."),
        ({"validate": [(X, Y)], "metric": lambda m, v: float("nan")}, "metric gave nan; it must give a finite number"),
        ({"validate": []}, "validate is empty"),
        ({"validate": X}, r"validate yields tensors of shape \[6, 3\]; each batch must be \(inputs, labels\)"),
        ({"calibration": iter([X])}, "calibration can be read only once"),
        ({"calibration": X * float("nan")}, "calibration holds NaN"),
        ({"calibration": X[:, :2]}, r"the model fails on the first batch of calibration, of shapes \[\[6, 2\]\]: "),
        ({"train": [(X[:, :2], Y)]}, r"the model fails on the first batch of train, of shapes \[\[6, 2\]\]: "),
        ({"train": []}, "train is empty"),
        ({"train": [X], "loss": nn.MSELoss()}, r"train yields tensors .*; each batch must be \(inputs, labels\)"),
        ({"budget_s": 0}, "budget_s is 0; give seconds, more than 0"),
        ({"budget_s": "1h"}, "budget_s is '1h'"),
        ({"budget_s": True}, "budget_s is True"),
    ],
)
def test_a_wrong_argument_is_named(arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        compact(linear(), X, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": 3}, "train is a int; give a tensor, a list of batches or a DataLoader"),
        ({"train": [(X, Y)], "loss": "mse"}, r"loss is a str; give a callable of \(outputs, labels\)"),
        ({"loss": "mse"}, r"loss is a str; give a callable of \(outputs, labels\)"),
        ({"steps": 3}, r"steps is a int; give a tuple, as in steps=\('simplify', 'prune'\)"),
        ({"steps": {"simplify"}}, "steps is a set; give a tuple"),
        ({"checkpoint": 3}, "checkpoint is a int; give the path of a folder"),
    ],
)
def test_an_argument_of_a_wrong_type(arguments: dict[str, Any], message: str):
    with pytest.raises(TypeError, match=message):
        compact(linear(), X, **arguments)


def test_a_model_elsewhere_than_prune_computes():
    model = linear().to("meta")
    message = (
        r"the step 'prune' computes on the CPU, and the model is on meta: give model\.cpu\(\) with inputs and data"
    )
    with pytest.raises(ValueError, match=message):
        compact(model, X.to("meta"), calibration=X)
    with pytest.raises(ValueError, match=message):
        compact(model, X.to("meta"), steps=("prune",), train=[(X, Y)], target={"macs": 0.5})


def test_without_torch_pruning_nothing_is_begun(task: list[Task], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(CompactionError, match=r"pip install '\.\[compact\]'\), or leave the step out of steps"):
        compact(linear(), X, calibration=X)
    assert task == []
    compact(linear(), X, train=[(X, Y)], steps=("simplify", "recover"))
    assert len(task) == 2


def test_validation_that_shuffles():
    torch.manual_seed(0)
    loader = DataLoader(
        TensorDataset(torch.randn(64, 3), torch.zeros(64, dtype=torch.long)), batch_size=8, shuffle=True
    )
    with pytest.raises(ValueError, match="validate shuffles"):
        compact(linear(), X, validate=loader)


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> list[Task]:
    """What the steps of a ``compact`` were given."""
    seen: list[Task] = []

    def look(model: nn.Module, task: Task) -> Outcome:
        seen.append(task)
        return Outcome(model=model)

    monkeypatch.setattr(module, "STEPS", dict.fromkeys(module.STEPS, look))
    return seen


def test_steps_are_those_that_there_is_data_for(task: list[Task]):
    steps = [step.name for step in compact(linear(), X).compaction.steps]
    assert steps == ["simplify"]
    with_training = [step.name for step in compact(linear(), X, train=[(X, Y)]).compaction.steps]
    assert set(with_training) >= {"simplify", "recover"}


def test_the_bar_is_the_score_of_the_original_less_the_tolerance(task: list[Task]):
    compact(linear(), X, validate=[(X, linear()(X).argmax(1))], tolerance=0.25)
    (only,) = task[-1:]
    assert only.score is not None
    assert (only.score.value, only.score.count, only.least_score) == (1.0, 6, 0.75)


@pytest.mark.parametrize(("tolerance", "least"), [(None, 0.97), (0.0, 1.0), (0.01, 0.99), (0.25, 0.75)])
def test_without_labels_the_bar_is_the_tolerance_where_one_is_given(
    task: list[Task], tolerance: float | None, least: float
):
    compact(linear(), X, calibration=X, tolerance=tolerance)
    assert (task[-1].score, task[-1].least_score) == (Score(value=1.0, count=6), least)


def test_where_nothing_is_said_the_score_may_not_fall(task: list[Task]):
    compact(linear(), X, validate=[(X, linear()(X).argmax(1))])
    assert task[-1].least_score == 1.0


def test_a_metric_of_the_users_falls_in_its_own_unit(task: list[Task]):
    compact(linear(), X, validate=[(X, Y)], metric=lambda model, validate: 40.0, tolerance=2.5)
    assert task[-1].least_score == 37.5


def test_training_data_may_lack_labels(task: list[Task]):
    compact(linear(), X, train=X)
    assert task[-1].train is not None
    assert [batch.labels for batch in task[-1].train] == [None]
    compact(linear(), X, train=[(X, Y)])
    assert [batch.labels for batch in task[-1].train] == [Y]


def test_a_metric_of_the_users_judges(task: list[Task]):
    def metric(model: nn.Module, validate: Any) -> float:
        return -float((model(validate[0][0]) - validate[0][1]).square().mean())

    target = torch.zeros(6, 3)
    compact(linear(), X, validate=[(X, target)], metric=metric)
    expected = -float(linear()(X).square().mean().detach())
    assert task[-1].score is not None
    assert task[-1].score.value == pytest.approx(expected)


def test_no_data_no_score(task: list[Task]):
    compact(linear(), X)
    assert (task[-1].judge, task[-1].score, task[-1].least_score) == (None, None, float("-inf"))


def test_inputs_of_several_arguments(task: list[Task]):
    class Sum(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a + b

    compact(Sum().eval(), (X, X), calibration=[(X, X)])
    assert task[-1].calibration is not None
    assert [len(batch.arguments) for batch in task[-1].calibration] == [2]
