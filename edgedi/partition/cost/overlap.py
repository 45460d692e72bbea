"""Where border rows are made first: where what they hide of their way is predicted to be more than parts cost.

A piece that is made whole is sent when all of it is ready; with its borders first (``plan.borders``) the rest of it is
computed while they travel. Of the way, latency + bytes / rate, that hides up to the seconds of the rest; both ends'
processor time for the message is not hidden. It costs what the parts take more than the whole, by the devices' measured
curves: every call reads the layer's weights again. All workers wait for each other, so a tensor is made so by all of
them or by none, and what counts is the longest way, the worker whose parts cost most, and the one whose rest is
shortest. Of several ways the one that gains most is taken, where it gains enough (``LEAST_GAIN``).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from edgedi.partition.cost.cost import CostModel
from edgedi.partition.graph.axes import DIM_OF_IMAGE
from edgedi.partition.plan.borders import Border, borders, with_borders_first
from edgedi.partition.plan.lowering import lower
from edgedi.partition.plan.memory import program_memory
from edgedi.partition.plan.plan import HOME, Plan
from edgedi.partition.plan.program import Program, ProgramSet, Run, Send

_AXES = {dim: axis for axis, dim in DIM_OF_IMAGE.items()}

LEAST_GAIN = 0.5
"""Of the way. Curves know nothing of the chains of layers that an engine takes at once and that parts leave: with less
to gain, requests were not faster (ResNet-50 on four emulated devices at 50 and 100 Mbit/s: ``bench.border_rows`` with
``--least-gain 0``)."""

Borders = Mapping[int, Border]
"""One tensor's, by worker."""


def lower_for(model: CostModel, plan: Plan, objective: str) -> ProgramSet:
    """The programs that carry out ``plan``. For throughput nothing is made in parts: with many requests in flight
    nobody waits, and parts take longer than the whole."""
    return lower(plan, model.graph) if objective == "throughput" else lower_hiding(model, plan)


def lower_hiding(model: CostModel, plan: Plan) -> ProgramSet:
    """The programs that carry out ``plan``, border rows first where that is predicted to pay and there is memory for
    it; ``PlanError`` as ``lower``."""
    plain = lower(plan, model.graph)
    chosen: dict[int, list[Border]] = defaultdict(list)
    for tensor_borders in _chosen(model, plain):
        for worker, border in tensor_borders.items():
            chosen[worker].append(border)
    made = {who: with_borders_first(program, chosen[who]) for who, program in plain.programs.items()}
    return replace(plain, programs=made) if all(_fits(model, program) for program in made.values()) else plain


def _fits(model: CostModel, program: Program) -> bool:
    limit = None if program.participant == HOME else model.cluster.devices[program.participant].memory_bytes
    return limit is None or program_memory(program, model.graph).total_bytes <= limit


def _chosen(model: CostModel, programs: ProgramSet) -> Iterator[Borders]:
    """Of every tensor that all who send some of it to other workers can make in parts: the best way, if it gains."""
    ways: dict[str, dict[int, tuple[Border, ...]]] = defaultdict(dict)
    for worker, program in programs.programs.items():
        for of_piece in borders(program, model.graph):
            ways[of_piece[0].piece.tensor][worker] = of_piece
    for tensor, by_worker in ways.items():
        if set(by_worker) != _senders(programs, tensor):
            continue
        together = [dict(zip(by_worker, one, strict=True)) for one in zip(*by_worker.values(), strict=False)]
        best = max(together, key=lambda one: gain_s(model, one))
        if 0 < gain_s(model, best) >= LEAST_GAIN * _longest_way_s(model, best):
            yield best


def _senders(programs: ProgramSet, tensor: str) -> set[int]:
    """The participants that send some of it to a worker."""
    return {
        who
        for who, program in programs.programs.items()
        for instruction in program.instructions
        if isinstance(instruction, Send) and instruction.piece.tensor == tensor and instruction.target != HOME
    }


def gain_s(model: CostModel, together: Borders) -> float:
    """Seconds that a request is predicted to gain by it."""
    rest_s = min(_seconds(model, worker, border.rest) for worker, border in together.items())
    return min(_longest_way_s(model, together), rest_s) - max(
        _more_s(model, worker, border) for worker, border in together.items()
    )


def _more_s(model: CostModel, worker: int, border: Border) -> float:
    """What the parts take more than the whole."""
    parts = (run for chain in border.chains for run in chain)
    return _seconds(model, worker, parts) - _seconds(model, worker, border.wholes)


def _longest_way_s(model: CostModel, together: Borders) -> float:
    return max(_way_s(model, worker, border) for worker, border in together.items())


def _way_s(model: CostModel, worker: int, border: Border) -> float:
    """Seconds that the last of what is sent travels."""
    links = ((model.cluster.link_between(worker, send.target), send.piece) for send in border.sends)
    return max((link.latency_s + model.num_bytes(piece) / link.bytes_per_s for link, piece in links), default=0.0)


def _seconds(model: CostModel, worker: int, runs: Iterable[Run]) -> float:
    return math.fsum(model.run_seconds(worker, run, _AXES[run.piece.dim]) for run in runs)
