"""One network, all its contenders, one interleaved run: one worker, every planner, every engine that is here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from edgedi.bench.contenders import SessionContender, require_nobody_left
from edgedi.bench.cores import deal
from edgedi.bench.devices import Devices
from edgedi.bench.engine_contender import EngineContender
from edgedi.bench.numbers import Ratio, times_as_fast
from edgedi.bench.progress import Teller
from edgedi.bench.report import ONE_WORKER, Memory, Report, Result, Single, Split, Traffic
from edgedi.bench.running import Run, Task, run
from edgedi.bench.settings import Settings
from edgedi.errors import EdgediError
from edgedi.partition.plan.plan import Plan
from edgedi.partition.plan.program import ProgramSet
from edgedi.runtime.session.trace import Span

_OWN_DEFAULT = {"openvino": "openvino-default"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Facts:
    """What is known of a session before the rounds, and stays known if a worker leaves during them."""

    name: str
    planner: str
    plan: Plan
    programs: ProgramSet
    traffic: Traffic
    layer_s: tuple[Mapping[str, float], ...]
    computed_by: tuple[str, ...]
    spans: tuple[Span, ...] = ()


def run_comparison(settings: Settings, teller: Teller) -> Report:
    """See ``run``."""
    return run(_Comparison, settings, teller)


class _Comparison(Run[Report]):
    def __init__(self, task: Task, stack: ExitStack, teller: Teller) -> None:
        super().__init__(task, stack, teller)
        self._cores = deal(1, self.settings.threads)[0]
        """Of engines, one after another; dealt before anybody is pinned."""

    def report(self) -> Report:
        """See ``Run``."""
        devices = self.start_devices()
        sessions = self._sessions(devices)
        engines = self._engines()
        for session in sessions:
            session.seconds(0)  # the answer that is compared before the plan is trusted: not to be counted below
            session.require_workers_answered()
        traffic = [session.traffic() for session in sessions]
        widest = max(sessions, key=lambda session: session.session.plan.num_workers)
        memory = widest.memory()  # before the bound is measured: that takes memory which requests do not
        facts = [self._facts(session, sent) for session, sent in zip(sessions, traffic, strict=True)]
        if self.settings.counts_warm:
            for engine in engines:
                engine.rehearse_again()
        results = self.rounds(sessions, engines, repeat=self.settings.repeat)
        facts = [replace(known, spans=self._spans(each)) for known, each in zip(facts, sessions, strict=True)]
        return self._put_together(devices, facts, engines, results, memory, widest.session.workers)

    def _spans(self, contender: SessionContender) -> tuple[Span, ...]:
        """One request traced; none where the run has ended early, or where this is what fails."""
        if self.ended:
            return ()
        try:
            return contender.session.spans()
        except EdgediError as error:
            self.teller.say(f"{contender.name}: no timeline, {error}")
            return ()

    def _facts(self, contender: SessionContender, traffic: Traffic) -> _Facts:
        session = contender.session
        self.teller.say(f"{contender.name}: measuring the bound, the same plan with no communication")
        return _Facts(
            name=contender.name, planner=session.plan.planner, plan=session.plan, programs=session.programs,
            traffic=traffic, layer_s=session.layer_seconds(), computed_by=contender.computed_by(),
        )  # fmt: skip

    def _sessions(self, devices: Devices) -> list[SessionContender]:
        """Of all that are wanted, those with a plan that fits; at least one."""
        made: list[SessionContender] = []
        for name, planner, count in self._wanted():
            require_nobody_left(made)
            with self.or_left_out(name):
                made.append(self._session(name, planner, devices, count))
        self.require_one(made)
        return made

    def _wanted(self) -> Iterator[tuple[str, str, int]]:
        """(name, planner, number of workers): one worker alone, then every planner on all of them and on as many as
        were asked for besides."""
        everybody = self.settings.num_workers
        yield ONE_WORKER, ONE_WORKER, everybody
        for planner in self.settings.planners:
            for count in sorted({*self.settings.counts, everybody}, reverse=True):
                if planner != ONE_WORKER:
                    yield (planner if count == everybody else f"{planner} on {count}"), planner, count

    def _session(self, name: str, planner: str, devices: Devices, count: int) -> SessionContender:
        session = self.open_session(name, planner, devices, count)
        return SessionContender(name, session, [self.task.inputs], devices.clock, emulated=bool(devices.emulation))

    def _engines(self) -> list[EngineContender]:
        names = self.engines_here()
        if not names:
            return []
        tensors, started = self.save_tensors(), []
        for name in _with_own_defaults(names):
            with self.or_left_out(name):
                engine = self.start_engine(name, tensors, self._cores)
                self.teller.say(f"{name}: version {engine.version}, computes in {engine.precision}")
                started.append(engine)
        return started

    def _put_together(
        self,
        devices: Devices,
        facts: Sequence[_Facts],
        engines: Sequence[EngineContender],
        results: dict[str, Result],
        memory: tuple[Memory, ...],
        workers: tuple[str, ...],
    ) -> Report:
        singles = _singles(engines, results)
        best = min(singles, key=lambda single: single.result.spread.median_s, default=None)
        splits = tuple(_split(known, results, best.result if best else None) for known in facts)
        return Report(
            settings=self.settings,
            machine=self.task.machine,
            workers=workers,
            pinned=devices.pinned,
            splits=splits,
            singles=singles,
            best=best.result.name if best else None,
            not_compared=self.not_compared,
            memory=memory,
            disturbed=self.disturbed_of(len(splits[0].result.seconds)),
            ended=self.ended,
            emulation=devices.emulation,
            late_s=self.late_s,
        )


def _with_own_defaults(names: Sequence[str]) -> list[str]:
    return [each for name in names for each in (name, _OWN_DEFAULT.get(name)) if each]


def _singles(engines: Sequence[EngineContender], results: dict[str, Result]) -> tuple[Single, ...]:
    made = {engine.name: _single(engine, results) for engine in engines}
    defaults = {name: made.pop(default) for name, default in _OWN_DEFAULT.items() if default in made}
    return tuple(_single(engine, results, defaults.get(engine.name)) for engine in engines if engine.name in made)


def _single(engine: EngineContender, results: dict[str, Result], own_default: Single | None = None) -> Single:
    result = results[engine.name]
    return Single(
        result=result, version=engine.version, precision=engine.precision, own_default=own_default,
        speedup=_over(results.get(ONE_WORKER), result),
    )  # fmt: skip


def _over(base: Result | None, result: Result) -> Ratio | None:
    return times_as_fast(result.seconds, base.seconds) if base else None


def _split(known: _Facts, results: dict[str, Result], best: Result | None) -> Split:
    result, one = results[known.name], results.get(ONE_WORKER)
    first = None if one or best else next(iter(results.values()))
    return Split(
        result=result,
        planner=known.planner,
        plan=known.plan,
        programs=known.programs,
        traffic=known.traffic,
        speedup=_over(one, result),
        against_best=_over(best, result),
        against_first=_over(first, result),
        layer_s=known.layer_s,
        computed_by=known.computed_by,
        spans=known.spans,
    )
