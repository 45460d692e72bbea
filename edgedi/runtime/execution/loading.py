"""Programs on the wire: a coordinator describes, a worker loads. Layers name their weights by content digest.

A worker gets only the layers that its program runs, and the specs of what they read. Whatever is wrong with a
description is a ``RemoteProtocolError``; operators outside the table are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from edgedi.errors import EdgediError, RemoteProtocolError
from edgedi.partition.graph.graph import Layer, LayerGraph, TensorSpec
from edgedi.partition.graph.operators import TABLE, weight_interval
from edgedi.partition.plan.memory import program_bytes
from edgedi.partition.plan.program import UNSPLIT, Piece, Program, ProgramSet, Recv, Run
from edgedi.partition.plan.simulate import region_of
from edgedi.runtime.execution.executor import LoadedProgram, Step, WeightOf
from edgedi.runtime.execution.tensors import Tensor, made_on
from edgedi.runtime.execution.weights import WeightStore
from edgedi.runtime.kernels import fused, winograd

Expected = Mapping[tuple[Piece, int], tuple[tuple[int, ...], str]]
"""Shape and element type of every piece that a program receives, by piece and source."""

ENGINE_SHARE = 0.5
"""An engine holds weights again, ``ENGINE_COPIES`` times, and all that are tried hold them at once. Where memory is
limited, so many are tried that all that is held so, and the maps, take at most this share of the limit: programs which
come later find room beside it. Weights for Winograd's convolution come first, with half of what is spare."""
ENGINE_COPIES = 2
"""Its own order of them, and what it was given: both engines were seen to keep that."""
ENGINE_BYTES = 50_000_000
"""What an engine takes for itself: about as much as a process grows by importing OpenVINO and compiling one layer."""

INPUT = "input"
"""Pseudo-operator of a tensor that a program reads but does not make."""


class Engines(Protocol):
    """A ``Regroup`` that tries engines which all hold the weights again."""

    def ask_at_most(self, count: int) -> None:
        """Try no more than the first ``count`` of them."""
        ...

    def __call__(self, steps: tuple[Step, ...], weight: WeightOf, graph: LayerGraph) -> tuple[Step, ...]: ...


class WorkerMemoryError(EdgediError):
    """A program does not fit into a worker's memory limit."""

    def __init__(self, reason: str, *, layer: str) -> None:
        self.layer = layer
        super().__init__(reason)


class Shipment:
    """Which weights a program needs, cut as it needs them: layers described by digest, and the tensors behind them."""

    def __init__(self, weights: Mapping[str, Tensor], digest: Callable[[Tensor], str]) -> None:
        self._weights, self._digest = weights, digest
        self._names: dict[tuple[str, Any], str] = {}
        self.tensors: dict[str, Tensor] = {}

    def describe(self, programs: ProgramSet, participant: int) -> tuple[dict[str, Any], ...]:
        """Descriptions of the layers that ``participant`` runs and of the tensors that it reads, in order."""
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
        passed = (
            i.piece.tensor for i in program.instructions if not isinstance(i, Run)
        )  # received and sent on, perhaps
        described |= {t: _input_description(t, graph.spec(t)) for t in passed if t not in described}
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
            layer = _read_layer(values)
            if layer.op == INPUT:
                inputs[layer.name] = layer.spec
            elif layer.op not in TABLE or layer.op == "opaque":
                raise ValueError(f"operator {layer.op!r} of layer {layer.name} is not one that workers run")
            else:
                made.append(layer)
        return LayerGraph(inputs=inputs, layers=tuple(made), outputs=())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RemoteProtocolError(f"layers are not described as they should be: {error}") from error


def _read_layer(values: dict[str, Any]) -> Layer:
    """A described layer whose parts are of their types; what its attributes are worth, the operator table says."""
    layer = Layer.from_dict(values)
    texts = (layer.name, layer.op, *layer.inputs, *layer.weights, *layer.weights.values())
    if not all(type(text) is str for text in texts):
        raise ValueError(f"layer {layer.name!r} names something that is no text")
    if not all(type(size) is int and size >= 0 for size in layer.spec.shape):
        raise ValueError(f"layer {layer.name!r} has shape {layer.spec.shape}")
    return layer


def expected_pieces(program: Program, graph: LayerGraph) -> Expected:
    """What a program's RECV instructions wait for, and what each must look like.

    Intervals are not checked: partial results are numbered along their first dimension, beyond the one that each has.
    """
    return {
        (i.piece, i.source): (_piece_shape(i.piece, graph.spec(i.piece.tensor)), graph.spec(i.piece.tensor).dtype)
        for i in program.instructions
        if isinstance(i, Recv)
    }


def _piece_shape(piece: Piece, spec: TensorSpec) -> tuple[int, ...]:
    if piece.dim == UNSPLIT:
        return spec.shape
    if piece.dim >= spec.rank:
        raise ValueError(f"{piece} is no part of {spec}")
    return tuple(len(piece.interval) if dim == piece.dim else size for dim, size in enumerate(spec.shape))


def load(
    text: str,
    layers: tuple[dict[str, Any], ...],
    store: WeightStore,
    packer: fused.Packer | None,
    *,
    limit_bytes: int | None = None,
    device: str = "cpu",
    engines: Engines | None = None,
    held_bytes: int = 0,
    lean: bool = False,
) -> LoadedProgram:
    """A program ready to run on ``device``, where the weights of ``store`` lie already. Where memory is scarce, fewer
    ``engines`` are asked, or none; ``held_bytes``: what is held for speed alone already. A ``lean`` one holds every
    weight once.

    ``RemoteProtocolError`` for whatever is wrong with it, ``WorkerMemoryError`` for one that is too large beside what
    other programs hold.
    """
    graph = read_graph(layers)
    try:
        program = Program.parse(text)
        expected_pieces(program, graph)
    except (ValueError, IndexError, KeyError) as error:
        raise RemoteProtocolError(f"the program does not read: {error}") from error
    try:
        if limit_bytes is not None:
            weights, needed = _check_memory(program, graph, store, digests_of(layers), limit_bytes, held_bytes)
            room = room_beside(
                needed, limit_bytes, weights, points_wanted(layers, lambda digest: store.bytes_of([digest]))
            )
            if packer is not None:
                packer.room_bytes = packer.points_bytes + room.points_bytes
            if engines is not None:
                engines.ask_at_most(room.engines)
        if packer is not None:
            packer.by_winograd.clear()
        if packer is not None and lean:
            packer.room_bytes = 0
        with made_on(device):
            return LoadedProgram(
                program, graph, lambda name, cut: store.lend(name), packer=packer, device=device, regroup=engines
            )
    except EdgediError:
        raise
    except Exception as error:  # the table's functions take a stranger's attributes: whatever they raise is his doing
        raise RemoteProtocolError(f"the program does not load: {type(error).__name__}: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What may be held for speed alone: weights for Winograd's convolution, and how many engines hold all again."""

    points_bytes: int
    engines: int


def room_beside(needed_bytes: int, limit_bytes: int, weight_bytes: int, wanted_bytes: int) -> Room:
    """Room under a limit beside ``needed_bytes``, which are taken in any case; ``wanted_bytes``: ``points_wanted``."""
    spare_bytes = max(0, int(ENGINE_SHARE * limit_bytes - needed_bytes))
    points_bytes = min(wanted_bytes, spare_bytes // 2)
    engines = (spare_bytes - points_bytes) // (ENGINE_COPIES * weight_bytes + ENGINE_BYTES)
    return Room(points_bytes=points_bytes, engines=engines)


def points_wanted(layers: tuple[dict[str, Any], ...], bytes_of: Callable[[str], int]) -> int:
    """Bytes that weights would take at the points, of all layers that Winograd's convolution may compute."""
    convolutions = {layer["weights"]["weight"]: layer["attributes"] for layer in layers if layer["op"] == "conv"}
    return sum(winograd.wanted_bytes(attributes, bytes_of(digest)) for digest, attributes in convolutions.items())


def _check_memory(
    program: Program,
    graph: LayerGraph,
    store: WeightStore,
    digests: tuple[str, ...],
    limit_bytes: int,
    held_bytes: int,
) -> tuple[int, int]:
    """Bytes of the program's weights, and of all that is held with it."""
    weights = store.bytes_of(digests)
    others = max(0, store.pinned_bytes - weights) + held_bytes
    peak, layer = program_bytes(program, graph)
    if weights + others + peak > limit_bytes:
        beside = f", other programs hold {others / 1e6:.1f} MB" if others else ""
        raise WorkerMemoryError(
            f"the program needs {weights / 1e6:.1f} MB of weights and {peak / 1e6:.1f} MB of maps (most at layer "
            f"{layer}){beside}, the limit is {limit_bytes / 1e6:.1f} MB: raise --memory-limit or add workers",
            layer=layer,
        )
    return weights, weights + others + peak
