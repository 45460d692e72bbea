"""The step "scar": blocks for convolutions, all, a half, a fourth... of those that pay, as the score allows.

What lies between is not looked for: each number of blocks costs a training, which has half of the time that is left.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from torch import nn

from edgedi.errors import CompactionError
from edgedi.transforms.exact.traced import trace
from edgedi.transforms.measure import answer_of, difference, macs_of, size_of
from edgedi.transforms.recover import training
from edgedi.transforms.recover.distil import Trained
from edgedi.transforms.replace.block import Replace, stand_in
from edgedi.transforms.replace.candidates import (
    RATIOS,
    Candidate,
    Option,
    candidates,
    enough,
    in_order,
    least_of,
    ratios_of,
)
from edgedi.transforms.replace.fits import Fits, fit_all, fits_of, options_of, plain_of, with_blocks
from edgedi.transforms.store import Slot
from edgedi.transforms.task import Budget, Outcome, Point, Task

TRAINING = 0.5
"""The share of the time left that one training takes: the next, or a later step, has the rest."""

Train = Callable[[nn.Module, Task, Budget, Slot], Trained]
"""The network trained towards the original's answers; what is given may be changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What the step has so far."""

    fits: Fits = field(default_factory=dict)
    tried: tuple[Point, ...] = ()
    """Networks that did not score enough."""
    until_s: float | None = None
    """Second of the budget at which the training under way ends; ``None`` where none is, or there is no budget."""

    @property
    def trains(self) -> bool:
        """Whether fitting is over for want of time, or more than that."""
        return bool(self.tried) or self.until_s is not None


def replace_step(model: nn.Module, task: Task) -> Outcome:
    """The step."""
    return replace_layers(model, task, partial(training.train, step="scar"))


def replace_layers(model: nn.Module, task: Task, train: Train) -> Outcome:
    """Blocks fitted one by one, put in as many as pay, trained together towards the original's answers.

    All that pay first; where the score does not hold, the first half of them, and so on: see ``in_order``. With a
    target, those that it needs, whatever they score; none where it cannot be reached.
    """
    target, size = task.target, size_of(model, task.arguments)
    if task.judge is None and target is None:
        return Outcome(model=model, note="left alone: nothing says whether the score holds; pass validate=...")
    if target is not None and target.reached(size):
        return Outcome(model=model)
    ratios = RATIOS if task.scar_ratio is None else (task.scar_ratio,)
    found = _that_run(model, candidates(trace(model, task.arguments), ratios), task.arguments)
    if not found:
        return Outcome(model=model, note="left alone: no convolution costs less as a SCAR block")
    if target is not None and not target.reached(least := least_of(found, size)):
        left = " and ".join(f"{now:,} {unit}" for now, _, unit in target.against(least))
        after = f"the {len(found)} layers that cost less as SCAR blocks would leave {left}"
        return Outcome(model=model, note=f"left alone: {after}, and that is not enough")
    slot = task.store.slot("replace")
    progress = _load(slot, model)
    in_time = task if target is None else replace(task, budget=Budget(None))  # a target is reached, however long
    fits = progress.fits
    if not progress.trains:  # or a run taken up, with time by its own count, would go on with other blocks
        fits = fit_all(model, found, in_time, fits, lambda some: _save(slot, replace(progress, fits=some)))
    order: Sequence[Option] = in_order(options_of(found, fits), task.prices)
    progress = replace(progress, fits=fits)
    if target is None:
        return _largest_that_holds(model, order, progress, task, train)
    return _asked_for(model, enough(order, size, target), progress, task, train)


def _asked_for(model: nn.Module, order: Sequence[Option], progress: Progress, task: Task, train: Train) -> Outcome:
    """With these blocks, whatever they score. The one training is that of "recover", or here where none follows."""
    ratios = ratios_of(order)
    found = Trained(model=with_blocks(model, ratios, progress.fits))
    if not task.recovers and task.budget.left_s > 0:
        student = with_blocks(model, ratios, progress.fits)
        before = task.judge(found.model).value if task.judge else None  # a training leaves time to judge once
        trained = _trained(student, task, replace(progress, until_s=None), train, "replace-target")
        worse = task.judge is not None and before is not None and task.judge(trained.model).value < before
        found = found if worse else trained
    note, edits = _note(ratios, progress.fits), (Replace(ratios=ratios),)
    if found.num_steps and task.judge is None:
        note = f"{note}; {training.NOT_JUDGED}"
    return Outcome(model=found.model, edits=edits, num_steps=found.num_steps, note=note)


def _largest_that_holds(
    model: nn.Module, order: Sequence[Option], progress: Progress, task: Task, train: Train
) -> Outcome:
    slot, judge = task.store.slot("replace"), task.judge
    assert judge is not None
    for count in list(_halves(len(order)))[len(progress.tried) :]:
        progress = _timed(progress, task, slot)
        if progress.until_s is not None and progress.until_s <= task.budget.used_s:
            break
        ratios = ratios_of(order[:count])
        trained = _trained(with_blocks(model, ratios, progress.fits), task, progress, train, f"replace-{count}")
        small = trained.model
        macs, score = macs_of(small, task.arguments), judge(small)
        if score.value >= task.least_score:
            task.say(f"scar: {len(ratios)} layers replaced, {macs:,} MACs, score {score}, enough")
            note = _note(ratios, progress.fits)
            edits = (Replace(ratios=ratios),)
            return Outcome(model=small, edits=edits, num_steps=trained.num_steps, note=note, curve=progress.tried)
        task.say(f"scar: {len(ratios)} layers replaced, {macs:,} MACs, score {score}, too little")
        point = Point(macs=macs, score=score.value, step="scar")
        progress = replace(progress, tried=(*progress.tried, point), until_s=None)
        _save(slot, progress)
    why = "with SCAR blocks the score did not hold" if progress.tried else "no time to train SCAR blocks"
    return Outcome(model=model, note=f"left alone: {why}", curve=progress.tried)


def _timed(progress: Progress, task: Task, slot: Slot) -> Progress:
    """With the end of the next training."""
    if progress.until_s is not None or task.budget.seconds is None:
        return progress
    progress = replace(progress, until_s=task.budget.used_s + TRAINING * task.budget.left_s)
    _save(slot, progress)
    return progress


def _trained(student: nn.Module, task: Task, progress: Progress, train: Train, name: str) -> Trained:
    """``student`` after its training, or without it where that failed."""
    left_s = None if progress.until_s is None else progress.until_s - task.budget.used_s
    try:
        return train(student, task, task.budget.part(left_s), task.store.slot(name))
    except CompactionError as error:
        task.say(f"scar: {error}")
        return Trained(model=student)


def _that_run(model: nn.Module, found: Sequence[Candidate], arguments: tuple[Any, ...]) -> Sequence[Candidate]:
    """Those for which the model's own code takes a block: it may read what a convolution has and a block has not."""
    expected = answer_of(model, arguments)

    def runs(some: Sequence[Candidate]) -> bool:
        small = copy.deepcopy(model)
        for candidate in some:
            convolution: Any = small.get_submodule(candidate.name)
            small.set_submodule(candidate.name, stand_in(convolution, max(candidate.saved)))
        try:
            return difference(answer_of(small, arguments), expected) < float("inf")
        except Exception:  # whatever the model's own code does
            return False

    return found if runs(found) else [candidate for candidate in found if runs([candidate])]


def _halves(count: int) -> Iterator[int]:
    while count:
        yield count
        count //= 2


def _note(ratios: Mapping[str, int], fits: Fits) -> str:
    """What stands where, and how far each block was from its layer before the whole was trained."""
    parts = (f"{name} 1/{ratio} (error {fits[name][ratio].error:.2f})" for name, ratio in ratios.items())
    return "blocks for " + ", ".join(parts)


def _save(slot: Slot, progress: Progress) -> None:
    tried = [asdict(point) for point in progress.tried]
    slot.save({"fits": plain_of(progress.fits), "tried": tried, "until_s": progress.until_s})


def _load(slot: Slot, model: nn.Module) -> Progress:
    """As ``_save`` left it, or at the start."""
    state = slot.load()
    if state is None:
        return Progress()
    tried = tuple(Point(**point) for point in state["tried"])
    return Progress(fits=fits_of(model, state["fits"]), tried=tried, until_s=state["until_s"])
