"""``compact``: a smaller network that answers as well, as a module of the same class."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from edgedi.transforms.arguments import arguments_of, check_model, say_of, steps_of, task_of
from edgedi.transforms.exact.simplify import simplify_step
from edgedi.transforms.measure import difference, measured
from edgedi.transforms.report import Compaction, Step, changes
from edgedi.transforms.score import Metric
from edgedi.transforms.task import Budget, Outcome, Point, Say, Task

STEPS: Mapping[str, Callable[[nn.Module, Task], Outcome]] = {
    "simplify": simplify_step,
}


def compact(
    model: nn.Module,
    example_inputs: Any,
    *,
    calibration: Any = None,
    validate: Any = None,
    metric: Metric | str = "accuracy",
    tolerance: float = 0.0,
    steps: Sequence[str] | None = None,
    seed: int = 0,
    progress: Say | bool | None = None,
) -> nn.Module:
    """A smaller copy of ``model`` that answers as well; ``model`` itself stays as it is.

    ``example_inputs``: a tensor, or a tuple of arguments. ``steps``, by default all that there is data for, in order:

    * "simplify" needs no data and gives the same answers up to rounding: it folds batch normalisation, and takes out
      identities, channels that are zero whatever the input, and channels that equal others, with all that only fed
      them. What cannot be proven to be unneeded stays. It holds for evaluation mode, and for inputs that take the same
      way through the model's code as the example. Both networks are run on the example. A copy that differs by more
      than 1e-5 of the largest value, or three times the model's own rounding where that is more, is not returned.

    ``calibration``: inputs without labels, a tensor or batches. ``validate``: (inputs, labels) batches in a fixed
    order, by which a smaller network is taken or not: ``metric`` of it may fall by ``tolerance`` at most. ``metric`` is
    "accuracy", or a callable of (model, validate) that gives more for a better network.

    The copy is of the same class, with smaller layers; its ``compaction`` says what was done, as a table when printed.
    ``progress`` is called with a line per step; by default a terminal shows them.

    Raises ``ValueError`` for a model in training mode, inputs that the model refuses, a step that does not exist or
    lacks its data, and data that are empty or shuffled; ``CompactionError`` for a model that does not export and for an
    answer that differs.
    """
    check_model(model)
    arguments, say, budget = arguments_of(example_inputs), say_of(progress), Budget(None)
    chosen = steps_of(steps, {"calibration": calibration, "validate": validate})
    expected, layers, size = _first_run(model, arguments)
    task = task_of(
        model, arguments, say,
        calibration=calibration, validate=validate, metric=metric, tolerance=tolerance, budget=budget, seed=seed,
    )  # fmt: skip
    curve = [Point(macs=size.macs, score=task.score.value, step="original")] if task.score else []
    small, after, done = model, layers, []
    for name in chosen:
        started_s = budget.used_s
        outcome = STEPS[name](small, task)
        small = outcome.model
        answer, after, now = measured(small, arguments)
        score = task.judge(small) if task.judge else None
        step = Step(
            name=name, before=size, after=now, difference=difference(answer, expected), note=outcome.note,
            seconds=budget.used_s - started_s, score=score,
        )  # fmt: skip
        done.append(step)
        curve += [*outcome.curve, *([Point(macs=now.macs, score=score.value, step=name)] if score else [])]
        say(f"{name}: {size.parameters:,} -> {now.parameters:,} parameters, {size.macs:,} -> {now.macs:,} MACs")
        if outcome.note:
            say(f"{name}: {outcome.note}")
        size = now
    small = copy.deepcopy(model) if small is model else small
    small.compaction = Compaction(
        steps=tuple(done), layers=changes(layers, after), score=task.score, curve=tuple(curve)
    )
    return small


def _first_run(model: nn.Module, arguments: tuple[Any, ...]) -> Any:
    try:
        return measured(model, arguments)
    except Exception as error:  # the model's own code may raise anything
        raise ValueError(f"the model refuses example_inputs: {type(error).__name__}: {error}") from error
