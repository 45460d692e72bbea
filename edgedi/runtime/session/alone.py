"""The bound of a plan, measured: every worker computes its share of each layer, all at once, and nobody exchanges."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgedi.partition.plan.program import Program, ProgramSet, Run
from edgedi.runtime.coordinator.coordinator import Coordinator, answer_of
from edgedi.runtime.coordinator.profiler import MEASURE_TIMEOUT_S, weight_specs
from edgedi.runtime.execution.loading import Shipment
from edgedi.runtime.wire.messages import Measure, Measured

REPEATS = 10


def seconds_alone(
    coordinator: Coordinator,
    programs: ProgramSet,
    weights: Mapping[str, Any],
    links: Sequence[int],
    digest: Callable[[Any], str],
) -> tuple[dict[str, float], ...]:
    """Seconds of every layer in each worker's program, by worker in the order of ``links``; the least of the repeats.

    Weights are noise that the workers make, so that nothing large is sent.
    """
    shipment = Shipment(weights, digest)
    asked = {
        participant: coordinator.ask(link, _message(programs, participant, shipment), Measured)
        for participant, link in enumerate(links)
        if _computing(programs.programs[participant])
    }
    found = {p: _seconds(answer_of(future, MEASURE_TIMEOUT_S, "measuring the bound")) for p, future in asked.items()}
    return tuple(found.get(participant, {}) for participant in range(len(links)))


def _seconds(measured: Measured) -> dict[str, float]:
    """Seconds by layer; with an engine where that computes the whole share faster."""
    factor = min(1.0, measured.engine_factor)
    return {layer: factor * seconds for layer, _, _, seconds in measured.seconds}


def _computing(program: Program) -> tuple[Run, ...]:
    return tuple(instruction for instruction in program.instructions if isinstance(instruction, Run))


def _message(programs: ProgramSet, participant: int, shipment: Shipment) -> Measure:
    program = Program(participant=0, instructions=_computing(programs.programs[participant]))
    layers = shipment.describe(ProgramSet(graph=programs.graph, programs={0: program}), 0)
    return Measure(program=str(program), layers=layers, weights=weight_specs(layers, shipment), repeats=REPEATS)
