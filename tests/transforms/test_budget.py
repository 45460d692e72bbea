"""``budget_s`` is met by all of ``compact`` within a tenth, however long its parts take by a clock that they move."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from torch.nn import functional as F

from edgedi.transforms import compact as module
from edgedi.transforms.compact import PRUNING, compact
from edgedi.transforms.recover.distil import FIRST_BATCHES
from edgedi.transforms.report import Step
from edgedi.transforms.store import Store
from edgedi.transforms.task import Budget
from tests.transforms.recover.toy import Batches, Clock, Killed, accuracy, batches_of, blobs, trained

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


def test_a_step_that_was_killed_counts_its_seconds_of_both_runs(
    original: nn.Module, clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Reading a batch takes a second, nothing else any; what comes before the steps of the second run is none of it."""
    monkeypatch.setattr("edgedi.transforms.arguments.Store", partial(Store, clock=clock))
    monkeypatch.setattr("edgedi.transforms.store.EVERY_S", 0.0)
    monkeypatch.setattr("edgedi.transforms.recover.training.STEPS_WITHOUT_BUDGET", 20)
    batches, begun_s = Batches(batches_of(*blobs()), clock), list[float]()

    def say(line: str) -> None:
        if line.startswith("simplify: "):  # done, or found in the checkpoint
            begun_s.append(clock.now_s)
            batches.kill_after = -1 if len(begun_s) > 1 else batches.num_read + 17

    def run() -> nn.Module:
        return compact(
            original, X, train=batches, validate=batches_of(*blobs(300, seed=1)), loss=F.cross_entropy,
            steps=("simplify", "recover"), checkpoint=tmp_path, progress=say,
        )  # fmt: skip

    with pytest.raises(Killed):
        run()
    clock.now_s, batches.kill_after = clock.now_s + 1000.0, -1
    simplified, recovered = run().compaction.steps
    again_s = clock.now_s - begun_s[1]
    assert again_s >= 20 - 17 + FIRST_BATCHES
    assert (simplified.seconds, recovered.seconds) == (0.0, 17.0 + again_s)


def test_prune_leaves_time_to_the_training_that_follows(original: nn.Module, clock: Clock):
    """Of the published rule, which judges many networks."""
    started_s = clock.now_s
    steps = steps_of(original, clock, 10.0, 0.0, steps=NARROWER, method="l1")
    assert steps["prune"].seconds <= PRUNING * BUDGET_S + 10.0
    assert steps["recover"].seconds >= (1 - PRUNING) * BUDGET_S - 40.0
    assert 0.9 * BUDGET_S <= clock.now_s - started_s <= 1.1 * BUDGET_S
