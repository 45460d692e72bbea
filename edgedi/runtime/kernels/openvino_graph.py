"""Several RUN instructions as one OpenVINO model: no Python and no allocation between small layers.

This module alone names OpenVINO, which is an extra (``edgedi[openvino]``). Maps keep the wire's order of elements at
both ends: a parameter of rank 4 is [batch, rows, columns, channels] and transposed inside, which OpenVINO's own layout
makes free. float32 only, and said so: its default on many processors is bfloat16.

What it cannot express is left to torch: ``build`` then returns ``None``.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgedi.partition.graph.operators import padding_at
from edgedi.partition.plan.program import Piece
from edgedi.runtime.kernels.eager import conv_groups
from edgedi.runtime.kernels.task import Task

NAME = "openvino"
GroupKernel = Callable[..., tuple[Tensor, ...]]

_TO_NCHW, _TO_NHWC = (0, 3, 1, 2), (0, 2, 3, 1)


def available() -> bool:
    """Whether OpenVINO is installed."""
    return importlib.util.find_spec("openvino") is not None


@functools.cache  # it is read from disk, and every greeting of a worker says it
def version() -> str:
    """The engine's name and version, such as ``openvino-2026.4.1``."""
    return f"{NAME}-{importlib.metadata.version(NAME)}"


def takes(task: Task) -> bool:
    """Whether the layer is one that a group may hold; ``build`` has the last word."""
    layer = task.layer
    if layer.op not in _MAKERS or layer.spec.dtype != "float32":
        return False
    match layer.op:
        case "conv":
            return layer.spec.rank == 4 and conv_groups(task)[1] is None
        case "reshape":
            return task.out_shape == layer.spec.shape
        case "max_pool":
            return layer.spec.rank == 4 and set(layer.attributes["dilation"]) == {1}
    return True


class CannotExpress(Exception):
    """A layer that this module has no words for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Consecutive runs: what each computes, what they read from outside, what is wanted of them, all as pieces."""

    runs: Sequence[tuple[Piece, Sequence[Piece], Task]]
    inputs: Sequence[Piece]
    outputs: Sequence[Piece]
    shapes: Mapping[Piece, tuple[int, ...]]
    """Of inputs and outputs."""


def build(group: Group, threads: int) -> GroupKernel | None:
    """One function of the group's inputs to its outputs; ``None`` where OpenVINO cannot, or will not, take it."""
    import openvino as ov

    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # the worker is pinned, or not, as a whole
    }
    try:
        request = _core(ov).compile_model(_Model(group).model(ov), "CPU", settings).create_infer_request()
    except (CannotExpress, RuntimeError):  # RuntimeError is OpenVINO's own
        return None
    return _kernel(ov, request, group)


_CORES: list[Any] = []


def _core(ov: Any) -> Any:
    if not _CORES:
        _CORES.append(ov.Core())
    return _CORES[0]


def _kernel(ov: Any, request: Any, group: Group) -> GroupKernel:
    out_shapes = [group.shapes[piece] for piece in group.outputs]

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        given = [_stored(tensor) for tensor in inputs]
        made = [torch.empty(_stored_shape(shape)) for shape in out_shapes]
        for index, tensor in enumerate(given):
            request.set_input_tensor(index, ov.Tensor(tensor.numpy(), shared_memory=True))
        for index, tensor in enumerate(made):
            request.set_output_tensor(index, ov.Tensor(tensor.numpy(), shared_memory=True))
        request.infer()
        return tuple(tensor.permute(_TO_NCHW) if tensor.dim() == 4 else tensor for tensor in made)

    return run


def _stored(tensor: Tensor) -> Tensor:
    return (tensor.permute(_TO_NHWC) if tensor.dim() == 4 else tensor).contiguous()


def _stored_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(shape[dim] for dim in _TO_NHWC) if len(shape) == 4 else shape


class _Model:
    """Builds the model of a group; nodes by piece."""

    def __init__(self, group: Group) -> None:
        from openvino import opset13

        self._group, self._op = group, opset13
        self._nodes: dict[Piece, Any] = {}

    def model(self, ov: Any) -> Any:
        """The whole. ``CannotExpress`` names the first layer that is in the way."""
        op, group = self._op, self._group
        parameters = [op.parameter(list(_stored_shape(group.shapes[p])), np.float32) for p in group.inputs]
        for piece, parameter in zip(group.inputs, parameters, strict=True):
            self._nodes[piece] = self._moved(parameter, _TO_NCHW) if len(group.shapes[piece]) == 4 else parameter
        for piece, inputs, task in group.runs:
            self._nodes[piece] = self._layer(task, [self._nodes[p] for p in inputs if p in self._nodes])
        return ov.Model([op.result(self._wanted(piece)) for piece in group.outputs], parameters, "group")

    def _wanted(self, piece: Piece) -> Any:
        node = self._nodes[piece]
        if len(self._group.shapes[piece]) != 4:
            return node
        residual = any(p == piece and task.layer.attributes.get("residual") for p, _, task in self._group.runs)
        if residual:
            # The sum would be taken in the memory of an input that is transposed, and the result moved back element by
            # element, at three times the cost of all the rest. Something exact in between gives it memory of its own.
            node = self._op.maximum(node, self._op.constant(np.float32(-np.inf)))
        return self._moved(node, _TO_NHWC)

    def _moved(self, node: Any, order: tuple[int, ...]) -> Any:
        return self._op.transpose(node, self._op.constant(np.array(order)))

    def _constant(self, tensor: Tensor) -> Any:
        return self._op.constant(np.ascontiguousarray(tensor.numpy()))

    def _layer(self, task: Task, inputs: list[Any]) -> Any:
        if not takes(task) or len(inputs) != len(task.parts):
            raise CannotExpress(task.layer.name)
        cut = [self._cut(node, task, index) for index, node in enumerate(inputs)]
        node = _MAKERS[task.layer.op](self, task, *cut)
        name = task.layer.attribute("activation")
        return node if name is None else self._activated(node, name, task.layer.attribute("activation_arguments", ()))

    def _cut(self, node: Any, task: Task, index: int) -> Any:
        if not task.present(index):
            raise CannotExpress(task.layer.name)
        cut = task.cut(index)
        return node if cut is None else self._narrow(node, *cut)

    def _narrow(self, node: Any, dim: int, start: int, length: int) -> Any:
        op = self._op
        return op.slice(node, *(op.constant(np.array([value])) for value in (start, start + length, 1, dim)))

    def _activated(self, node: Any, name: str, arguments: Sequence[Any]) -> Any:
        op = self._op
        match name:
            case "relu" | "sigmoid" | "tanh" | "exp" | "abs" | "sqrt" | "hswish" | "mish" | "erf":
                return getattr(op, name)(node)
            case "silu":
                return op.swish(node)
            case "hardswish":
                return op.hswish(node)
            case "hardsigmoid":
                return op.hsigmoid(node)
            case "hardtanh" | "clamp" if None not in arguments[:2] and len(arguments) >= 2:
                return op.clamp(node, float(arguments[0]), float(arguments[1]))
            case "gelu":
                mode = "tanh" if arguments and arguments[0] == "tanh" else "erf"
                return op.gelu(node, mode)
        raise CannotExpress(name)

    def _padded(self, task: Task, node: Any) -> tuple[Any, list[int], list[int]]:
        """The input, cropped where padding is negative, and the padding before and after."""
        pads = padding_at(task.layer, task.shapes, task.out)
        for axis, (before, after) in enumerate(pads):
            if before < 0 or after < 0:
                length = task.in_shape(0)[axis + 2]
                node = self._narrow(node, axis + 2, max(0, -before), length - max(0, -before) - max(0, -after))
        return node, [max(0, before) for before, _ in pads], [max(0, after) for _, after in pads]

    # --- layers -------------------------------------------------------------------------------------------------------

    def conv(self, task: Task, x: Any, *residual: Any) -> Any:
        attributes, op = task.layer.attributes, self._op
        groups, _ = conv_groups(task)
        x, before, after = self._padded(task, x)
        weight, bias = task.weights["weight"], task.weights.get("bias")
        geometry = (list(attributes["stride"]), before, after, list(attributes["dilation"]))
        if groups == 1:
            y = op.convolution(x, self._constant(weight), *geometry)
        else:
            shape = (groups, weight.shape[0] // groups, *weight.shape[1:])
            y = op.group_convolution(x, self._constant(weight.reshape(shape)), *geometry)
        if bias is not None:
            y = op.add(y, self._constant(bias.reshape(1, -1, 1, 1)))
        return op.add(y, residual[0]) if residual else y

    def linear(self, task: Task, x: Any) -> Any:
        y = self._op.matmul(x, self._constant(task.weights["weight"]), False, True)
        bias = task.weights.get("bias")
        return y if bias is None else self._op.add(y, self._constant(bias))

    def unary(self, task: Task, x: Any) -> Any:
        return self._activated(x, task.layer.attributes["function"], task.layer.attribute("arguments", ()))

    def binary(self, task: Task, x: Any, *others: Any) -> Any:
        attributes, op = task.layer.attributes, self._op
        makers = {
            "add": op.add, "sub": op.subtract, "mul": op.multiply, "div": op.divide, "maximum": op.maximum,
            "minimum": op.minimum,
        }  # fmt: skip
        if task.layer.attribute("alpha", 1) != 1:
            raise CannotExpress(task.layer.name)
        other = others[0] if others else op.constant(np.float32(attributes["scalar"]))
        return makers[attributes["function"]](x, other)

    def affine(self, task: Task, x: Any) -> Any:
        shape = [1, -1] + [1] * (task.layer.spec.rank - 2)
        scale, shift = (self._constant(task.weights[role].reshape(shape)) for role in ("scale", "shift"))
        return self._op.add(self._op.multiply(x, scale), shift)

    def max_pool(self, task: Task, x: Any) -> Any:
        attributes = task.layer.attributes
        x, before, after = self._padded(task, x)
        pooled = self._op.max_pool(x, list(attributes["stride"]), [1, 1], before, after, list(attributes["kernel"]))
        return pooled.output(0)

    def cat(self, task: Task, *parts: Any) -> Any:
        return self._op.concat(list(parts), task.layer.attributes["dim"])

    def slice(self, task: Task, x: Any) -> Any:
        attributes, out = task.layer.attributes, task.out
        if attributes["step"] != 1:
            raise CannotExpress(task.layer.name)
        start = 0 if out is not None and out.dim == attributes["dim"] else attributes["start"]
        return self._narrow(x, attributes["dim"], start, task.out_shape[attributes["dim"]])

    def reshape(self, task: Task, x: Any) -> Any:
        return self._op.reshape(x, self._op.constant(np.array(task.out_shape)), False)

    def partial(self, task: Task, x: Any) -> Any:
        if task.layer.attributes["function"] == "max":
            raise CannotExpress(task.layer.name)
        total = self._op.reduce_sum(x, self._op.constant(np.array(task.layer.attributes["dims"])), True)
        return self._op.unsqueeze(total, self._op.constant(np.array([0])))

    def combine(self, task: Task, parts: Any) -> Any:
        if task.layer.attributes["function"] == "max":
            raise CannotExpress(task.layer.name)
        total = self._op.reduce_sum(parts, self._op.constant(np.array([0])), False)
        return self._op.multiply(total, self._op.constant(np.float32(task.layer.attributes["scale"])))


_MAKERS: dict[str, Callable[..., Any]] = {
    "conv": _Model.conv, "linear": _Model.linear, "unary": _Model.unary, "binary": _Model.binary,
    "affine": _Model.affine, "max_pool": _Model.max_pool, "cat": _Model.cat, "slice": _Model.slice,
    "reshape": _Model.reshape, "partial": _Model.partial, "combine": _Model.combine,
}  # fmt: skip
