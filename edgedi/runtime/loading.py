"""Programs on the wire: a coordinator describes, a worker loads. Layers name their weights by content digest.

A worker gets only the layers that its program runs, and the specs of what they read. Whatever is wrong with a
description is a ``RemoteProtocolError``; operators outside the table are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from edgedi.errors import EdgediError, RemoteProtocolError
from edgedi.partition.graph import Layer, LayerGraph, TensorSpec
from edgedi.partition.memory import program_bytes
from edgedi.partition.operators import TABLE, weight_interval
from edgedi.partition.program import Program, ProgramSet, Run
from edgedi.partition.simulate import region_of
from edgedi.runtime.executor import LoadedProgram
from edgedi.runtime.kernels import fused
from edgedi.runtime.weights import WeightStore

INPUT = "input"
"""Pseudo-operator of a tensor that a program reads but does not make."""


class WorkerMemoryError(EdgediError):
    """A program does not fit into a worker's memory limit."""

    def __init__(self, reason: str, *, layer: str) -> None:
        self.layer = layer
        super().__init__(reason)


class Shipment:
    """Which weights a program needs, cut as it needs them: layer descriptions by digest, and the tensors behind them."""

    def __init__(self, weights: Mapping[str, Tensor], digest: Callable[[Tensor], str]) -> None:
        self._weights, self._digest = weights, digest
        self._names: dict[tuple[str, Any], str] = {}
        self.tensors: dict[str, Tensor] = {}

    def describe(self, programs: ProgramSet, participant: int) -> tuple[dict[str, Any], ...]:
        """Descriptions of the layers that ``participant`` runs and of the tensors that they read, in order."""
        graph, program = programs.graph, programs.programs[participant]
        runs = {i.piece.tensor: i for i in program.instructions if isinstance(i, Run)}
        described: dict[str, dict[str, Any]] = {}
        for name in sorted(runs, key=graph.position.__getitem__):
            layer = graph.by_name[name]
            for tensor in layer.inputs:
                if tensor not in runs and tensor not in described:
                    described[tensor] = _input_description(tensor, graph.spec(tensor))
            cut = weight_interval(layer, region_of(runs[name].piece))
            digests = {role: self.name(weight, cut) for role, weight in layer.weights.items()}
            described[name] = {**layer.to_dict(), "weights": digests}
        return tuple(described.values())

    def name(self, weight: str, cut: Any) -> str:
        """Digest of a weight, or of the part of it that ``cut`` keeps."""
        if (weight, cut) not in self._names:
            tensor = self._weights[weight] if cut is None else self._weights[weight][cut.start : cut.stop]
            digest = self._digest(tensor)
            self._names[weight, cut] = digest
            self.tensors[digest] = tensor
        return self._names[weight, cut]


def _input_description(name: str, spec: TensorSpec) -> dict[str, Any]:
    layer = Layer(name=name, op=INPUT, inputs=(), spec=spec)
    return layer.to_dict()


def digests_of(layers: tuple[dict[str, Any], ...]) -> tuple[str, ...]:
    """The digests of all weights that described layers use, each once."""
    return tuple(dict.fromkeys(digest for layer in layers for digest in layer["weights"].values()))


def read_graph(layers: tuple[dict[str, Any], ...]) -> LayerGraph:
    """The part of a graph that descriptions tell of. ``RemoteProtocolError`` for operators outside the table."""
    inputs: dict[str, TensorSpec] = {}
    made: list[Layer] = []
    try:
        for values in layers:
            layer = Layer.from_dict(values)
            if layer.op == INPUT:
                inputs[layer.name] = layer.spec
            elif layer.op not in TABLE or layer.op == "opaque":
                raise ValueError(f"operator {layer.op!r} of layer {layer.name} is not one that workers run")
            else:
                made.append(layer)
        return LayerGraph(inputs=inputs, layers=tuple(made), outputs=())
    except (KeyError, TypeError, ValueError) as error:
        raise RemoteProtocolError(f"layers are not described as they should be: {error}") from error


def load(
    text: str,
    layers: tuple[dict[str, Any], ...],
    store: WeightStore,
    packer: fused.Packer | None,
    *,
    limit_bytes: int | None = None,
) -> LoadedProgram:
    """A program ready to run. ``RemoteProtocolError`` for a bad one, ``WorkerMemoryError`` for one that is too large."""
    graph = read_graph(layers)
    try:
        program = Program.parse(text)
    except (ValueError, IndexError) as error:
        raise RemoteProtocolError(f"the program does not read: {error}") from error
    if limit_bytes is not None:
        _check_memory(program, graph, store, digests_of(layers), limit_bytes)
    try:
        return LoadedProgram(program, graph, lambda name, cut: store[name], packer=packer)
    except (KeyError, ValueError, TypeError, IndexError, RuntimeError, AssertionError) as error:
        raise RemoteProtocolError(f"the program does not load: {type(error).__name__}: {error}") from error


def _check_memory(
    program: Program, graph: LayerGraph, store: WeightStore, digests: tuple[str, ...], limit_bytes: int
) -> None:
    weights = sum(store[digest].numel() * store[digest].element_size() for digest in digests)
    peak, layer = program_bytes(program, graph)
    if weights + peak > limit_bytes:
        raise WorkerMemoryError(
            f"the program needs {weights / 1e6:.1f} MB of weights and {peak / 1e6:.1f} MB of maps (most at layer {layer}), "
            f"the limit is {limit_bytes / 1e6:.1f} MB: raise --memory-limit or add workers",
            layer=layer,
        )
