"""``compact``: a smaller network that answers as well, as a module of the same class."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from edgedi.errors import CompactionError
from edgedi.transforms import finished as kept
from edgedi.transforms.arguments import (
    FITTED,
    arguments_of,
    check_answer,
    check_budget,
    check_inputs,
    check_method,
    check_model,
    check_prunable,
    check_seed,
    fall_of,
    judged,
    say_of,
    shares_of,
    steps_of,
    store_of,
    target_of,
    task_of,
)
from edgedi.transforms.exact.simplify import simplify_step
from edgedi.transforms.finished import Finished
from edgedi.transforms.measure import difference, measured
from edgedi.transforms.prices import Profile, prices_for, prices_of
from edgedi.transforms.prune.prune import prune_step
from edgedi.transforms.recover.recover import recover_step
from edgedi.transforms.replace.replace import replace_step
from edgedi.transforms.report import Compaction, Step, changes, missed
from edgedi.transforms.score import Metric, Score, forgiving
from edgedi.transforms.size import Size, Target
from edgedi.transforms.store import Slot, Store
from edgedi.transforms.task import Budget, Loss, Outcome, Point, Say, Task

NARROWING = {"prune", "scar"}
"""The steps that a target is reached by."""
PRUNING = 0.5
"""The share of the time left that "prune" may take where a step follows that trains."""
STEPS: Mapping[str, Callable[[nn.Module, Task], Outcome]] = {
    "simplify": simplify_step,
    "prune": prune_step,
    "scar": replace_step,
    "recover": recover_step,
}


def compact(
    model: nn.Module,
    example_inputs: Any,
    *,
    calibration: Any = None,
    train: Any = None,
    validate: Any = None,
    metric: Metric | str = "accuracy",
    loss: Loss | None = None,
    tolerance: float | None = None,
    steps: Sequence[str] | None = None,
    method: str = FITTED,
    target: Mapping[str, float] | None = None,
    cost: Profile | str = "macs",
    scar_ratio: int | str = "auto",
    budget_s: float | None = None,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Say | bool | None = None,
) -> nn.Module:
    """A smaller copy of ``model`` that answers as well; ``model`` itself stays as it is.

    ``example_inputs``: a tensor, or a tuple of arguments. ``steps``, by default all that there is data for, in order
    (one that lacks what tells how far it may go is skipped, and the report says so; one that you name is refused):

    * "simplify" needs no data and gives the same answers up to rounding: it folds batch normalisation, and takes out
      identities, channels that are zero whatever the input, and channels that equal others, with all that only fed
      them. What cannot be proven to be unneeded stays. It holds for evaluation mode, and for inputs that take the same
      way through the model's code as the example. Both networks are run on the example. A copy that differs by more
      than 1e-5 of the largest value, or three times the model's own rounding where that is more, is not returned.
    * "prune" trains nothing: channels that others can make up for go, and the layers that read them are fitted to what
      the original's make (``method`` "reconstruct"). It needs ``calibration``, or takes inputs of ``train``. The
      narrowest network found that scores enough is taken; with ``target``, as {"macs": 0.5} for half of the original's
      multiplications, {"parameters": 0.1} for a tenth of its parameters or both, that one whatever it scores.
      ``method`` "l1" is the published rule, to compare with: filters by their weights' sums, without a fit, as long as
      ``validate`` allows, target or not; "recover" then trains what it left and narrows nothing.
    * "scar" puts SCAR blocks in the place of wide convolutions, where they cost less: each is fitted to its layer, then
      the network is trained, with all blocks, then with half as many, those that save most for their error, and so on
      until the metric holds; what lies between is not tried. A block has no bias but in its last layer, where that of
      the convolution goes. ``scar_ratio`` is that of a block's outputs to what is inside, 4 or 8, or "auto" for each
      its own. Needs ``train``, and ``validate`` to tell. Where "prune" did not reach the ``target``, or was left out,
      those stay that the target needs, whatever they score, and nothing needs to tell. Linear heads stay.
    * "recover" trains what the other steps made towards the original's answers. It needs ``train``. With "prune" among
      the steps, not by "l1", a judge and no ``target`` it narrows further and trains again, and takes the smallest that
      scores enough; else it trains the network as it is for what is left of ``budget_s``. Where no layer was narrowed
      or replaced, there is nothing to bring back, and the network stays as it is: no smaller, it must not answer
      otherwise. Only with both ``loss`` and ``validate`` it is trained even then, as labels may teach more than the
      original knows, and taken where it scores more. Without ``validate`` and ``calibration`` nothing tells whether
      training helped, and the report says so.

    ``calibration``: inputs without labels, a tensor or batches. ``train``: inputs, or (inputs, labels) batches, to
    learn from; ``loss(outputs, labels)`` says what is learnt of labels that are not classes. ``validate``: (inputs,
    labels) batches in a fixed order, by which a smaller network is taken or not: ``metric`` of it may fall by
    ``tolerance`` at most, by default not at all. Without it a network must answer as the original does on all
    calibration inputs but a share of ``tolerance``, by default 3 %; every fourth of them is kept for that. For half a
    point of accuracy ``tolerance`` is 0.005; for a ``metric`` of your own it is in that metric's unit. ``metric`` is
    "accuracy", or a callable of (model, validate) that gives more for a better network; one for which it gives no
    finite number is too bad. ``budget_s``: the seconds to be used, met within a tenth where there is training to do, to
    which "prune" leaves a half; without it each training has 1,000 steps. With a ``target`` neither "prune" nor the
    fits of "scar" stop at the budget: it is reached however long that takes, and training has what is left.

    ``cost`` says where to save first: multiplications count the same everywhere ("macs"), or as long as devices were
    measured to take for them, by a ``ClusterProfile`` of this model such as ``session.profile``. Where ``target``
    counts parameters, those that a multiplication stands for count besides, or alone.

    ``checkpoint``: a folder in which a run keeps what it has, after each step and once a minute. Called again with the
    same arguments, a run that was killed goes on there. Without ``budget_s`` it ends with the same network as if it had
    not been, and so does any run of the same ``seed``; with it, the clock says how many steps a training has.
    Other data are noticed by type, length and first batch, as far as these are the same each time.

    Steps compute where the model and the data are; "prune" on the CPU only: give ``model.cpu()``, move what comes back.

    The copy is of the same class, with smaller layers; its ``compaction`` says what was done, as a table when printed.
    ``progress`` is called with a line per step; by default a terminal shows them.

    Raises ``ValueError`` for a model in training mode, one that is not on the CPU and is to be pruned, inputs that the
    model refuses or that it does not answer with finite numbers, a step that does not exist, lacks its data or could do
    nothing, data that are empty or shuffled, a ``metric`` without ``validate``, and a checkpoint that is damaged, or of
    another model or other arguments; ``NotFinite``, a ``ValueError`` too, for a ``metric`` that gives no finite number
    for ``model``; ``CompactionError`` for "prune" where Torch-Pruning is not installed (the extra ``compact`` holds
    it), a model that does not export, an answer that differs, and a target that is not reached: its ``best`` is the
    network that came nearest, untrained, and its ``curve`` what scores there are.
    """
    check_model(model)
    check_budget(budget_s)
    check_seed(seed)
    fall = fall_of(tolerance, metric, validate)
    arguments, say = arguments_of(example_inputs), say_of(progress)
    given = {"calibration": calibration, "train": train, "validate": validate, "target": target}
    chosen = steps_of(steps, given)
    check_method(method, chosen, validate)
    shares = shares_of(target, chosen)
    if "prune" in chosen:
        check_prunable(model)
    expected, layers, size = _first_run(model, arguments)
    budget = Budget(budget_s)
    task = task_of(
        model, arguments, say, calibration=calibration, train=train, validate=validate, loss=loss,
        budget=budget, scar_ratio=scar_ratio, seed=seed, method=method,
        target=target_of(shares, size), prices=prices_for(shares, prices_of(cost, model, arguments), layers, size),
    )  # fmt: skip
    task = judged(task, metric, validate, fall)
    settings = {
        "steps": chosen, "tolerance": fall, "seed": seed, "budget_s": budget_s, "metric": metric, "loss": loss,
        "method": method, "target": shares, "scar_ratio": scar_ratio, "prices": dict(task.prices),
    }  # fmt: skip
    store = store_of(checkpoint, model, arguments, settings, task)
    task = replace(
        task, budget=Budget(budget_s, used_s=budget.used_s + store.used_s()),
        narrows="prune" in chosen and method == FITTED, judge=task.judge and forgiving(task.judge, say),
    )  # fmt: skip
    small, done = _carried_out(chosen, task, store, size, expected)
    compaction = Compaction(
        steps=tuple(finished.step for finished in done),
        layers=changes(layers, measured(small, arguments)[1]),
        score=task.score,
        curve=_curve(task.score, size, done),
    )
    return _told(copy.deepcopy(model) if small is model else small, compaction, task.target)


def _told(small: nn.Module, compaction: Compaction, target: Target | None) -> nn.Module:
    """``small`` with its ``compaction``; ``CompactionError`` where it is larger than was asked for."""
    small.compaction = compaction
    if target is not None and not target.reached(compaction.steps[-1].after):
        raise CompactionError(missed(compaction, target), best=small, curve=compaction.curve)
    return small


def _carried_out(
    chosen: Sequence[str], task: Task, store: Store, size: Size, expected: Any
) -> tuple[nn.Module, list[Finished]]:
    """The steps one after another, of which a checkpoint may hold the first ones done.

    None of those that only train, where the target is missed.
    """
    slot, small, now = store.slot("finished"), task.original, size
    done = kept.load(slot)
    for finished in done:
        task.say(f"{finished.step.name}: done before, from the checkpoint")
        small, now = finished.again(copy.deepcopy(small), task.arguments), finished.step.after
    for place, name in list(enumerate(chosen))[len(done) :]:
        if _misses(task, now) and not NARROWING & set(chosen[place:]):
            break
        own, later = store.within(f"{place}-{name}"), chosen[place + 1 :]
        own_task = replace(task, store=own, recovers="recover" in later, exact=_is_exact(done))
        if name == "prune" and task.target is None and {"scar", "recover"} & set(later):
            own_task = replace(own_task, budget=_share(task.budget, done))
        small, finished = _run(name, small, own_task, now, expected, _spent_s(own.slot("begun"), store))
        done.append(finished)
        kept.save(slot, done)
        own.clear()
        now = finished.step.after
    return small, done


def _is_exact(done: Sequence[Finished]) -> bool:
    """Whether nothing but the exact step has changed the network."""
    return not any((one.edits or one.step.training_steps) and one.step.name != "simplify" for one in done)


def _misses(task: Task, size: Size) -> bool:
    return task.target is not None and not task.target.reached(size)


def _share(budget: Budget, done: Sequence[Finished]) -> Budget:
    """That of the step "prune" where a training follows: the same for a run that goes on after a kill."""
    if budget.seconds is None:
        return budget
    before_s = sum(finished.step.seconds for finished in done)
    return budget.until(before_s + PRUNING * max(0.0, budget.seconds - before_s))


def _spent_s(slot: Slot, store: Store) -> float:
    """Seconds that a step took before its run was killed, as far as they were saved; 0 where it begins now."""
    saved = slot.load()
    spent_s = 0.0 if saved is None else store.earlier_s - saved["begun_s"]
    slot.save({"begun_s": store.used_s() - spent_s})
    return spent_s


def _run(
    name: str, model: nn.Module, task: Task, size: Size, expected: Any, spent_s: float
) -> tuple[nn.Module, Finished]:
    """One step, which took ``spent_s`` before a kill, and what it came to."""
    started_s = task.budget.used_s
    outcome = STEPS[name](model, task)
    answer, _, now = measured(outcome.model, task.arguments)
    step = Step(
        name=name, before=size, after=now, difference=difference(answer, expected), note=outcome.note,
        left_alone=tuple(outcome.left_alone),
        seconds=spent_s + task.budget.used_s - started_s, training_steps=outcome.num_steps,
        score=task.judge(outcome.model) if task.judge else None,
    )  # fmt: skip
    task.say(f"{name}: {size.parameters:,} -> {now.parameters:,} parameters, {size.macs:,} -> {now.macs:,} MACs")
    if step.told:
        task.say(f"{name}: {step.told}")
    weights = outcome.model.state_dict()
    return outcome.model, Finished(step=step, edits=outcome.edits, curve=outcome.curve, weights=weights)


def _curve(score: Score | None, size: Size, done: Sequence[Finished]) -> tuple[Point, ...]:
    """The original, then the networks that each step judged and what it came to; those with a score."""
    points = [Point(macs=size.macs, score=score.value, step="original")] if score else []
    for finished in done:
        step = finished.step
        last = [Point(macs=step.after.macs, score=step.score.value, step=step.name)] if step.score else []
        points += [*finished.curve, *last]
    return tuple(point for point in points if math.isfinite(point.score))


def _first_run(model: nn.Module, arguments: tuple[Any, ...]) -> Any:
    check_inputs(arguments)
    try:
        found = measured(model, arguments)
    except Exception as error:  # the model's own code may raise anything
        raise ValueError(f"the model refuses example_inputs: {type(error).__name__}: {error}") from error
    check_answer(found[0])
    return found
