"""Requests a second: sessions under a stream, and engines on one device and on all of them, in one interleaved run.

A contender's turn is a stream of several requests, timed while it flows, and counts as the seconds of one of them on
average. An engine answers its requests one after another, in a process pinned like one worker. The same engine in one
process for each worker, all at once and with nothing between them, is what the devices could do if somebody else dealt
the requests. Emulated devices share nothing: there one process is timed, and its rate counts for each device by that
device's speed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from edgedi.bench.contenders import SessionContender, require_nobody_left
from edgedi.bench.cores import deal
from edgedi.bench.devices import Devices
from edgedi.bench.engine_contender import EngineContender
from edgedi.bench.numbers import Ratio, times_as_fast
from edgedi.bench.progress import Teller
from edgedi.bench.report import Disturbance, Machine, Result
from edgedi.bench.running import Run, Task, run
from edgedi.bench.settings import Settings
from edgedi.partition.plan.placement import Placement
from edgedi.partition.throughput.dealing import default_in_flight
from edgedi.runtime.session.session import Session

ONE_WORKER, THROUGHPUT = "one worker", "throughput"


class StreamContender(SessionContender):
    """A session under a stream of the same input; ``count`` of its requests are timed, between ``around`` others.

    Those others keep everybody busy all the time: what is timed neither waits for the first answers, nor has a worker
    at its end that is done while another is not. Replicas that are alike answer all at once, so ``count`` shall be so
    many times each of them; where they are not alike, up to one request's time may be counted or not.
    """

    def __init__(
        self,
        name: str,
        session: Session,
        inputs: Sequence[tuple[Any, ...]],
        count: int,
        around: int,
        clock: Callable[[], float] = time.perf_counter,
        *,
        emulated: bool = False,
    ) -> None:
        super().__init__(name, session, inputs, clock, emulated=emulated)
        self._count, self._around = count, around

    def seconds(self, index: int) -> float:
        """Seconds for each request that is timed. ``WorkerLost`` where not all workers answered."""
        answers = self.session.stream([self._inputs[index]] * (self._around + self._count + self._around))
        self._keep_last(index, islice(answers, self._around))
        started_s = self._clock()
        self._keep_last(index, islice(answers, self._count))
        taken_s = self._clock() - started_s
        self._keep_last(index, answers)
        found = self.require_workers_answered()  # a replica that is lost between two streams fails no request
        self._note_late(taken_s, found)
        return taken_s / self._count

    def _keep_last(self, index: int, answers: Iterable[Any]) -> None:
        for answer in answers:
            self._answers[index] = answer


class EngineGroup:
    """An engine in one process for each device, all at once; the rates of the processes add up."""

    def __init__(self, name: str, engines: Sequence[EngineContender], count: int) -> None:
        self.name, self.num_devices = name, len(engines)
        self._engines, self._count = tuple(engines), count
        self._threads = ThreadPoolExecutor(len(engines))

    def seconds(self, index: int) -> float:
        """One over the requests a second of all processes together, by the engines' own clocks."""
        taken = list(self._threads.map(lambda engine: self._mean_s(engine, index), self._engines))
        return 1 / sum(1 / seconds for seconds in taken)

    def rehearse_again(self) -> None:
        """See ``EngineContender``."""
        for engine in self._engines:
            engine.rehearse_again()

    def _mean_s(self, engine: EngineContender, index: int) -> float:
        return sum(engine.seconds(index) for _ in range(self._count)) / self._count

    def answer(self, index: int) -> list[Tensor]:
        """See ``Contender``."""
        return self._engines[0].answer(index)

    def close(self) -> None:
        """End the threads; the processes belong to whoever started them."""
        self._threads.shutdown()


class EmulatedGroup(EngineGroup):
    """One process that stands for all emulated devices, whose ``speeds`` are relative to the one that it is."""

    def __init__(self, name: str, engine: EngineContender, count: int, speeds: Sequence[float]) -> None:
        super().__init__(name, [engine], count)
        self.num_devices, self._speed = len(speeds), sum(speeds)

    def seconds(self, index: int) -> float:
        """See ``EngineGroup``."""
        return super().seconds(index) / self._speed


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One contender's part: seconds for each request by round, on how many devices, and what was predicted."""

    result: Result
    num_devices: int
    placement: Placement | None
    computed_by: tuple[str, ...]
    """What each worker let compute its layers; empty for an engine."""
    against_best: Ratio | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamReport:
    """Everything that one run found. ``best`` names the engine with the most requests a second on one device."""

    settings: Settings
    machine: Machine
    workers: tuple[str, ...]
    pinned: bool
    in_flight: int
    rows: tuple[Row, ...]
    best: str | None
    not_compared: dict[str, str]
    ended: str = ""
    """Why the run ended early; empty where it did not."""
    emulation: str = ""
    """What the devices are where they are not real: it stands beside every figure."""
    late_s: float = 0.0
    """How far behind their own time this machine ran them in the rounds."""
    disturbed: tuple[Disturbance, ...] = ()

    @property
    def num_rounds(self) -> int:
        """Rounds that every contender completed."""
        return len(self.rows[0].result.seconds)

    @property
    def same(self) -> bool:
        """Whether every answer was the model's own."""
        return all(row.result.within_tolerance for row in self.rows)


def run_streams(settings: Settings, teller: Teller) -> StreamReport:
    """See ``run``."""
    return run(_Streams, settings, teller)


class _Streams(Run[StreamReport]):
    def __init__(self, task: Task, stack: ExitStack, teller: Teller) -> None:
        super().__init__(task, stack, teller)
        self._cores = deal(1 if self.settings.testbed else self.settings.num_workers, self.settings.threads)
        """Of the engine's processes; dealt before anybody is pinned."""

    def report(self) -> StreamReport:
        """See ``Run``."""
        devices = self.start_devices()
        sessions, groups = self._sessions(devices), self._engines()
        placements = {session.name: session.session.placement for session in sessions}
        computed_by = {session.name: session.computed_by() for session in sessions}
        workers = sessions[-1].session.workers
        if self.settings.counts_warm:
            self._rehearse_again(sessions, groups)
        results = self.rounds(sessions, groups)
        alone = [results[group.name] for group in groups if group.num_devices == 1]
        best = min(alone, key=lambda result: result.spread.median_s, default=None)
        rows = [
            _row(results[name], _devices(chosen), best, chosen, computed_by[name])
            for name, chosen in placements.items()
        ]
        rows += [_row(results[group.name], group.num_devices, best) for group in groups]
        return StreamReport(
            settings=self.settings,
            machine=self.task.machine,
            workers=workers,
            pinned=devices.pinned,
            in_flight=default_in_flight(self.settings.num_workers, THROUGHPUT),
            rows=tuple(rows),
            best=best.name if best else None,
            not_compared=self.not_compared,
            ended=self.ended,
            emulation=devices.emulation,
            late_s=self.late_s,
            disturbed=self.disturbed_of(len(rows[0].result.seconds)),
        )

    def _rehearse_again(self, sessions: Sequence[StreamContender], groups: Sequence[EngineGroup]) -> None:
        """Engines and programs at another moment each: the shorter counts."""
        self.teller.say("rehearsing once more")
        for session in sessions:
            session.session.layer_seconds()
        for group in groups:
            group.rehearse_again()

    def _sessions(self, devices: Devices) -> list[StreamContender]:
        """One worker (of all the one that ``single`` takes), each planner's plan for latency with as many requests in
        flight, and what throughput chooses: those of them with a plan that fits, at least one."""
        planners = self.settings.planners
        wanted = [(ONE_WORKER, "single", "latency"), *((f"{each}, in flight", each, "latency") for each in planners)]
        made: list[StreamContender] = []
        for name, planner, objective in (*wanted, (THROUGHPUT, planners[0], THROUGHPUT)):
            require_nobody_left(made)
            with self.or_left_out(name):
                made.append(self._session(name, devices, planner, objective))
        self.require_one(made)
        return made

    def _session(self, name: str, devices: Devices, planner: str, objective: str) -> StreamContender:
        count, inputs = self.settings.num_workers, self.task.inputs
        in_flight = default_in_flight(count, THROUGHPUT)
        session = self.open_session(name, planner, devices, count, objective=objective, max_in_flight=in_flight)
        for _ in session.stream([inputs] * in_flight):  # the answers that are compared before a plan is trusted
            pass
        around = default_in_flight(_devices(session.placement), THROUGHPUT)
        timed = times_each(self.settings.repeat, len(session.placement.replicas))
        return StreamContender(name, session, [inputs], timed, around, devices.clock, emulated=bool(devices.emulation))

    def _engines(self) -> list[EngineGroup]:
        names, groups = self.engines_here(), list[EngineGroup]()
        if not names:
            return groups
        tensors = self.save_tensors()
        for name in names:
            with self.or_left_out(name):
                groups += self._groups(name, tensors)
        for group in groups:
            self.stack.callback(group.close)
        return groups

    def _groups(self, name: str, tensors: Path) -> list[EngineGroup]:
        """The engine on one device, and on all of them at once."""
        testbed, several, count = self.settings.testbed, self.settings.num_workers, self.settings.repeat
        engines = [self.start_engine(name, tensors, cores) for cores in self._cores]
        alone, together = EngineGroup(name, engines[:1], count), f"{name}, {several} at once"
        if several == 1:
            return [alone]
        if testbed is None:
            return [alone, EngineGroup(together, engines, count)]
        speeds = [testbed.least_slowdown / device.speed.slowdown for device in testbed.devices]
        return [alone, EmulatedGroup(together, engines[0], count, speeds)]


def times_each(count: int, num_replicas: int) -> int:
    """At least ``count``, and as often each of so many."""
    return -(-count // num_replicas) * num_replicas


def _devices(placement: Placement) -> int:
    """How many workers do anything."""
    return sum(
        len({worker for segment in replica.plan.segments for worker in segment.workers if worker >= 0})
        for replica in placement.replicas
    )


def _row(
    result: Result,
    num_devices: int,
    best: Result | None,
    placement: Placement | None = None,
    computed_by: tuple[str, ...] = (),
) -> Row:
    against = times_as_fast(result.seconds, best.seconds) if best else None
    return Row(
        result=result, num_devices=num_devices, placement=placement, computed_by=computed_by, against_best=against
    )
