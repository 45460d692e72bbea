"""What a handler of exported operators is given, and what it may return."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from edgedi.partition.capture.builder import Builder, Symbol

Made = Symbol | list[Symbol] | None
"""The symbol that a handler made, several for operators with several outputs, ``None`` for what is not expressible."""


@dataclass(frozen=True, slots=True)
class Call:
    """One exported call: its arguments by schema name (defaults filled in) and the shape of its result."""

    builder: Builder
    name: str
    args: dict[str, Any]
    value: Any

    @classmethod
    def of(cls, node: torch.fx.Node, builder: Builder) -> Call:
        schema = node.target._schema  # exported targets are operator overloads
        given = dict(zip((a.name for a in schema.arguments), node.args, strict=False)) | dict(node.kwargs)
        named = {a.name: given.get(a.name, a.default_value) for a in schema.arguments}  # in the schema's order
        return cls(builder, node.name, builder.resolve(named), node.meta["val"])

    def __getitem__(self, name: str) -> Any:
        return self.args[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self.args.get(name, default)

    @property
    def input(self) -> Symbol:
        """The first argument, a tensor of the graph (constants become one)."""
        return self.builder.symbol(next(iter(self.args.values())))

    @property
    def target(self) -> Any:
        """The result as the exporter saw it; the first of several."""
        return self.value[0] if isinstance(self.value, (tuple, list)) else self.value

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(int(size) for size in self.target.shape)

    def add(self, op: str, inputs: Sequence[Symbol] | None = None, **fields: Any) -> Symbol:
        """The layer that this call is."""
        inputs = (self.input,) if inputs is None else inputs
        return self.builder.add(self.name, op, inputs, self.shape, self.target.dtype, **fields)


def pair(value: Any, rank: int, default: int = 1) -> tuple[int, ...]:
    """``value`` (a number, a list of 1 or ``rank``, or an empty list) as ``rank`` numbers."""
    items = [value] if isinstance(value, int) else list(value)
    items = items or [default]
    return tuple(items * rank if len(items) == 1 else items)


Handler = Callable[[Call], Made]
