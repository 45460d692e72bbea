"""Which of several deployments is the fastest: each is given the same requests of noise, in turns.

Predictions of different kinds of plans, few exchanges or many, are not good enough to tell them apart when they are
close: what an exchange costs depends on caches, wake-ups and neighbours that no profile holds. A few requests do tell.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from edgedi.errors import EdgediError
from edgedi.partition.graph.graph import LayerGraph
from edgedi.partition.plan.program import Piece
from edgedi.runtime.coordinator.coordinator import Coordinator, Request, answer_of, new_run
from edgedi.runtime.execution.executor import LoadedProgram
from edgedi.runtime.execution.tensors import Tensor, random_piece

ROUNDS = 5
ENOUGH_S = 2.0
"""No further rounds after this long."""
TIMEOUT_S = 60.0


def request_seconds(
    coordinator: Coordinator,
    session: str,
    epoch: int,
    number: int,
    home: LoadedProgram,
    inputs: Mapping[str, Tensor],
    links: Sequence[int],
) -> float:
    """Seconds of one request whose answer nobody wants. ``WorkerLost`` if there is none."""
    answered: Future[Any] = Future()

    def done(_outputs: Any, error: EdgediError | None) -> None:
        if error is None:
            answered.set_result(None)
        else:
            answered.set_exception(error)

    started_s = coordinator.clock()
    coordinator.start_request(
        Request(
            session=session,
            epoch=epoch,
            number=number,
            run=new_run(home, inputs),
            outputs=home.graph.outputs,
            links=links,
            deadline_s=started_s + TIMEOUT_S,
            started_s=started_s,
            done=done,
        )
    )
    answer_of(answered, coordinator.waiting_s(TIMEOUT_S), "trying out a plan")
    return coordinator.clock() - started_s


def answer_seconds(answer: Callable[[], object], clock: Callable[[], float]) -> float | None:
    """Seconds of one request that is answered here, without messages; ``None`` where it is not (asked by message, it
    says why)."""
    started_s = clock()
    try:
        found = answer()
    except Exception:  # of an operator
        return None
    return None if found is None else clock() - started_s


def noise_inputs(graph: LayerGraph) -> dict[str, Tensor]:
    """Inputs that the graph takes."""
    return {name: random_piece(Piece(name), graph) for name in graph.inputs}


def may_be_tried(graph: LayerGraph) -> bool:
    """Whether noise is an input like any other: not where integers mean something, or the user's code is asked."""
    floats = all(spec.dtype.startswith(("float", "bfloat")) for spec in graph.inputs.values())
    return floats and all(layer.op != "opaque" for layer in graph.layers)


def quickest(runs: Sequence[Callable[[], float]], clock: Callable[[], float] = time.perf_counter) -> int:
    """Which of ``runs``, each of which tells its seconds, takes least: by medians of turns, after one that warms up."""
    for run in runs:
        run()
    taken: list[list[float]] = [[] for _ in runs]
    for _ in _rounds(clock(), clock):
        for run, seconds in zip(runs, taken, strict=True):
            seconds.append(run())
    medians = [statistics.median(seconds) for seconds in taken]
    return medians.index(min(medians))


def _rounds(started_s: float, clock: Callable[[], float]) -> Iterator[int]:
    for number in range(ROUNDS):
        if number and clock() - started_s > ENOUGH_S:
            return
        yield number
