"""Which convolutions give way to a block, what each saves, and in which order they are taken."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import vgg16_bn

from edgedi.transforms.exact.traced import trace
from edgedi.transforms.replace.candidates import (
    Candidate,
    Option,
    candidates,
    enough,
    in_order,
    least_of,
    ratios_of,
    size_with,
)
from edgedi.transforms.scar import Scar
from edgedi.transforms.size import Size, Target


def found(model: nn.Module, x: Tensor, **options: Any) -> dict[str, dict[int, int]]:
    return {layer.name: dict(layer.saved) for layer in candidates(trace(model.eval(), (x,)), **options)}


def macs(module: nn.Module, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(x)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(
    "options",
    [
        {"padding": 1},
        {"stride": 2},
        {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)},
        {"padding": "same", "dilation": 3},
        {"padding": 1, "groups": 2},
        {"kernel_size": (1, 7)},
        {"kernel_size": 5, "padding_mode": "reflect", "padding": 2},
    ],
)
def test_what_a_block_saves_is_what_the_counter_counts(options: dict[str, Any]):
    layer, x = nn.Conv2d(24, 64, **{"kernel_size": 3, **options}), torch.randn(2, 24, 17, 14)
    blocks = {ratio: Scar.like(layer, ratio) for ratio in (4, 8)}
    assert found(nn.Sequential(layer), x) == {"0": {r: macs(layer, x) - macs(b, x) for r, b in blocks.items()}}


def test_the_first_convolution_of_vgg_pays_at_8_only():
    saved = found(vgg16_bn(weights=None).features, torch.randn(1, 3, 32, 32))
    assert list(saved["0"]) == [8]
    assert [list(ratios) for name, ratios in saved.items() if name != "0"] == [[4, 8]] * 12


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(64, 64, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x))


class Own(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


@pytest.mark.parametrize(
    "model",
    [
        nn.Conv2d(64, 64, 1),
        nn.Conv2d(64, 64, 3, groups=64),
        nn.Conv2d(64, 62, 3),
        nn.Conv2d(64, 64, 3, groups=32),
        nn.ConvTranspose2d(64, 64, 3),
        Twice(),
        Own(64, 64, 3),
    ],
    ids=["1x1", "depthwise", "no multiple of the ratio", "groups", "transposed", "runs twice", "code of its own"],
)
def test_what_is_no_candidate(model: nn.Module):
    assert found(nn.Sequential(model), torch.randn(1, 64, 9, 9)) == {}


def test_a_large_step_over_a_large_map_would_cost_more():
    """The squeeze runs on every position read, the convolution on one of sixteen written."""
    x = torch.randn(1, 64, 32, 32)
    assert found(nn.Sequential(nn.Conv2d(64, 16, 2, stride=4)), x) == {"0": {8: 127_996}}
    assert found(nn.Sequential(nn.Conv2d(64, 16, 2, stride=8)), x) == {}


def test_the_ratio_may_be_said():
    x = torch.randn(1, 64, 9, 9)
    assert [list(saved) for saved in found(nn.Sequential(nn.Conv2d(64, 64, 3)), x, ratios=(4,)).values()] == [[4]]


def option(name: str, ratio: int, saved: int, error: float, parameters: int = 0) -> Option:
    return Option(name=name, ratio=ratio, saved=saved, error=error, saved_parameters=parameters)


def test_the_order_is_by_macs_saved_per_error_and_a_higher_ratio_counts_by_what_it_adds():
    a4, a8 = option("a", 4, 100, 0.1), option("a", 8, 120, 0.3)  # 1000, then 100
    b4, b8 = option("b", 4, 60, 0.3), option("b", 8, 90, 0.4)  # 200, then 300: no more than 200
    c8 = option("c", 8, 150, 1.0)  # 150
    order = in_order([c8, a8, b8, a4, b4])
    assert order == (a4, b4, b8, c8, a8)
    assert ratios_of(order[:3]) == {"a": 4, "b": 8}
    assert size_with(order[:3], Size(macs=1000)) == Size(macs=810)
    assert size_with(order, Size(macs=1000)) == Size(macs=1000 - 120 - 90 - 150)


def test_a_higher_ratio_that_errs_less_comes_right_after_its_lower_one():
    a4, a8, b4 = option("a", 4, 100, 0.5), option("a", 8, 120, 0.4), option("b", 4, 99, 0.5)
    assert in_order([b4, a8, a4]) == (a4, a8, b4)


options = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from((4, 8)), st.integers(1, 99), st.floats(0, 2)),
    unique_by=lambda row: row[:2],
)


@given(options)
def test_every_first_part_of_the_order_is_a_choice(rows: list[tuple[str, int, int, float]]):
    given_options = [option(name, ratio, saved + 100 * (ratio == 8), error) for name, ratio, saved, error in rows]
    order = in_order(given_options)
    assert sorted(order, key=str) == sorted(given_options, key=str)
    for count in range(len(order) + 1):
        taken = order[:count]
        highest = {name: max(o.ratio for o in taken if o.name == name) for name in {o.name for o in taken}}
        assert ratios_of(taken) == highest


@pytest.mark.parametrize("bias", [True, False])
def test_the_parameters_that_a_block_saves_are_those_that_it_has_less(bias: bool):
    """With the bias that it has in its layer's place."""
    layer, x = nn.Conv2d(24, 64, 3, groups=2, bias=bias), torch.randn(1, 24, 9, 9)
    (candidate,) = candidates(trace(nn.Sequential(layer).eval(), (x,)))
    blocks = {m: 24 * m + m * m // 2 * 9 + m * m + m * 64 + 64 for m in (16, 8)}
    assert dict(candidate.saved_parameters) == {4: 6912 + 64 * bias - blocks[16], 8: 6912 + 64 * bias - blocks[8]}
    assert least_of((candidate,), Size(macs=10**6, parameters=7000)) == Size(
        macs=10**6 - candidate.saved[8], parameters=7000 - candidate.saved_parameters[8]
    )


LARGE = Size(macs=1000, parameters=1000)
sized = st.lists(
    st.tuples(
        st.sampled_from("abcd"), st.sampled_from((4, 8)), st.integers(1, 99), st.floats(0, 2), st.integers(0, 200)
    ),
    unique_by=lambda row: row[:2],
)


@given(sized, st.none() | st.integers(100, 1000), st.none() | st.integers(100, 1000))
def test_what_is_enough_reaches_the_target_and_needs_all_of_itself(
    rows: list[tuple[str, int, int, float, int]], macs: int | None, parameters: int | None
):
    order = in_order(option(name, r, m + 100 * (r == 8), e, p + 200 * (r == 8)) for name, r, m, e, p in rows)
    target = Target(macs=macs, parameters=parameters)
    taken = enough(order, LARGE, target)
    firsts = [order[:count] for count in range(1, len(order) + 1)]
    if not any(target.reached(size_with(first, LARGE)) for first in firsts):
        assert list(taken) == list(order)
        return
    assert target.reached(size_with(taken, LARGE))
    first = next(first for first in firsts if target.reached(size_with(first, LARGE)))
    assert set(taken) <= set(first)
    for one in taken:
        rest = [other for other in taken if other != one]
        assert not target.reached(size_with(rest, LARGE))


def test_a_block_that_only_one_sort_needs_is_taken_for_it():
    """``a`` saves most of both for its error, ``b`` multiplications, ``c`` parameters."""
    a, b, c = (
        option("a", 4, 300, 0.1, 300),
        option("b", 4, 200, 0.2, 0),
        option("c", 4, 50, 0.2, 400),
    )
    order = in_order([c, b, a])
    assert order == (a, b, c)
    assert enough(order, LARGE, Target(macs=700)) == [a]
    assert enough(order, LARGE, Target(macs=500)) == [a, b]
    assert enough(order, LARGE, Target(parameters=300)) == [a, c]
    assert enough(order, LARGE, Target(macs=500, parameters=300)) == [a, b, c]
    assert enough(order, LARGE, Target(parameters=600)) == [c]


def test_a_candidate_is_a_value():
    with pytest.raises(AttributeError):
        Candidate(name="a", saved={4: 1}, saved_parameters={4: 1}).name = "b"
