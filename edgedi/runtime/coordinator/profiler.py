"""Profiles measured where they matter: every layer on the worker that will run it, every link by sending over it.

A worker is measured once per device and graph: the result is kept under its fingerprint and the graph's digest, as JSON
beside other caches of the user's.
"""

from __future__ import annotations

import os
import secrets
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgedi.partition.capture.capture import Capture
from edgedi.partition.cost.profile import DeviceProfile, LayerProfile
from edgedi.partition.graph.axes import axis_dims
from edgedi.partition.graph.geometry import WHOLE, Interval, Need, Region
from edgedi.partition.graph.graph import Layer, LayerGraph
from edgedi.partition.graph.operators import OPERATOR_TABLE_VERSION, needs
from edgedi.partition.plan.program import Instruction, Piece, Program, ProgramSet, Run
from edgedi.runtime.coordinator.coordinator import Coordinator, answer_of
from edgedi.runtime.execution.loading import Shipment, digests_of
from edgedi.runtime.execution.tensors import element_type, to_wire
from edgedi.runtime.wire.messages import Deploy, Measure, Measured, Ready, Weights, Welcome
from edgedi.runtime.wire.messages import Need as NeedWeights

REPEATS = 5
INSTALL_TIMEOUT_S = 300.0
MEASURE_TIMEOUT_S = 600.0
ENGINE_COUNTS = 0.8
"""Layers are measured one by one in torch. Where an engine takes at most this share of their time it is because they
are small, and it will take the chains of a split plan as well; where it takes more, it takes long chains only, and the
share counts where a device runs the whole network alone."""
KEPT_VERSION = 4
"""Raised where a kept profile lacks what one that is measured now would hold: other numbers, or other engine chains."""
_FRACTIONS = {"rows": (2, 4, 8), "channels": (2, 4)}
"""What part of a layer is measured besides all of it: one over these."""
_CHANNELS_FROM_BYTES = 262_144
"""Layers with fewer bytes of weights are not measured by channels: splitting them so saves nothing worth knowing."""
CACHE_FOLDER = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "edgedi" / "profiles"

Say = Callable[[str], None]


def profile_programs(graph: LayerGraph) -> dict[tuple[str, int], Program]:
    """Programs that only measure: (axis, divisor) -> every layer that can be made in part along the axis, in part."""
    programs = {("whole", 1): _program(graph, {})}
    for axis, divisors in _FRACTIONS.items():
        dims = axis_dims(graph, axis)
        for divisor in divisors:
            programs[axis, divisor] = _program(graph, dims, axis=axis, divisor=divisor)
    return programs


def _program(graph: LayerGraph, dims: Mapping[str, int], *, axis: str = "whole", divisor: int = 1) -> Program:
    instructions: list[Instruction] = []
    for layer in graph.layers:
        out = _region(layer, graph, dims, axis, divisor)
        if layer.op in ("opaque", "constant") or (axis != "whole" and out is WHOLE):
            continue
        shapes = graph.input_shapes(layer)
        parts = needs(layer, shapes, out)
        if parts is not None:
            instructions.append(Run(_piece(layer.name, out), tuple(map(_piece, layer.inputs, parts))))
    return Program(participant=0, instructions=tuple(instructions))


def _region(layer: Layer, graph: LayerGraph, dims: Mapping[str, int], axis: str, divisor: int) -> Need:
    dim = dims.get(layer.name)
    if dim is None or layer.spec.shape[dim] < divisor:
        return WHOLE
    weight = layer.weights.get("weight")
    if axis == "channels" and (weight is None or graph.weights[weight].num_bytes < _CHANNELS_FROM_BYTES):
        return WHOLE
    return Region(dim, Interval(0, layer.spec.shape[dim] // divisor))


def _piece(tensor: str, part: Need) -> Piece:
    return Piece(tensor) if part is WHOLE else Piece(tensor, part.dim, part.interval)


def device_profiles(
    coordinator: Coordinator, capture: Capture, welcomes: Mapping[int, Welcome], say: Say
) -> tuple[DeviceProfile, ...]:
    """One profile per worker (by link number), from the cache if it is there, else measured on all lacking at once."""
    graph = capture.graph
    known = {w.fingerprint: _cached(w.fingerprint, graph) for w in welcomes.values()}
    lacking = [link for link, welcome in welcomes.items() if known[welcome.fingerprint] is None]
    if lacking:
        say(f"measuring {len(graph.layers)} layers on {', '.join(welcomes[link].name for link in lacking)}")
        measured = _measure(coordinator, graph, capture.weights, lacking, say)
        for link in lacking:
            made = _profile(welcomes[link], graph, measured[link])
            known[welcomes[link].fingerprint] = made
            _keep(made, graph)
    return tuple(_named(welcome, known[welcome.fingerprint]) for welcome in welcomes.values())


def whole_seconds(
    coordinator: Coordinator, graph: LayerGraph, weights: Mapping[str, Any], link: int
) -> dict[str, float]:
    """Seconds of each whole layer on one worker, measured once: how fast it is now, not what it is at its best."""
    shipment = Shipment(weights, lambda tensor: secrets.token_hex(16))
    program = _program(graph, {})
    layers = shipment.describe(ProgramSet(graph=graph, programs={0: program}), 0)
    message = Measure(program=str(program), layers=layers, weights=weight_specs(layers, shipment), repeats=1)
    answer = answer_of(coordinator.ask(link, message, Measured), MEASURE_TIMEOUT_S, "measuring layers")
    share = engine_share(answer)
    return {layer: share * seconds for layer, _, _, seconds in answer.seconds}


def engine_share(whole: Measured) -> float:
    """What torch's seconds are multiplied with, by what a worker told of all layers whole: see ``ENGINE_COUNTS``."""
    return whole.engine_factor if whole.engine_factor <= ENGINE_COUNTS else 1.0


def _named(welcome: Welcome, profile: DeviceProfile | None) -> DeviceProfile:
    """The profile of a kind of device as that of one worker."""
    assert profile is not None, "measured where it was not known"
    return replace(profile, name=welcome.name, memory_bytes=welcome.memory_limit_bytes)


def _measure(
    coordinator: Coordinator, graph: LayerGraph, weights: Mapping[str, Any], links: Sequence[int], say: Say
) -> dict[int, dict[tuple[str, int], Measured]]:
    shipment = Shipment(weights, lambda tensor: secrets.token_hex(16))  # noise is measured: names need no content
    results: dict[int, dict[tuple[str, int], Measured]] = {link: {} for link in links}
    programs = {key: program for key, program in profile_programs(graph).items() if program.instructions}
    for number, (key, program) in enumerate(programs.items(), start=1):
        say(f"measuring {key[0]} 1/{key[1]} ({number} of {len(programs)})")
        layers = shipment.describe(ProgramSet(graph=graph, programs={0: program}), 0)
        message = Measure(program=str(program), layers=layers, weights=weight_specs(layers, shipment), repeats=REPEATS)
        answers = {link: coordinator.ask(link, message, Measured) for link in links}
        for link, answer in answers.items():
            results[link][key] = answer_of(answer, MEASURE_TIMEOUT_S, "measuring layers")
    return results


def weight_specs(layers: tuple[dict[str, Any], ...], shipment: Shipment) -> tuple[dict[str, Any], ...]:
    """Digest, element type and shape of every weight that described layers name."""
    tensors = {digest: shipment.tensors[digest] for digest in digests_of(layers)}
    return tuple({"digest": d, "dtype": element_type(t), "shape": tuple(t.shape)} for d, t in tensors.items())


def deploy_message(
    programs: ProgramSet,
    shipment: Shipment,
    session: str,
    epoch: int,
    participant: int,
    num_participants: int,
    peers: tuple[dict[str, Any], ...],
    home_halo_address: str | None = None,
) -> Deploy:
    """The program of one participant, with descriptions of its layers and the digests of its weights."""
    layers = shipment.describe(programs, participant)
    return Deploy(
        session=session,
        epoch=epoch,
        participant=participant,
        num_participants=num_participants,
        program=str(programs.programs[participant]),
        layers=layers,
        weights=weight_specs(layers, shipment),
        peers=peers,
        graph_digest=programs.graph.digest,
        plan_digest=programs.plan_digest or programs.digest,
        operator_table_version=OPERATOR_TABLE_VERSION,
        precision="float32",
        home_halo_address=home_halo_address,
    )


def install(coordinator: Coordinator, deploys: Mapping[int, Deploy], shipment: Shipment) -> dict[int, Ready]:
    """Deploy to workers (by link number), send what weights they lack, wait until all are ready."""
    patience_s = coordinator.waiting_s(INSTALL_TIMEOUT_S)
    ready = {worker: coordinator.ask(worker, None, Ready) for worker in deploys}  # asked first: it may come at once
    need = {worker: coordinator.ask(worker, deploy, NeedWeights) for worker, deploy in deploys.items()}
    for worker, asked in need.items():
        for digest in answer_of(asked, patience_s, "deploying a program").digests:
            payload, dtype, shape, _ = to_wire(shipment.tensors[digest])
            coordinator.tell(worker, Weights(digest=digest, dtype=dtype, shape=shape, payload=payload))
    return {worker: answer_of(future, patience_s, "installing a program") for worker, future in ready.items()}


def _profile(welcome: Welcome, graph: LayerGraph, measured: Mapping[tuple[str, int], Measured]) -> DeviceProfile:
    curves: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    whole = measured.get(("whole", 1))
    share = 1.0 if whole is None else engine_share(whole)
    for (axis, _), answer in measured.items():
        for layer, _, length, seconds in answer.seconds:
            curves[layer][axis].append((length, share * seconds))
    for axis in _FRACTIONS:
        _close_curves(curves, graph, axis)
    layers = {name: LayerProfile(curves={a: tuple(p) for a, p in c.items()}) for name, c in curves.items()}
    alone_share = 1.0 if whole is None else whole.engine_factor / share
    return DeviceProfile(name=welcome.name, fingerprint=welcome.fingerprint, layers=layers, alone_share=alone_share)


def _close_curves(curves: Mapping[str, Any], graph: LayerGraph, axis: str) -> None:
    """All of a layer is the last point of every axis that it was measured along."""
    dims = axis_dims(graph, axis)
    for name, by_axis in curves.items():
        if axis in by_axis and "whole" in by_axis:
            by_axis[axis].append((graph.spec(name).shape[dims[name]], by_axis["whole"][0][1]))


def _cache_path(fingerprint: str, graph: LayerGraph) -> Path:
    return CACHE_FOLDER / f"{fingerprint}-{graph.digest[:16]}-t{OPERATOR_TABLE_VERSION}-p{KEPT_VERSION}.json"


def _cached(fingerprint: str, graph: LayerGraph) -> DeviceProfile | None:
    try:
        return DeviceProfile.from_json(_cache_path(fingerprint, graph).read_text())
    except (OSError, ValueError):
        return None


def _keep(profile: DeviceProfile, graph: LayerGraph) -> None:
    path = _cache_path(profile.fingerprint, graph)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}.tmp")
        draft.write_text(profile.to_json())
        draft.replace(path)
    except OSError:
        pass  # a cache that cannot be written costs time, not results
