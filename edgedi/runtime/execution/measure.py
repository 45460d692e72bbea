"""How long each layer of a loaded program takes on this device, one after another as the network runs them.

Layers are timed in network order, so that weights are as cold as they are in a request: timing one layer over and over
flatters those whose weights fit into a cache, by up to two times. What is reported adds up to the least of the runs, as
whatever else the device does only ever adds; each layer has the share of its own least. Their sum would be less than
any run.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from edgedi.partition.plan.memory import program_bytes
from edgedi.partition.plan.program import UNSPLIT, Program, Recv, Run
from edgedi.runtime.emulation.calm import calmly
from edgedi.runtime.execution.executor import LoadedProgram
from edgedi.runtime.execution.groups import EngineGroups
from edgedi.runtime.execution.loading import (
    INPUT,
    WorkerMemoryError,
    digests_of,
    load,
    points_wanted,
    read_graph,
    room_beside,
)
from edgedi.runtime.execution.tensors import random_piece
from edgedi.runtime.execution.weights import WeightStore
from edgedi.runtime.kernels.eager import TORCH_DTYPES
from edgedi.runtime.kernels.fused import Packer
from edgedi.runtime.kernels.trials import Trials
from edgedi.runtime.wire.payloads import tensor_bytes

Measurement = tuple[str, str, int, float]
CALM_S = 5.0
"""No longer than that for calm moments; who had none takes others."""


def measure_program(
    loaded: LoadedProgram, repeats: int, clock: Callable[[], float] = time.perf_counter, *, calm: bool = False
) -> tuple[Measurement, ...]:
    """(layer, dimension or ``"whole"``, length, seconds) of every RUN instruction: shares of the least of ``repeats``
    runs, by the least that each layer took; with ``calm`` of as many at calm moments."""
    runs = _runs(loaded)
    inputs = [[random_piece(piece, loaded.graph) for piece in run.inputs] for run, _ in runs]

    def once() -> list[float]:
        taken = []
        for index, (_, kernel) in enumerate(runs):
            started = clock()
            kernel(*inputs[index])
            taken.append(clock() - started)
        return taken

    once()  # warms up
    rounds = calmly(once, enough=repeats, most_s=CALM_S) if calm else [once() for _ in range(repeats)]
    least = tuple(_named(run, min(seconds)) for (run, _), seconds in zip(runs, zip(*rounds, strict=True), strict=True))
    return adding_up_to(min(map(sum, rounds)), least)


def _runs(loaded: LoadedProgram) -> list[tuple[Run, Callable[..., Any]]]:
    return [(s.instruction, s.kernel) for s in loaded.steps if isinstance(s.instruction, Run) and s.kernel is not None]


def adding_up_to(total_s: float, measured: tuple[Measurement, ...]) -> tuple[Measurement, ...]:
    """The same layers with the same shares of ``total_s``, where that is known better than its parts.

    As they are where a coarse clock found nothing.
    """
    sum_s = sum(seconds for *_, seconds in measured)
    if not sum_s:
        return measured
    return tuple((name, kind, length, seconds / sum_s * total_s) for name, kind, length, seconds in measured)


def _named(run: Run, seconds: float) -> Measurement:
    piece = run.piece
    return (piece.tensor, "whole" if piece.dim == UNSPLIT else str(piece.dim), len(piece.interval), seconds)


def measure_described(
    text: str,
    layers: tuple[dict[str, Any], ...],
    weights: Sequence[Mapping[str, Any]],
    repeats: int,
    *,
    trials: Trials | None,
    limit_bytes: int | None,
    device: str,
    groups: EngineGroups | None = None,
    clock: Callable[[], float] = time.perf_counter,
    calm: bool = False,
) -> tuple[tuple[Measurement, ...], float]:
    """Measure a program as a coordinator describes it, on weights that are noise; and ``groups``' factor for all of it.

    A program that says what it receives is measured as it would run: seconds of its layers are those in the chains that
    ``groups`` makes, and the factor is 1. Where layers are only listed, they are timed one by one; the factor is told
    if none of them is cut. ``calm`` is as for ``measure_program``.

    Where all of it does not fit into ``limit_bytes``, layer by layer (with warmer weights than in a request, and not
    waiting for calm moments each time); a layer that does not fit by itself is left out.
    """
    instructions = Program.parse(text).instructions
    as_it_runs = any(isinstance(instruction, Recv) for instruction in instructions)

    def loaded_for(program: str, described: tuple[dict[str, Any], ...]) -> LoadedProgram:
        packer = Packer(trials) if trials is not None else None
        names = set(digests_of(described))
        store = noise_store([weight for weight in weights if weight["digest"] in names], packer, device)
        loaded = load(program, described, store, packer, limit_bytes=limit_bytes, device=device)
        if groups is not None and (as_it_runs or all(s.instruction.piece.dim == UNSPLIT for s in loaded.steps)):
            groups(loaded.steps, lambda name, cut: store.lend(name), loaded.graph)
        return loaded

    weight_bytes = sum(tensor_bytes(w["dtype"], w["shape"]) for w in weights)
    maps_bytes, _ = program_bytes(Program.parse(text), read_graph(layers))
    if groups is not None and limit_bytes is not None:
        sizes = {weight["digest"]: tensor_bytes(weight["dtype"], weight["shape"]) for weight in weights}
        wanted = points_wanted(layers, sizes.__getitem__) if trials is not None else 0
        groups.ask_at_most(room_beside(weight_bytes + maps_bytes, limit_bytes, weight_bytes, wanted).engines)
    if limit_bytes is None or weight_bytes <= limit_bytes:
        with contextlib.suppress(WorkerMemoryError):
            loaded = loaded_for(text, layers)
            measured = measure_program(loaded, repeats, clock, calm=calm)
            if groups is None or as_it_runs:
                return _in_chains(loaded, measured, groups), 1.0
            return measured, groups.factor
    found: list[Measurement] = []
    for instruction in instructions:
        if not isinstance(instruction, Run):
            continue
        alone = Program(participant=0, instructions=(instruction,))
        with contextlib.suppress(WorkerMemoryError):
            loaded = loaded_for(str(alone), _alone(layers, instruction.piece.tensor))
            found += measure_program(loaded, repeats, clock)
    return tuple(found), 1.0


def _in_chains(
    loaded: LoadedProgram, measured: tuple[Measurement, ...], groups: EngineGroups | None
) -> tuple[Measurement, ...]:
    """Seconds of pieces as part of the chains that an engine computes."""
    factors = {piece: choice.factor for choice in groups.choices for piece in choice.pieces} if groups else {}
    made = [factors.get(run.piece, 1.0) for run, _ in _runs(loaded)]
    pairs = zip(made, measured, strict=True)
    return tuple((name, kind, length, factor * seconds) for factor, (name, kind, length, seconds) in pairs)


def _alone(layers: tuple[dict[str, Any], ...], name: str) -> tuple[dict[str, Any], ...]:
    """One layer's description; what it reads becomes input."""
    wanted = next(layer for layer in layers if layer["name"] == name)
    inputs = [layer for layer in layers if layer["name"] in wanted["inputs"]]
    return (*({**layer, "op": INPUT, "inputs": (), "weights": {}, "attributes": {}} for layer in inputs), wanted)


def noise_store(weights: Sequence[Mapping[str, Any]], packer: Packer | None, device: str) -> WeightStore:
    """Noise in the place of weights: how long a layer takes does not depend on their values."""
    store = WeightStore(device=device, packer=packer)
    for weight in weights:
        values = torch.rand(weight["shape"], dtype=torch.float32) * 0.1
        store.put(weight["digest"], values.to(TORCH_DTYPES[weight["dtype"]]))
    return store
