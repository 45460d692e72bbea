"""What every run does, whatever a turn of it is: load the network, open sessions, start engines, run the rounds."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from edgedi.bench.contenders import Contender, SessionContender, tensors_of
from edgedi.bench.devices import Devices, start_devices
from edgedi.bench.disturbances import reader, watched
from edgedi.bench.engine_contender import EngineContender, EngineFailed, save_tensors
from edgedi.bench.engines import what_is_missing
from edgedi.bench.machine import this_machine
from edgedi.bench.measuring import EndedEarly, interleaved
from edgedi.bench.networks import load_network, random_input
from edgedi.bench.progress import Teller
from edgedi.bench.report import Disturbance, Machine, Result
from edgedi.bench.settings import Settings
from edgedi.errors import PlanError
from edgedi.partition.cost.profile import Links
from edgedi.runtime.session.distribute import distribute
from edgedi.runtime.session.session import Session

_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What everybody computes in a run: ``own`` is the model's own answer, ``missing`` says which engines are not here
    and why."""

    settings: Settings
    machine: Machine
    network: nn.Module
    inputs: tuple[Tensor, ...]
    own: list[Tensor]
    missing: Mapping[str, str]


def task_of(settings: Settings, teller: Teller) -> Task:
    """All that can be refused before anybody is started. ``ValueError`` for what the settings get wrong."""
    machine = this_machine()
    if machine.busy:
        teller.say(machine.busy)
    missing = missing_engines(settings)
    teller.say(f"loading {settings.model}")
    network = load_network(settings.model)
    inputs = tuple(random_input(shape) for shape in settings.shapes)
    own = own_answer(network, inputs, settings)
    return Task(settings=settings, machine=machine, network=network, inputs=inputs, own=own, missing=missing)


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


class Run(ABC, Generic[_Found]):
    """What lives while something is measured; ``stack`` ends it."""

    def __init__(self, task: Task, stack: ExitStack, teller: Teller) -> None:
        self.task, self.settings, self.stack, self.teller = task, task.settings, stack, teller
        self.not_compared = dict(task.missing)
        self.ended, self.late_s = "", 0.0
        self._disturbed: list[Disturbance] = []
        self._process_ids: list[int] = []
        self._links: Links | None = None

    @abstractmethod
    def report(self) -> _Found:
        """Start everybody, run the rounds, put the numbers together."""

    def start_devices(self) -> Devices:
        """Those of the settings."""
        devices = start_devices(self.settings, self.stack, self.teller)
        self._process_ids += devices.process_ids
        return devices

    def open_session(
        self,
        name: str,
        planner: str,
        devices: Devices,
        count: int,
        *,
        objective: str = "latency",
        max_in_flight: int | None = None,
    ) -> Session:
        """A session on the first ``count`` devices that keeps its plan, and fails rather than answer by itself: its
        seconds are the plan's. Links are measured by the first one, for all."""
        known = self._links
        session = distribute(
            self.task.network, self.task.inputs, devices.addresses[: count - devices.share], planner=planner,
            links=None if known is None else {ends: link for ends, link in known.items() if max(ends) < count},
            objective=objective, max_in_flight=max_in_flight, local=devices.share, key=devices.key, rebalance=False,
            allow_local=False, progress=self.teller.about(name),
        )  # fmt: skip
        self.stack.enter_context(session)
        self._links = session.links if known is None else known
        return session

    def engines_here(self) -> list[str]:
        """Those to compare with that nothing is known to be in the way of."""
        return [name for name in self.settings.wanted_engines if name not in self.not_compared]

    def save_tensors(self) -> Path:
        """The file from which engines take weights and inputs."""
        folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="edgedi-bench-")))
        return save_tensors(self.task.network, [self.task.inputs], folder)

    def start_engine(self, name: str, tensors: Path, cores: Sequence[int]) -> EngineContender:
        """The engine, ready; ``EngineFailed`` if it cannot take this network."""
        self.teller.say(f"{name}: preparing, in a process of its own")
        engine = EngineContender(
            name, self.settings.model, tensors, cores, self.settings.threads,
            slowdown=self.settings.slowdown, warm=self.settings.counts_warm,
        )  # fmt: skip
        self.stack.callback(engine.close)
        self._process_ids.append(engine.process_id)
        engine.wait()
        return engine

    @contextmanager
    def or_left_out(self, name: str) -> Iterator[None]:
        """A planner without a plan that fits, or an engine that cannot take the network, is noted with its reason: the
        others are compared all the same."""
        try:
            yield
        except (EngineFailed, PlanError) as error:
            self.teller.say(f"{name} is not compared: {error}")
            self.not_compared[name] = str(error).partition("\n")[0]  # below it, the plan that did not fit

    def require_one(self, sessions: Sequence[object]) -> None:
        """``PlanError`` with all their reasons if there is no session: engines alone are no comparison."""
        if not sessions:
            reasons = (f"{name}: {why}" for name, why in self.not_compared.items() if name not in self.task.missing)
            raise PlanError(f"no planner has a plan to compare; {'; '.join(reasons)}")

    def rounds(
        self, sessions: Sequence[SessionContender], engines: Sequence[Contender], *, repeat: int = 1
    ) -> dict[str, Result]:
        """Run them; where a worker or an engine is lost meanwhile, what all completed before. By name."""
        contenders = [*sessions, *engines]
        told = self.teller.rounds(self.settings.rounds, f"measuring {len(contenders)} contenders in turn")
        try:
            results = interleaved(contenders, [self.task.own], self._watched(told, sessions), repeat=repeat)
        except EndedEarly as error:
            self.ended, results = str(error), error.results
            self.teller.say(f"the run ended {error}")
        return {result.name: result for result in results}

    def _watched(self, rounds: Iterator[int], sessions: Sequence[SessionContender]) -> Iterator[int]:
        for session in sessions:
            session.take_late()  # in requests that do not count
        read = reader(self._process_ids) if not self.settings.workers else lambda: None
        cores = self.task.machine.num_cores
        yield from watched(rounds, read, cores, self._disturbed.append, lambda: self._late_share(sessions))

    def _late_share(self, sessions: Sequence[SessionContender]) -> float:
        """Of the request in the latest round in which a device was late by most of it."""
        late = [each for session in sessions for each in session.take_late()]
        self.late_s = max([self.late_s, *(each.late_s for each in late)])
        return max((each.share for each in late), default=0.0)

    def disturbed_of(self, complete: int) -> tuple[Disturbance, ...]:
        """Which of the first rounds, that are ``complete``, were disturbed."""
        return tuple(each for each in self._disturbed if each.round < complete)


def run(kind: Callable[[Task, ExitStack, Teller], Run[_Found]], settings: Settings, teller: Teller) -> _Found:
    """Do it. ``ValueError`` for what the settings get wrong, ``EdgediError`` for workers, capture and engines."""
    task = task_of(settings, teller)
    with ExitStack() as stack:
        stack.callback(teller.say, "ending workers and engines")
        return kind(task, stack, teller).report()
