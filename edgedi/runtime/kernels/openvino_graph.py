"""Groups of layers as OpenVINO models. This module alone names OpenVINO, which is an extra (``edgedi[openvino]``).

Its own layout makes the transposes at both ends free. float32, and said so: its default on many processors is bfloat16.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from edgedi.runtime.kernels.group import (
    LEAK,
    CannotExpress,
    Engine,
    Geometry,
    Group,
    GroupKernel,
    GroupModel,
    as_maps,
    empty_as_stored,
    given,
    stored,
    stored_shape,
)

TELEMETRY = "openvino_telemetry"


def quiet_openvino() -> Any:
    """The module, imported without the package by which it would report every import to its maker.

    That package numbers the user in a file of the home folder, and cannot be told in advance to send nothing; without
    it OpenVINO has a stand-in that does nothing.
    """
    hidden = TELEMETRY not in sys.modules
    if hidden:
        sys.modules[TELEMETRY] = None  # type: ignore[assignment]  # what makes an import of it fail
    try:
        import openvino
    finally:
        if hidden:
            del sys.modules[TELEMETRY]
    return openvino


def build(group: Group, threads: int) -> GroupKernel | None:
    """See ``Engine.build``."""
    ov = quiet_openvino()
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # the worker is pinned, or not, as a whole
    }
    try:
        model = _Model(group).model(ov)
    except CannotExpress:
        return None
    return _kernel(ov, _core(ov).compile_model(model, "CPU", settings).create_infer_request(), group)


ENGINE = Engine(name="openvino", modules=("openvino",), build=build)


_CORES: list[Any] = []


def _core(ov: Any) -> Any:
    if not _CORES:
        _CORES.append(ov.Core())
    return _CORES[0]


def _kernel(ov: Any, request: Any, group: Group) -> GroupKernel:
    out_shapes = [group.shapes[piece] for piece in group.outputs]

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        laid_out = [stored(tensor) for tensor in inputs]
        made = [empty_as_stored(shape) for shape in out_shapes]
        for index, tensor in enumerate(laid_out):
            request.set_input_tensor(index, ov.Tensor(tensor.numpy(), shared_memory=True))
        for index, tensor in enumerate(made):
            request.set_output_tensor(index, ov.Tensor(tensor.numpy(), shared_memory=True))
        request.infer()
        return as_maps(made)

    return run


class _Model(GroupModel):
    def __init__(self, group: Group) -> None:
        super().__init__(group)
        self._op = quiet_openvino().opset13

    def model(self, ov: Any) -> Any:
        """The whole."""
        op, group = self._op, self.group
        parameters = [op.parameter(list(stored_shape(group.shapes[p])), np.float32) for p in group.inputs]
        return ov.Model([op.result(node) for node in self.nodes(parameters)], parameters, "group")

    def constant(self, tensor: Tensor) -> Any:
        return self._op.constant(tensor.contiguous().numpy())

    def transposed(self, node: Any, order: tuple[int, ...]) -> Any:
        return self._op.transpose(node, self._numbers(order))

    def sum_to_move(self, node: Any) -> Any:
        """The sum would be taken in the memory of an input that is transposed, and the result moved back element by
        element, at three times the cost of all the rest. Something exact in between gives it memory of its own.
        """
        return self._op.maximum(node, self._op.constant(np.float32(-np.inf)))

    def narrowed(self, node: Any, dim: int, start: int, length: int, step: int = 1) -> Any:
        numbers = (start, start + (length - 1) * step + 1, step, dim)
        return self._op.slice(node, *(self._numbers([value]) for value in numbers))

    def padded(self, node: Any, before: tuple[int, ...], after: tuple[int, ...], value: float) -> Any:
        return self._op.pad(
            node, self._numbers(before), self._numbers(after), "constant", self._op.constant(np.float32(value))
        )

    def activated(self, node: Any, name: str, arguments: Sequence[Any]) -> Any:
        op = self._op
        match name:
            case "relu" | "sigmoid" | "tanh" | "exp" | "log" | "abs" | "sqrt" | "mish" | "erf":
                return getattr(op, name)(node)
            case "neg":
                return op.negative(node)
            case "silu":
                return op.swish(node)
            case "hardswish":
                return op.hswish(node)
            case "hardsigmoid":
                return op.hsigmoid(node)
            case "hardtanh" | "clamp" if None not in arguments[:2] and len(arguments) >= 2:
                return op.clamp(node, float(arguments[0]), float(arguments[1]))
            case "leaky_relu":
                return op.prelu(node, op.constant(np.float32(given(arguments, LEAK))))
            case "gelu":
                return op.gelu(node, "tanh" if given(arguments, "none") == "tanh" else "erf")
        raise CannotExpress(name)

    def calculated(self, function: str, one: Any, other: Any) -> Any:
        op = self._op
        functions = {
            "add": op.add, "sub": op.subtract, "mul": op.multiply, "div": op.divide, "maximum": op.maximum,
            "minimum": op.minimum,
        }  # fmt: skip
        return functions[function](one, other)

    def convolved(self, x: Any, weight: Tensor, bias: Tensor | None, groups: int, geometry: Geometry) -> Any:
        op, numbers = self._op, (geometry.stride, geometry.before, geometry.after, geometry.dilation)
        lists = [list(each) for each in numbers]
        if groups == 1:
            y = op.convolution(x, self.constant(weight), *lists)
        else:
            shape = (groups, weight.shape[0] // groups, *weight.shape[1:])
            y = op.group_convolution(x, self.constant(weight.reshape(shape)), *lists)
        return y if bias is None else op.add(y, self.constant(bias.reshape(1, -1, 1, 1)))

    def multiplied(self, x: Any, rank: int, weight: Tensor, bias: Tensor | None) -> Any:
        y = self._op.matmul(x, self.constant(weight), False, True)
        return y if bias is None else self._op.add(y, self.constant(bias))

    def pooled(self, x: Any, geometry: Geometry) -> Any:
        numbers = (geometry.stride, geometry.dilation, geometry.before, geometry.after, geometry.kernel)
        return self._op.max_pool(x, *(list(each) for each in numbers)).output(0)

    def joined(self, nodes: Sequence[Any], dim: int) -> Any:
        return self._op.concat(list(nodes), dim)

    def reshaped(self, node: Any, shape: tuple[int, ...]) -> Any:
        return self._op.reshape(node, self._numbers(shape), False)

    def average_pooled(self, node: Any, kernel: tuple[int, int]) -> Any:
        return self._op.avg_pool(node, [1, 1], [0, 0], [0, 0], list(kernel), True)

    def averaged(self, node: Any, shape: tuple[int, ...], dims: tuple[int, ...]) -> Any:
        """Two means in a row OpenVINO makes one, of all their numbers one after another; a sum and a mean it leaves."""
        for number, dim in enumerate(dims):
            if number % 2 == 0:
                node = self._op.reduce_mean(node, self._numbers([dim]), True)
            else:
                total = self._op.reduce_sum(node, self._numbers([dim]), True)
                node = self._op.multiply(total, self._op.constant(np.float32(1 / shape[dim])))
        return node

    def _numbers(self, values: Sequence[int]) -> Any:
        return self._op.constant(np.array(values))
