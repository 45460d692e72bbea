"""Runs the programs of ``partition.probe``, and says what a message between two participants costs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from edgedi.partition.cost.probe import COLD, link_of_trips, probe_programs
from edgedi.partition.cost.profile import LinkProfile
from edgedi.partition.plan.plan import HOME
from edgedi.partition.plan.program import ProgramSet
from edgedi.runtime.coordinator.coordinator import Coordinator
from edgedi.runtime.coordinator.trial import noise_inputs, request_seconds
from edgedi.runtime.execution.executor import LoadedProgram
from edgedi.runtime.execution.tensors import noise

SIZES_BYTES = (4_096, 262_144)
"""A halo of a late layer, and a part of a map that is gathered."""
TRIPS = (1, 17)
REPEATS = 5
ENOUGH_S = 0.5
"""No further repeats after this long: over a slow link few are as good as many."""
PROBE_ROOM_BYTES = 32_000_000
"""What a worker needs for the programs here."""

Install = Callable[[ProgramSet, Sequence[int]], int]
"""Installs programs on the workers of these links; returns the epoch."""


class LinkProbe:
    """Measures the links of one session's workers."""

    def __init__(self, coordinator: Coordinator, session: str, install: Install) -> None:
        self._coordinator, self._session, self._install = coordinator, session, install

    def between(self, one: int, other: int) -> LinkProfile:
        """The link between two workers, by link numbers. ``WorkerLost`` if one of them does not answer."""
        return self._measure((one, other), home=False)

    def to_home(self, worker: int) -> LinkProfile:
        """The link between the coordinator and a worker."""
        return self._measure((worker,), home=True)

    def _measure(self, links: Sequence[int], *, home: bool) -> LinkProfile:
        one_way_s = {}
        for size in SIZES_BYTES:
            short_s, long_s = (self._seconds(probe_programs(size, n, home=home), links) for n in TRIPS)
            one_way_s[size] = max(0.0, long_s - short_s) / (2 * (TRIPS[1] - TRIPS[0]))
        return link_of_trips(one_way_s, cold=1.0 if self._coordinator.speed.counts_warm else COLD)

    def _seconds(self, programs: ProgramSet, links: Sequence[int]) -> float:
        """The usual time that a request of ``programs`` takes: the least would flatter links that others use too."""
        epoch = self._install(programs, links)
        home = LoadedProgram(programs.programs[HOME], programs.graph, lambda name, cut: noise(()))
        inputs = noise_inputs(programs.graph)
        taken: list[float] = []
        while len(taken) < REPEATS and sum(taken) < ENOUGH_S:
            taken.append(request_seconds(self._coordinator, self._session, epoch, len(taken), home, inputs, links))
        self._coordinator.retire(self._session, epoch, links)
        return statistics.median(taken)
