"""The step: trains what came in, or cuts deeper as long as enough comes back; the same after a kill."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgedi.errors import CompactionError
from edgedi.transforms import edits
from edgedi.transforms.compact import compact
from edgedi.transforms.exact.simplify import simplify
from edgedi.transforms.measure import answer_of, measured
from edgedi.transforms.recover import training
from edgedi.transforms.recover.distil import Trained
from edgedi.transforms.recover.recover import recover
from edgedi.transforms.recover.search import MOST_TRIALS, Trial, next_macs, share_of
from edgedi.transforms.score import Score
from edgedi.transforms.size import Target
from edgedi.transforms.store import EVERY_S, Store
from edgedi.transforms.task import Budget, Outcome, Task
from tests.transforms.planted import randomised
from tests.transforms.recover.toy import (
    Batches,
    Clock,
    Killed,
    accuracy,
    batches_of,
    blobs,
    cut,
    same_weights,
    train_data,
    trained,
)

X = blobs(8)[0]


def macs_of(model: nn.Module) -> int:
    return measured(model, (X,))[2].macs


@dataclass(frozen=True, slots=True)
class Keep:
    """The first layer's first channels."""

    width: int

    def apply(self, model: nn.Module, arguments: tuple[Any, ...]) -> nn.Module:
        return cut(model, self.width)


def narrow_to(model: nn.Module, task: Task, macs: int) -> Outcome:
    """The widest first layer that is cheap enough."""
    for width in range(model[0].out_channels, 0, -1):
        small = cut(model, width)
        if macs_of(small) <= macs:
            return Outcome(model=small, edits=(Keep(width),))
    raise CompactionError("no width is that cheap")


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edits, "EDITS", {**edits.EDITS, "Keep": Keep})


@pytest.fixture(scope="module")
def original() -> nn.Module:
    return trained()


@pytest.fixture(scope="module")
def folded(original: nn.Module) -> nn.Module:
    return simplify(original, (X,))[0]


@pytest.fixture
def task_of(original: nn.Module, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Task]:
    """A task without an end, in which a training has few steps."""
    monkeypatch.setattr(training, "STEPS_WITHOUT_BUDGET", 20)

    def make(**options: Any) -> Task:
        usual: dict[str, Any] = {
            "original": original, "arguments": (X,), "say": lambda line: None, "budget": Budget(None),
            "train": train_data(), "judge": lambda model: Score(value=accuracy(model)),
        }  # fmt: skip
        return Task(**{**usual, **options})

    return make


def by_width(least: int) -> Callable[[nn.Module], Score]:
    """A judge whom the first layer's width is enough or not."""
    return lambda model: Score(value=float(model[0].out_channels >= least))


# --- which depth is next ----------------------------------------------------------------------------------------------


def test_a_third_less_while_it_holds_and_half_of_that_where_it_does_not():
    trials: list[Trial] = []
    asked = []
    for held in (True, False, False, True, False):
        macs = next_macs(1000, trials)
        assert macs is not None
        asked.append(macs)
        trials.append(Trial(macs=macs, held=held))
    assert asked == [700, 490, 595, 648, 599]
    assert next_macs(1000, trials) == 624


def test_the_search_ends_with_its_trials_or_where_little_is_to_be_won():
    held = [Trial(macs=1000, held=True)] * MOST_TRIALS
    assert next_macs(1000, held) is None
    assert next_macs(1000, held[1:]) == 700
    failed = [Trial(macs=700, held=False)]
    assert [next_macs(1000, failed * count) for count in (1, 3, 4)] == [850, 962, None]


def test_each_trial_gets_its_share_of_the_seconds():
    trial = Trial(macs=1, held=True)
    assert [share_of(600.0, [trial] * done) for done in (0, MOST_TRIALS - 1, MOST_TRIALS)] == [100.0, 600.0, 600.0]


# --- one network trained ----------------------------------------------------------------------------------------------


def test_the_network_that_came_in_is_trained(folded: nn.Module, task_of: Callable[..., Task]):
    small = cut(folded, 2)
    weights = copy.deepcopy(small)
    outcome = recover(small, task_of(target=Target(macs=1)), narrow_to)
    assert accuracy(outcome.model) > accuracy(small)
    assert (outcome.edits, outcome.note, outcome.num_steps) == ((), "", 20)
    assert [(point.macs, point.score) for point in outcome.curve] == [(macs_of(small), accuracy(small))]
    assert same_weights(small, weights)


def test_training_that_was_of_no_use_is_thrown_away(folded: nn.Module, task_of: Callable[..., Task]):
    judge = lambda model: Score(value=float(model is folded))  # noqa: E731  # the shortest way to say it
    outcome = recover(folded, task_of(judge=judge), None)
    assert outcome.model is folded
    assert (outcome.note, outcome.num_steps) == ("training was of no use: 1 -> 0", 0)


def test_training_that_fails_leaves_the_network(folded: nn.Module, task_of: Callable[..., Task]):
    lines: list[str] = []
    task = task_of(loss=lambda outputs, labels: outputs.sum() / 0, say=lines.append)
    outcome = recover(folded, task, None)
    assert outcome.model is folded
    assert outcome.note == "training failed, and the network was left as it was"
    assert lines[-1].startswith("recover: training came to a gradient of nan at step 0")


# --- the smallest network that scores enough --------------------------------------------------------------------------


def test_the_smallest_that_held_comes_back(folded: nn.Module, task_of: Callable[..., Task]):
    lines: list[str] = []
    task = task_of(judge=by_width(5), least_score=1.0, say=lines.append)
    outcome = recover(folded, task, narrow_to)
    widths = [8, 5, 3, 4, 4, 4]
    assert [point.macs for point in outcome.curve] == [
        macs_of(cut(folded, width)) for width in widths[: len(outcome.curve)]
    ]
    assert outcome.edits == (Keep(8), Keep(5))
    assert outcome.num_steps == 2 * 20  # of the two that held, one after the other
    assert outcome.model[0].out_channels == 5
    assert same_shapes(outcome, folded)
    assert accuracy(outcome.model) > 0.9


def same_shapes(outcome: Outcome, model: nn.Module) -> bool:
    """Whether the edits make the network that came back."""
    again = copy.deepcopy(model)
    for edit in outcome.edits:
        again = edit.apply(again, (X,))
    ours, theirs = again.state_dict(), outcome.model.state_dict()
    return {name: tensor.shape for name, tensor in ours.items()} == {n: t.shape for n, t in theirs.items()}


def test_where_nothing_holds_the_network_stays(folded: nn.Module, task_of: Callable[..., Task]):
    outcome = recover(folded, task_of(judge=by_width(12), least_score=1.0), narrow_to)
    assert outcome.model is folded
    assert outcome.edits == ()
    assert outcome.note == f"of {len(outcome.curve)} networks trained, 0 scored enough"


def test_what_does_not_score_enough_is_trained_before_it_is_cut(folded: nn.Module, task_of: Callable[..., Task]):
    small = cut(folded, 2)
    least_score = accuracy(small) + 0.02
    outcome = recover(small, task_of(least_score=least_score), narrow_to)
    assert outcome.curve[0].macs == macs_of(small)
    assert accuracy(outcome.model) >= least_score
    hopeless = recover(small, task_of(least_score=1.1), narrow_to)
    assert hopeless.model is small
    assert len(hopeless.curve) == 1


def test_the_budget_is_met(folded: nn.Module, task_of: Callable[..., Task]):
    clock = Clock()
    data = train_data(clock=clock)
    started_s = clock.now_s
    task = task_of(judge=by_width(5), least_score=1.0, train=data, budget=Budget(240.0, clock))
    outcome = recover(folded, task, narrow_to)
    assert outcome.model[0].out_channels == 5
    assert 0.9 * 240 <= clock.now_s - started_s <= 1.1 * 240


def test_a_training_has_its_time_however_long_narrowing_took(
    folded: nn.Module, task_of: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
):
    """Of 240 seconds narrowing takes 10 each time, and is told how many it should."""
    clock, given, trainings = Clock(), list[float](), list[float]()

    def slowly(model: nn.Module, task: Task, macs: int) -> Outcome:
        given.append(task.budget.left_s)
        clock.now_s += 10.0
        return narrow_to(model, task, macs)

    def trained_by(student: nn.Module, *_: object, budget: Budget, **__: object) -> Trained:
        trainings.append(budget.left_s)
        clock.now_s += budget.left_s
        return Trained(model=student, num_steps=1)

    monkeypatch.setattr(training, "distil", trained_by)
    recover(folded, task_of(judge=by_width(5), least_score=1.0, budget=Budget(240.0, clock)), slowly)
    assert given[0] == pytest.approx(40.0)
    assert trainings[0] == pytest.approx(230 / 6)
    assert all(seconds > 15.0 for seconds in trainings)
    assert 10.0 * len(given) + sum(trainings) <= 240.0


def test_without_time_to_narrow_the_network_is_trained_as_it_is(folded: nn.Module, task_of: Callable[..., Task]):
    def never(model: nn.Module, task: Task, macs: int) -> Outcome:
        raise CompactionError("no time")

    outcome = recover(folded, task_of(least_score=0.5), never)
    assert (outcome.edits, outcome.num_steps) == ((), 20)
    assert outcome.model is not folded


@pytest.mark.parametrize(
    "kill_after", [12, pytest.param(35, marks=pytest.mark.slow), pytest.param(70, marks=pytest.mark.slow)]
)
def test_a_killed_search_ends_as_if_it_had_not_been(
    folded: nn.Module, task_of: Callable[..., Task], tmp_path: Path, kill_after: int
):
    clock = Clock()
    batches = Batches(batches_of(*blobs()), clock, each_s=EVERY_S / 3)
    judging: dict[str, Any] = {"judge": by_width(5), "least_score": 1.0}
    expected = recover(folded, task_of(**judging), narrow_to)
    data = train_data()
    data._given = batches
    batches.kill_after = kill_after
    with pytest.raises(Killed):
        recover(folded, task_of(**judging, train=data, store=Store(tmp_path, clock=clock)), narrow_to)
    found = recover(folded, task_of(**judging, store=Store(tmp_path, clock=clock)), narrow_to)
    assert same_weights(found.model, expected.model)
    assert (found.edits, found.note, found.curve) == (expected.edits, expected.note, expected.curve)
    assert found.num_steps == expected.num_steps


# --- all of compact ---------------------------------------------------------------------------------------------------


@pytest.fixture
def options(original: nn.Module, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(training, "STEPS_WITHOUT_BUDGET", 20)
    return {
        "validate": batches_of(*blobs(300, seed=1)), "tolerance": 0.05, "steps": ("simplify", "recover"),
        "loss": nn.functional.cross_entropy,
    }  # fmt: skip


def told(model: nn.Module) -> list[tuple[Any, ...]]:
    return [(step.name, step.before, step.after, step.score, step.note) for step in model.compaction.steps]


def test_with_pruning_among_the_steps_it_narrows_further(original: nn.Module, options: dict[str, Any]):
    given = {**options, "train": batches_of(*blobs()), "steps": ("simplify", "prune", "recover")}
    small = compact(original, X, **{**given, "tolerance": 0.01})
    _, pruned, recovered = small.compaction.steps
    assert recovered.before == pruned.after
    assert recovered.after.macs < 0.9 * pruned.after.macs
    assert recovered.score.value >= small.compaction.score.value - 0.01
    assert recovered.note.startswith("of ")
    with torch.no_grad():
        assert small(X).shape == (8, 3)
    to_target = compact(original, X, target={"macs": 0.3}, **given)
    _, pruned, recovered = to_target.compaction.steps
    assert pruned.after.macs <= 0.3 * macs_of(original)
    assert recovered.after == pruned.after
    assert recovered.score.value >= pruned.score.value


def test_the_published_rule_is_all_that_narrows_where_it_was_asked_for(original: nn.Module, options: dict[str, Any]):
    given = {**options, "train": batches_of(*blobs()), "method": "l1"}
    small = compact(original, X, **{**given, "steps": ("simplify", "prune", "recover")})
    alone = compact(original, X, **{**given, "steps": ("simplify", "prune")})
    _, pruned, recovered = small.compaction.steps
    assert pruned.after == alone.compaction.steps[-1].after
    assert pruned.after.macs < pruned.before.macs
    assert recovered.after == recovered.before == pruned.after
    assert recovered.score.value >= pruned.score.value


NOTHING = "nothing to recover: no layer was narrowed or replaced"


@pytest.mark.parametrize("steps", [None, ("simplify", "recover")])
def test_what_cannot_be_smaller_comes_back_as_the_exact_step_made_it(steps: tuple[str, ...] | None):
    """Two widths that are the model's own input and output, and blocks that cost more."""
    model = randomised(nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3), nn.Flatten(2)))
    x = blobs(48)[0]
    validate = [(x, answer_of(model, (x,)).argmax(1))]
    small = compact(model, X, train=x, validate=validate, steps=steps, tolerance=0.5)
    assert same_weights(small, compact(model, X))
    step = small.compaction.steps[-1]
    assert (step.name, step.note, step.training_steps) == ("recover", NOTHING, 0)
    assert f"recover: {NOTHING}" in str(small.compaction).splitlines()


def test_training_data_alone_change_nothing_and_the_report_says_what_is_missing(original: nn.Module):
    small = compact(original, X, train=batches_of(*blobs()))
    assert same_weights(small, compact(original, X))
    assert [step.note for step in small.compaction.steps] == [
        "",
        "nothing says how narrow it may be: pass validate, calibration or target",
        "left alone: nothing says whether the score holds; pass validate=...",
        NOTHING,
    ]


def test_a_training_that_nothing_judges_is_told(folded: nn.Module, task_of: Callable[..., Task]):
    outcome = recover(cut(folded, 2), task_of(judge=None, target=Target(macs=1)), None)
    assert outcome.num_steps == 20
    assert outcome.note == "nothing tells whether training helped: pass validate or calibration"


@pytest.mark.parametrize(("after", "taken"), [(0.9, True), (0.8, False)])
def test_labels_may_teach_a_network_that_is_no_smaller(
    folded: nn.Module, task_of: Callable[..., Task], after: float, taken: bool
):
    labels: dict[str, Any] = {"loss": nn.functional.cross_entropy, "validate": train_data(), "exact": True}
    judge = lambda model: Score(value=0.8 if model is folded else after)  # noqa: E731  # the shortest way to say it
    outcome = recover(folded, task_of(judge=judge, **labels), None)
    assert (outcome.model is not folded, outcome.num_steps) == (taken, 20 * taken)
    assert outcome.note == ("" if taken else "training was of no use: 0.8 -> 0.8")
    for missing in ("loss", "validate"):
        outcome = recover(folded, task_of(judge=judge, **{**labels, missing: None}), None)
        assert (outcome.model is folded, outcome.note) == (True, NOTHING)


def test_a_search_that_finds_nothing_smaller_ends_with_what_came_in(folded: nn.Module, task_of: Callable[..., Task]):
    clock = Clock()
    data = train_data(clock=clock)
    least = measured(folded, (X,))[2].macs
    task = task_of(judge=lambda model: Score(value=macs_of(model) / least), least_score=1.0, train=data, exact=True)
    outcome = recover(folded, replace(task, budget=Budget(240.0, clock)), narrow_to)
    assert (outcome.model is folded, outcome.num_steps) == (True, 0)
    assert outcome.note == f"of 4 networks trained, 0 scored enough; {NOTHING}"


@pytest.mark.parametrize(
    ("kill_after", "pruned"),
    [
        (5, False),  # four of them before any step
        pytest.param(15, False, marks=pytest.mark.slow),
        (20, True),
        pytest.param(70, True, marks=pytest.mark.slow),
    ],
)
def test_a_killed_compact_goes_on(
    original: nn.Module,
    options: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kill_after: int,
    pruned: bool,
):
    if pruned:
        options |= {"steps": ("simplify", "prune", "recover"), "tolerance": 0.0}
    monkeypatch.setattr("edgedi.transforms.store.EVERY_S", 0.0)  # every step is kept
    batches = Batches(batches_of(*blobs()))
    expected = compact(original, X, train=batches, **options)
    batches.kill_after = batches.num_read + kill_after
    with pytest.raises(Killed):
        compact(original, X, train=batches, checkpoint=tmp_path, **options)
    batches.kill_after = -1
    lines: list[str] = []
    found = compact(original, X, train=batches, checkpoint=tmp_path, progress=lines.append, **options)
    assert same_weights(found, expected)
    assert told(found) == told(expected)
    assert found.compaction.curve == expected.compaction.curve
    assert lines[0] == "simplify: done before, from the checkpoint"
    again = compact(original, X, train=batches, checkpoint=tmp_path, **options)
    assert same_weights(again, expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["finished.pt"]


def test_the_checkpoint_of_another_run(original: nn.Module, options: dict[str, Any], tmp_path: Path):
    given = {**options, "steps": ("simplify",), "checkpoint": str(tmp_path), "loss": nn.CrossEntropyLoss()}
    given |= {"calibration": X, "train": batches_of(*blobs())}
    compact(original, X, **given)
    other = copy.deepcopy(original)
    with torch.no_grad():
        other[0].weight[0, 0, 0, 0] += 1
    with pytest.raises(ValueError, match=r"finished\.pt is of another model"):
        compact(other, X, **given)
    data, weighted = batches_of(*blobs(300, seed=2)), nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0]))
    for changed in (
        {"seed": 1}, {"tolerance": 0.1}, {"steps": ()}, {"validate": data}, {"metric": lambda model, validate: 0.5},
        {"loss": nn.functional.mse_loss}, {"loss": weighted}, {"calibration": None}, {"calibration": X + 1},
        {"train": data}, {"train": batches_of(*blobs(seed=2))}, {"train": Batches(batches_of(*blobs()))},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"finished\.pt is of a run with other arguments; remove the folder"):
            compact(original, X, **{**given, **changed})
    lines: list[str] = []
    compact(original, X, **{**given, "loss": nn.CrossEntropyLoss(), "calibration": X.clone(), "progress": lines.append})
    assert lines == ["simplify: done before, from the checkpoint"]
    (tmp_path / "finished.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"finished\.pt is damaged"):
        compact(original, X, **given)
