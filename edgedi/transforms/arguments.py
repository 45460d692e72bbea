"""From what a user gives ``compact`` to a ``Task``: every argument looked at before anything is computed."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edgedi.transforms.data import Data, quartered
from edgedi.transforms.prune.groups import library
from edgedi.transforms.replace.candidates import RATIOS
from edgedi.transforms.score import (
    Judge,
    Metric,
    answer_to,
    judge_by_accuracy,
    judge_by_likeness,
    judge_by_metric,
    judging_once,
)
from edgedi.transforms.size import Size, Target
from edgedi.transforms.store import Store, digest_of, digest_of_model
from edgedi.transforms.task import Budget, Loss, Prices, Say, Task

NEEDS: Mapping[str, tuple[str, ...]] = {
    "simplify": (),
    "prune": ("calibration", "train"),
    "scar": ("train",),
    "recover": ("train",),
}
"""The steps, in the order in which they run, and the arguments of which each needs one."""
BOUNDS: Mapping[str, tuple[str, ...]] = {
    "prune": ("validate", "calibration", "target"),
    "scar": ("validate", "calibration", "target"),
}
"""The arguments of which one says how far a step may go: it changes nothing without."""

TARGETS = ("macs", "parameters")
"""What a target may be of: the names that ``Target`` and ``Size`` have for it."""
FITTED = "reconstruct"
METHODS = (FITTED, "l1")
LIKENESS = 0.97
"""What a network must score that is judged without labels, where the user does not say: no smaller network answers all
inputs as the original does, so that a tolerance of 0 would stop everything. The judge then sees every fourth
calibration input and no step does."""


def check_model(model: Any) -> None:
    """``TypeError`` where it is no module, ``ValueError`` where it is in training mode."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; give a torch.nn.Module")
    training = [name or "the model" for name, module in model.named_modules() if module.training]
    if training:
        shown = ", ".join(training[:5]) + (f" and {len(training) - 5} more" if len(training) > 5 else "")
        raise ValueError(f"in training mode: {shown}; call model.eval() first")


def check_prunable(model: nn.Module) -> None:
    """``ValueError`` for a model that is not on the CPU, ``CompactionError`` where Torch-Pruning is missing."""
    away = sorted({str(tensor.device) for tensor in (*model.parameters(), *model.buffers())} - {"cpu"})
    if away:
        raise ValueError(
            f"the step 'prune' computes on the CPU, and the model is on {', '.join(away)}: give model.cpu() with inputs"
            " and data there and move what comes back, or leave the step out of steps"
        )
    library()


def check_budget(budget_s: Any) -> None:
    """``ValueError`` where it is no number of seconds."""
    number = isinstance(budget_s, (int, float)) and not isinstance(budget_s, bool)
    if budget_s is not None and not (number and 0 < budget_s < math.inf):
        raise ValueError(f"budget_s is {budget_s!r}; give seconds, more than 0, or None")


def check_seed(seed: Any) -> None:
    """``ValueError`` where it is no number that every generator takes."""
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise ValueError(f"seed is {seed!r}; give a whole number, from 0 to 2**63 - 1")


def ratio_of(scar_ratio: Any) -> int | None:
    """``None`` for each layer its own. ``ValueError`` where there is no such ratio."""
    if scar_ratio == "auto":
        return None
    if type(scar_ratio) is not int or scar_ratio not in RATIOS:
        raise ValueError(f'scar_ratio is {scar_ratio!r}; give "auto", {" or ".join(map(str, RATIOS))}')
    return scar_ratio


def arguments_of(example_inputs: Any) -> tuple[Any, ...]:
    """The model's arguments."""
    if not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(example_inputs)):
        raise TypeError("example_inputs hold no tensor; give a tensor or a tuple of arguments")
    return tuple(example_inputs) if isinstance(example_inputs, (tuple, list)) else (example_inputs,)


def check_inputs(arguments: tuple[Any, ...]) -> None:
    """``ValueError`` for an example that holds what is not finite."""
    for place, argument in enumerate(arguments):
        name = "example_inputs" if len(arguments) == 1 else f"example_inputs[{place}]"
        if not _is_finite(argument):
            raise ValueError(f"{name} holds NaN or infinity, by which no answers can be compared; give finite numbers")


def check_answer(answer: Any) -> None:
    """``ValueError`` for an answer of the original that is not finite: whatever differs there would not be seen."""
    if not _is_finite(answer):
        raise ValueError(
            "the model's answer to example_inputs holds NaN or infinity, so that nothing can be compared with it; give"
            " example_inputs that it answers with finite numbers, and look at its weights where there are none"
        )


def _is_finite(value: Any) -> bool:
    numbers = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
    numbers = [leaf for leaf in numbers if leaf.is_floating_point() or leaf.is_complex()]
    return all(bool(leaf.isfinite().all()) for leaf in numbers)


def steps_of(steps: Sequence[str] | None, given: Mapping[str, Any]) -> tuple[str, ...]:
    """The steps to run: those asked for, or all that there is data for. ``given``: arguments with data, by name.

    A step that was asked for and could do nothing is refused; one that was not says so in the report.
    """
    if steps is None:
        return tuple(step for step in NEEDS if _has_one(NEEDS[step], given))
    if isinstance(steps, str):
        raise TypeError(f"steps is the string {steps!r}; give a tuple, as in steps=({steps!r},)")
    if not isinstance(steps, Sequence):
        raise TypeError(f"steps is a {type(steps).__name__}; give a tuple, as in steps=('simplify', 'prune')")
    unknown = [step for step in steps if step not in tuple(NEEDS)]
    if unknown:
        there = ", ".join(map(repr, NEEDS))
        raise ValueError(f"steps hold {', '.join(map(repr, unknown))}; there is {there}")
    for step in steps:
        if not _has_one(NEEDS[step], given):
            raise ValueError(f"the step {step!r} needs data: pass {_either(NEEDS[step])}")
        if not _has_one(BOUNDS.get(step, ()), given):
            raise ValueError(f"nothing says how far the step {step!r} may go: pass {_either(BOUNDS[step])}")
    return tuple(steps)


def check_method(method: Any, steps: Sequence[str], validate: Any) -> None:
    """``ValueError`` where there is no such way to prune, or its data are missing."""
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; give {' or '.join(map(repr, METHODS))}")
    if method == "l1" and "prune" in steps and validate is None:
        raise ValueError("method='l1' drops filters until validation falls: pass validate=...")


def shares_of(target: Any, steps: Sequence[str]) -> dict[str, float]:
    """The shares of the original's MACs and parameters that are asked for; none without ``target``."""
    if target is None:
        return {}
    if not isinstance(target, Mapping) or not target or not set(target) <= set(TARGETS):
        raise ValueError(
            f'target is {target!r}; give {{"macs": 0.5}} for half of the multiplications, {{"parameters": 0.1}} for a '
            "tenth of the parameters, or both"
        )
    for name, share in target.items():
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
            raise ValueError(
                f"target[{name!r}] is {share!r}; give a share of the original's, more than 0 and at most 1"
            )
    if not {"prune", "scar"} & set(steps):
        raise ValueError(
            "target needs the step 'prune' or 'scar', which make layers smaller: pass calibration=... or train=..., "
            "and name the step if you give steps"
        )
    return {name: float(target[name]) for name in TARGETS if name in target}


def target_of(shares: Mapping[str, float], size: Size) -> Target | None:
    """The ``shares`` of an original of ``size``; ``None`` where there are none."""
    asked = {name: round(share * getattr(size, name)) for name, share in shares.items()}
    return Target(**asked) if asked else None


def _has_one(names: Sequence[str], given: Mapping[str, Any]) -> bool:
    """Of ``names``, where there are any."""
    return not names or any(given.get(name) is not None for name in names)


def _either(names: Sequence[str]) -> str:
    return " or ".join(f"{name}=..." for name in names)


def task_of(
    model: nn.Module,
    arguments: tuple[Any, ...],
    say: Say,
    *,
    calibration: Any,
    train: Any,
    validate: Any,
    loss: Loss | None,
    budget: Budget,
    scar_ratio: int | str,
    seed: int,
    method: str,
    target: Target | None,
    prices: Prices,
) -> Task:
    """What every step is given, but for what it is judged by: see ``judged``."""
    if loss is not None and not callable(loss):
        raise TypeError(f"loss is a {type(loss).__name__}; give a callable of (outputs, labels)")
    many = len(arguments)
    task = Task(
        original=model, arguments=arguments, say=say, budget=budget,
        calibration=None if calibration is None else Data(
            calibration, "calibration", num_arguments=many, labelled=False
        ),
        train=None if train is None else train_data(train, many, loss),
        loss=loss,
        validate=None if validate is None else Data(
            validate, "validate", num_arguments=many, labelled=True, ordered=True
        ),
        scar_ratio=ratio_of(scar_ratio), seed=seed, method=method, target=target, prices=prices,
    )  # fmt: skip
    for data in (task.calibration, task.train, task.validate):
        if data is not None:
            _runs_on(model, data)
    return task


def fall_of(tolerance: Any, metric: Metric | str, validate: Any) -> float:
    """By how much the score may fall: ``tolerance``, or what is usual where that is ``None``.

    A metric of the user's has a unit of its own; accuracy and likeness are shares of 1.
    """
    if tolerance is None:
        return 1 - LIKENESS if validate is None else 0.0
    number = isinstance(tolerance, (int, float)) and not isinstance(tolerance, bool)
    if not (number and 0 <= tolerance < math.inf):
        raise ValueError(f"tolerance is {tolerance!r}; give how much the metric may fall, 0 or more, or None")
    if tolerance >= 1 and not callable(metric):
        raise ValueError(f"tolerance is {tolerance!r}; it is a share of 1: give 0.005 for half a point of accuracy")
    return float(tolerance)


def judged(task: Task, metric: Metric | str, validate: Any, fall: float) -> Task:
    """With the judge, the original's score and the least that a step's result must have, and without the inputs that
    only the judge may see; as it is where there is nothing to judge by."""
    task, judge = _with_judge(task, metric, validate)
    if judge is None:
        return task
    judge, started_s = judging_once(judge), task.budget.used_s
    score = judge(task.original)
    judge_s = task.budget.used_s - started_s
    return replace(task, judge=judge, judge_s=judge_s, score=score, least_score=score.value - fall)


def _runs_on(model: nn.Module, data: Data) -> None:
    """``ValueError`` where the model cannot compute its inputs."""
    batch = next(iter(data))
    try:
        answer_to(model, batch)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        shapes = [list(leaf.shape) for leaf in pytree.tree_leaves(batch.arguments) if isinstance(leaf, Tensor)]
        raise ValueError(f"the model fails on the first batch of {data.name}, of shapes {shapes}: {error}") from error


def _with_judge(task: Task, metric: Metric | str, validate: Any) -> tuple[Task, Judge | None]:
    """The judge, and the task without what only the judge may see."""
    if not callable(metric) and metric != "accuracy":
        raise ValueError(f'metric is {metric!r}; give "accuracy", or a callable of (model, validate)')
    if task.validate is not None:
        return task, judge_by_metric(metric, validate) if callable(metric) else judge_by_accuracy(task.validate)
    if callable(metric):
        raise ValueError("metric is a callable of (model, validate), and there is no validate: pass validate=...")
    if task.calibration is None:
        return task, None
    most, fourth = quartered(task.calibration)
    return replace(task, calibration=most), judge_by_likeness(task.original, fourth)


def train_data(given: Any, num_arguments: int, loss: Loss | None) -> Data:
    """With labels where there are any; ``ValueError`` where ``loss`` has none to read."""
    try:
        return Data(given, "train", num_arguments=num_arguments, labelled=True)
    except ValueError:
        if loss is not None:
            raise
        return Data(given, "train", num_arguments=num_arguments, labelled=False)


def store_of(
    checkpoint: Any, model: nn.Module, arguments: tuple[Any, ...], settings: Mapping[str, Any], task: Task
) -> Store:
    """Where a run keeps what it has; ``ValueError`` where that belongs to something else, by ``settings`` and data."""
    if checkpoint is None:
        return Store(None)
    if not isinstance(checkpoint, (str, os.PathLike)):
        raise TypeError(f"checkpoint is a {type(checkpoint).__name__}; give the path of a folder")
    shapes = [getattr(leaf, "shape", leaf) for leaf in pytree.tree_leaves(arguments)]
    first = None if task.validate is None else next(iter(task.validate))
    judged_by = None if first is None else (first.arguments, first.labels)
    learnt_from = [None if data is None else data.traits() for data in (task.calibration, task.train)]
    seen = (judged_by, learnt_from)
    return Store(checkpoint, model=digest_of_model(model), settings=digest_of((settings, shapes, seen)))


def say_of(progress: Say | bool | None) -> Say:
    """Where lines of progress go."""
    if callable(progress):
        return progress
    shown = sys.stderr.isatty() if progress is None else progress
    return _show if shown else lambda line: None


def _show(line: str) -> None:
    sys.stderr.write(f"edgedi: {line}\n")
    sys.stderr.flush()
