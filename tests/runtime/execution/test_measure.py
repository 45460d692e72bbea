"""What a worker measures of a program that it is told about: every layer, and an engine where memory leaves room."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

from edgedi.partition.capture.capture import Capture, capture_model
from edgedi.partition.plan.lowering import lower
from edgedi.partition.plan.memory import program_bytes
from edgedi.partition.plan.program import Program, ProgramSet, Run
from edgedi.runtime.coordinator.profiler import profile_programs
from edgedi.runtime.execution.groups import EngineGroups
from edgedi.runtime.execution.loading import ENGINE_BYTES, ENGINE_COPIES, ENGINE_SHARE, Shipment, digests_of
from edgedi.runtime.execution.measure import Measurement, adding_up_to, measure_described
from edgedi.runtime.execution.weights import weight_digest
from edgedi.runtime.kernels.openvino_graph import ENGINE
from edgedi.runtime.kernels.trials import Trials
from edgedi.runtime.wire.payloads import tensor_bytes
from tests.plans import axis_plan, lower_borders_first
from tests.runtime.networks import image, small

Described = tuple[Program, tuple[dict[str, Any], ...], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def capture() -> Capture:
    torch.manual_seed(0)
    return capture_model(small(), (image(),))


@pytest.fixture(scope="module")
def described(capture: Capture) -> Described:
    """All layers whole, as a coordinator tells of them."""
    program = profile_programs(capture.graph)["whole", 1]
    return described_as(capture, ProgramSet(graph=capture.graph, programs={0: program}), 0)


def described_as(capture: Capture, programs: ProgramSet, participant: int) -> Described:
    shipment = Shipment(capture.weights, weight_digest)
    layers = shipment.describe(programs, participant)
    weights = [
        {"digest": name, "dtype": str(tensor.dtype).removeprefix("torch."), "shape": tuple(tensor.shape)}
        for name, tensor in shipment.tensors.items()
    ]
    assert set(digests_of(layers)) == {weight["digest"] for weight in weights}
    return programs.programs[participant], layers, weights


def measured(
    described: Described, limit_bytes: int | None, groups: EngineGroups | None
) -> tuple[tuple[Measurement, ...], float]:
    program, layers, weights = described
    ticks = itertools.count()
    return measure_described(
        str(program), layers, weights, repeats=2, trials=Trials(), limit_bytes=limit_bytes, device="cpu", groups=groups,
        clock=lambda: float(next(ticks)),
    )  # fmt: skip


def quick_engine() -> EngineGroups:
    """By its clock torch takes four seconds for a chain and the engine one."""
    ticks = itertools.accumulate(itertools.cycle([0.0, 4.0, 0.0, 1.0]))
    return EngineGroups((ENGINE,), 1, clock=lambda: next(ticks))


def names(measurements: tuple[Measurement, ...]) -> list[str]:
    return [name for name, *_ in measurements]


def test_parts_keep_their_shares_of_a_total_that_is_known_better() -> None:
    found = adding_up_to(10.0, (("a", "2", 7, 1.0), ("b", "whole", 1, 3.0)))
    assert found == (("a", "2", 7, 2.5), ("b", "whole", 1, 7.5))
    unseen = (("a", "2", 7, 0.0),)
    assert adding_up_to(10.0, unseen) == unseen


def test_layers_add_up_to_the_least_of_all_runs(described: Described) -> None:
    """Runs of which each is slow at another layer: the sum of the layers' leasts is less than any of them took."""
    program, layers, weights = described
    num_layers = len(names(measured(described, None, None)[0]))
    warm, one, other = [9.0] * num_layers, [1.0] * num_layers, [1.0] * num_layers
    one[0], other[1] = 6.0, 4.0
    readings = itertools.accumulate(itertools.chain.from_iterable((0.0, seconds) for seconds in warm + one + other))
    found, _ = measure_described(
        str(program), layers, weights, repeats=2, trials=None, limit_bytes=None, device="cpu",
        clock=lambda: next(readings),
    )  # fmt: skip
    least_s = num_layers + 3.0
    assert [seconds for *_, seconds in found] == pytest.approx([least_s / num_layers] * num_layers)


def test_every_layer_is_timed_whole_and_in_order(described: Described) -> None:
    found, factor = measured(described, None, None)
    program = described[0]
    assert names(found) == [run.piece.tensor for run in program.instructions if isinstance(run, Run)]
    assert {kind for _, kind, _, _ in found} == {"whole"}
    assert all(seconds == 1.0 for *_, seconds in found)  # one tick of the clock
    assert factor == 1.0


def test_layer_by_layer_where_not_all_fits(capture: Capture, described: Described) -> None:
    """As much as the largest layer needs, less than all of them."""
    _, _, weights = described
    total = sum(tensor_bytes(weight["dtype"], weight["shape"]) for weight in weights)
    found, factor = measured(described, total - 1, None)
    left_out = set(names(measured(described, None, None)[0])) - set(names(found))
    assert len(found) > 0
    assert all(capture.graph.by_name[name].weights for name in left_out)
    assert factor == 1.0


@pytest.mark.skipif(not ENGINE.is_installed, reason="openvino is not installed: pip install edgedi[openvino]")
class TestEngine:
    """Its share of torch's time is told only where it would be used."""

    def test_without_a_limit(self, described: Described) -> None:
        groups = quick_engine()
        assert measured(described, None, groups)[1] == pytest.approx(0.25)
        assert groups.takes_any

    def test_a_program_that_receives_is_measured_as_it_runs(self) -> None:
        """Its chains end where it exchanges; layers of a chain take the engine's share of torch's time, others all."""
        model = nn.Sequential(nn.Conv2d(3, 8, 3), *(nn.Conv2d(8, 8, 3) for _ in range(7))).eval()
        capture = capture_model(model, (image(),))
        programs = lower(axis_plan(capture.graph, 2, "rows", depth=6), capture.graph)
        groups = quick_engine()
        found, factor = measured(described_as(capture, programs, 0), None, groups)
        assert [len(choice.layers) for choice in groups.choices] == [6]
        assert [seconds for *_, seconds in found] == [0.25] * 6 + [1.0] * 2
        assert factor == 1.0

    def test_a_layer_may_be_in_a_chain_in_part(self) -> None:
        """Its border ends the chain, is sent, and the rest of it follows alone."""
        model = nn.Sequential(*(nn.Conv2d(4, 4, 3) for _ in range(4))).eval()
        capture = capture_model(model, (torch.rand(1, 4, 24, 24),))
        programs = lower_borders_first(axis_plan(capture.graph, 2, "rows", depth=3), capture.graph)
        found, _ = measured(described_as(capture, programs, 0), None, quick_engine())
        assert names(found) == [capture.graph.layers[k].name for k in (0, 1, 2, 2, 3)]
        assert [seconds for *_, seconds in found] == [0.25] * 3 + [1.0] * 2

    def test_layers_that_are_cut_and_only_listed_are_timed_one_by_one(self, capture: Capture) -> None:
        program = next(p for (axis, _), p in profile_programs(capture.graph).items() if axis == "rows")
        groups = quick_engine()
        programs = ProgramSet(graph=capture.graph, programs={0: program})
        found, factor = measured(described_as(capture, programs, 0), None, groups)
        assert {seconds for *_, seconds in found} == {1.0}
        assert (factor, groups.choices) == (1.0, [])

    @pytest.mark.parametrize(("spare", "factor"), [(0, 0.25), (-1, 1.0)])
    def test_half_of_a_limit_must_hold_it(
        self, capture: Capture, described: Described, spare: int, factor: float
    ) -> None:
        """Weights three times, maps, and what an engine takes for itself: one byte less, and it is not asked."""
        program, _, weights = described
        weight_bytes = sum(tensor_bytes(weight["dtype"], weight["shape"]) for weight in weights)
        needed = (1 + ENGINE_COPIES) * weight_bytes + program_bytes(program, capture.graph)[0] + ENGINE_BYTES
        groups = quick_engine()
        found = measured(described, round((needed + spare) / ENGINE_SHARE), groups)
        assert found[1] == pytest.approx(factor)
        assert groups.takes_any == (factor < 1)
        assert found[0] == measured(described, None, None)[0]
