"""LayerGraph: a network as data. Topologically ordered layers of a closed set of operators; no torch, no code.

A layer and the one tensor it produces share a name. Attributes are JSON values (numbers, strings, booleans, None and
tuples of them), so a graph can be printed, hashed, sent and stored.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

ITEM_BYTES = MappingProxyType(
    {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "uint8": 1, "int64": 8, "int32": 4, "bool": 1}
)
Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Shape and element type of one tensor."""

    shape: tuple[int, ...]
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in ITEM_BYTES:
            raise ValueError(f"element type {self.dtype!r} is not one of {', '.join(ITEM_BYTES)}")

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One operator applied to named tensors. ``weights`` maps the operator's roles (``"bias"``, ...) to names."""

    name: str
    op: str
    inputs: tuple[str, ...]
    spec: TensorSpec
    attributes: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.name or any(c.isspace() for c in self.name):
            raise ValueError(f"layer name {self.name!r} must be non-empty and without spaces")
        object.__setattr__(self, "attributes", MappingProxyType({k: _frozen(v) for k, v in self.attributes.items()}))
        object.__setattr__(self, "weights", MappingProxyType(dict(self.weights)))

    def __reduce__(self) -> Any:  # a mapping proxy does not copy; layers are values and never need to be copied
        raise TypeError("layers travel as dictionaries: use to_dict")

    def attribute(self, key: str, default: Any = None) -> Any:
        return self.attributes.get(key, default)

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "op": self.op,
            "inputs": list(self.inputs),
            "shape": list(self.spec.shape),
            "dtype": self.spec.dtype,
            "attributes": _thawed(dict(self.attributes)),
            "weights": dict(self.weights),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Layer:
        return cls(
            name=values["name"],
            op=values["op"],
            inputs=tuple(values["inputs"]),
            spec=TensorSpec(tuple(values["shape"]), values["dtype"]),
            attributes=values["attributes"],
            weights=values["weights"],
        )


@dataclass(frozen=True, kw_only=True)
class LayerGraph:
    """Layers in topological order, the specs of the graph's inputs, and the names of its outputs.

    ``weights`` gives the spec of every named weight; the values live with whoever captured the graph.
    """

    inputs: Mapping[str, TensorSpec]
    layers: tuple[Layer, ...]
    outputs: tuple[str, ...]
    weights: Mapping[str, TensorSpec] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = set(self.inputs)
        for layer in self.layers:
            missing = [name for name in layer.inputs if name not in known]
            if missing:
                raise ValueError(f"layer {layer.name} reads {missing} before anything produces them")
            if layer.name in known:
                raise ValueError(f"two tensors are named {layer.name}")
            known.add(layer.name)
        unknown = [name for name in self.outputs if name not in known]
        if unknown:
            raise ValueError(f"graph outputs {unknown} are produced by no layer")

    @cached_property
    def by_name(self) -> Mapping[str, Layer]:
        return MappingProxyType({layer.name: layer for layer in self.layers})

    @cached_property
    def position(self) -> Mapping[str, int]:
        """Index of the layer that makes each tensor; graph inputs come before the first layer, at -1."""
        positions = dict.fromkeys(self.inputs, -1)
        positions.update({layer.name: index for index, layer in enumerate(self.layers)})
        return MappingProxyType(positions)

    @cached_property
    def last_use(self) -> Mapping[str, int]:
        """Index of the last layer that reads each tensor; ``len(layers)`` for graph outputs, -1 if nothing does."""
        last = dict.fromkeys(self.position, -1)
        for index, layer in enumerate(self.layers):
            last.update(dict.fromkeys(layer.inputs, index))
        last.update(dict.fromkeys(self.outputs, len(self.layers)))
        return MappingProxyType(last)

    def spec(self, tensor: str) -> TensorSpec:
        return self.inputs[tensor] if tensor in self.inputs else self.by_name[tensor].spec

    def input_shapes(self, layer: Layer) -> Shapes:
        return tuple(self.spec(name).shape for name in layer.inputs)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the graph's content: same layers, shapes and wiring, same digest."""
        text = json.dumps(
            {
                "inputs": [[k, list(v.shape), v.dtype] for k, v in self.inputs.items()],
                "layers": [layer.to_dict() for layer in self.layers],
                "outputs": list(self.outputs),
            },
            sort_keys=True,
        )
        return hashlib.sha256(text.encode()).hexdigest()

    def __str__(self) -> str:
        lines = [f"input {name} {spec}" for name, spec in self.inputs.items()]
        lines += [
            f"{layer.name} = {layer.op}({', '.join(layer.inputs)}) {layer.spec}" + _attribute_text(layer.attributes)
            for layer in self.layers
        ]
        return "\n".join([*lines, f"output {', '.join(self.outputs)}"])


def _attribute_text(attributes: Mapping[str, Any]) -> str:
    return "".join(f" {key}={value}".replace(" ", " ") for key, value in attributes.items() if value is not None)


def _frozen(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(item) for item in value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"attribute value {value!r} is not a number, string, boolean, None or a tuple of them")


def _thawed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _thawed(item) for key, item in value.items()}
    return [_thawed(item) for item in value] if isinstance(value, Sequence) and not isinstance(value, str) else value
