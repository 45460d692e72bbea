"""Every family of torchvision, split over 1, 2, 3 and 5 workers, gives the model's own answer, layer by layer.

Weights are calibrated (``tests.networks``) and each case proves that it would notice a fault: a halo row zeroed at any
split layer moves the answer by ten tolerances or more. ``python -m tests.exactness_report`` makes the table of all.
"""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgedi.partition.capture.capture import Capture, capture_model
from edgedi.partition.plan.lowering import lower
from edgedi.partition.plan.plan import Plan
from edgedi.partition.plan.simulate import split_flops
from edgedi.runtime.execution.reference import InProcess
from edgedi.runtime.kernels import winograd
from edgedi.runtime.kernels.fused import Packer
from edgedi.runtime.kernels.trials import Trials
from tests.exactness import (
    TOLERANCE,
    cast,
    check_argmax,
    leaves,
    own_rounding,
    relative,
    whole_maps,
    worst_layer,
    worst_output,
)
from tests.networks import FAMILIES, FIXED_SIZE, ODD_SIZE, build, family_of, noise_for, own_size
from tests.plans import axis_plan, lower_borders_first, random_plan
from tests.sensitivity import insensitive_layers

WORKERS = (1, 2, 3, 5)
SMALLEST = [names[0] for names in FAMILIES.values()]
CONVOLUTIONS = frozenset({"conv", "conv_transpose"})
LIGHT = frozenset(
    "alexnet resnet18 mobilenet_v2 mobilenet_v3_small mnasnet0_5 "
    "shufflenet_v2_x0_5 squeezenet1_1 regnet_x_400mf".split()
)
"""At their own size too; the others at theirs in ``tests.exactness_report``, which runs every builder."""
IN_BFLOAT16 = ("resnet18", "shufflenet_v2_x0_5", "convnext_tiny")


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@functools.lru_cache(maxsize=1)
def network(name: str, size: tuple[int, int] = ODD_SIZE) -> nn.Module:
    return build(name, size)


def answer(model: nn.Module, *args: Any) -> Any:
    with torch.inference_mode():
        return model(*args)


def in_double(model: nn.Module, x: Tensor) -> Any:
    """The truth: the model itself in float64."""
    return answer(copy.deepcopy(model).double(), x.double())


def odd_size(name: str) -> tuple[int, int]:
    return own_size(name) if family_of(name) in FIXED_SIZE else ODD_SIZE


def check_float32(model: nn.Module, capture: Capture, plans: list[Plan], x: Tensor, truth: Any) -> None:
    """Every piece of every plan's run, every other with its borders first, and the answer of the last, against the
    truth."""
    inputs = capture.flatten((x,))
    exact = whole_maps(cast(capture, torch.float64), {key: value.double() for key, value in inputs.items()})
    limit = max(TOLERANCE["float32"], 3 * worst_output(answer(model, x), truth))
    assert worst_output(capture.unflatten(exact), truth) <= limit
    own = own_rounding(capture, inputs, exact)
    for number, plan in enumerate(plans):
        lowered = (lower, lower_borders_first)[number % 2]
        worst = worst_layer(capture, plan, inputs, exact, fast=True, own=own, lowered=lowered)
        assert worst.passes, f"{worst}\n{plan}"
    y = InProcess(capture, lower(plan, capture.graph))(x)
    print(f"layers {worst}; output {worst_output(y, truth):.2e} (limit {limit:.2e})")
    assert worst_output(y, truth) <= limit
    print(f"{check_argmax(y, truth, limit):.2%} of the classes too close to compare")


@pytest.mark.parametrize("name", [name for name in SMALLEST if name in LIGHT])
def test_own_size(name: str):
    """In float32, fused, by rows; at least 95 % of a CNN's convolution FLOPs run split."""
    size = own_size(name)
    model, x = network(name, size), noise_for(name, size)
    capture = capture_model(model, x)
    plans = [axis_plan(capture.graph, count, "rows", depth=1 + count) for count in WORKERS]
    check_float32(model, capture, plans, x, in_double(model, x))
    share = split_flops(capture.graph, lower(plans[1], capture.graph), CONVOLUTIONS)
    print(f"{share:.4f} of the convolution FLOPs run split")
    assert share >= 0.95


@pytest.mark.parametrize("name", SMALLEST)
def test_odd_size(name: str):
    """In float64 on plain torch, where there is no rounding to hide in; then the same plans in float32, fused.

    And the case would notice a missing row.
    """
    size = odd_size(name)
    model, x = network(name, size), noise_for(name, size).double()
    truth = in_double(model, x)
    capture = capture_model(copy.deepcopy(model).double(), x)
    inputs, rng = capture.flatten((x,)), random.Random(name)
    exact = whole_maps(capture, inputs)
    assert worst_output(capture.unflatten(exact), truth) <= TOLERANCE["float64"]
    plans = [axis_plan(capture.graph, 2, "columns", depth=3), *(random_plan(capture.graph, n, rng) for n in (3, 5))]
    for plan, lowered in zip(plans, (lower_borders_first, lower, lower_borders_first), strict=True):
        worst = worst_layer(capture, plan, inputs, exact, fast=False, lowered=lowered)
        assert worst.passes, f"float64: {worst}\n{plan}"
    single = cast(capture, torch.float32)
    low = {key: value.to(torch.float32) for key, value in exact.items()}
    blind = insensitive_layers(single, low, least=10 * TOLERANCE["float32"])
    assert not blind, f"a fault in these hardly moves the answer: {blind}"
    rows = [axis_plan(single.graph, count, "rows", depth=1 + count) for count in WORKERS]
    check_float32(model, single, [random_plan(single.graph, 3, rng), *rows], x.float(), truth)


@pytest.mark.parametrize("name", ["vgg11", "resnet18", "densenet121", "squeezenet1_1", "fcn_resnet50"])
def test_winograds_convolution_wherever_it_may_compute(name: str, monkeypatch: pytest.MonkeyPatch):
    """As where it won all trials, on layers too narrow for it, too."""
    tried: list[Any] = []
    monkeypatch.setattr(Trials, "wins", lambda *arguments: tried.append(arguments) or True)
    monkeypatch.setattr(Packer, "has_room", lambda *arguments: True)
    monkeypatch.setattr(winograd, "LEAST_CHANNELS", 1)
    size = odd_size(name)
    model, x = network(name, size), noise_for(name, size)
    capture = capture_model(model, x)
    plans = [axis_plan(capture.graph, 3, "rows", depth=4), axis_plan(capture.graph, 2, "columns", depth=3)]
    check_float32(model, capture, plans, x, in_double(model, x))
    assert len(tried) >= 20


def check_bfloat16(name: str, size: tuple[int, int]) -> None:
    model, x = network(name, size), noise_for(name, size)
    truth, low = in_double(model, x), copy.deepcopy(model).bfloat16()
    own, capture = answer(low, x.bfloat16()), capture_model(low, x.bfloat16())
    y = InProcess(capture, lower(axis_plan(capture.graph, 2), capture.graph))(x.bfloat16())
    for found, plain, exact in zip(leaves(y), leaves(own), leaves(truth), strict=True):
        assert found.dtype == plain.dtype == torch.bfloat16
        print(f"{name}: {relative(found, exact):.4f}, the model itself {relative(plain, exact):.4f}")
        assert relative(found, exact) <= 3 * relative(plain, exact)


@pytest.mark.parametrize("name", IN_BFLOAT16)
def test_bfloat16_is_as_near_as_the_model_itself(name: str):
    check_bfloat16(name, odd_size(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SMALLEST if name not in IN_BFLOAT16])
def test_bfloat16_of_the_other_families(name: str):
    check_bfloat16(name, odd_size(name))


# --- the forms that inputs and outputs take --------------------------------------------------------------------------


def split_answer(model: nn.Module, *args: Any, workers: int = 2, axis: str = "rows") -> Any:
    capture: Capture = capture_model(model, args)
    return InProcess(capture, lower(axis_plan(capture.graph, workers, axis), capture.graph))(*args)


def assert_same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    assert worst_output(found, expected) <= TOLERANCE["float32"]


@pytest.mark.parametrize("axis", ["rows", "columns", "channels", "batch"])
def test_batches(axis: str):
    model, x = network("resnet18"), noise_for("resnet18", ODD_SIZE, batch=3)
    assert_same(split_answer(model, x, workers=2, axis=axis), answer(model, x))


def test_channels_last_input():
    model, x = network("mobilenet_v2"), noise_for("mobilenet_v2", ODD_SIZE, batch=2)
    x = x.contiguous(memory_format=torch.channels_last)
    assert_same(split_answer(model, x), answer(model, x))
    assert_same(split_answer(model.to(memory_format=torch.channels_last), x), answer(model, x))


class Nested(nn.Module):
    """Two inputs, one of them in a list, and a nest of outputs: a tensor twice, an input, None and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(2, 4, 5, padding=2)

    def forward(self, x: Tensor, more: list[Tensor], factor: float) -> dict[str, Any]:
        a, b = self.first(x), self.second(more[0])
        joined = torch.relu(a * factor + b)
        return {"maps": (a, [joined, joined]), "input": x, "nothing": None, "number": 7, "mean": joined.mean((2, 3))}


def test_several_inputs_and_nested_outputs():
    torch.manual_seed(0)
    model, x, other = Nested().eval(), torch.randn(1, 3, 11, 9), torch.randn(1, 2, 11, 9)
    found, expected = split_answer(model, x, [other], 0.5, workers=3), answer(model, x, [other], 0.5)
    assert_same(found, expected)
    assert found["nothing"] is None
    assert found["number"] == 7
    assert torch.equal(found["input"], x)


def test_another_number_among_the_inputs_is_refused():
    model, x, other = Nested().eval(), torch.randn(1, 3, 11, 9), torch.randn(1, 2, 11, 9)
    capture = capture_model(model, (x, [other], 0.5))
    with pytest.raises(ValueError, match=r"0\.25.*captured with"):
        InProcess.whole(capture)(x, [other], 0.25)
