"""Several RUN instructions as one model of an engine: no Python and no allocation between small layers.

``GroupModel`` walks the tasks and says in an engine's few words what each computes; which words there are is the
engine's module's to know. Maps keep the wire's order of elements at both ends: an input of rank 4 is [batch, rows,
columns, channels] and transposed inside. float32 only.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgedi.partition.graph.graph import Layer
from edgedi.partition.graph.operators import padding_at
from edgedi.partition.plan.program import Piece
from edgedi.runtime.kernels.eager import conv_groups
from edgedi.runtime.kernels.task import Task

GroupKernel = Callable[..., tuple[Tensor, ...]]

TO_NCHW, TO_NHWC = (0, 3, 1, 2), (0, 2, 3, 1)
LEAK = 0.01
"""The slope of leaky_relu where none is given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Consecutive runs: what each computes, what they read from outside, what is wanted of them, all as pieces."""

    runs: Sequence[tuple[Piece, Sequence[Piece], Task]]
    inputs: Sequence[Piece]
    outputs: Sequence[Piece]
    shapes: Mapping[Piece, tuple[int, ...]]
    """Of inputs and outputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What computes groups. ``modules``: what it needs, the first is the engine itself."""

    name: str
    modules: tuple[str, ...]
    build: Callable[[Group, int], GroupKernel | None]
    """``build(group, threads)``: one function of the group's inputs to its outputs; ``None`` where it has no words
    for a layer. Whatever the engine itself raises passes through: who asks leaves it out then, and says so."""

    @property
    def is_installed(self) -> bool:
        return all(importlib.util.find_spec(module) for module in self.modules)

    def __str__(self) -> str:
        """Name and version, such as ``openvino-2026.4.1``."""
        return f"{self.name}-{_version(self.modules[0])}"


@functools.cache  # it is read from disk, and every greeting of a worker says it
def _version(module: str) -> str:
    try:
        return importlib.metadata.version(module)
    except importlib.metadata.PackageNotFoundError:  # a build under another name, such as onnxruntime-gpu
        return "unknown"


class CannotExpress(Exception):
    """A layer that an engine has no words for."""


FUNCTIONS = frozenset((
    "relu", "sigmoid", "tanh", "exp", "log", "neg", "abs", "sqrt", "mish", "erf", "silu", "hardswish", "hardsigmoid",
    "hardtanh", "clamp", "leaky_relu", "gelu",
))  # fmt: skip
"""Of each element, for which every engine has words; of a clamp, where it has both ends."""
CALCULATIONS = frozenset(("add", "sub", "mul", "div", "maximum", "minimum"))


def takes(task: Task) -> bool:
    """Whether the layer is one that a group may hold: chains end where one is not, and go on behind it."""
    layer = task.layer
    if layer.op not in _MAKERS or layer.spec.dtype != "float32" or not _has_words(layer):
        return False
    match layer.op:
        case "binary":
            return layer.attribute("alpha", 1) == 1 and layer.attributes["function"] in CALCULATIONS
        case "partial" | "combine":
            return _adds(task)
        case "conv":
            return layer.spec.rank == 4 and conv_groups(task)[1] is None
        case "reshape":
            return task.out_shape == layer.spec.shape
        case "max_pool":
            return layer.spec.rank == 4 and set(layer.attributes["dilation"]) == {1}
        case "pad":
            return layer.attributes["mode"] == "constant" and min(sum(_pads(task), start=())) >= 0
    return True


def _has_words(layer: Layer) -> bool:
    """Whether engines know the functions that the layer applies to each element."""
    activation, function = layer.attribute("activation"), layer.attribute("function") if layer.op == "unary" else None
    applied = ((activation, "activation_arguments"), (function, "arguments"))
    return all(name is None or _is_known(name, layer.attribute(arguments, ())) for name, arguments in applied)


def _is_known(function: str, arguments: Sequence[Any]) -> bool:
    if function in ("hardtanh", "clamp"):
        return len(arguments) >= 2 and None not in arguments[:2]
    return function in FUNCTIONS


def _pads(task: Task) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What a PAD adds before and after each dimension: along the cut one what lies in the region that is made.

    Of a region that is nothing but padding one element is read that is not in it: that one is negative.
    """
    before, after = list(task.layer.attributes["before"]), list(task.layer.attributes["after"])
    out, part = task.out, task.parts[0]
    if out is not None and part is not None and (before[out.dim] or after[out.dim]):
        wanted = out.interval.shift(-before[out.dim])
        before[out.dim], after[out.dim] = part.interval.start - wanted.start, wanted.stop - part.interval.stop
    return tuple(before), tuple(after)


def given(arguments: Sequence[Any], default: Any) -> Any:
    """A function's one argument."""
    return default if not arguments or arguments[0] is None else arguments[0]


def stored(tensor: Tensor) -> Tensor:
    """Its elements as they lie in memory, maps as [batch, rows, columns, channels].

    ``TypeError`` for what is not float32 in this process' memory: engines are handed the place and believe it.
    """
    if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
        raise TypeError(f"an engine takes float32 in the processor's memory, not {tensor.dtype} of {tensor.device}")
    return (tensor.permute(TO_NHWC) if tensor.dim() == 4 else tensor).contiguous()


def empty_as_stored(shape: tuple[int, ...]) -> Tensor:
    """Memory for an output of this shape. The process may have other defaults."""
    return torch.empty(stored_shape(shape), dtype=torch.float32, device="cpu")


def stored_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of ``stored``."""
    return tuple(shape[dim] for dim in TO_NHWC) if len(shape) == 4 else shape


def as_maps(made: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The opposite of ``stored``, without a copy."""
    return tuple(tensor.permute(TO_NCHW) if tensor.dim() == 4 else tensor for tensor in made)


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """Of a convolution or a pooling: two numbers each, for rows and columns."""

    stride: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    """Padding."""
    dilation: tuple[int, ...] = (1, 1)
    kernel: tuple[int, ...] = ()


class GroupModel(ABC):
    """The model of a group, in an engine's words; nodes by piece."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self._nodes: dict[Piece, Any] = {}

    def nodes(self, inputs: Sequence[Any]) -> list[Any]:
        """What is wanted of the group, as stored, of ``inputs`` as stored. ``CannotExpress`` names the first layer that
        is in the way.
        """
        group = self.group
        for piece, node in zip(group.inputs, inputs, strict=True):
            self._nodes[piece] = self.transposed(node, TO_NCHW) if len(group.shapes[piece]) == 4 else node
        means = _means(group)
        within = {partial for partial, _ in means.values()}
        for piece, read, task in group.runs:
            if piece in means:
                _, partial = means[piece]
                self._nodes[piece] = self._mean(partial, task, self._nodes[partial.pieces[0]])
            elif piece not in within:
                self._nodes[piece] = self._layer(task, [self._nodes[p] for p in read if p in self._nodes])
        return [self._wanted(piece) for piece in group.outputs]

    def _wanted(self, piece: Piece) -> Any:
        node = self._nodes[piece]
        if len(self.group.shapes[piece]) != 4:
            return node
        is_sum = any(p == piece and task.layer.attributes.get("residual") for p, _, task in self.group.runs)
        return self.transposed(self.sum_to_move(node) if is_sum else node, TO_NHWC)

    def _layer(self, task: Task, inputs: list[Any]) -> Any:
        if not takes(task) or len(inputs) != len(task.parts):
            raise CannotExpress(task.layer.name)
        cut = [self._cut(node, task, index) for index, node in enumerate(inputs)]
        return self._activated(task, _MAKERS[task.layer.op](self, task, *cut))

    def _activated(self, task: Task, node: Any) -> Any:
        name = task.layer.attribute("activation")
        return node if name is None else self.activated(node, name, task.layer.attribute("activation_arguments", ()))

    def _cut(self, node: Any, task: Task, index: int) -> Any:
        if not task.present(index):
            raise CannotExpress(task.layer.name)
        cut = task.cut(index)
        return node if cut is None else self.narrowed(node, *cut)

    def _padded(self, task: Task, node: Any) -> tuple[Any, tuple[int, ...], tuple[int, ...]]:
        """The input, cropped where padding is negative, and the padding before and after.

        What lies behind the last window stays where it is too little for one more: a crop would be a copy.
        """
        pads = padding_at(task.layer, task.shapes, task.out)
        for axis, (before, after) in enumerate(pads):
            if before < 0 or -after >= task.layer.attributes["stride"][axis]:
                length = task.in_shape(0)[axis + 2]
                node = self.narrowed(node, axis + 2, max(0, -before), length - max(0, -before) - max(0, -after))
        return node, tuple(max(0, before) for before, _ in pads), tuple(max(0, after) for _, after in pads)

    # --- an engine's words --------------------------------------------------------------------------------------------

    @abstractmethod
    def constant(self, tensor: Tensor) -> Any:
        """A node of these values, float32."""

    @abstractmethod
    def transposed(self, node: Any, order: tuple[int, ...]) -> Any:
        """``node`` with its dimensions in this order."""

    def sum_to_move(self, node: Any) -> Any:
        """A sum of two maps that is transposed next: where an engine is better off with something in between."""
        return node

    @abstractmethod
    def narrowed(self, node: Any, dim: int, start: int, length: int, step: int = 1) -> Any:
        """``length`` elements of a dimension from ``start`` on, every ``step``-th."""

    @abstractmethod
    def padded(self, node: Any, before: tuple[int, ...], after: tuple[int, ...], value: float) -> Any:
        """With so many elements of this value before and after those of each dimension."""

    @abstractmethod
    def activated(self, node: Any, name: str, arguments: Sequence[Any]) -> Any:
        """A function of each element. ``CannotExpress`` for one that the engine does not have."""

    @abstractmethod
    def calculated(self, function: str, one: Any, other: Any) -> Any:
        """add, sub, mul, div, maximum or minimum of two nodes, broadcast. ``KeyError`` for any other name."""

    @abstractmethod
    def convolved(self, x: Any, weight: Tensor, bias: Tensor | None, groups: int, geometry: Geometry) -> Any:
        """``weight`` [outputs, inputs of a group, rows, columns]."""

    @abstractmethod
    def multiplied(self, x: Any, rank: int, weight: Tensor, bias: Tensor | None) -> Any:
        """The last of ``rank`` dimensions, by ``weight`` [outputs, inputs]."""

    @abstractmethod
    def pooled(self, x: Any, geometry: Geometry) -> Any:
        """Maxima."""

    @abstractmethod
    def joined(self, nodes: Sequence[Any], dim: int) -> Any:
        """One after another along a dimension."""

    @abstractmethod
    def reshaped(self, node: Any, shape: tuple[int, ...]) -> Any:
        """The same elements in another shape."""

    @abstractmethod
    def average_pooled(self, node: Any, kernel: tuple[int, int]) -> Any:
        """Means of a map's windows of so many rows and columns, at each place."""

    @abstractmethod
    def averaged(self, node: Any, shape: tuple[int, ...], dims: tuple[int, ...]) -> Any:
        """The mean of ``shape`` over ``dims``, which stay with one element each. One dimension after another: engines
        add up in float32, where the errors of long sums pile up.
        """

    # --- layers -------------------------------------------------------------------------------------------------------

    def _conv(self, task: Task, x: Any, *residual: Any) -> Any:
        attributes = task.layer.attributes
        x, before, after = self._padded(task, x)
        geometry = Geometry(
            stride=tuple(attributes["stride"]), before=before, after=after, dilation=tuple(attributes["dilation"])
        )
        y = self.convolved(x, task.weights["weight"], task.weights.get("bias"), conv_groups(task)[0], geometry)
        return self.calculated("add", y, residual[0]) if residual else y

    def _linear(self, task: Task, x: Any) -> Any:
        return self.multiplied(x, task.layer.spec.rank, task.weights["weight"], task.weights.get("bias"))

    def _unary(self, task: Task, x: Any) -> Any:
        return self.activated(x, task.layer.attributes["function"], task.layer.attribute("arguments", ()))

    def _binary(self, task: Task, x: Any, *others: Any) -> Any:
        other = others[0] if others else self.constant(_scalar(task.layer.attributes["scalar"]))
        return self.calculated(task.layer.attributes["function"], x, other)

    def _affine(self, task: Task, x: Any) -> Any:
        shape = [1, -1] + [1] * (task.layer.spec.rank - 2)
        scale, shift = (self.constant(task.weights[role].reshape(shape)) for role in ("scale", "shift"))
        return self.calculated("add", self.calculated("mul", x, scale), shift)

    def _max_pool(self, task: Task, x: Any) -> Any:
        attributes = task.layer.attributes
        x, before, after = self._padded(task, x)
        geometry = Geometry(
            stride=tuple(attributes["stride"]), before=before, after=after, kernel=tuple(attributes["kernel"])
        )
        return self.pooled(x, geometry)

    def _cat(self, task: Task, *parts: Any) -> Any:
        return self.joined(parts, task.layer.attributes["dim"])

    def _slice(self, task: Task, x: Any) -> Any:
        attributes, out = task.layer.attributes, task.out
        start = 0 if out is not None and out.dim == attributes["dim"] else attributes["start"]
        return self.narrowed(x, attributes["dim"], start, task.out_shape[attributes["dim"]], attributes["step"])

    def _pad(self, task: Task, x: Any) -> Any:
        return self.padded(x, *_pads(task), float(task.layer.attribute("value", 0.0)))

    def _reshape(self, task: Task, x: Any) -> Any:
        return self.reshaped(x, tuple(task.out_shape))

    def _partial(self, task: Task, x: Any) -> Any:
        dims, shape = tuple(task.layer.attributes["dims"]), task.in_shape(0)
        return self.reshaped(self._summed(x, shape, dims), (1, *_reduced(shape, dims)))

    def _combine(self, task: Task, parts: Any) -> Any:
        held = task.pieces[0]  # as many parts as took part, of which the layer does not know
        shape = (len(held.interval) if held.dim == 0 else 1, *task.in_shape(0)[1:])
        total = self._summed(parts, shape, (0,), task.layer.attributes["scale"])
        return self.reshaped(total, tuple(task.out_shape))

    def _mean(self, partial: Task, combine: Task, x: Any) -> Any:
        """Both at once, and what else the second does."""
        shape, dims = partial.in_shape(0), tuple(partial.layer.attributes["dims"])
        total = self._summed(self._cut(x, partial, 0), shape, dims, combine.layer.attributes["scale"])
        wanted = tuple(combine.out_shape)
        return self._activated(combine, total if _reduced(shape, dims) == wanted else self.reshaped(total, wanted))

    def _summed(self, node: Any, shape: tuple[int, ...], dims: tuple[int, ...], scale: float = 1.0) -> Any:
        """The sum times ``scale``: a mean, times how many there are."""
        factor = scale * math.prod(shape[dim] for dim in dims)
        if len(shape) == 4 and dims == (2, 3):  # pooling reads maps as convolutions leave them, means want them moved
            mean = self.average_pooled(self.average_pooled(node, (shape[2], 1)), (1, shape[3]))
        else:
            mean = self.averaged(node, shape, dims)
        return mean if math.isclose(factor, 1) else self.calculated("mul", mean, self.constant(_scalar(factor)))


def _means(group: Group) -> dict[Piece, tuple[Piece, Task]]:
    """By what a COMBINE makes of a single part: that part and the PARTIAL that makes it, where nobody else reads it.

    Together they are a plain sum or mean, for which an engine needs a third of the nodes.
    """
    sums = {piece: task for piece, _, task in group.runs if task.layer.op == "partial" and _adds(task)}
    readers = Counter(piece for _, read, _ in group.runs for piece in read) + Counter(group.outputs)
    return {
        piece: (read[0], sums[read[0]])
        for piece, read, task in group.runs
        if task.layer.op == "combine" and _adds(task) and len(read) == 1 and read[0] in sums and readers[read[0]] == 1
    }


def _reduced(shape: tuple[int, ...], dims: tuple[int, ...]) -> tuple[int, ...]:
    """``shape`` with one element in each of ``dims``."""
    return tuple(1 if dim in dims else length for dim, length in enumerate(shape))


def _adds(task: Task) -> bool:
    return bool(task.layer.attributes["function"] != "max")


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32, device="cpu")


_MAKERS: dict[str, Callable[..., Any]] = {
    "conv": GroupModel._conv, "linear": GroupModel._linear, "unary": GroupModel._unary, "binary": GroupModel._binary,
    "affine": GroupModel._affine, "max_pool": GroupModel._max_pool, "cat": GroupModel._cat, "slice": GroupModel._slice,
    "pad": GroupModel._pad, "reshape": GroupModel._reshape, "partial": GroupModel._partial,
    "combine": GroupModel._combine,
}  # fmt: skip
