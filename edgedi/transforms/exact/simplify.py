"""The exact step of ``compact``: the same answers from fewer channels and layers, up to rounding. Needs no data."""

from __future__ import annotations

import copy
from dataclasses import dataclass
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
from edgedi.transforms.measure import answer_of, difference
from edgedi.transforms.task import Outcome, Task

TOLERANCE = 1e-5
"""Largest difference of an exact step, relative to the largest value of the output. Deep networks magnify rounding:
three times what rounding does to the model itself is let pass, too."""


@dataclass(frozen=True, slots=True)
class Simplify:
    """The edit of this step; see ``Edit``."""

    def apply(self, model: nn.Module, arguments: tuple[Any, ...]) -> nn.Module:
        """A smaller copy."""
        return simplify(model, arguments)[0]


def simplify_step(model: nn.Module, task: Task) -> Outcome:
    """The exact step."""
    small, note = simplify(model, task.arguments)
    return Outcome(model=small, edits=(Simplify(),), note=note)


def simplify(model: nn.Module, arguments: tuple[Any, ...]) -> tuple[nn.Module, str]:
    """A smaller copy of ``model``, and why more was left alone than had to be, if so.

    The exported graph does not show what the model's own code says of widths, nor layers whose output nobody reads. So
    what fails or differs is tried again with less: widths kept before reshapes and splits, then everywhere.
    """
    expected, reason = answer_of(model, arguments), ""
    for how in ("all", "rigid", "none"):
        small = copy.deepcopy(model)
        _simplify_in_place(small, arguments, how)
        try:
            found = answer_of(small, arguments)
        except Exception as error:  # whatever the model's own code does with layers of another width
            reason = reason or f"it fails with {type(error).__name__}: {error}"
            continue
        worst = difference(found, expected)
        if worst <= TOLERANCE or worst <= 3 * _own_rounding(model, arguments, expected):
            return small, _LEFT_ALONE[how].format(reason)
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
