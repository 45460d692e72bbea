"""Which engine a worker lets compute."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from torch import nn

from edgedi.errors import RemoteProtocolError
from edgedi.partition.capture.capture import capture_model
from edgedi.partition.graph.geometry import Interval
from edgedi.partition.graph.graph import LayerGraph
from edgedi.partition.plan.lowering import lower
from edgedi.partition.plan.plan import Plan, Segment
from edgedi.partition.plan.program import Run
from edgedi.runtime.coordinator.profiler import deploy_message, weight_specs
from edgedi.runtime.emulation.speed import MessagePrice, Speed
from edgedi.runtime.execution import loading
from edgedi.runtime.execution.executor import LoadedProgram, Step, WeightOf, answer_alone
from edgedi.runtime.execution.groups import LEAST_RUNS
from edgedi.runtime.execution.loading import ENGINE_COPIES, Shipment
from edgedi.runtime.execution.weights import weight_digest
from edgedi.runtime.kernels import fused
from edgedi.runtime.kernels.engines import ENGINES, installed_engines
from edgedi.runtime.kernels.group import Engine
from edgedi.runtime.kernels.trials import Trials
from edgedi.runtime.wire.messages import Deploy, Measure
from edgedi.runtime.worker.options import WorkerOptions
from edgedi.runtime.worker.programs import WorkerPrograms
from tests.runtime.networks import image, small


class Wins:
    """Leaves steps as they are, and says that an engine computes them."""

    takes_any = True

    def ask_at_most(self, count: int) -> None:
        """There is always one."""

    def __call__(self, steps: tuple[Step, ...], weight: WeightOf, graph: LayerGraph) -> tuple[Step, ...]:
        return steps

    words: tuple[str, ...] = ("engine",)
    layers = frozenset[str]()


def deploys(model: nn.Module | None = None) -> tuple[list[Deploy], Shipment]:
    """One program for one worker, twice, under epochs 0 and 1."""
    captured = capture_model((model or small()).eval(), (image(),))
    whole = Segment(layers=Interval(0, len(captured.graph.layers)), axis="whole", on=0)
    programs = lower(Plan(num_workers=1, segments=(whole,)), captured.graph)
    shipment = Shipment(captured.weights, weight_digest)
    return [deploy_message(programs, shipment, "s", epoch, 0, 1, ()) for epoch in (0, 1)], shipment


def test_engines_give_memory_back_before_a_program_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "ENGINE_BYTES", 0)
    monkeypatch.setattr(loading, "ENGINE_SHARE", 1.0)
    monkeypatch.setattr(WorkerPrograms, "_groups", lambda self: Wins())
    (first, second), shipment = deploys()
    programs = WorkerPrograms(WorkerOptions(memory_limit_bytes=10**7))
    for digest in programs.missing(weight["digest"] for weight in first.weights):
        programs._store.add(digest, shipment.tensors[digest])
    programs.expect(first)
    weight_bytes = programs.install(first)
    installed = programs["s", 0]
    assert (installed.engine, installed.engine_bytes) == ("torch; engine", ENGINE_COPIES * weight_bytes)
    installed.engine_bytes = 10**7  # so that nothing fits beside it
    before = installed.program
    programs.expect(second)
    programs.install(second)
    assert (installed.engine, installed.engine_bytes) == ("torch", 0)
    assert installed.program is not before
    assert programs["s", 1].program is not None


WINOGRAD = nn.Sequential(nn.Conv2d(3, 32, 1), nn.Conv2d(32, 64, 3), nn.Conv2d(64, 4, 3))
POINTS_BYTES = 36 * 4 * 32 * 64
"""What the second layer's weights take at the points; the others are no layers for Winograd's convolution."""


def installed_with(limit_bytes: int | None, monkeypatch: pytest.MonkeyPatch) -> tuple[WorkerPrograms, Deploy]:
    """A worker with one program, where Winograd's convolution wins all trials; and the same program once more."""
    monkeypatch.setattr(Trials, "wins", lambda *arguments: True)
    (first, second), shipment = deploys(WINOGRAD)
    programs = WorkerPrograms(WorkerOptions(memory_limit_bytes=limit_bytes, engine="torch"))
    for digest in programs.missing(weight["digest"] for weight in first.weights):
        programs._store.add(digest, shipment.tensors[digest])
    programs.expect(first)
    programs.install(first)
    programs.expect(second)
    return programs, second


def points_held(programs: WorkerPrograms) -> int:
    assert programs._packer is not None
    return programs._packer.points_bytes


@pytest.mark.skipif(not fused.available(), reason="this torch has no fused oneDNN operators")
@pytest.mark.parametrize(("limit_bytes", "held"), [(None, POINTS_BYTES), (10**7, POINTS_BYTES), (10**6, 0)])
def test_weights_are_held_again_for_winograds_convolution_where_there_is_room(
    limit_bytes: int | None, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs, second = installed_with(limit_bytes, monkeypatch)
    assert points_held(programs) == held
    told = "torch; winograd for 1 layer" if held else "torch"
    assert programs.statistics("s")["engine"] == told
    programs.install(second)
    assert points_held(programs) == held, "programs share them"
    assert programs.statistics("s")["engine"] == told


def test_workers_of_one_process_choose_by_the_same_trials() -> None:
    """A session's share of this process begins with what the last one's found; an emulated device times otherwise."""
    one, other = (WorkerPrograms(WorkerOptions(name=name)) for name in ("one", "other"))
    emulated = WorkerPrograms(WorkerOptions(speed=Speed(slowdown=2.0), threads=1))
    assert one._trials is other._trials is not emulated._trials


@pytest.mark.skipif(not fused.available(), reason="this torch has no fused oneDNN operators")
def test_they_are_given_back_before_a_program_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    programs, second = installed_with(10**7, monkeypatch)
    programs["s", 0].engine_bytes = 10**7  # so that nothing fits beside it
    programs.install(second)
    assert points_held(programs) == 0, "the program that ran by them runs without"
    assert programs["s", 0].engine == programs["s", 1].engine == "torch"


def test_the_engine_told_is_that_of_the_latest_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    given, shipment = deploys()
    programs = WorkerPrograms(WorkerOptions())
    assert programs.statistics("s")["engine"] == ""
    for digest in programs.missing(weight["digest"] for weight in given[0].weights):
        programs._store.add(digest, shipment.tensors[digest])
    for deploy, engine in zip(given, ("openvino", "onnxruntime"), strict=True):
        monkeypatch.setattr(Wins, "words", (engine,))
        monkeypatch.setattr(WorkerPrograms, "_groups", lambda self: Wins())
        programs.expect(deploy)
        programs.install(deploy)
        assert programs.statistics("s")["engine"] == f"torch; {engine}"
    programs.uninstall(("s", 1))
    assert programs.statistics("s")["engine"] == "torch; openvino"


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param(engine, id=engine.name, marks=pytest.mark.skipif(not engine.is_installed, reason="not installed"))
        for engine in ENGINES
    ],
)
@pytest.mark.parametrize("engine_s", [0.0, 1.0])
def test_what_is_faster_by_the_workers_clock_computes(
    engine: Engine, engine_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = itertools.cycle([0.0, 0.5, 0.0, engine_s])  # before and after torch, before and after the engine
    monkeypatch.setattr("edgedi.runtime.worker.programs.installed_engines", lambda: (engine,))
    monkeypatch.setattr("time.perf_counter", lambda: next(readings))
    (deploy, _), shipment = deploys()
    programs = WorkerPrograms(WorkerOptions())
    for digest in programs.missing(weight["digest"] for weight in deploy.weights):
        programs._store.add(digest, shipment.tensors[digest])
    programs.expect(deploy)
    programs.install(deploy)
    installed = programs["s", 0]
    assert installed.program is not None
    runs = [step.kernel for step in installed.program.steps if isinstance(step.instruction, Run)]
    if engine_s:
        assert None not in runs
        assert programs.statistics("s")["engine"] == installed.engine == "torch"
    else:
        assert runs.count(None) >= LEAST_RUNS - 1  # the last layer of a chain computes all of it
        assert programs.statistics("s")["engine"] == installed.engine == f"torch; {engine.name} for 1 of 1 chains"


def test_an_emulated_device_is_charged_what_was_rehearsed(monkeypatch: pytest.MonkeyPatch) -> None:
    rehearsed = []

    def rehearse(loaded: LoadedProgram) -> dict[int, float]:
        rehearsed.append(loaded)
        return {number: float(number) for number, step in enumerate(loaded.steps) if isinstance(step.instruction, Run)}

    monkeypatch.setattr("edgedi.runtime.execution.rehearsal.rehearse", rehearse)
    (deploy, _), shipment = deploys()
    price = MessagePrice(message_s=1e-5, byte_s=0)
    charged: dict[Speed, list[float]] = {}
    for speed in (Speed(slowdown=10, price=price), Speed(slowdown=10), Speed()):
        charges = charged.setdefault(speed, [])
        programs = WorkerPrograms(WorkerOptions(engine="torch", speed=speed), charges.append)
        for digest in programs.missing(weight["digest"] for weight in deploy.weights):
            programs._store.add(digest, shipment.tensors[digest])
        programs.expect(deploy)
        programs.install(deploy)
        assert answer_alone(programs["s", 0].program, {"x": image()})
    warm, in_place, real = charged.values()
    assert len(rehearsed) == 1
    runs = [number for number, step in enumerate(rehearsed[0].steps) if isinstance(step.instruction, Run)]
    assert warm == pytest.approx([float(number) for number in runs])
    assert in_place == real == []


@pytest.mark.parametrize(("slowdown", "times"), [(10.0, 2), (1.0, 0)])
def test_emulated_devices_load_and_measure_one_after_another(
    slowdown: float, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, inside = 0, False

    @contextlib.contextmanager
    def one_at_a_time() -> Iterator[None]:
        nonlocal entered, inside
        entered, inside = entered + 1, True
        yield
        inside = False

    def rehearse(loaded: LoadedProgram) -> dict[int, float]:
        assert inside
        return {number: 1.0 for number, step in enumerate(loaded.steps) if isinstance(step.instruction, Run)}

    monkeypatch.setattr("edgedi.runtime.worker.programs.one_at_a_time", one_at_a_time)
    monkeypatch.setattr("edgedi.runtime.execution.rehearsal.rehearse", rehearse)
    (deploy, _), shipment = deploys()
    speed = Speed(slowdown=slowdown, price=MessagePrice(message_s=1e-5, byte_s=0))
    programs = WorkerPrograms(WorkerOptions(engine="torch", speed=speed))
    for digest in programs.missing(weight["digest"] for weight in deploy.weights):
        programs._store.add(digest, shipment.tensors[digest])
    programs.expect(deploy)
    programs.install(deploy)
    weights = weight_specs(deploy.layers, shipment)
    programs.measure(
        Measure(program=deploy.program, layers=deploy.layers, weights=weights, repeats=1), time.perf_counter
    )
    assert entered == times


def test_a_programs_bound_is_what_its_requests_are_charged(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shorter of two rehearsals, when it is first loaded and before the bound is told. Every session has a worker
    of its own in its process, and the process is one device."""
    totals = iter([3.0, 1.0, 2.0])

    def rehearse(loaded: LoadedProgram) -> dict[int, float]:
        runs = [number for number, step in enumerate(loaded.steps) if isinstance(step.instruction, Run)]
        total_s = next(totals)
        return {number: total_s / len(runs) for number in runs}

    monkeypatch.setattr("edgedi.runtime.execution.rehearsal.rehearse", rehearse)
    (deploy, _), shipment = deploys()
    charged: list[float] = []
    speed = Speed(slowdown=10, price=MessagePrice(message_s=1e-5, byte_s=0))
    made = {}
    for session in ("s", "t"):
        mine = replace(deploy, session=session)
        programs = made[session] = WorkerPrograms(WorkerOptions(engine="torch", speed=speed), charged.append)
        for digest in programs.missing(weight["digest"] for weight in mine.weights):
            programs._store.add(digest, shipment.tensors[digest])
        programs.expect(mine)
        programs.install(mine)
    weights = weight_specs(deploy.layers, shipment)
    message = Measure(program=deploy.program, layers=deploy.layers, weights=weights, repeats=1)
    for programs in made.values():
        told = programs.measure(message, time.perf_counter)
        assert sum(seconds for *_, seconds in told.seconds) == pytest.approx(10 * 2.0)
    for session, programs in made.items():
        charged.clear()
        assert answer_alone(programs[session, 0].program, {"x": image()})
        assert sum(charged) == pytest.approx(2.0)


def test_a_program_that_cannot_be_rehearsed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(loaded: LoadedProgram) -> dict[int, float]:
        raise IndexError("index 7 is out of bounds")

    monkeypatch.setattr("edgedi.runtime.execution.rehearsal.rehearse", fails)
    (deploy, _), shipment = deploys()
    speed = Speed(slowdown=10, price=MessagePrice(message_s=1e-5, byte_s=0))
    programs = WorkerPrograms(WorkerOptions(engine="torch", speed=speed))
    for digest in programs.missing(weight["digest"] for weight in deploy.weights):
        programs._store.add(digest, shipment.tensors[digest])
    programs.expect(deploy)
    with pytest.raises(RemoteProtocolError, match="the program does not run: IndexError: index 7 is out of bounds"):
        programs.install(deploy)


EMULATED = Speed(slowdown=10)
TORCH = "torch-winograd" if fused.available() else "torch"
ALL = "-".join([TORCH, *map(str, installed_engines())])


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (WorkerOptions(), ALL),
        (WorkerOptions(threads=2), ALL),
        (WorkerOptions(memory_limit_bytes=10**6), ALL),  # each program by itself says whether there is room
        (WorkerOptions(engine="torch"), TORCH),
        (WorkerOptions(device="cuda"), "torch"),
        (WorkerOptions(speed=EMULATED), ALL),
        (WorkerOptions(speed=EMULATED, threads=2), TORCH),  # processor time of its threads would be nobody's
    ],
)
def test_the_engine_that_a_worker_may_use(options: WorkerOptions, name: str) -> None:
    assert WorkerPrograms(options).engine_name == name
