"""Residual sums: layers whose output is only added to what they, or an earlier layer, read or made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from edgedi.errors import CompactionError
from edgedi.transforms.exact.traced import Traced, shape_of, trace
from edgedi.transforms.prune.cut import CONVOLUTIONS

_ADD = "aten.add.Tensor"


@dataclass(frozen=True, slots=True)
class Shortcut:
    """The other operand of a layer's sum: its own input, or the input or else the output of a layer before it."""

    layer: str
    is_input: bool


def shortcuts_of(model: nn.Module, arguments: tuple[Any, ...]) -> Mapping[str, Shortcut]:
    """By layer whose output is only added to the shortcut; none for a model that does not export."""
    try:
        return found_in(trace(model, arguments))
    except CompactionError:
        return {}


def found_in(traced: Traced) -> Mapping[str, Shortcut]:
    """The same, of a run that is traced already."""
    found: dict[str, Shortcut] = {}
    known: dict[Any, Shortcut] = {}  # by the time that the layer at hand runs
    for layer in traced.layers:
        if not isinstance(layer.module, (*CONVOLUTIONS, nn.Linear)):
            continue
        known.setdefault(layer.source, Shortcut(layer.name, is_input=True))
        other = _added_to(layer.output)
        if other in known:
            found[layer.name] = known[other]
        known.setdefault(layer.output, Shortcut(layer.name, is_input=False))
    return found


def _added_to(node: Any) -> Any:
    """What alone a node's value is added to, once; ``None`` where it is used in any other way."""
    user = next(iter(node.users)) if len(node.users) == 1 else None
    if user is None or str(user.target) != _ADD or len(user.args) != 2 or user.kwargs:
        return None
    one, other = user.args
    other = other if one is node else one
    alike = hasattr(other, "meta") and other is not node and shape_of(other) == shape_of(node)
    return other if alike else None
