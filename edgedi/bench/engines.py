"""The single-device engines that a run may compare with: which there are, and how each is made to run a network.

Imported by the engine's own process, after it was pinned and its threads were set. Each engine is a function that takes
a network (tensors in, a tuple of tensors out), the inputs it will see and the number of threads.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edgedi.errors import install
from edgedi.runtime.kernels.onnxruntime_graph import quiet_onnxruntime
from edgedi.runtime.kernels.openvino_graph import quiet_openvino

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A network ready to run: ``run`` takes arrays or tensors that ``prepare`` made of the inputs beforehand."""

    run: Callable[[Any], Any]
    prepare: Callable[[Inputs], Any]
    tensors: Callable[[Any], list[Tensor]]
    version: str
    precision: str


class Flat(nn.Module):
    """A network that answers with a plain tuple of tensors, which every engine can express."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The tensors of the network's answer, in the order of its structure."""
        return tuple(leaf for leaf in pytree.tree_leaves(self.network(*inputs)) if isinstance(leaf, Tensor))


def eager(network: nn.Module, inputs: Sequence[Inputs], threads: int) -> Engine:
    """PyTorch as everybody calls it."""
    return _torch_engine(network)


def inductor(network: nn.Module, inputs: Sequence[Inputs], threads: int) -> Engine:
    """``torch.compile`` with frozen weights, which lets it reorder them and fold batch normalisation."""
    from torch._inductor import config

    config.freezing = True
    return _torch_engine(torch.compile(network, dynamic=False))


def _torch_engine(network: Callable[..., Any]) -> Engine:
    return Engine(
        run=lambda inputs: network(*inputs), prepare=lambda inputs: inputs, tensors=list,
        version=torch.__version__, precision="f32",
    )  # fmt: skip


def openvino(network: nn.Module, inputs: Sequence[Inputs], threads: int) -> Engine:
    """OpenVINO told to compute in float32, as the session does."""
    return _openvino(network, inputs, threads, {"INFERENCE_PRECISION_HINT": "f32"})


def openvino_default(network: nn.Module, inputs: Sequence[Inputs], threads: int) -> Engine:
    """OpenVINO in the precision that it picks for this processor by itself."""
    return _openvino(network, inputs, threads, {})


def _openvino(network: nn.Module, inputs: Sequence[Inputs], threads: int, precision: Mapping[str, str]) -> Engine:
    ov = quiet_openvino()
    model = ov.convert_model(network, example_input=inputs[0])
    model.reshape({port: list(x.shape) for port, x in zip(model.inputs, inputs[0], strict=True)})
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY", **precision}
    compiled = ov.Core().compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()
    return Engine(
        run=lambda arrays: request.infer(arrays, share_inputs=True, share_outputs=True),
        prepare=_arrays,
        tensors=lambda answer: [torch.from_numpy(answer[port].copy()) for port in compiled.outputs],
        version=ov.__version__.split("-")[0],
        precision=compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name(),
    )


def onnxruntime(network: nn.Module, inputs: Sequence[Inputs], threads: int) -> Engine:
    """ONNX Runtime's CPU provider, all graph optimisations on, from the ONNX that torch exports."""
    ort = quiet_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    with tempfile.TemporaryDirectory(prefix="edgedi-bench-") as folder:
        path = f"{folder}/network.onnx"
        torch.onnx.export(network, inputs[0], path, dynamo=False)
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]
    return Engine(
        run=lambda arrays: session.run(None, dict(zip(names, arrays, strict=True))),
        prepare=_arrays,
        tensors=lambda answer: [torch.from_numpy(array) for array in answer],
        version=ort.__version__,
        precision="f32",
    )


def _arrays(inputs: Inputs) -> list[Any]:
    return [x.numpy() for x in inputs]


ENGINES: Mapping[str, Callable[[nn.Module, Sequence[Inputs], int], Engine]] = {
    "eager": eager,
    "openvino": openvino,
    "openvino-default": openvino_default,
    "onnxruntime": onnxruntime,
    "inductor": inductor,
}
"""What an engine's process is asked for by name."""


def what_is_missing(engine: str) -> str | None:
    """Why ``engine`` cannot run here, and what would help; ``None`` if nothing is known to be in its way."""
    if engine == "inductor":
        found = any(shutil.which(compiler) for compiler in ("g++", "clang++"))
        return None if found else "torch.compile needs a C++ compiler: install g++"
    needed = {"openvino": ("openvino",), "onnxruntime": ("onnxruntime", "onnx")}.get(engine, ())
    lacking = [module for module in needed if importlib.util.find_spec(module) is None]
    return f"{' and '.join(lacking)} not installed: {install(engine)}" if lacking else None
