"""What workers are asked at the start: how long they take for every layer, and to install a program."""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgedi.partition.capture.capture import Capture
from edgedi.partition.cost.profile import DeviceProfile, LayerProfile
from edgedi.partition.graph.axes import axis_dims
from edgedi.partition.graph.geometry import WHOLE, Interval, Need, Region
from edgedi.partition.graph.graph import Layer, LayerGraph
from edgedi.partition.graph.operators import OPERATOR_TABLE_VERSION, flops, needs
from edgedi.partition.plan.program import Piece, Program, ProgramSet, Run
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
NUM_SAMPLED = 2
SAMPLED_UP_TO_BYTES = 10_000_000
"""Of weights; a worker makes them up for every sample."""
_FRACTIONS = {"rows": (2, 4, 8), "channels": (2, 4)}
"""What part of a layer is measured besides all of it: one over these."""
_CHANNELS_FROM_BYTES = 262_144
"""Layers with fewer bytes of weights are not measured by channels: splitting them so saves nothing worth knowing."""

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
    regions = [(layer, _region(layer, graph, dims, axis, divisor)) for layer in _measurable(graph)]
    runs = [_run(layer, graph, out) for layer, out in regions if axis == "whole" or out is not WHOLE]
    return Program(participant=0, instructions=tuple(run for run in runs if run is not None))


def _measurable(graph: LayerGraph) -> list[Layer]:
    return [layer for layer in graph.layers if layer.op not in ("opaque", "constant")]


def _run(layer: Layer, graph: LayerGraph, out: Need) -> Run | None:
    """``None`` where a layer cannot be made so."""
    parts = needs(layer, graph.input_shapes(layer), out)
    return None if parts is None else Run(_piece(layer.name, out), tuple(map(_piece, layer.inputs, parts)))


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


def measured_profiles(
    coordinator: Coordinator, capture: Capture, welcomes: Mapping[int, Welcome], say: Say
) -> dict[int, DeviceProfile]:
    """What each worker takes for each layer, by link number; measured on all of them at once."""
    graph, names = capture.graph, ", ".join(welcome.name for welcome in welcomes.values())
    say(f"measuring {len(graph.layers)} layers on {names}")
    measured = _measure(coordinator, graph, capture.weights, list(welcomes), say)
    return {link: _profile(welcome, graph, measured[link]) for link, welcome in welcomes.items()}


def sample_seconds(coordinator: Coordinator, capture: Capture, links: Sequence[int]) -> dict[int, float]:
    """Seconds that each worker takes, now, for a few layers, by link number: the same layers each time.

    It tells whether a worker is as fast as it was when it took so long before, at a small part of a profile's cost. It
    is no part of the profile: so few layers find their weights in the caches. Layers that do not fit into a worker's
    memory limit are left out there.
    """
    graph = capture.graph
    layers = sorted(_sampled(graph), key=graph.position.__getitem__)
    runs = [_run(graph.by_name[name], graph, WHOLE) for name in layers]
    program = Program(participant=0, instructions=tuple(run for run in runs if run is not None))
    if not program.instructions:
        return dict.fromkeys(links, 0.0)
    answers = _all_measure(coordinator, links, _measure_message(program, graph, capture.weights, REPEATS))
    return {link: sum(seconds for *_, seconds in answer.seconds) for link, answer in answers.items()}


def _sampled(graph: LayerGraph) -> list[str]:
    """The layers with most to compute, of those whose weights are made at once; too few for an engine's chain."""

    def weight_bytes(layer: Layer) -> int:
        return sum(graph.weights[name].num_bytes for name in layer.weights.values())

    light = [layer for layer in _measurable(graph) if weight_bytes(layer) <= SAMPLED_UP_TO_BYTES]
    work = {layer.name: flops(layer, graph.input_shapes(layer)) for layer in light}
    return sorted(work, key=work.__getitem__, reverse=True)[:NUM_SAMPLED]


def whole_seconds(
    coordinator: Coordinator, graph: LayerGraph, weights: Mapping[str, Any], link: int
) -> dict[str, float]:
    """Seconds of each whole layer on one worker, measured once: how fast it is now, not what it is at its best."""
    message = _measure_message(_program(graph, {}), graph, weights, 1)
    answer = _all_measure(coordinator, [link], message)[link]
    share = engine_share(answer)
    return {layer: share * seconds for layer, _, _, seconds in answer.seconds}


def engine_share(whole: Measured) -> float:
    """What torch's seconds are multiplied with, by what a worker told of all layers whole: see ``ENGINE_COUNTS``."""
    return whole.engine_factor if whole.engine_factor <= ENGINE_COUNTS else 1.0


def _measure_message(program: Program, graph: LayerGraph, weights: Mapping[str, Any], repeats: int) -> Measure:
    """Noise is measured, so names of weights need no content."""
    shipment = Shipment(weights, lambda tensor: secrets.token_hex(16))
    layers = shipment.describe(ProgramSet(graph=graph, programs={0: program}), 0)
    return Measure(program=str(program), layers=layers, weights=weight_specs(layers, shipment), repeats=repeats)


def _measure(
    coordinator: Coordinator, graph: LayerGraph, weights: Mapping[str, Any], links: Sequence[int], say: Say
) -> dict[int, dict[tuple[str, int], Measured]]:
    results: dict[int, dict[tuple[str, int], Measured]] = {link: {} for link in links}
    programs = {key: program for key, program in profile_programs(graph).items() if program.instructions}
    for number, (key, program) in enumerate(programs.items(), start=1):
        say(f"measuring {key[0]} 1/{key[1]} ({number} of {len(programs)})")
        message = _measure_message(program, graph, weights, REPEATS)
        for link, answer in _all_measure(coordinator, links, message).items():
            results[link][key] = answer
    return results


def _all_measure(coordinator: Coordinator, links: Sequence[int], message: Measure) -> dict[int, Measured]:
    """At once: in a request they compute at once, too."""
    asked = {link: coordinator.ask(link, message, Measured) for link in links}
    return {link: answer_of(answer, MEASURE_TIMEOUT_S, "measuring layers") for link, answer in asked.items()}


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
