"""One network, all its contenders, one interleaved run: one worker, every planner, every engine that is here."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from edgedi.bench.contenders import Contender, SessionContender, tensors_of
from edgedi.bench.cores import deal
from edgedi.bench.devices import Devices, start_devices
from edgedi.bench.disturbances import reader, watched
from edgedi.bench.engine_contender import EngineContender, EngineFailed, save_tensors
from edgedi.bench.engines import what_is_missing
from edgedi.bench.machine import this_machine
from edgedi.bench.measuring import EndedEarly, interleaved
from edgedi.bench.networks import load_network, random_input
from edgedi.bench.numbers import times_as_fast
from edgedi.bench.progress import Teller
from edgedi.bench.report import ONE_WORKER, Disturbance, Machine, Memory, Report, Result, Single, Split, Traffic
from edgedi.bench.settings import Settings
from edgedi.errors import EdgediError
from edgedi.partition.cost.profile import Links
from edgedi.partition.plan.plan import Plan
from edgedi.partition.plan.program import ProgramSet
from edgedi.runtime.session.distribute import distribute
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
    """Do it. ``ValueError`` for what the settings get wrong, ``EdgediError`` for workers, capture and engines."""
    machine = this_machine()
    if machine.busy:
        teller.say(machine.busy)
    missing = missing_engines(settings)
    teller.say(f"loading {settings.model}")
    network = load_network(settings.model)
    inputs = tuple(random_input(shape) for shape in settings.shapes)
    own = own_answer(network, inputs, settings)
    with ExitStack() as stack:
        stack.callback(teller.say, "ending workers and engines")
        return _Run(settings, machine, network, inputs, stack, teller, missing).report(own)


def missing_engines(settings: Settings) -> dict[str, str]:
    """What is missing for each engine that is not here; ``ValueError`` if it was asked for by name."""
    missing = {name: why for name in settings.wanted_engines if (why := what_is_missing(name))}
    if settings.engines is not None and missing:
        raise ValueError("; ".join(f"--against {name}: {why}" for name, why in missing.items()))
    return missing


def own_answer(network: nn.Module, inputs: tuple[Tensor, ...], settings: Settings) -> list[Tensor]:
    """The model's own answer; ``ValueError`` if it does not take inputs of these shapes."""
    try:
        with torch.inference_mode():
            return tensors_of(network(*inputs))
    except Exception as error:  # a user's own code may raise anything
        shapes = ",".join("x".join(map(str, shape)) for shape in settings.shapes)
        reason = f"{settings.model} does not take it: {type(error).__name__}: {error}"
        raise ValueError(f"--input {shapes}: {reason}") from error


class _Run:
    """What lives while a comparison runs; ``stack`` ends it."""

    def __init__(
        self,
        settings: Settings,
        machine: Machine,
        network: nn.Module,
        inputs: tuple[Tensor, ...],
        stack: ExitStack,
        teller: Teller,
        missing: dict[str, str],
    ) -> None:
        self._settings, self._machine, self._network, self._inputs = settings, machine, network, inputs
        self._stack, self._teller = stack, teller
        self._not_compared = dict(missing)
        self._process_ids: list[int] = []
        self._cores = deal(1, settings.threads)[0]  # of engines, one after another; dealt before anybody is pinned
        self._disturbed: list[Disturbance] = []
        self._ended = ""

    def report(self, own: list[Tensor]) -> Report:
        """Start everybody, run the rounds, put the numbers together."""
        devices = start_devices(self._settings, self._stack, self._teller)
        self._process_ids += devices.process_ids
        sessions = self._sessions(devices)
        engines = self._engines()
        for session in sessions:
            session.seconds(0)  # the answer that is compared before the plan is trusted: not to be counted below
            session.require_workers_answered()
        traffic = [session.traffic() for session in sessions]
        memory = sessions[0].memory()  # before the bound is measured: that takes memory which requests do not
        facts = [self._facts(session, sent) for session, sent in zip(sessions, traffic, strict=True)]
        if self._settings.counts_warm:
            for engine in engines:
                engine.rehearse_again()
        results = {result.name: result for result in self._rounds([*sessions, *engines], own)}
        late_s = max(session.late_s() for session in sessions)
        facts = [replace(known, spans=self._spans(each)) for known, each in zip(facts, sessions, strict=True)]
        return self._put_together(devices, facts, engines, results, memory, sessions[0].session.workers, late_s)

    def _spans(self, contender: SessionContender) -> tuple[Span, ...]:
        """One request traced; none where the run has ended early, or where this is what fails."""
        if self._ended:
            return ()
        try:
            return contender.session.spans()
        except EdgediError as error:
            self._teller.say(f"{contender.name}: no timeline, {error}")
            return ()

    def _facts(self, contender: SessionContender, traffic: Traffic) -> _Facts:
        session = contender.session
        self._teller.say(f"{contender.name}: measuring the bound, the same plan with no communication")
        return _Facts(
            name=contender.name, planner=session.plan.planner, plan=session.plan, programs=session.programs,
            traffic=traffic, layer_s=session.layer_seconds(), computed_by=contender.computed_by(),
        )  # fmt: skip

    def _rounds(self, contenders: Sequence[Contender], own: list[Tensor]) -> list[Result]:
        """Run them; where a worker or an engine is lost meanwhile, what all completed before."""
        settings = self._settings
        told = self._teller.rounds(settings.rounds, f"measuring {len(contenders)} contenders in turn")
        read = reader(self._process_ids) if not settings.workers else lambda: None
        rounds = watched(told, read, self._machine.num_cores, self._disturbed.append)
        try:
            return interleaved(contenders, [own], rounds, repeat=settings.repeat)
        except EndedEarly as error:
            self._ended = str(error)
            self._teller.say(f"the run ended {error}")
            return error.results

    def _sessions(self, devices: Devices) -> list[SessionContender]:
        """One worker alone, then every planner on all of them and on as many as were asked for besides."""
        everybody = self._settings.num_workers
        made = [self._session(ONE_WORKER, ONE_WORKER, devices, everybody)]
        known = made[0].session.links
        for planner in self._settings.planners:
            for count in sorted({*self._settings.counts, everybody}, reverse=True):
                name = planner if count == everybody else f"{planner} on {count}"
                if planner != ONE_WORKER:
                    made.append(self._session(name, planner, devices, count, known))
        return made

    def _session(
        self, name: str, planner: str, devices: Devices, count: int, known: Links | None = None
    ) -> SessionContender:
        """A session that keeps its plan, and fails rather than answer by itself: its seconds are the plan's. Links are
        measured by the first one, for all."""
        links = {ends: link for ends, link in known.items() if max(ends) < count} if known is not None else None
        session = distribute(
            self._network, self._inputs, devices.addresses[: count - devices.share], planner=planner, links=links,
            local=devices.share, key=devices.key, rebalance=False, allow_local=False,
            progress=self._teller.about(name),
        )  # fmt: skip
        self._stack.enter_context(session)
        return SessionContender(name, session, [self._inputs], devices.clock)

    def _engines(self) -> list[EngineContender]:
        names = [name for name in self._settings.wanted_engines if name not in self._not_compared]
        if not names:
            return []
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="edgedi-bench-")))
        tensors = save_tensors(self._network, [self._inputs], folder)
        started = [self._start(name, tensors) for name in _with_own_defaults(names)]
        return [engine for engine in started if engine is not None]

    def _start(self, name: str, tensors: Path) -> EngineContender | None:
        """The engine, ready; ``None`` if it cannot take this network, which is said and noted."""
        settings = self._settings
        self._teller.say(f"{name}: preparing, in a process of its own")
        engine = EngineContender(
            name, settings.model, tensors, self._cores, settings.threads,
            slowdown=settings.slowdown, warm=settings.counts_warm,
        )  # fmt: skip
        self._stack.callback(engine.close)
        self._process_ids.append(engine.process_id)
        try:
            engine.wait()
        except EngineFailed as error:
            self._teller.say(str(error))
            self._not_compared[name] = str(error)
            return None
        self._teller.say(f"{name}: version {engine.version}, computes in {engine.precision}")
        return engine

    def _put_together(
        self,
        devices: Devices,
        facts: Sequence[_Facts],
        engines: Sequence[EngineContender],
        results: dict[str, Result],
        memory: tuple[Memory, ...],
        workers: tuple[str, ...],
        late_s: float,
    ) -> Report:
        singles = _singles(engines, results)
        complete = len(results[ONE_WORKER].seconds)
        best = min(singles, key=lambda single: single.result.spread.median_s, default=None)
        return Report(
            settings=self._settings,
            machine=self._machine,
            workers=workers,
            pinned=devices.pinned,
            splits=tuple(_split(known, results, best.result if best else None) for known in facts),
            singles=singles,
            best=best.result.name if best else None,
            not_compared=self._not_compared,
            memory=memory,
            disturbed=tuple(each for each in self._disturbed if each.round < complete),
            ended=self._ended,
            emulation=devices.emulation,
            late_s=late_s,
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
        speedup=times_as_fast(result.seconds, results[ONE_WORKER].seconds),
    )  # fmt: skip


def _split(known: _Facts, results: dict[str, Result], best: Result | None) -> Split:
    result = results[known.name]
    return Split(
        result=result,
        planner=known.planner,
        plan=known.plan,
        programs=known.programs,
        traffic=known.traffic,
        speedup=times_as_fast(result.seconds, results[ONE_WORKER].seconds),
        against_best=times_as_fast(result.seconds, best.seconds) if best else None,
        layer_s=known.layer_s,
        computed_by=known.computed_by,
        spans=known.spans,
    )
