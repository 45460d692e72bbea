"""Chains of layers in an engine: the same answers, nothing overwritten, chosen by measurement and nothing else."""

from __future__ import annotations

import copy
import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, assume, given, seed, settings
from hypothesis import strategies as st
from torch import nn

from edgedi import distribute
from edgedi.partition.capture.capture import Capture, capture_model
from edgedi.partition.plan.lowering import lower
from edgedi.partition.plan.plan import HOME
from edgedi.partition.plan.program import Piece, Program, Run
from edgedi.runtime.execution.executor import LoadedProgram, ProgramRun
from edgedi.runtime.execution.groups import FASTER_BY, LEAST_RUNS, Choice, EngineGroups
from edgedi.runtime.execution.reference import InProcess, weights_of
from edgedi.runtime.kernels import onnxruntime_graph
from edgedi.runtime.kernels.engines import ENGINES
from edgedi.runtime.kernels.fused import Packer
from edgedi.runtime.kernels.group import CALCULATIONS, Engine, Group, GroupKernel
from edgedi.runtime.kernels.group import FUNCTIONS as KNOWN_FUNCTIONS
from edgedi.runtime.session.verify import relative_difference
from edgedi.runtime.worker.local_workers import LocalWorkers
from tests.exactness import cast, relative
from tests.networks import build, noise_for
from tests.partition.random_networks import Network, networks
from tests.plans import axis_plan

TOLERANCE = 2e-5


def _missing(engine: Engine) -> pytest.MarkDecorator:
    reason = f"{engine.name} is not installed: pip install edgedi[{engine.name}]"
    return pytest.mark.skipif(not engine.is_installed, reason=reason)


each_engine = pytest.mark.parametrize(
    "engine", [pytest.param(engine, marks=_missing(engine), id=engine.name) for engine in ENGINES]
)


def engine_wins(engine: Engine) -> EngineGroups:
    """Every chain is the engine's: by its clock torch takes long and the engine no time."""
    return EngineGroups((engine,), 1, clock=_Steps([0.0, 1.0, 0.0, 0.0]))


def torch_wins(engine: Engine) -> EngineGroups:
    return EngineGroups((engine,), 1, clock=_Steps([0.0, 0.0, 0.0, 1.0]))


class _Steps:
    def __init__(self, readings: list[float]) -> None:
        self._readings = itertools.cycle(readings)

    def __call__(self) -> float:
        return next(self._readings)


def engined(capture: Capture, programs: object, groups: EngineGroups) -> InProcess:
    """The programs in one process, the workers' with the engine's chains."""
    process = InProcess(capture, programs, fast=True)  # type: ignore[arg-type]  # a ProgramSet
    for participant, loaded in process.loaded.items():
        if participant != HOME:
            process.loaded[participant] = LoadedProgram(
                loaded.program, capture.graph, weights_of(capture), packer=Packer(), regroup=groups
            )
    return process


class Squeezed(nn.Module):
    """Small layers of every kind that the engine takes, depthwise and with squeeze-excite."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.SiLU())
        self.deep = nn.Sequential(
            nn.Conv2d(16, 16, 5, 1, 2, groups=16), nn.Hardswish(), nn.Conv2d(16, 24, 1), nn.ReLU6()
        )
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(24, 6, 1), nn.ReLU(), nn.Conv2d(6, 24, 1), nn.Sigmoid()
        )
        self.wide = nn.Conv2d(24, 16, 1)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.last = nn.Conv2d(32, 20, 3, padding=2, dilation=2)
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Linear(20, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.deep(x)
        y = self.wide(y * self.squeeze(y)) + x
        y = torch.cat([self.norm(y), torch.tanh(y * 0.5)], 1)
        y = nn.functional.gelu(self.last(self.pool(y)))
        return self.head(y.mean((2, 3)))


@each_engine
@pytest.mark.parametrize("num_workers", [1, 2, 3])
@pytest.mark.parametrize("axis", ["rows", "columns", "channels"])
def test_the_answer_is_the_models(axis: str, num_workers: int, engine: Engine) -> None:
    torch.manual_seed(0)
    model, x = Squeezed().eval(), torch.randn(1, 3, 37, 45)
    capture = capture_model(model, (x,))
    programs = lower(axis_plan(capture.graph, num_workers, axis, depth=6), capture.graph)
    groups = engine_wins(engine)
    process = engined(capture, programs, groups)
    with torch.inference_mode():
        own = model(x)
    for _ in range(2):
        assert relative_difference(process(x), own) <= TOLERANCE
    if num_workers == 1:
        assert sum(len(choice.layers) for choice in groups.choices) >= 10
        assert {choice.engine for choice in groups.choices} == {engine.name}


@each_engine
@seed(20261121)
@settings(deadline=None, print_blob=True, database=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(network=networks(max_steps=9), num_workers=st.sampled_from((1, 2, 3)))
def test_random_networks_answer_alike(network: Network, num_workers: int, engine: Engine) -> None:
    torch.manual_seed(0)
    x = torch.randn(network.input, dtype=torch.float64)
    with torch.no_grad():
        exact = capture_model(network, x)
    assume(all(layer.op != "opaque" for layer in exact.graph.layers))
    single, inputs = cast(exact, torch.float32), {k: v.float() for k, v in exact.flatten((x,)).items()}
    truth = InProcess.whole(exact).run({name: tensor.double() for name, tensor in inputs.items()})
    programs = lower(axis_plan(single.graph, num_workers, "rows", depth=8), single.graph)
    plain, made = (engined(single, programs, g).run(inputs) for g in (torch_wins(engine), engine_wins(engine)))
    for name, expected in truth.items():
        assert relative(made[name], expected) <= max(TOLERANCE, 5 * relative(plain[name], expected)), name


class Of(nn.Module):
    """Any function of a map."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


FUNCTIONS = (
    nn.ReLU(), nn.Sigmoid(), nn.Tanh(), nn.SiLU(), nn.Hardswish(), nn.Hardsigmoid(), nn.Hardtanh(-0.5, 0.7), nn.ReLU6(),
    nn.Mish(), nn.GELU(), nn.GELU(approximate="tanh"), nn.LeakyReLU(), nn.LeakyReLU(0.3),
)  # fmt: skip


class Functions(nn.Module):
    """Each function once after a layer and once by itself, then others of one map and of two."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Conv2d(4, 4, 1), function) for function in FUNCTIONS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer, function in zip(self.layers, FUNCTIONS, strict=True):
            x = layer(x) + function(x)
        x = torch.clamp(x, -3, 4)
        x = torch.sqrt(torch.abs(x)) + torch.log(1 + x * x) - torch.exp(-torch.erf(x)) / 3
        return torch.maximum(x, x * x) - torch.minimum(x / (2 + x.abs()), x)


@each_engine
def test_every_function_of_elements(engine: Engine) -> None:
    torch.manual_seed(0)
    model, x = Functions().eval(), torch.randn(1, 4, 9, 7)
    capture = capture_model(model, (x,))
    groups = engine_wins(engine)
    process = engined(capture, lower(axis_plan(capture.graph, 1, "rows", depth=99), capture.graph), groups)
    assert relative_difference(process(x), model(x)) <= TOLERANCE
    assert [set(choice.layers) for choice in groups.choices] == [{layer.name for layer in capture.graph.layers}]
    layers = capture.graph.layers
    assert {layer.attribute("function") for layer in layers if layer.op == "unary"} == KNOWN_FUNCTIONS
    assert {layer.attribute("function") for layer in layers if layer.op == "binary"} == CALCULATIONS


@each_engine
@pytest.mark.parametrize(
    "layer", [nn.ELU(), nn.Softplus(), Of(lambda x: x.clamp(min=0.1)), Of(lambda x: x + 2 * x.sin())]
)
def test_a_layer_that_engines_have_no_words_for_ends_a_chain_and_another_begins(
    layer: nn.Module, engine: Engine
) -> None:
    torch.manual_seed(0)
    convolutions = [nn.Sequential(*(nn.Conv2d(4, 4, 1) for _ in range(LEAST_RUNS + 1))) for _ in range(2)]
    model, x = nn.Sequential(convolutions[0], nn.MaxPool2d(1), layer, convolutions[1]).eval(), torch.randn(1, 4, 9, 7)
    capture = capture_model(model, (x,))
    groups = engine_wins(engine)
    process = engined(capture, lower(axis_plan(capture.graph, 1, "rows", depth=99), capture.graph), groups)
    assert relative_difference(process(x), model(x)) <= TOLERANCE
    assert [choice.engine for choice in groups.choices] == [engine.name] * 2


@each_engine
@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18"])
def test_stock_networks_answer_alike(name: str, engine: Engine) -> None:
    size = (96, 128)
    model, x = build(name, size), noise_for(name, size)
    capture = capture_model(model, (x,))
    programs = lower(axis_plan(capture.graph, 2, "rows", depth=9), capture.graph)
    groups = engine_wins(engine)
    with torch.inference_mode():
        own = model(x)
    assert relative_difference(engined(capture, programs, groups)(x), own) <= TOLERANCE
    assert len(groups.choices) >= 4


class Shortcuts(nn.Module):
    """Every second row and column past strided layers, and channels, rows and columns of one value around them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 10, 3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x) + nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 2))
        y = nn.functional.pad(y.relu(), (2, 1, 3, 2), value=0.5)
        y = self.second(y) + nn.functional.pad(y[:, 1::3, 1::2, ::2], (0, 0, 1, 0, 5, 3))[:, :, : (y.shape[2] + 1) // 2]
        return nn.functional.pad(y.sigmoid()[:, ::3], (0, 4), value=-1.0)


@each_engine
@pytest.mark.parametrize("num_workers", [1, 2, 3])
@pytest.mark.parametrize("axis", ["rows", "columns", "channels"])
@pytest.mark.parametrize("depth", [1, 99])
def test_what_is_left_out_and_what_is_added_around(axis: str, num_workers: int, depth: int, engine: Engine) -> None:
    torch.manual_seed(0)
    model, x = Shortcuts().eval(), torch.randn(1, 3, 29, 33)
    capture = capture_model(model, (x,))
    assert {"pad", "slice"} <= {layer.op for layer in capture.graph.layers}
    groups = engine_wins(engine)
    process = engined(capture, lower(axis_plan(capture.graph, num_workers, axis, depth=depth), capture.graph), groups)
    assert relative_difference(process(x), model(x)) <= TOLERANCE
    if num_workers == 1:
        assert [set(choice.layers) for choice in groups.choices] == [{layer.name for layer in capture.graph.layers}]
    elif depth > 1 and axis != "channels":
        cut = {capture.graph.by_name[p.tensor].op for choice in groups.choices for p in choice.pieces if p.dim >= 2}
        assert {"pad", "slice"} <= cut
        assert {choice.engine for choice in groups.choices} == {engine.name}


class Residual(nn.Module):
    """A chain whose first input is added at its end, and read again after it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*(nn.Conv2d(8, 8, 1) for _ in range(6)))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.body(x) + x
        return y, y * x


@each_engine
def test_what_a_chain_reads_stays_as_it_was(engine: Engine) -> None:
    """OpenVINO adds in the memory of an input where it may; here it may not."""
    torch.manual_seed(0)
    model, x = Residual().eval(), torch.randn(1, 8, 12, 12).contiguous(memory_format=torch.channels_last)
    before = x.clone()
    capture = capture_model(model, (x,))
    runs = tuple(Run(Piece(layer.name), tuple(map(Piece, layer.inputs))) for layer in capture.graph.layers)
    groups = engine_wins(engine)
    loaded = LoadedProgram(
        Program(participant=HOME, instructions=runs),
        capture.graph,
        weights_of(capture),
        packer=Packer(),
        regroup=groups,
    )
    assert [choice.engine for choice in groups.choices] == [engine.name]
    run = ProgramRun(loaded, capture.flatten((x,)))
    assert run.advance(lambda *what: pytest.fail(f"nothing is sent here, not {what}"))
    assert torch.equal(x, before)
    own = model(x)
    for name, expected in zip(capture.graph.outputs, own, strict=True):
        assert relative_difference(run.output(name), expected) <= TOLERANCE


@each_engine
def test_answers_of_one_request_are_not_written_over_by_the_next(engine: Engine) -> None:
    model, x = Squeezed().eval(), torch.randn(1, 3, 33, 33)
    capture = capture_model(model, (x,))
    process = engined(capture, lower(axis_plan(capture.graph, 1, "rows", depth=50), capture.graph), engine_wins(engine))
    first = process(x)
    kept = first.clone()
    process(torch.randn(1, 3, 33, 33))
    assert torch.equal(first, kept)


@each_engine
def test_where_torch_is_as_fast_torch_computes(engine: Engine) -> None:
    model, x = Squeezed().eval(), torch.randn(1, 3, 33, 33)
    capture = capture_model(model, (x,))
    groups = torch_wins(engine)
    process = engined(capture, lower(axis_plan(capture.graph, 1, "rows", depth=50), capture.graph), groups)
    assert groups.choices
    assert {choice.engine for choice in groups.choices} == {None}
    assert groups.factor == 1.0
    assert groups.words == ()
    assert all(step.kernel is not None for step in process.loaded[0].steps if isinstance(step.instruction, Run))


@each_engine
def test_a_request_visits_the_steps_that_do_something_and_no_other(engine: Engine) -> None:
    model, x = Squeezed().eval(), torch.randn(1, 3, 33, 33)
    capture = capture_model(model, (x,))
    programs = lower(axis_plan(capture.graph, 2, "rows", depth=50), capture.graph)
    for won in (engine_wins(engine), torch_wins(engine)):
        for loaded in engined(capture, programs, won).loaded.values():
            visited, number = list[int](), loaded.first
            while number < len(loaded.steps):
                visited.append(number)
                number = loaded.following[number]
            assert visited == [number for number, step in enumerate(loaded.steps) if not step.is_idle]
            assert (len(visited) < len(loaded.steps)) == bool(won.words and loaded.program.participant != HOME)


@each_engine
def test_short_chains_are_left_alone(engine: Engine) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(LEAST_RUNS - 1))).eval()
    x = torch.randn(1, 3, 8, 8)
    capture = capture_model(model, (x,))
    groups = engine_wins(engine)
    engined(capture, lower(axis_plan(capture.graph, 1, "rows", depth=50), capture.graph), groups)
    assert groups.choices == []
    assert groups.factor == 1.0


def test_a_choice_asks_for_more_than_noise() -> None:
    assert Choice(pieces=(Piece("conv"),), torch_s=1.0, engines_s={"one": FASTER_BY}).engine == "one"
    assert Choice(pieces=(Piece("conv"),), torch_s=1.0, engines_s={"one": 0.99}).engine is None


def test_of_several_engines_the_fastest_computes() -> None:
    choice = Choice(pieces=(Piece("conv"),), torch_s=4.0, engines_s={"one": 3.0, "other": 2.0})
    assert (choice.engine, choice.factor) == ("other", 0.5)


def named(name: str, does: str) -> Engine:
    """An engine of the test's own, which answers zeros, refuses what it is given, or fails at a time."""

    def build(group: Group, threads: int) -> GroupKernel | None:
        zeros = tuple(torch.zeros(group.shapes[piece]) for piece in group.outputs)

        def run(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            if does == "fails in a run":
                raise OSError("no such instruction")
            return zeros

        if does == "fails to build":
            raise ImportError("no such library")
        return None if does == "refuses" else run

    return Engine(name=name, modules=("torch",), build=build)


def test_all_engines_are_timed_in_turn_and_those_that_fail_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    model, x = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(LEAST_RUNS))).eval(), torch.randn(1, 3, 8, 8)
    capture = capture_model(model, (x,))
    fail = [named(does, does) for does in ("refuses", "fails to build", "fails in a run")]
    engines = [named("slow", "answers"), *fail, named("quick", "answers")]
    groups = EngineGroups(engines, 1, clock=_Steps([0.0, 4.0, 0.0, 3.0, 0.0, 1.0]))
    process = engined(capture, lower(axis_plan(capture.graph, 1, "rows", depth=50), capture.graph), groups)
    (choice,) = groups.choices
    assert (choice.torch_s, choice.engines_s, choice.engine) == (4.0, {"slow": 3.0, "quick": 1.0}, "quick")
    assert groups.factor == 0.25
    assert groups.words == ("quick for 1 of 1 chains",)
    assert groups.layers == set(groups.choices[0].layers)
    assert torch.equal(process(x), torch.zeros(1, 3, 8, 8))
    warned = [record.getMessage() for record in caplog.records if record.name == "edgedi.worker"]
    assert warned == [
        f"fails to build is left out for layers conv2d to conv2d_{LEAST_RUNS - 1}: ImportError: no such library",
        f"fails in a run is left out for layers conv2d to conv2d_{LEAST_RUNS - 1}: OSError: no such instruction",
    ]


def test_no_more_engines_are_asked_than_there_is_room_for() -> None:
    model, x = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(LEAST_RUNS))).eval(), torch.randn(1, 3, 8, 8)
    capture = capture_model(model, (x,))
    programs = lower(axis_plan(capture.graph, 1, "rows", depth=50), capture.graph)
    one, none = (EngineGroups([named("one", "answers"), named("other", "answers")], 1) for _ in range(2))
    one.ask_at_most(1)
    none.ask_at_most(0)
    engined(capture, programs, one)
    process = engined(capture, programs, none)
    assert [set(choice.engines_s) for choice in one.choices] == [{"one"}]
    assert (none.choices, none.words, none.layers) == ([], (), set())
    assert relative_difference(process(x), model(x)) <= TOLERANCE


class Scaled(nn.Module):
    """What reads the input takes bytes, and gives numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(LEAST_RUNS)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x / 255)


@each_engine
def test_layers_that_read_other_types_are_torchs(engine: Engine) -> None:
    """An engine is told where its inputs lie, and would read bytes as numbers of four."""
    torch.manual_seed(0)
    model, x = Scaled().eval(), torch.randint(256, (1, 3, 8, 8), dtype=torch.uint8)
    capture = capture_model(model, (x,))
    groups = engine_wins(engine)
    process = engined(capture, lower(axis_plan(capture.graph, 1, "rows", depth=50), capture.graph), groups)
    assert relative_difference(process(x), model(x)) <= TOLERANCE
    assert [len(choice.layers) for choice in groups.choices] == [LEAST_RUNS]


@each_engine
@pytest.mark.parametrize("wrong", [torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, 3, 8, 8, device="meta")])
def test_an_engine_refuses_what_is_not_float32_in_memory(wrong: torch.Tensor, engine: Engine) -> None:
    """A program may lie about the types of its layers."""
    model, x = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(LEAST_RUNS))).eval(), torch.randn(1, 3, 8, 8)
    capture = capture_model(model, (x,))
    programs = lower(axis_plan(capture.graph, 1, "rows", depth=50), capture.graph)
    (kernel,) = [
        step.kernel for step in engined(capture, programs, engine_wins(engine)).loaded[0].steps
        if isinstance(step.instruction, Run) and step.kernel is not None
    ]  # fmt: skip
    with pytest.raises(TypeError, match="float32"):
        kernel(wrong)


@each_engine
def test_another_default_type_changes_nothing(engine: Engine) -> None:
    torch.manual_seed(0)
    model, x = Squeezed().eval(), torch.randn(1, 3, 33, 33)
    own = model(x)
    capture = capture_model(model, (x,))
    torch.set_default_dtype(torch.float64)
    try:
        programs = lower(axis_plan(capture.graph, 1, "rows", depth=50), capture.graph)
        process = engined(capture, programs, engine_wins(engine))
        assert relative_difference(process(x), own) <= TOLERANCE
    finally:
        torch.set_default_dtype(torch.float32)


class MeanOfMany(nn.Module):
    """Many numbers of one sign."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*(nn.Conv2d(4, 4, 1) for _ in range(LEAST_RUNS)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.body(x).abs() + 3.7).mean((2, 3))


@pytest.mark.parametrize("seed", range(3))
@each_engine
def test_long_sums_keep_their_digits(engine: Engine, seed: int) -> None:
    """Added up one after another, 65536 numbers lose up to 3e-4 of the sum, with luck as little as 1e-5."""
    torch.manual_seed(seed)
    model, x = MeanOfMany().eval(), torch.rand(1, 4, 256, 256)
    capture = capture_model(model, (x,))
    groups = engine_wins(engine)
    process = engined(capture, lower(axis_plan(capture.graph, 1, "rows", depth=50), capture.graph), groups)
    expected = copy.deepcopy(model).double()(x.double())
    assert relative_difference(process(x).double(), expected) <= 4e-6
    assert sum(len(choice.layers) for choice in groups.choices) == len(capture.graph.layers)


class MeanOfFeatures(nn.Module):
    """The same of what is no map."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*(nn.Linear(256, 256) for _ in range(LEAST_RUNS)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.body(x).abs() + 3.7).mean((1, 2))


@each_engine
def test_long_sums_of_features_keep_their_digits(engine: Engine) -> None:
    torch.manual_seed(0)
    model, x = MeanOfFeatures().eval(), torch.rand(4, 256, 256)
    capture = capture_model(model, (x,))
    groups = engine_wins(engine)
    process = engined(capture, lower(axis_plan(capture.graph, 1, "rows", depth=50), capture.graph), groups)
    expected = copy.deepcopy(model).double()(x.double())
    assert relative_difference(process(x).double(), expected) <= 4e-6
    assert sum(len(choice.layers) for choice in groups.choices) == len(capture.graph.layers)


@each_engine
@pytest.mark.parametrize("channels", [1, 3, 4, 5])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_an_input_may_lie_in_memory_either_way(engine: Engine, channels: int, layout: torch.memory_format) -> None:
    """A caller's picture lies plane by plane, what comes by the wire as it is stored."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Conv2d(channels, channels, 3) for _ in range(LEAST_RUNS))).eval()
    x = torch.rand(1, channels, 11, 13)
    capture = capture_model(model, (x,))
    programs = lower(axis_plan(capture.graph, 1, "rows", depth=50), capture.graph)
    (kernel,) = [
        step.kernel for step in engined(capture, programs, engine_wins(engine)).loaded[0].steps
        if isinstance(step.instruction, Run) and step.kernel is not None
    ]  # fmt: skip
    with torch.inference_mode():
        assert relative_difference(kernel(x.contiguous(memory_format=layout)), model(x)) <= TOLERANCE


class Halved(nn.Module):
    """A 1 x 1 convolution that steps over every second row and column, and a mean of all that it makes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1, 2), nn.AdaptiveAvgPool2d(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


@pytest.mark.skipif(not onnxruntime_graph.ENGINE.is_installed, reason="pip install edgedi[onnxruntime]")
def test_what_a_window_steps_over_is_not_cropped_and_a_mean_is_not_a_sum_first() -> None:
    """A crop is a copy, and small nodes add up: EfficientNet-B0 has seventeen means."""
    import onnx

    torch.manual_seed(0)
    model, x = Halved().eval(), torch.rand(1, 3, 8, 8)
    capture = capture_model(model, (x,))
    groups = list[Group]()

    def build(group: Group, threads: int) -> GroupKernel | None:
        groups.append(group)
        return onnxruntime_graph.ENGINE.build(group, threads)

    engine = Engine(name="onnxruntime", modules=("onnxruntime",), build=build)
    process = engined(capture, lower(axis_plan(capture.graph, 1, "rows", depth=9), capture.graph), engine_wins(engine))
    with torch.inference_mode():
        assert relative_difference(process(x), model(x)) <= TOLERANCE
    described = onnx.load_from_string(onnxruntime_graph._Model(groups[0]).described())
    found = [node.op_type for node in described.graph.node]
    assert found == ["Transpose", "Conv", "Conv", "AveragePool", "AveragePool", "Transpose", "Identity"]


@each_engine
def test_an_engine_sends_nothing_and_leaves_no_file(engine: Engine, tmp_path: Path) -> None:
    """Both would report to their makers, and begin with a file that numbers the device or the user."""
    code = f"from edgedi.runtime.kernels.{engine.name}_graph import quiet_{engine.name}; quiet_{engine.name}()"
    unset = {name: value for name, value in os.environ.items() if name not in ("CI", *onnxruntime_graph.NO_TELEMETRY)}
    environment = {**unset, "TMPDIR": str(tmp_path), "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert list(tmp_path.iterdir()) == []


def test_an_engine_of_another_package_has_no_version() -> None:
    """Such as onnxruntime-gpu, whose module is called onnxruntime."""
    assert str(Engine(name="builtin", modules=("sys",), build=lambda group, threads: None)) == "builtin-unknown"


@pytest.mark.parametrize(
    ("options", "may"), [((), True), (("--engine", "torch"), False), (("--memory-limit", "2G"), True)]
)
def test_a_worker_says_which_engine_computes(options: tuple[str, ...], may: bool) -> None:
    torch.manual_seed(0)
    model, x = Squeezed().eval(), torch.randn(1, 3, 65, 65)
    workers = LocalWorkers(1, options=options)
    try:
        with distribute(model, x, workers.addresses) as session:
            assert relative_difference(session(x), model(x)) <= TOLERANCE
            (counted,) = session.statistics().workers.values()
    finally:
        workers.stop()
    assert str(counted["engine"]).startswith("torch")
    assert may or counted["engine"] == "torch"
