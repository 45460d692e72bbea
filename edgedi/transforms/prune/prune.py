"""The step "prune" of ``compact``: narrower layers without training, from a few hundred inputs without labels."""

from __future__ import annotations

import copy
from bisect import bisect_left

from torch import nn

from edgedi.errors import CompactionError
from edgedi.transforms.data import MOST_KEPT
from edgedi.transforms.measure import size_of
from edgedi.transforms.prune.l1 import prune_by_l1
from edgedi.transforms.prune.path import Path, find_path
from edgedi.transforms.size import Target
from edgedi.transforms.store import digest_of, digest_of_model
from edgedi.transforms.task import Budget, Outcome, Point, Task

FINE = 0.002
"""The search ends where what is left to find is this share of the network."""
SHOWN = 5
"""Networks that are judged where none is narrow enough, spread over the MACs."""


def prune_step(model: nn.Module, task: Task) -> Outcome:
    """The narrowest network that scores ``task.least_score``, or the one of ``task.target``; the narrowest of all
    where that is not narrow enough."""
    if task.target is not None and task.target.reached(size_of(model, task.arguments)):
        return Outcome(model=model)
    if task.method == "l1":
        return prune_by_l1(model, task)
    if task.judge is None and task.target is None:
        return Outcome(model=model, note="nothing says how narrow it may be: pass validate, calibration or target")
    # A target is to be reached, however long that takes.
    path = _path(model, task, task.budget if task.target is None else Budget(None))
    if len(path.widths) == 1:
        return Outcome(model=model, note="no width can change", left_alone=path.left_alone)
    if task.target is None:
        return _searched(path, task)
    index = _first_within(path, task.target)
    return _narrowest(path, task) if index is None else _Tried(path, task).outcome(index)


def narrow_to(model: nn.Module, task: Task, macs: int) -> Outcome:
    """``model`` with at most ``macs`` multiplications. ``CompactionError`` where that cannot be reached, in the time
    that there is for looking at groups.
    """
    path = _path(model, task, task.budget)
    index = _first_within(path, Target(macs=macs))
    if index is None:
        raise CompactionError(f"the narrowest network has {path.macs(len(path.widths) - 1):,} MACs, not {macs:,}")
    return _Tried(path, task).outcome(index)


def _path(model: nn.Module, task: Task, budget: Budget) -> Path:
    data = task.calibration or task.train
    assert data is not None  # the arguments were checked
    return find_path(
        model, task.arguments, data.first(MOST_KEPT), task.seed, task.say, task.prices,
        budget=budget, store=task.store,
    )  # fmt: skip


def _first_within(path: Path, target: Target) -> int | None:
    """The widest point that reaches ``target``."""
    points = range(len(path.widths))
    first = bisect_left(points, True, key=lambda i: target.reached(path.size(i)))
    return first if first < len(points) else None


def _narrowest(path: Path, task: Task) -> Outcome:
    """The end of the path, and what networks on the way score."""
    made, end = _Tried(path, task), len(path.widths) - 1
    step = (path.macs(0) - path.macs(end)) / SHOWN
    wanted = [path.macs(0) - step * number for number in range(1, SHOWN)] if task.judge else []
    between = {min(range(1, end + 1), key=lambda index: abs(path.macs(index) - macs)) for macs in wanted}
    for index in sorted(between - {end}):
        made.judged(index)
    return made.outcome(end)


def _searched(path: Path, task: Task) -> Outcome:
    """By bisection over the path: each network that scores enough is the new start, each that does not the new end."""
    made, good, bad = _Tried(path, task), 0, len(path.widths)
    while bad - good > 1 and path.macs(good) - path.macs(min(bad, len(path.widths) - 1)) > FINE * path.macs(0):
        index = _middle(path, good, bad)
        started_s = task.budget.used_s
        if made.judged(index) >= task.least_score:
            good = index
        else:
            bad = index
        if task.budget.left_s < task.budget.used_s - started_s:
            break
    return made.outcome(good)


def _middle(path: Path, good: int, bad: int) -> int:
    """The point between, of about half way in multiplications."""
    wanted = (path.macs(good) + path.macs(min(bad, len(path.widths) - 1))) / 2
    return min(range(good + 1, bad), key=lambda index: abs(path.macs(index) - wanted))


class _Tried:
    """The networks of a path that were made and judged; a checkpoint keeps their scores, and the best one's weights."""

    def __init__(self, path: Path, task: Task) -> None:
        self._path, self._task, self._slot = path, task, task.store.slot("tried")
        self._whose = digest_of((digest_of_model(path.model), [dict(width.removed) for width in path.widths]))
        saved = self._slot.load() or {}
        saved = saved if saved.get("path") == self._whose else {}
        self._scores: dict[int, float] = saved.get("scores", {})
        self.curve: list[Point] = []
        self._best: tuple[int, nn.Module] | None = None
        if saved.get("weights") is not None:
            small = path.edit(saved["best"]).apply(copy.deepcopy(path.model), path.arguments)
            small.load_state_dict(saved["weights"])
            self._best = (saved["best"], small)

    def judged(self, index: int) -> float:
        """The score of point ``index``."""
        if index not in self._scores:
            self._judge(index)
        score = self._scores[index]
        self.curve.append(Point(macs=self._path.macs(index), score=score, step="prune"))
        return score

    def _judge(self, index: int) -> None:
        small, share = self._path.network(index), self._path.macs(index) / self._path.macs(0)
        assert self._task.judge is not None  # nobody asks without
        score = self._task.judge(small)
        self._task.say(f"prune: {share:.1%} of the MACs score {score}, {self._task.least_score:.4g} is needed")
        self._scores[index] = score.value
        if score.value >= self._task.least_score:
            self._best = (index, small)
        if self._slot.due:
            best, weights = (None, None) if self._best is None else (self._best[0], self._best[1].state_dict())
            self._slot.save({"path": self._whose, "scores": self._scores, "best": best, "weights": weights})

    def outcome(self, index: int) -> Outcome:
        """Point ``index`` as the step's result."""
        alone, curve = self._path.left_alone, tuple(self.curve)
        if index == 0:
            note = "nothing could go without losing score"
            return Outcome(model=self._path.model, note=note, left_alone=alone, curve=curve)
        small = self._best[1] if self._best and self._best[0] == index else self._path.network(index)
        return Outcome(model=small, edits=(self._path.edit(index),), left_alone=alone, curve=curve)
