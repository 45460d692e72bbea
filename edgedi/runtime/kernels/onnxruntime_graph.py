"""Groups of layers as ONNX Runtime sessions. This module alone of the runtime names ONNX and ONNX Runtime, which are an
extra (``edgedi[onnxruntime]``).

The model is described as ONNX, weights apart: they are handed over as memory and never written into the description,
which may have 2 GB at most.
"""

from __future__ import annotations

import itertools
import os
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

OPSET, IR_VERSION = 20, 10
"""Of ONNX, as old as the operators allow: older runtimes read them too."""
ONLY_ERRORS = 3
NO_TELEMETRY = ("ORT_DISABLE_TELEMETRY", "ORT_TELEMETRY_DISABLED")
"""The second is what it was called at first."""

_CALCULATIONS = {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "maximum": "Max", "minimum": "Min"}


def quiet_onnxruntime() -> Any:
    """The module, told before it is imported to send nothing to anybody.

    Recent packages (1.31 was seen to) report to their maker and keep a number of the device on disk, unless one of
    these variables says otherwise. Whoever wants that sets it to 0.
    """
    for switch in NO_TELEMETRY:
        os.environ.setdefault(switch, "1")
    import onnxruntime

    return onnxruntime


def build(group: Group, threads: int) -> GroupKernel | None:
    """See ``Engine.build``."""
    ort = quiet_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = ONLY_ERRORS
    # Its threads look for work for a while after each run; between requests the core is others'.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    model = _Model(group)
    try:
        described = model.described()
    except CannotExpress:
        return None
    options.add_external_initializers(list(model.weights), list(model.weights.values()))
    return _kernel(ort.InferenceSession(described, options, providers=["CPUExecutionProvider"]), model)


ENGINE = Engine(name="onnxruntime", modules=("onnxruntime", "onnx"), build=build)


def _kernel(session: Any, model: _Model) -> GroupKernel:
    out_shapes = [model.group.shapes[piece] for piece in model.group.outputs]
    in_names, out_names = ([port.name for port in ports] for ports in (session.get_inputs(), session.get_outputs()))

    def run(*inputs: Tensor, weights: object = model.weights) -> tuple[Tensor, ...]:
        """``weights`` are held by name only, for as long as the session may read them."""
        laid_out = [stored(tensor) for tensor in inputs]
        made = [empty_as_stored(shape) for shape in out_shapes]
        bound = session.io_binding()
        for name, tensor in zip(in_names, laid_out, strict=True):
            bound.bind_input(name, "cpu", 0, np.float32, tuple(tensor.shape), tensor.data_ptr())
        for name, tensor in zip(out_names, made, strict=True):
            bound.bind_output(name, "cpu", 0, np.float32, tuple(tensor.shape), tensor.data_ptr())
        session.run_with_iobinding(bound)
        return as_maps(made)

    return run


class _Model(GroupModel):
    """Nodes are names of ONNX values."""

    def __init__(self, group: Group) -> None:
        import onnx

        super().__init__(group)
        self._onnx, self._made, self._names = onnx, list[Any](), itertools.count()
        self._initializers: list[Any] = []
        self.weights: dict[str, Any] = {}
        """Values that are not in the description, by name."""

    def described(self) -> bytes:
        """The whole."""
        helper, group = self._onnx.helper, self.group
        ports = [f"in{index}" for index in range(len(group.inputs))]
        wanted = [self._add("Identity", [node]) for node in self.nodes(ports)]  # one may be wanted twice, or an input
        graph = helper.make_graph(
            self._made,
            "group",
            [self._port(name, piece) for name, piece in zip(ports, group.inputs, strict=True)],
            [self._port(name, piece) for name, piece in zip(wanted, group.outputs, strict=True)],
            self._initializers,
        )
        opsets = [helper.make_opsetid("", OPSET)]
        described: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION).SerializeToString()
        return described

    def _port(self, name: str, piece: Any) -> Any:
        shape = stored_shape(self.group.shapes[piece])
        return self._onnx.helper.make_tensor_value_info(name, self._onnx.TensorProto.FLOAT, shape)

    def _add(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        name = f"v{next(self._names)}"
        self._made.append(self._onnx.helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def constant(self, tensor: Tensor) -> Any:
        name, proto = f"w{next(self._names)}", self._onnx.TensorProto
        described = proto(name=name, data_type=proto.FLOAT, dims=list(tensor.shape), data_location=proto.EXTERNAL)
        described.external_data.add(key="location", value=name)
        self._initializers.append(described)
        self.weights[name] = quiet_onnxruntime().OrtValue.ortvalue_from_numpy(tensor.contiguous().numpy())
        return name

    def _numbers(self, values: Sequence[int]) -> str:
        name = f"n{next(self._names)}"
        self._initializers.append(self._onnx.numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def _number(self, value: float) -> str:
        name = f"n{next(self._names)}"
        self._initializers.append(self._onnx.numpy_helper.from_array(np.array(value, np.float32), name))
        return name

    def transposed(self, node: Any, order: tuple[int, ...]) -> Any:
        return self._add("Transpose", [node], perm=list(order))

    def narrowed(self, node: Any, dim: int, start: int, length: int, step: int = 1) -> Any:
        numbers = (start, start + (length - 1) * step + 1, dim, step)
        return self._add("Slice", [node, *(self._numbers([value]) for value in numbers)])

    def padded(self, node: Any, before: tuple[int, ...], after: tuple[int, ...], value: float) -> Any:
        return self._add("Pad", [node, self._numbers([*before, *after]), self._number(value)])

    def activated(self, node: Any, name: str, arguments: Sequence[Any]) -> Any:
        match name:
            case "relu" | "sigmoid" | "tanh" | "exp" | "log" | "neg" | "abs" | "sqrt" | "mish" | "erf":
                return self._add(name.capitalize(), [node])
            case "silu":
                return self._add("Mul", [node, self._add("Sigmoid", [node])])
            case "hardswish":
                return self._add("HardSwish", [node])
            case "hardsigmoid":
                return self._add("HardSigmoid", [node], alpha=1 / 6, beta=0.5)
            case "hardtanh" | "clamp" if None not in arguments[:2] and len(arguments) >= 2:
                return self._add("Clip", [node, *(self._number(float(value)) for value in arguments[:2])])
            case "leaky_relu":
                return self._add("LeakyRelu", [node], alpha=float(given(arguments, LEAK)))
            case "gelu":
                return self._add("Gelu", [node], approximate=str(given(arguments, "none")))
        raise CannotExpress(name)

    def calculated(self, function: str, one: Any, other: Any) -> Any:
        return self._add(_CALCULATIONS[function], [one, other])

    def convolved(self, x: Any, weight: Tensor, bias: Tensor | None, groups: int, geometry: Geometry) -> Any:
        biases = [] if bias is None else [self.constant(bias)]
        return self._add(
            "Conv", [x, self.constant(weight), *biases], group=groups, strides=list(geometry.stride),
            pads=[*geometry.before, *geometry.after], dilations=list(geometry.dilation),
        )  # fmt: skip

    def multiplied(self, x: Any, rank: int, weight: Tensor, bias: Tensor | None) -> Any:
        if rank == 2:  # as it lies, without a transposed copy
            biases = [] if bias is None else [self.constant(bias)]
            return self._add("Gemm", [x, self.constant(weight), *biases], transB=1)
        y = self._add("MatMul", [x, self.constant(weight.t())])
        return y if bias is None else self._add("Add", [y, self.constant(bias)])

    def pooled(self, x: Any, geometry: Geometry) -> Any:
        return self._add(
            "MaxPool", [x], kernel_shape=list(geometry.kernel), strides=list(geometry.stride),
            pads=[*geometry.before, *geometry.after],
        )  # fmt: skip

    def joined(self, nodes: Sequence[Any], dim: int) -> Any:
        return self._add("Concat", nodes, axis=dim)

    def reshaped(self, node: Any, shape: tuple[int, ...]) -> Any:
        return self._add("Reshape", [node, self._numbers(shape)])

    def average_pooled(self, node: Any, kernel: tuple[int, int]) -> Any:
        return self._add("AveragePool", [node], kernel_shape=list(kernel))

    def averaged(self, node: Any, shape: tuple[int, ...], dims: tuple[int, ...]) -> Any:
        for dim in dims:
            node = self._add("ReduceMean", [node, self._numbers([dim])])
        return node
