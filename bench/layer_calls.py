"""Layers as a worker runs them, one call for each: on noise, in PyTorch on this process's threads."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from edgedi.partition.capture.capture import Capture
from edgedi.partition.graph.graph import LayerGraph
from edgedi.partition.plan.program import Program, ProgramSet, Run
from edgedi.runtime.coordinator.profiler import weight_specs
from edgedi.runtime.execution.loading import Shipment, load
from edgedi.runtime.execution.measure import noise_store
from edgedi.runtime.execution.tensors import random_piece
from edgedi.runtime.kernels import fused

Call = Callable[[], object]


def layer_calls(program: Program, captured: Capture) -> list[Call]:
    """Of every RUN of ``program``, which lists layers: they need not feed each other."""
    shipment = Shipment(captured.weights, lambda tensor: secrets.token_hex(16))  # noise: names need no content
    described = shipment.describe(ProgramSet(graph=captured.graph, programs={0: program}), 0)
    packer = fused.Packer() if fused.available() else None
    store = noise_store(weight_specs(described, shipment), packer, "cpu")
    loaded = load(str(program), described, store, packer, limit_bytes=None, device="cpu")
    return [
        _call(step.kernel, step.instruction, loaded.graph)
        for step in loaded.steps
        if isinstance(step.instruction, Run) and step.kernel is not None
    ]


def _call(kernel: Callable[..., object], run: Run, graph: LayerGraph) -> Call:
    pieces = [random_piece(piece, graph) for piece in run.inputs]
    return lambda: kernel(*pieces)
