"""The step "recover": training brings back what cutting cost, and so allows for cutting deeper."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from edgedi.errors import CompactionError
from edgedi.transforms.edits import plain_of, redo, value_of
from edgedi.transforms.measure import macs_of
from edgedi.transforms.prune.prune import narrow_to
from edgedi.transforms.recover.distil import Trained
from edgedi.transforms.recover.search import Trial, next_macs, share_of
from edgedi.transforms.recover.training import NOT_JUDGED, train
from edgedi.transforms.store import Slot
from edgedi.transforms.task import Budget, Edit, Outcome, Point, Task

REST = 0.05
"""The share of the budget that a search may leave unused."""
TRIAL = 4.0
"""A network is tried where there are so many times the seconds that judging it takes."""

NarrowBy = Callable[[nn.Module, Task, int], Outcome]
"""``narrow(model, task, macs)``: the network with narrower layers, which costs about ``macs``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network on the way, and the edits from the one that came in."""

    model: nn.Module
    edits: tuple[Edit, ...] = ()
    num_steps: int = 0
    """Of the trainings that it comes from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What the search for the smallest network that scores enough has so far."""

    held: Network
    """The smallest that did."""
    tried: Network | None = None
    """The one under training, as it was cut."""
    until_s: float | None = None
    """Second of the budget at which its training ends."""
    trials: tuple[Trial, ...] = ()
    curve: tuple[Point, ...] = ()


def recover_step(model: nn.Module, task: Task) -> Outcome:
    """The step."""
    return recover(model, task, _narrow if task.narrows else None)


def _narrow(model: nn.Module, task: Task, macs: int) -> Outcome:
    """By what the step "prune" does, from training inputs where there is no calibration."""
    return narrow_to(model, replace(task, calibration=task.calibration or task.train), macs)


def recover(model: nn.Module, task: Task, narrow: NarrowBy | None) -> Outcome:
    """With a target, or nothing to cut or judge by: ``model`` trained. Else the smallest network that scores enough."""
    if narrow is None or task.judge is None or task.target is not None:
        return _trained(model, task)
    return _smallest(model, task, narrow)


def _trained(model: nn.Module, task: Task) -> Outcome:
    """``model`` trained for what is left of the budget; as it came where that made it no better.

    One that answers as the original does has nothing to learn from it: only labels may make it better than that.
    """
    if task.exact and not _learns_from_labels(task):
        return Outcome(model=model, note=_NOTHING)
    before = task.judge(model).value if task.judge else None
    trained = _distilled(model, task, task.budget, task.store.slot("training"))
    if trained is None:
        return Outcome(model=model, note=_FAILED)
    small, num_steps = trained.model, trained.num_steps
    if task.judge is None or before is None:
        return Outcome(model=small, num_steps=num_steps, note=NOT_JUDGED)
    after = task.judge(small).value
    curve = (Point(macs=macs_of(model, task.arguments), score=before, step="before training"),)
    if after < before or (task.exact and after == before):
        return Outcome(model=model, note=f"training was of no use: {before:.4g} -> {after:.4g}", curve=curve)
    return Outcome(model=small, num_steps=num_steps, curve=curve)


def _learns_from_labels(task: Task) -> bool:
    """Whether the user says what labels teach, and has labels to tell whether it was learnt."""
    return task.loss is not None and task.validate is not None


_FAILED = "training failed, and the network was left as it was"
_NOTHING = "nothing to recover: no layer was narrowed or replaced"


def _smallest(model: nn.Module, task: Task, narrow: NarrowBy) -> Outcome:
    slot, start = task.store.slot("search"), macs_of(model, task.arguments)
    last = _load(slot, model, task)
    while (further := _further(last, start, task, narrow, slot)) is not None:
        last = further
    if not last.trials:  # no time to look for what could go, or nothing that could
        return _trained(model, task)
    held = sum(trial.held for trial in last.trials)
    found = Outcome(
        model=last.held.model,
        edits=last.held.edits,
        num_steps=last.held.num_steps,
        note=f"of {len(last.trials)} networks trained, {held} scored enough",
        curve=last.curve,
    )
    budget = task.budget
    return found if budget.seconds is None or budget.left_s <= REST * budget.seconds else _longer(found, task)


def _longer(found: Outcome, task: Task) -> Outcome:
    """The end of a search that took less than its time: its network is trained for what is left."""
    trained = _trained(found.model, replace(task, exact=task.exact and not found.edits))
    note = f"{found.note}; {trained.note}" if trained.note else found.note
    return replace(found, model=trained.model, num_steps=found.num_steps + trained.num_steps, note=note)


def _further(search: Search, start: int, task: Task, narrow: NarrowBy, slot: Slot) -> Search | None:
    """The search after one more network; ``None`` where it is over."""
    if search.tried is None:
        cut = _cut(search, start, task, narrow)
        if cut is None:
            return None
        search = cut
        _save(slot, search)
    tried, budget = search.tried or search.held, task.budget
    if search.until_s is not None:
        budget = budget.part(search.until_s - budget.used_s)
    trained = _distilled(tried.model, task, budget, task.store.slot(f"training-{len(search.trials)}"))
    score = None if trained is None or task.judge is None else task.judge(trained.model).value
    held, macs = score is not None and score >= task.least_score, macs_of(tried.model, task.arguments)
    task.say(f"recover: {macs:,} MACs score {score}, {'enough' if held else 'too little'}")
    after = Search(
        held=_after_training(tried, trained) if held and trained is not None else search.held,
        trials=(*search.trials, Trial(macs=macs, held=held)),
        curve=(*search.curve, *([] if score is None else [Point(macs=macs, score=score, step="recover")])),
    )
    _save(slot, after)
    return after


def _after_training(network: Network, trained: Trained) -> Network:
    return replace(network, model=trained.model, num_steps=network.num_steps + trained.num_steps)


def _cut(search: Search, start: int, task: Task, narrow: NarrowBy) -> Search | None:
    """With the next network to be tried; ``None`` where there is none, or no time.

    Narrowing has a share of the time by itself, so that it leaves the training that follows its own.
    """
    macs, budget = next_macs(start, search.trials), task.budget
    if macs is None or budget.left_s <= TRIAL * task.judge_s:
        return None
    if not task.exact and task.judge is not None and task.judge(search.held.model).value < task.least_score:
        # What came in does not score enough: it is trained as it is, and cut further only if that helps.
        return None if search.trials else _timed(replace(search, tried=search.held), task)
    try:
        within = replace(task, budget=budget.part(share_of(budget.left_s, search.trials)))
        outcome = narrow(search.held.model, within, macs)
    except CompactionError:  # nothing that narrow is left to be had
        return None
    if macs_of(outcome.model, task.arguments) >= macs_of(search.held.model, task.arguments):
        return None
    tried = replace(search.held, model=outcome.model, edits=(*search.held.edits, *outcome.edits))
    return _timed(replace(search, tried=tried), task)


def _timed(search: Search, task: Task) -> Search:
    """With the end of the trial that begins now: a training, and the judgement of what it made."""
    budget = task.budget
    if budget.seconds is None:
        return replace(search, until_s=None)
    seconds = max(share_of(budget.left_s, search.trials), TRIAL * task.judge_s)
    return replace(search, until_s=budget.used_s + seconds)


def _distilled(model: nn.Module, task: Task, budget: Budget, slot: Slot) -> Trained | None:
    """``model`` trained; ``None`` where that failed."""
    try:
        return train(model, task, budget, slot, "recover")
    except CompactionError as error:
        task.say(f"recover: {error}")
        return None


def _save(slot: Slot, search: Search) -> None:
    networks = {"held": search.held, "tried": search.tried}
    slot.save(
        {
            **{name: network and _plain(network) for name, network in networks.items()},
            "until_s": search.until_s,
            "trials": [asdict(trial) for trial in search.trials],
            "curve": [asdict(point) for point in search.curve],
        }
    )


def _plain(network: Network) -> dict[str, Any]:
    weights = network.model.state_dict()
    return {"edits": plain_of(network.edits), "weights": weights, "num_steps": network.num_steps}


def _load(slot: Slot, model: nn.Module, task: Task) -> Search:
    """As ``_save`` left it, or at the start."""
    state = slot.load()
    if state is None:
        return Search(held=Network(model=model))

    def network(plain: dict[str, Any]) -> Network:
        edits = value_of(plain["edits"])
        made = redo(copy.deepcopy(model), task.arguments, edits, plain["weights"])
        return Network(model=made, edits=edits, num_steps=plain["num_steps"])

    return Search(
        held=network(state["held"]),
        tried=state["tried"] and network(state["tried"]),
        until_s=state["until_s"],
        trials=tuple(Trial(**trial) for trial in state["trials"]),
        curve=tuple(Point(**point) for point in state["curve"]),
    )
