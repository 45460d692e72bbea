"""The bound of a plan, measured: every worker computes its share of each layer, and nobody exchanges.

Real workers do so all at once, emulated ones one after another, and theirs is what requests are charged.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgedi.partition.plan.program import ProgramSet, Run
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
    """Seconds of every layer in each worker's program, by worker in the order of ``links``, of the least of some runs.

    Weights are noise that the workers make, so that nothing large is sent.
    """
    shipment = Shipment(weights, digest)
    asked = {
        participant: coordinator.ask(link, _message(programs, participant, shipment), Measured)
        for participant, link in enumerate(links)
        if any(isinstance(instruction, Run) for instruction in programs.programs[participant].instructions)
    }
    answers = {p: answer_of(future, MEASURE_TIMEOUT_S, "measuring the bound") for p, future in asked.items()}
    found = {p: _by_layer(answer) for p, answer in answers.items()}
    return tuple(found.get(participant, {}) for participant in range(len(links)))


def _by_layer(answer: Measured) -> dict[str, float]:
    """Seconds of each layer, of all parts that it is made in."""
    seconds: dict[str, float] = defaultdict(float)
    for layer, _, _, taken_s in answer.seconds:
        seconds[layer] += taken_s
    return dict(seconds)


def _message(programs: ProgramSet, participant: int, shipment: Shipment) -> Measure:
    """The program as it is deployed, exchanges included: where they stand, an engine's chains of layers end."""
    layers, text = shipment.describe(programs, participant), str(programs.programs[participant])
    return Measure(program=text, layers=layers, weights=weight_specs(layers, shipment), repeats=REPEATS)
