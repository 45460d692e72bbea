"""One number for how good a network is: accuracy with its interval, a user's metric, likeness to the original."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgedi.errors import EdgediError, NotFinite
from edgedi.transforms.data import Data
from edgedi.transforms.score import (
    Score,
    forgiving,
    judge_by_accuracy,
    judge_by_likeness,
    judge_by_metric,
    judging_once,
)

LOGITS = torch.eye(4)


class Plus(nn.Module):
    """Its input, with something added."""

    def __init__(self, addend: Tensor | float = 0.0) -> None:
        super().__init__()
        self.addend = addend

    def forward(self, x: Tensor) -> Tensor:
        return x + self.addend


def labelled(*batches: tuple[Tensor, Any]) -> Data:
    return Data(list(batches), "validate", labelled=True)


# --- accuracy ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "count", "low", "high"),
    [
        # Worked by hand from Wilson's formula, z = 1.959964; the first two are R's prop.test(correct = FALSE).
        (0.9, 10, 0.5958, 0.9821),
        (0.5, 100, 0.4038, 0.5962),
        (0.0, 10, 0.0, 0.2775),
        (1.0, 10, 0.7225, 1.0),
    ],
)
def test_wilson_intervals(value: float, count: int, low: float, high: float):
    assert Score(value=value, count=count).interval == pytest.approx((low, high), abs=5e-5)


def test_scores_as_text():
    assert str(Score(value=0.5, count=100)) == "50.00% [40.38%, 59.62%]"
    assert str(Score(value=0.123456)) == "0.1235"
    assert Score(value=0.5).interval is None


def test_accuracy_is_the_share_of_right_answers_over_all_batches():
    data = labelled((LOGITS, torch.tensor([0, 1, 2, 0])), (LOGITS[:1], torch.tensor([0])))
    assert judge_by_accuracy(data)(Plus()) == Score(value=0.8, count=5)


def test_accuracy_of_pixels():
    maps = torch.zeros(1, 3, 2, 2)
    maps[0, 1] = 1
    labels = torch.tensor([[[1, 1], [1, 0]]])
    assert judge_by_accuracy(labelled((maps, labels)))(Plus()) == Score(value=0.75, count=4)


def test_the_network_is_judged_in_evaluation_mode():
    model = nn.Sequential(nn.Dropout(1.0)).train()
    data = labelled((LOGITS, torch.arange(4)))
    assert judge_by_accuracy(data)(model).value == 1.0


@pytest.mark.parametrize("labels", [torch.eye(4), torch.arange(3), torch.zeros(4, 1)])
def test_labels_of_another_shape(labels: Tensor):
    with pytest.raises(ValueError, match=r"labels are of shape .* where the classes found are \[4\]; .* or metric="):
        judge_by_accuracy(labelled((LOGITS, labels)))(Plus())


def test_answers_that_are_no_classes():
    with pytest.raises(ValueError, match=r"accuracy needs an output \[batch, classes, ...\]; pass metric=callable"):
        judge_by_accuracy(labelled((torch.ones(3), torch.arange(3))))(Plus())


# --- a metric of the user's -------------------------------------------------------------------------------------------


def test_a_metric_gets_the_model_and_the_data_as_they_were_given():
    given, seen = object(), []

    def metric(model: nn.Module, validate: Any) -> Tensor:
        seen.append((model.training, validate, torch.is_grad_enabled()))
        return torch.tensor(0.25)

    assert judge_by_metric(metric, given)(Plus().train()) == Score(value=0.25)
    assert seen == [(False, given, False)]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "good", None, torch.tensor(float("nan"))])
def test_a_metric_that_gives_no_finite_number(value: Any):
    with pytest.raises(NotFinite, match=r"metric gave .*; it must give a finite number, more for a better network"):
        judge_by_metric(lambda model, validate: value, None)(Plus())


def test_a_metric_without_a_finite_number_is_an_error_of_ours_and_a_wrong_argument():
    assert issubclass(NotFinite, EdgediError)
    assert issubclass(NotFinite, ValueError)


def test_a_metric_that_fails_is_named():
    def metric(model: nn.Module, validate: Any) -> float:
        return {}["labels"]

    with pytest.raises(ValueError, match=r"^metric failed with KeyError: 'labels'$"):
        judge_by_metric(metric, None)(Plus())


def test_a_network_without_a_finite_score_is_the_worst():
    lines: list[str] = []
    values = iter([0.5, float("nan")])
    judge = forgiving(judge_by_metric(lambda model, validate: next(values), None), lines.append)
    assert [judge(Plus()).value, judge(Plus()).value] == [0.5, float("-inf")]
    assert lines == [
        "a network counts as too bad: metric gave nan; it must give a finite number, more for a better network"
    ]
    with pytest.raises(ValueError, match="metric failed with StopIteration"):
        judge(Plus())


def test_a_metric_may_give_a_number_of_numpy():
    assert judge_by_metric(lambda model, validate: np.float32(0.5), None)(Plus()) == Score(value=0.5)


def test_a_metric_that_gives_more_numbers_than_one():
    with pytest.raises(ValueError, match=r"metric gave tensor\(\[1., 2.\]\); it must give a finite number"):
        judge_by_metric(lambda model, validate: torch.tensor([1.0, 2.0]), None)(Plus())


# --- likeness ---------------------------------------------------------------------------------------------------------


def test_likeness_of_classes_is_the_share_of_the_same_greatest():
    judge = judge_by_likeness(Plus(), Data([LOGITS], "calibration", labelled=False))
    assert judge(Plus()) == Score(value=1.0, count=4)
    assert judge(Plus(torch.tensor([0.0, 0.0, 0.0, 2.0]))) == Score(value=0.25, count=4)


def test_likeness_of_a_regression_is_one_less_the_relative_squared_difference():
    x = torch.tensor([[1.0], [3.0]])  # deviations from the mean of 2: 1 and 1, squared 2
    judge = judge_by_likeness(Plus(), Data([x], "calibration", labelled=False))
    assert judge(Plus()).value == 1.0
    assert judge(Plus(0.5)).value == pytest.approx(1 - 2 * 0.25 / 2)
    assert judge(Plus(2 - x)).value == pytest.approx(0.0)


def test_likeness_does_not_depend_on_the_order_in_which_inputs_come():
    class Turning:
        """Its batches in another order each time."""

        def __init__(self) -> None:
            self.batches = [LOGITS[:2], LOGITS[2:]]

        def __iter__(self) -> Any:
            self.batches.reverse()
            return iter(list(self.batches))

    assert judge_by_likeness(Plus(), Data(Turning(), "calibration", labelled=False))(Plus()).value == 1.0


def test_likeness_of_several_answers():
    class Both(nn.Module):
        def __init__(self, addend: float) -> None:
            super().__init__()
            self.addend = addend

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"a": x, "b": x + self.addend}

    x = torch.tensor([[1.0], [3.0]])
    judge = judge_by_likeness(Both(0.0), Data([x], "calibration", labelled=False))
    assert judge(Both(1.0)).value == pytest.approx(1 - 2 / 4)


def test_a_network_is_judged_once_and_again_when_its_weights_are_others():
    judged: list[float] = []

    def judge(model: nn.Module) -> Score:
        judged.append(float(model.weight.detach().sum()))
        return Score(value=judged[-1])

    once, model = judging_once(judge), nn.Linear(2, 2)
    nn.init.ones_(model.weight)
    assert [once(model).value, once(copy.deepcopy(model)).value] == [4.0, 4.0]
    nn.init.zeros_(model.weight)
    assert [once(model).value, once(model).value] == [0.0, 0.0]
    assert judged == [4.0, 0.0]
