"""Runs the programs of ``partition.probe``, and says what a message between two participants costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from edgedi.errors import EdgediError
from edgedi.partition.plan import HOME
from edgedi.partition.probe import computation, link_of_trips, probe_programs
from edgedi.partition.profile import LinkProfile
from edgedi.partition.program import Program, ProgramSet, Run
from edgedi.runtime.coordinator import Coordinator, Request, answer_of, new_run
from edgedi.runtime.executor import LoadedProgram
from edgedi.runtime.loading import Shipment
from edgedi.runtime.measure import measure_program
from edgedi.runtime.messages import Measure, Measured
from edgedi.runtime.tensors import inference, noise
from edgedi.runtime.weights import weight_digest

SIZES_BYTES = (4_096, 262_144)
"""A halo of a late layer, and a part of a map that is gathered."""
TRIPS = (1, 9)
REPEATS = 5
ENOUGH_S = 0.5
"""No further repeats after this long: over a slow link few are as good as many."""
PROBE_TIMEOUT_S = 60.0
PROBE_ROOM_BYTES = 32_000_000
"""What a worker needs for the programs here."""

Install = Callable[[ProgramSet, Sequence[int]], int]
"""Installs programs on the workers of these links; returns the epoch."""


class LinkProbe:
    """Measures the links of one session's workers."""

    def __init__(
        self,
        coordinator: Coordinator,
        session: str,
        install: Install,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._coordinator, self._session, self._install, self._clock = coordinator, session, install, clock
        self._computing_s: dict[int, float] = {}

    def between(self, one: int, other: int) -> LinkProfile:
        """The link between two workers, by link numbers. ``WorkerLost`` if one of them does not answer."""
        return self._measure((one, other), self._computation(one) + self._computation(other), home=False)

    def to_home(self, worker: int) -> LinkProfile:
        """The link between the coordinator and a worker."""
        return self._measure((worker,), self._computation(HOME) + self._computation(worker), home=True)

    def _measure(self, links: Sequence[int], computing_s: float, *, home: bool) -> LinkProfile:
        one_way_s = {}
        for size in SIZES_BYTES:
            short_s, long_s = (self._seconds(probe_programs(size, n, home=home), links) for n in TRIPS)
            trip_s = (long_s - short_s) / (TRIPS[1] - TRIPS[0])
            one_way_s[size] = max(0.0, trip_s - computing_s) / 2
        return link_of_trips(one_way_s)

    def _computation(self, worker: int) -> float:
        """Seconds of what a participant computes between two trips."""
        if worker not in self._computing_s:
            self._computing_s[worker] = self._computation_here() if worker == HOME else self._computation_of(worker)
        return self._computing_s[worker]

    def _computation_of(self, worker: int) -> float:
        programs = computation()
        runs = Program(
            participant=0, instructions=tuple(i for i in programs.programs[0].instructions if isinstance(i, Run))
        )
        layers = Shipment({}, weight_digest).describe(ProgramSet(graph=programs.graph, programs={0: runs}), 0)
        message = Measure(program=str(runs), layers=layers, weights=(), repeats=REPEATS)
        answer = answer_of(self._coordinator.ask(worker, message, Measured), PROBE_TIMEOUT_S, "measuring a link")
        return float(sum(seconds for *_, seconds in answer.seconds))

    @staticmethod
    def _computation_here() -> float:
        programs = computation()
        loaded = _load(programs, 0)
        with inference():
            return sum(seconds for *_, seconds in measure_program(loaded, REPEATS))

    def _seconds(self, programs: ProgramSet, links: Sequence[int]) -> float:
        """The usual time that a request of ``programs`` takes: the least would flatter links that others use too."""
        epoch = self._install(programs, links)
        home = _load(programs, HOME)
        inputs = {name: noise(spec.shape) for name, spec in programs.graph.inputs.items()}
        taken: list[float] = []
        while len(taken) < REPEATS and sum(taken) < ENOUGH_S:
            answered: Future[Any] = Future()
            started_s = self._clock()
            self._coordinator.start_request(
                Request(
                    session=self._session,
                    epoch=epoch,
                    number=len(taken),
                    run=new_run(home, inputs),
                    outputs=programs.graph.outputs,
                    links=links,
                    deadline_s=time.monotonic() + PROBE_TIMEOUT_S,
                    started_s=started_s,
                    done=lambda outputs, error, answered=answered: _tell(answered, error),  # type: ignore[misc]
                )
            )
            answer_of(answered, PROBE_TIMEOUT_S, "measuring a link")
            taken.append(self._clock() - started_s)
        self._coordinator.retire(self._session, epoch, links)
        return statistics.median(taken)


def _load(programs: ProgramSet, participant: int) -> LoadedProgram:
    return LoadedProgram(programs.programs[participant], programs.graph, lambda name, cut: noise(()))


def _tell(answered: Future[Any], error: EdgediError | None) -> None:
    if error is None:
        answered.set_result(None)
    else:
        answered.set_exception(error)
