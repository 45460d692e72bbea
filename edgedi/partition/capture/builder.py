"""The state of one capture: what every exported node became, and the layers made so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from edgedi.errors import GraphError
from edgedi.partition.graph.graph import Layer, TensorSpec

_DTYPES = {
    torch.float64: "float64", torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16",
    torch.uint8: "uint8", torch.int64: "int64", torch.int32: "int32", torch.bool: "bool",
}  # fmt: skip


def dtype_name(dtype: torch.dtype) -> str | None:
    """The name that specs use, ``None`` for an element type that does not travel."""
    return _DTYPES.get(dtype)


@dataclass(frozen=True, slots=True)
class Symbol:
    """A tensor of the graph under capture: the output of the layer, or the graph input, of that name."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def rank(self) -> int:
        return len(self.shape)


class Builder:
    """Layers in order, weights by name, and ``values``: exported node -> symbol, constant, scalar or list of them."""

    def __init__(self) -> None:
        self.inputs: dict[str, TensorSpec] = {}
        self.layers: list[Layer] = []
        self.weights: dict[str, Tensor] = {}
        self.values: dict[torch.fx.Node, Any] = {}
        self.opaque: dict[str, Callable[[Sequence[Tensor]], Tensor]] = {}
        self._weight_names: dict[
            int, tuple[str, Tensor]
        ] = {}  # by identity; the tensor is kept so that no id is used twice

    @staticmethod
    def spec_of(tensor: Tensor | Symbol) -> TensorSpec:
        name = dtype_name(tensor.dtype)
        if name is None:
            raise GraphError(f"element type {tensor.dtype} is not supported; accepted: {', '.join(_DTYPES.values())}")
        return TensorSpec(tuple(int(size) for size in tensor.shape), name)

    def add_input(self, node: torch.fx.Node) -> None:
        value = node.meta["val"]
        self.inputs[node.name] = self.spec_of(value)
        self.values[node] = Symbol(node.name, self.inputs[node.name].shape, value.dtype)

    def resolve(self, value: Any) -> Any:
        """``value`` with every exported node in it replaced by what it became."""
        return pytree.tree_map(lambda leaf: self.values[leaf] if isinstance(leaf, torch.fx.Node) else leaf, value)

    def is_constant(self, node: torch.fx.Node) -> bool:
        leaves = pytree.tree_leaves(self.resolve((node.args, node.kwargs)))
        return not any(isinstance(leaf, Symbol) for leaf in leaves)

    def symbol(self, value: Any, dtype: torch.dtype | None = None) -> Symbol:
        """``value`` as a tensor of the graph: constants become ``constant`` layers."""
        if isinstance(value, Symbol):
            return value
        tensor = value if isinstance(value, Tensor) else torch.tensor(value, dtype=dtype)
        name = self.weight(tensor)
        return self.add(
            f"{name}.{len(self.layers)}", "constant", (), tensor.shape, tensor.dtype, weights={"value": name}
        )

    def weight(self, tensor: Tensor) -> str:
        """Name under which the tensor is kept; the same tensor keeps its name."""
        if id(tensor) not in self._weight_names:
            name = f"w{len(self.weights)}"
            self.weights[name] = tensor.detach()
            self._weight_names[id(tensor)] = (name, tensor)
        return self._weight_names[id(tensor)][0]

    def add(
        self,
        name: str,
        op: str,
        inputs: Sequence[Symbol],
        shape: Sequence[int],
        dtype: torch.dtype | None = None,
        *,
        attributes: Mapping[str, Any] | None = None,
        weights: Mapping[str, Tensor | str | None] | None = None,
    ) -> Symbol:
        """Append a layer, of its first input's element type unless given. Weights that are ``None`` are left out."""
        made = Symbol(name, tuple(int(size) for size in shape), dtype or inputs[0].dtype)
        named = {
            role: value if isinstance(value, str) else self.weight(value)
            for role, value in (weights or {}).items()
            if value is not None
        }
        self.layers.append(
            Layer(
                name=name,
                op=op,
                inputs=tuple(item.name for item in inputs),
                spec=self.spec_of(made),
                attributes=attributes or {},
                weights=named,
            )
        )
        return made
