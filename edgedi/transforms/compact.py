"""``compact``: a smaller network with the same answer, as a module of the same class."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edgedi.errors import CompactionError
from edgedi.transforms.exact.flow import follow
from edgedi.transforms.exact.identities import drop_identities, fold_norms
from edgedi.transforms.exact.rules import RULES
from edgedi.transforms.exact.slim import slim
from edgedi.transforms.exact.traced import trace
from edgedi.transforms.exact.weights import layer_rule
from edgedi.transforms.measure import difference, measured
from edgedi.transforms.report import Compaction, Step, changes

TOLERANCE = 1e-5
"""Largest difference of an exact step, relative to the largest value of the output. Deep networks magnify rounding:
three times what rounding does to the model itself is let pass, too."""

Progress = Callable[[str], None]


def compact(
    model: nn.Module,
    example_inputs: Any,
    *,
    steps: Sequence[str] = ("simplify",),
    progress: Progress | bool | None = None,
) -> nn.Module:
    """A smaller copy of ``model`` that gives the same answers up to rounding; ``model`` itself stays as it is.

    ``example_inputs``: a tensor, or a tuple of arguments. The one step there is, "simplify", needs no data: it folds
    batch normalisation, and takes out identities, channels that are zero whatever the input, and channels that equal
    others, with all that only fed them. What cannot be proven to be unneeded stays. It holds for evaluation mode, and
    for inputs that take the same way through the model's code as the example.

    The copy is of the same class, with smaller layers; its ``compaction`` says what was done, as a table when printed.
    Both networks are run on the example. A copy that differs by more than 1e-5 of the largest value, or three times the
    model's own rounding where that is more, is not returned.
    ``progress`` is called with a line per step; by default a terminal shows them.

    Raises ``ValueError`` for a model in training mode, inputs that the model refuses and a step that does not exist,
    ``CompactionError`` for a model that does not export and for an answer that differs.
    """
    chosen = _chosen(steps)
    say = _progress(progress)
    _check(model)
    arguments = tuple(example_inputs) if isinstance(example_inputs, (tuple, list)) else (example_inputs,)
    expected, layers, size = _first_run(model, arguments)
    small, after, done = model, layers, []
    for name in chosen:
        small, (answer, after, now), note = _STEPS[name](small, arguments, expected)
        done.append(Step(name=name, before=size, after=now, difference=difference(answer, expected), note=note))
        say(f"{name}: {size.parameters:,} -> {now.parameters:,} parameters, {size.macs:,} -> {now.macs:,} MACs")
        if note:
            say(f"{name}: {note}")
        size = now
    small = copy.deepcopy(model) if small is model else small
    small.compaction = Compaction(steps=tuple(done), layers=changes(layers, after))
    return small


def _simplify(model: nn.Module, arguments: tuple[Any, ...], expected: Any) -> tuple[nn.Module, Any, str]:
    """The exact step: the smaller model, its run, and why more was left alone than had to be, if so.

    The exported graph does not show what the model's own code says of widths, nor layers whose output nobody reads. So
    what fails or differs is tried again with less: widths kept before reshapes and splits, then everywhere.
    """
    reason = ""
    for how in ("all", "rigid", "none"):
        small = copy.deepcopy(model)
        _simplify_in_place(small, arguments, how)
        try:
            found = measured(small, arguments)
        except Exception as error:  # whatever the model's own code does with layers of another width
            reason = reason or f"it fails with {type(error).__name__}: {error}"
            continue
        worst = difference(found[0], expected)
        if worst <= TOLERANCE or worst <= 3 * _own_rounding(model, arguments, expected):
            return small, found, _LEFT_ALONE[how].format(reason)
        reason = reason or f"its answer differs by {worst:.1e} of the largest value, more than rounding does"
    raise CompactionError(
        f"{type(model).__name__} made smaller is not the same, and was thrown away: {reason}. Does its forward read "
        "weights of its layers, or draw random numbers?"
    )


_LEFT_ALONE = {
    "all": "",
    "rigid": "channels that are reshaped or split were left alone: without some of them {}",
    "none": "channels were left alone: without some of them {}",
}


def _own_rounding(model: nn.Module, arguments: tuple[Any, ...], expected: Any) -> float:
    """How far the model's own answer is from its answer in float64; 0 where it does not run in float64."""

    def double(leaf: Any) -> Any:
        return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    try:
        with torch.no_grad():
            exact = copy.deepcopy(model).double()(*pytree.tree_map(double, arguments))
    except Exception:  # a model that names its dtype, a device that has no float64
        return 0.0
    return difference(pytree.tree_map(double, expected), exact)


def _simplify_in_place(model: nn.Module, arguments: tuple[Any, ...], how: str) -> None:
    traced = drop_identities(fold_norms(trace(model, arguments)))
    if how != "none":
        slim(follow(traced, RULES, layer_rule, rigid=how == "rigid"))


_STEPS: Mapping[str, Callable[[nn.Module, tuple[Any, ...], Any], tuple[nn.Module, Any, str]]] = {
    "simplify": _simplify,
}


def _chosen(steps: Sequence[str]) -> tuple[str, ...]:
    if isinstance(steps, str):
        raise TypeError(f"steps is the string {steps!r}; give a tuple, as in steps=({steps!r},)")
    unknown = [step for step in steps if step not in _STEPS]
    if unknown:
        raise ValueError(f"steps hold {', '.join(map(repr, unknown))}; there is {', '.join(map(repr, _STEPS))}")
    return tuple(steps)


def _check(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; give a torch.nn.Module")
    training = [name or "the model" for name, module in model.named_modules() if module.training]
    if training:
        shown = ", ".join(training[:5]) + (f" and {len(training) - 5} more" if len(training) > 5 else "")
        raise ValueError(f"in training mode: {shown}; call model.eval() first")


def _first_run(model: nn.Module, arguments: tuple[Any, ...]) -> Any:
    if not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(arguments)):
        raise TypeError("example_inputs hold no tensor; give a tensor or a tuple of arguments")
    try:
        return measured(model, arguments)
    except Exception as error:  # the model's own code may raise anything
        raise ValueError(f"the model refuses example_inputs: {type(error).__name__}: {error}") from error


def _progress(progress: Progress | bool | None) -> Progress:
    if callable(progress):
        return progress
    shown = sys.stderr.isatty() if progress is None else progress
    return _show if shown else lambda line: None


def _show(line: str) -> None:
    sys.stderr.write(f"edgedi: {line}\n")
    sys.stderr.flush()
