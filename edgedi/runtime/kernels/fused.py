"""PyTorch's own fused oneDNN operators, called from Python: convolution with bias, activation and residual add in one.

These are private operators of torch (``torch.ops.mkldnn``): this module alone names them, ``available`` tells whether
they are there, and everything falls back to eager. What they cannot do (measured on torch 2.15, x86): asymmetric
padding (see ``windows``), batch 0, float64, activations other than those below.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from edgedi.runtime.kernels import windows
from edgedi.runtime.kernels.eager import activation, conv_groups
from edgedi.runtime.kernels.task import Kernel, Task
from edgedi.runtime.kernels.trials import Trials

_PLAIN: tuple[str, list[Any], str] = ("none", [], "")
_ACTIVATIONS: dict[str, Callable[[Sequence[Any]], tuple[str, list[Any], str]]] = {
    "relu": lambda a: ("relu", [], ""),
    "sigmoid": lambda a: ("sigmoid", [], ""),
    "tanh": lambda a: ("tanh", [], ""),
    "silu": lambda a: ("swish", [], ""),
    "hardswish": lambda a: ("hardswish", [], ""),
    "hardsigmoid": lambda a: ("hardsigmoid", [], ""),
    "hardtanh": lambda a: ("hardtanh", [-1.0 if a[0] is None else a[0], 1.0 if a[1] is None else a[1]], ""),
    "leaky_relu": lambda a: ("leaky_relu", [0.01 if a[0] is None else a[0]], ""),
    "gelu": lambda a: ("gelu", [], a[0] or "none"),
}


def available() -> bool:
    """Whether this torch has the operators and runs them on this processor."""
    names = ("_convolution_pointwise", "_reorder_convolution_weight")
    try:
        return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names)
    except RuntimeError:
        return False


class Packer:
    """Weights reordered for oneDNN, kept once for every use that wants the same memory layout.

    The layout depends on the input's height: one reordered for another height can cost many times as much to run.
    Weights are known by the name that ``name`` gives them while a program loads, else by identity; reordering loses
    nothing (``plain`` undoes it), so that whoever holds the named original need not keep it.
    """

    def __init__(self, trials: Trials | None = None, *, room_bytes: float = math.inf) -> None:
        self._packed: dict[Any, dict[bytes, Tensor]] = {}
        self._points: WeakValueDictionary[tuple[Any, str], Tensor] = WeakValueDictionary()
        self._names: dict[int, tuple[Any, Tensor]] = {}  # by identity; the tensor stays so that no identity comes twice
        self.trials = trials or Trials()
        """Which kernels pay on this device."""
        self.room_bytes = room_bytes
        """How much weights may take that are held besides the reordered ones, see ``pack_points``; 0: none."""
        self.by_winograd: list[str] = []
        """Layers that were given such weights; whoever loads a program empties it before."""

    def name(self, weight: Tensor, name: str) -> Tensor:
        """Know ``weight`` by ``name`` until ``forget_names``; returns it."""
        self._names[id(weight)] = (name, weight)
        return weight

    def forget_names(self) -> None:
        """Let go of the originals of named weights."""
        self._names.clear()

    def forget(self, name: str) -> None:
        """Let go of a named weight in every layout (programs that run keep theirs)."""
        self._packed.pop(name, None)

    def any_of(self, name: str) -> Tensor | None:
        """A named weight in some layout."""
        return next(iter(self._packed.get(name, {}).values()), None)

    def pack(self, weight: Tensor, arguments: tuple[Any, ...]) -> Tensor:
        """``weight`` as oneDNN wants it; ``arguments``: padding, stride, dilation, groups, input size."""
        packed = reordered(weight, arguments)
        return self._packed.setdefault(self._name_of(weight), {}).setdefault(_layout(packed), packed)

    def pack_points(self, weight: Tensor, at_points: Callable[[Tensor], Tensor], arguments: tuple[Any, ...]) -> Tensor:
        """What ``at_points`` makes of ``weight``, as oneDNN wants it: held by the kernels that use it, and shared by
        them while there are any. The original cannot be had from it."""
        name, geometry = self._name_of(weight), repr(arguments)
        held = self._points.get((name, geometry))
        if held is None:
            made = reordered(at_points(weight), arguments)
            others = (each for (owner, _), each in self._points.items() if owner == name)
            held = next((each for each in others if _layout(each) == _layout(made)), made)
            self._points[name, geometry] = held
        return held

    def has_room(self, weight: Tensor, num_bytes: int) -> bool:
        """Whether ``pack_points`` may give so much for ``weight``. What it gave already is shared: by maps of other
        heights mostly, whose layout is nearly always the same."""
        name = self._name_of(weight)
        held = any(owner == name for owner, _ in self._points)
        return self.room_bytes > 0 and (held or self.points_bytes + num_bytes <= self.room_bytes)

    def _name_of(self, weight: Tensor) -> Any:
        name, _ = self._names.setdefault(id(weight), (id(weight), weight))
        return name

    @property
    def num_bytes(self) -> int:
        """Bytes held by reordered weights (their logical size)."""
        return _bytes(packed for layouts in self._packed.values() for packed in layouts.values())

    @property
    def points_bytes(self) -> int:
        """Bytes of what ``pack_points`` gave and a kernel still uses (their logical size)."""
        return _bytes({id(each): each for each in self._points.values()}.values())


def _bytes(packed: Iterable[Tensor]) -> int:
    return sum(each.numel() * each.element_size() for each in packed)


def reordered(weight: Tensor, arguments: tuple[Any, ...]) -> Tensor:
    """``weight`` as oneDNN wants it, held by nobody else; ``arguments`` as for ``Packer.pack``."""
    made: Tensor = torch.ops.mkldnn._reorder_convolution_weight(weight, *arguments)
    return made


def plain_conv(weight: Tensor, arguments: tuple[Any, ...]) -> Callable[[Tensor], Tensor]:
    """The convolution by a reordered weight and nothing else; ``arguments`` as for ``Packer.pack``."""
    operator, geometry = torch.ops.mkldnn._convolution_pointwise.default, arguments[:4]

    def conv(x: Tensor) -> Tensor:
        y: Tensor = operator(x, weight, None, *geometry, *_PLAIN)
        return y

    return conv


def plain(weight: Tensor) -> Tensor:
    """``weight`` as it was before it was reordered, bit for bit."""
    return weight.to_dense() if weight.is_mkldnn else weight


def _layout(packed: Tensor) -> bytes:
    describe = getattr(torch.ops.mkldnn, "_get_mkldnn_serialized_md", None)
    if describe is None:  # an older torch: no sharing between heights
        return hashlib.sha256(str(id(packed)).encode()).digest()
    return bytes(describe(packed).numpy())


def make(task: Task, packer: Packer) -> Kernel | None:
    """The fused kernel of ``task``, ``None`` where eager serves."""
    if task.layer.op != "conv" or task.layer.spec.dtype != "float32" or task.layer.spec.rank != 4:
        return None
    groups, keep = conv_groups(task)
    act = task.layer.attribute("activation")
    if keep is not None or 0 in task.in_shape(0) or (act is not None and act not in _ACTIVATIONS):
        return None
    found = windows.borders(task)
    return _conv(task, packer, found, groups)


def _conv(task: Task, packer: Packer, found: tuple[windows.Border, ...], groups: int) -> Kernel:
    attributes, bias = task.layer.attributes, task.weights.get("bias")
    stride, dilation = list(attributes["stride"]), list(attributes["dilation"])
    padding = windows.symmetric(found)
    size = list(task.in_shape(0))
    for axis, border in enumerate(found):
        size[axis + 2] += sum(border.explicit)
    weight = packer.pack(task.weights["weight"], (padding, stride, dilation, groups, size))
    name = attributes.get("activation")
    attr, scalars, algorithm = (
        _PLAIN if name is None else _ACTIVATIONS[name](attributes.get("activation_arguments", ()))
    )
    if attributes.get("residual"):
        return _conv_add(task, weight, found, (padding, stride, dilation, groups), name, (attr, scalars, algorithm))
    operator = torch.ops.mkldnn._convolution_pointwise.default

    def conv(x: Tensor) -> Tensor:
        y: Tensor = operator(x, weight, bias, padding, stride, dilation, groups, attr, scalars, algorithm)
        return y

    return windows.wrap(conv, found)


def _conv_add(
    task: Task,
    weight: Tensor,
    found: tuple[windows.Border, ...],
    geometry: tuple[Any, ...],
    name: str | None,
    fused_activation: tuple[str, list[Any], str],
) -> Kernel:
    """With a residual: the binary form, which needs a result of the residual's own shape and allows ReLU only."""
    bias = task.weights.get("bias")
    exact = all(border.produced == border.count for border in found)
    if exact and name in (None, "relu"):
        binary = torch.ops.mkldnn._convolution_pointwise.binary
        unary = None if name is None else "relu"

        def conv_add(x: Tensor, other: Tensor) -> Tensor:
            other = other.contiguous(memory_format=torch.channels_last)
            y: Tensor = binary(x, other, weight, bias, *geometry, "add", 1.0, unary, [], "")
            return y

        if task.overwrite:
            in_place = torch.ops.mkldnn._convolution_pointwise_.binary

            def conv_onto(x: Tensor, other: Tensor) -> Tensor:
                if not other.is_contiguous(memory_format=torch.channels_last):
                    return conv_add(x, other)
                y: Tensor = in_place(other, x, weight, bias, *geometry, "add", 1.0, unary, [], "")
                return y

            return windows.wrap(conv_onto, found)
        return windows.wrap(conv_add, found)
    plain = torch.ops.mkldnn._convolution_pointwise.default
    padded = windows.wrap(lambda x: plain(x, weight, bias, *geometry, *_PLAIN), found)
    act = activation(task)
    if act is None:
        return lambda x, other: padded(x).add_(other)
    return lambda x, other: act(padded(x).add_(other))
