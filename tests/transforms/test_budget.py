"""``budget_s`` is met by all of ``compact`` within a tenth, however long its parts take by a clock that they move."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from torch import nn
from torch.nn import functional as F

from edgedi.transforms import compact as module
from edgedi.transforms.compact import PRUNING, compact
from edgedi.transforms.report import Step
from edgedi.transforms.task import Budget
from tests.transforms.recover.toy import Batches, Clock, accuracy, batches_of, blobs, trained

BUDGET_S = 200.0
X = blobs(8)[0]
NARROWER = ("simplify", "prune", "recover")


@pytest.fixture(scope="module")
def original() -> nn.Module:
    return trained(16)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The one of all budgets."""
    made = Clock()
    monkeypatch.setattr(module, "Budget", partial(Budget, clock=made))
    return made


def steps_of(model: nn.Module, clock: Clock, judge_s: float, look_s: float, **options: Any) -> dict[str, Step]:
    """Those of a ``compact`` in which reading a batch takes a second, and looking at a group or a layer ``look_s``."""

    def metric(network: nn.Module, validate: Any) -> float:
        clock.now_s += judge_s
        return accuracy(network)

    def say(line: str) -> None:
        clock.now_s += look_s * ("looked at" in line or "saves" in line)

    small = compact(
        model, X, train=Batches(batches_of(*blobs()), clock), validate=batches_of(*blobs(300, seed=1)), metric=metric,
        budget_s=BUDGET_S, tolerance=0.05, progress=say, **options,
    )  # fmt: skip
    return {step.name: step for step in small.compaction.steps}


@pytest.mark.parametrize(
    ("judge_s", "look_s", "options"),
    [
        (10.0, 0.0, {"steps": ("simplify", "recover"), "loss": F.cross_entropy}),  # which labels may better
        (20.0, 0.0, {"steps": ("simplify", "recover"), "loss": F.cross_entropy}),
        (0.1, 1.0, {"steps": NARROWER}),  # narrower networks fail one after another: time is left
        (10.0, 15.0, {"steps": NARROWER}),
        (20.0, 1.0, {"steps": NARROWER, "target": {"macs": 0.5}}),
        (10.0, 1.0, {"steps": ("simplify", "prune", "scar", "recover")}),
    ],
)
def test_the_budget_is_met_within_a_tenth(
    original: nn.Module, clock: Clock, judge_s: float, look_s: float, options: dict[str, Any]
):
    started_s = clock.now_s
    steps_of(original, clock, judge_s, look_s, **options)
    assert 0.9 * BUDGET_S <= clock.now_s - started_s <= 1.1 * BUDGET_S


def test_prune_leaves_time_to_the_training_that_follows(original: nn.Module, clock: Clock):
    """Of the published rule, which judges many networks."""
    started_s = clock.now_s
    steps = steps_of(original, clock, 10.0, 0.0, steps=NARROWER, method="l1")
    assert steps["prune"].seconds <= PRUNING * BUDGET_S + 10.0
    assert steps["recover"].seconds >= (1 - PRUNING) * BUDGET_S - 40.0
    assert 0.9 * BUDGET_S <= clock.now_s - started_s <= 1.1 * BUDGET_S
