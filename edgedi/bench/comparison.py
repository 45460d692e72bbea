"""One network, all its contenders, one interleaved run: one worker, every planner, every engine that is here."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from edgedi.bench.contenders import Contender, SessionContender, Traffic, tensors_of
from edgedi.bench.cores import deal, start_workers
from edgedi.bench.engine_contender import EngineContender, EngineFailed, save_tensors
from edgedi.bench.engines import what_is_missing
from edgedi.bench.machine import Machine, this_machine
from edgedi.bench.measuring import Result, interleaved
from edgedi.bench.networks import load_network, random_input
from edgedi.bench.numbers import Ratio, times_as_fast
from edgedi.bench.progress import Teller
from edgedi.bench.settings import Settings
from edgedi.partition.plan import Plan
from edgedi.runtime.distribute import distribute

ONE_WORKER = "single"
"""The planner that uses the best worker alone: the base of every speedup."""
_OWN_DEFAULT = {"openvino": "openvino-default"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A planner's part of the run. ``compute_s`` is what the plan predicts of computing alone: no communication."""

    result: Result
    plan: Plan
    compute_s: float
    traffic: Traffic
    speedup: Ratio
    against_best: Ratio | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Single:
    """An engine's part of the run. ``own_default`` is the same engine in the precision that it would pick by itself."""

    result: Result
    version: str
    precision: str
    speedup: Ratio
    own_default: Single | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that one run found. ``not_compared`` says why, by engine."""

    settings: Settings
    machine: Machine
    workers: tuple[str, ...]
    pinned: bool
    splits: tuple[Split, ...]
    singles: tuple[Single, ...]
    best: str | None
    not_compared: dict[str, str]

    @property
    def same(self) -> bool:
        """Whether every answer in float32 was the model's own."""
        results = [split.result for split in self.splits] + [single.result for single in self.singles]
        return all(result.within_tolerance for result in results)


def run_comparison(settings: Settings, teller: Teller) -> Report:
    """Do it. ``ValueError`` for what the settings get wrong, ``EdgediError`` for workers, capture and engines."""
    machine = this_machine()
    if machine.busy:
        teller.say(machine.busy)
    missing = {name: why for name in settings.wanted_engines if (why := what_is_missing(name))}
    if settings.engines is not None and missing:
        raise ValueError("; ".join(f"--against {name}: {why}" for name, why in missing.items()))
    teller.say(f"loading {settings.model}")
    network = load_network(settings.model)
    inputs = tuple(random_input(shape) for shape in settings.shapes)
    own = _own_answer(network, inputs, settings)
    with ExitStack() as stack:
        stack.callback(teller.say, "ending workers and engines")
        return _Run(settings, machine, network, inputs, stack, teller, missing).report(own)


def _own_answer(network: nn.Module, inputs: tuple[Tensor, ...], settings: Settings) -> list[Tensor]:
    try:
        with torch.inference_mode():
            return tensors_of(network(*inputs))
    except (RuntimeError, TypeError, ValueError) as error:
        shapes = ",".join("x".join(map(str, shape)) for shape in settings.shapes)
        raise ValueError(f"--input {shapes}: {settings.model} does not take it: {error}") from error


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

    def report(self, own: list[Tensor]) -> Report:
        """Start everybody, run the rounds, put the numbers together."""
        sessions = self._sessions(self._addresses())
        engines = self._engines()
        contenders: list[Contender] = [*sessions, *engines]
        for session in sessions:
            session.seconds(0)  # the answer that is compared before the plan is trusted: not to be counted below
        traffic = [session.traffic() for session in sessions]
        told = self._teller.rounds(self._settings.rounds, f"measuring {len(contenders)} contenders in turn")
        results = interleaved(contenders, [own], told, repeat=self._settings.repeat)
        for session in sessions:
            session.require_workers_answered()
        return self._put_together(sessions, traffic, engines, {result.name: result for result in results})

    def _addresses(self) -> Sequence[str]:
        settings = self._settings
        if settings.workers:
            return settings.workers
        self._teller.say(f"starting {settings.num_local} local workers, threads of each: {settings.threads}")
        local = start_workers(settings.num_local, settings.threads)
        self._stack.callback(local.stop)
        return local.addresses

    def _sessions(self, addresses: Sequence[str]) -> list[SessionContender]:
        made = []
        for planner in dict.fromkeys((ONE_WORKER, *self._settings.planners)):
            session = distribute(
                self._network, self._inputs, addresses, planner=planner, key=self._settings.key,
                progress=self._teller.about(planner),
            )  # fmt: skip
            self._stack.enter_context(session)
            made.append(SessionContender(planner, session, [self._inputs]))
        return made

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
        cores = deal(1, settings.threads)[0]
        engine = EngineContender(name, settings.model, tensors, cores, settings.threads)
        self._stack.callback(engine.close)
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
        sessions: Sequence[SessionContender],
        traffic: Sequence[Traffic],
        engines: Sequence[EngineContender],
        results: dict[str, Result],
    ) -> Report:
        singles = _singles(engines, results)
        best = min(singles, key=lambda single: _median(single.result), default=None)
        splits = tuple(
            _split(session, sent, results, best.result if best else None)
            for session, sent in zip(sessions, traffic, strict=True)
        )
        return Report(
            settings=self._settings,
            machine=self._machine,
            workers=sessions[0].session.workers,
            pinned=not self._settings.workers and all(deal(self._settings.num_local, self._settings.threads)),
            splits=splits,
            singles=singles,
            best=best.result.name if best else None,
            not_compared=self._not_compared,
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


def _split(session: SessionContender, sent: Traffic, results: dict[str, Result], best: Result | None) -> Split:
    result, plan = results[session.name], session.session.plan
    return Split(
        result=result,
        plan=plan,
        compute_s=sum(segment.cost.compute_s for segment in plan.segments),
        traffic=sent,
        speedup=times_as_fast(result.seconds, results[ONE_WORKER].seconds),
        against_best=times_as_fast(result.seconds, best.seconds) if best else None,
    )


def _median(result: Result) -> float:
    return sorted(result.seconds)[len(result.seconds) // 2]
