"""How long each layer of a loaded program takes on this device, one after another as the network runs them.

Layers are timed in network order, so that weights are as cold as they are in a request: timing one layer over and over
flatters those whose weights fit into a cache, by up to two times. The least of the repeats is reported: whatever else
the device does only ever adds.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from edgedi.partition.graph import LayerGraph
from edgedi.partition.program import UNSPLIT, Piece, Run
from edgedi.runtime.executor import LoadedProgram
from edgedi.runtime.kernels.eager import TORCH_DTYPES

Measurement = tuple[str, str, int, float]


def measure_program(
    loaded: LoadedProgram, repeats: int, clock: Callable[[], float] = time.perf_counter
) -> tuple[Measurement, ...]:
    """(layer, dimension or ``"whole"``, length, seconds) of every RUN instruction, the least of ``repeats``."""
    runs = [(s.instruction, s.kernel) for s in loaded.steps if isinstance(s.instruction, Run) and s.kernel is not None]
    inputs = [[random_piece(piece, loaded.graph) for piece in run.inputs] for run, _ in runs]
    taken: list[list[float]] = [[] for _ in runs]
    for repeat in range(repeats + 1):
        for index, (_, kernel) in enumerate(runs):
            started = clock()
            kernel(*inputs[index])
            if repeat:  # the first round warms up
                taken[index].append(clock() - started)
    return tuple(_named(run, min(seconds)) for (run, _), seconds in zip(runs, taken, strict=True))


def _named(run: Run, seconds: float) -> Measurement:
    piece = run.piece
    return (piece.tensor, "whole" if piece.dim == UNSPLIT else str(piece.dim), len(piece.interval), seconds)


def random_piece(piece: Piece, graph: LayerGraph) -> Tensor:
    """Noise in the shape and memory order of ``piece``."""
    spec = graph.spec(piece.tensor)
    shape = [len(piece.interval) if dim == piece.dim else size for dim, size in enumerate(spec.shape)]
    dtype = TORCH_DTYPES[spec.dtype]
    tensor = torch.rand(shape).to(dtype)
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor
