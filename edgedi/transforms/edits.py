"""Changes of structure as plain values, for checkpoints: which there are, and how they come back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from edgedi.transforms.exact.simplify import Simplify
from edgedi.transforms.prune.cut import Cut, Narrow
from edgedi.transforms.replace.block import Replace
from edgedi.transforms.task import Edit

EDITS: Mapping[str, type[Any]] = {kind.__name__: kind for kind in (Simplify, Narrow, Cut, Replace)}
"""What steps do to a network's structure, and the values these hold: all that a checkpoint may hold."""


def plain_of(value: Any) -> Any:
    """``value`` with a dict in place of each dataclass: its fields, and the name of its class."""
    if dataclasses.is_dataclass(value):
        fields = {field.name: plain_of(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"kind": type(value).__name__, **fields}
    if isinstance(value, (tuple, list)):
        return type(value)(map(plain_of, value))
    return {name: plain_of(one) for name, one in value.items()} if isinstance(value, Mapping) else value


def value_of(plain: Any) -> Any:
    """The opposite of ``plain_of``."""
    if isinstance(plain, dict):
        fields = {name: value_of(one) for name, one in plain.items() if name != "kind"}
        return EDITS[plain["kind"]](**fields) if "kind" in plain else fields
    return type(plain)(map(value_of, plain)) if isinstance(plain, (tuple, list)) else plain


def redo(
    model: nn.Module, arguments: tuple[Any, ...], edits: Sequence[Edit], weights: Mapping[str, Tensor]
) -> nn.Module:
    """``model`` after ``edits``, with these weights; ``model`` may be changed in place."""
    for edit in edits:
        model = edit.apply(model, arguments)
    model.load_state_dict(weights)
    return model.eval()
