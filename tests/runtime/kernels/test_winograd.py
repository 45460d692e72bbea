"""Winograd's convolution is the convolution; it computes where it was seen to be faster, and has room."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgedi.partition.capture.capture import Capture, capture_model
from edgedi.partition.graph.geometry import Interval, Region
from edgedi.partition.graph.operators import needs, weight_interval
from edgedi.partition.plan.program import Piece, Run
from edgedi.runtime.kernels import fused, prepare, winograd
from edgedi.runtime.kernels.prepare import Task, task_of
from edgedi.runtime.kernels.trials import (
    FASTER_BY,
    MOST_TRIALS,
    OTHERS_BYTES,
    REPEATS,
    Trials,
    come_from_others,
)
from tests.exactness import relative

pytestmark = pytest.mark.skipif(not fused.available(), reason="this torch has no fused oneDNN operators")
LIMIT = 4e-6
"""Relative to the largest value, of one layer: a fifth of what a whole network may differ by."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Block(nn.Module):
    def __init__(self, conv: nn.Conv2d, act: nn.Module | None = None, *, residual: bool = False) -> None:
        super().__init__()
        self.conv, self.act, self.residual = conv, act or nn.Identity(), residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.act(y + x if self.residual else y)


def captured(model: nn.Module, shape: tuple[int, ...]) -> tuple[Capture, Tensor, Tensor]:
    """The captured model of one layer, an input, and its answer in float64."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    x = torch.randn(shape)
    capture = capture_model(model.eval(), x)
    assert [layer.op for layer in capture.graph.layers] == ["conv"]
    with torch.inference_mode():
        expected = model.double()(x.double())
    model.float()
    return capture, x, expected


def part(capture: Capture, x: Tensor, out: Region | None) -> tuple[Task, list[Tensor]]:
    """The task of a region of the only layer, and the parts of the input that it needs."""
    (layer,) = capture.graph.layers
    piece = Piece(layer.name) if out is None else Piece(layer.name, out.dim, out.interval)
    parts = needs(layer, capture.graph.input_shapes(layer), out)
    assert parts is not None
    pieces = [
        Piece(name) if need is None else Piece(name, need.dim, need.interval)
        for name, need in zip(layer.inputs, parts, strict=True)
    ]
    tensors = [x if need is None else x.narrow(need.dim, need.interval.start, len(need.interval)) for need in parts]
    cut = weight_interval(layer, out)
    weights = {
        role: capture.weights[name] if cut is None else capture.weights[name][cut.start : cut.stop]
        for role, name in layer.weights.items()
    }
    return task_of(Run(piece, tuple(pieces)), capture.graph, weights), tensors


# --- the algorithm ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("points", "tile"), [(winograd.POINTS, 4), ((0.0, 1.0, -1.0, 2.0, -2.0), 4), ((0.0, 1.0, -1.0), 2)]
)
def test_the_matrices_convolve(points: tuple[float, ...], tile: int):
    torch.manual_seed(0)
    of_tile, of_taps, outputs = winograd.toom_cook(points, tile)
    taps, signal = torch.randn(3, dtype=torch.float64), torch.randn(tile + 2, dtype=torch.float64)
    found = outputs @ ((of_taps @ taps) * (of_tile @ signal))
    assert torch.allclose(found, F.conv1d(signal.view(1, 1, -1), taps.view(1, 1, -1)).flatten(), rtol=0, atol=1e-12)


CASES = {
    "padded": (nn.Conv2d(5, 6, 3, padding=1), (2, 5, 7, 6)),
    "not padded": (nn.Conv2d(5, 6, 3), (1, 5, 9, 6)),
    "padded more": (nn.Conv2d(5, 6, 3, padding=(2, 4), bias=False), (1, 5, 4, 3)),
    "padded to the same size": (nn.Conv2d(5, 6, 3, padding="same"), (1, 5, 8, 8)),
    "of one pixel": (nn.Conv2d(5, 6, 3, padding=1), (1, 5, 1, 1)),
}


@pytest.mark.parametrize("chunk_bytes", [None, 1])
@pytest.mark.parametrize("name", CASES)
def test_every_region_is_that_part_of_the_convolution(name: str, chunk_bytes: int | None):
    model, shape = CASES[name]
    capture, x, expected = captured(Block(model), shape)
    scale = expected.abs().max().item()
    regions = [
        Region(dim, Interval(start, stop))
        for dim, length in enumerate(expected.shape)
        for start, stop in itertools.combinations(range(length + 1), 2)
    ]
    with torch.inference_mode():
        for out in (None, *regions):
            task, tensors = part(capture, x, out)
            assert winograd.takes(task)
            found = winograd.always(task, fused.Packer(), chunk_bytes=chunk_bytes)(*tensors)
            whole = expected if out is None else expected.narrow(out.dim, out.interval.start, len(out.interval))
            assert relative(found, whole, scale) <= LIMIT, str(out)
            assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("act", [None, nn.ReLU(), nn.SiLU(), nn.Hardtanh(-0.5, 0.7), nn.GELU("tanh")])
@pytest.mark.parametrize("size", [8, 7])
def test_residuals_and_activations(size: int, act: nn.Module | None, residual: bool):
    model = Block(nn.Conv2d(6, 6, 3, padding=1), act, residual=residual)
    capture, x, expected = captured(model, (1, 6, size, size))
    task, tensors = part(capture, x, None)
    before = x.clone()
    with torch.inference_mode():
        found = winograd.always(task, fused.Packer())(*tensors)
        assert relative(found, expected) <= LIMIT
        other = winograd.always(task, fused.Packer())(*(tensor.contiguous() for tensor in tensors))
        assert relative(other, expected) <= LIMIT, "inputs in another memory order"
    assert torch.equal(x, before), "inputs may still be on their way to a neighbour"
    assert len(tensors) == 1 + residual


def test_it_is_nearly_as_exact_as_the_direct_convolution(monkeypatch: pytest.MonkeyPatch):
    """On a layer as networks have them; on the usual points it is not."""
    torch.manual_seed(0)
    conv = nn.Conv2d(256, 64, 3, padding=1)
    nn.init.kaiming_normal_(conv.weight)
    x = torch.randn(1, 256, 20, 20).relu()
    capture = capture_model(conv.eval(), x)
    task, tensors = part(capture, x, None)
    direct = fused.make(task, fused.Packer())
    assert direct is not None
    with torch.inference_mode():
        expected = conv.double()(x.double())
        here = relative(winograd.always(task, fused.Packer())(*tensors), expected)
        matrices = winograd.toom_cook((0.0, 1.0, -1.0, 2.0, -2.0))
        monkeypatch.setattr(winograd, "toom_cook", lambda: matrices)
        usual = relative(winograd.always(task, fused.Packer())(*tensors), expected)
        assert here <= 3 * relative(direct(*tensors), expected)
    assert here <= usual / 2


@pytest.mark.parametrize(
    "model",
    [
        nn.Conv2d(6, 6, 3, stride=2), nn.Conv2d(6, 6, 3, dilation=2), nn.Conv2d(6, 6, 3, groups=2), nn.Conv2d(6, 6, 5),
        nn.Conv2d(6, 6, (3, 1)),
    ],
    ids=["strided", "dilated", "grouped", "larger", "one-dimensional"],
)  # fmt: skip
def test_other_convolutions_are_not_taken(model: nn.Module):
    x = torch.randn(1, 6, 9, 9)
    task, _ = part(capture_model(model.eval(), x), x, None)
    assert not winograd.takes(task)


def test_other_precisions_are_not_taken():
    model, x = nn.Conv2d(6, 6, 3).double().eval(), torch.randn(1, 6, 9, 9).double()
    task, _ = part(capture_model(model, x), x, None)
    assert not winograd.takes(task)


# --- whether it computes ---------------------------------------------------------------------------------------------


class Clock:
    """Goes on by what the kernel that runs is said to take."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def taking(self, *seconds: float) -> Callable[..., Tensor]:
        """A kernel that takes so long, one run after another."""
        told = itertools.chain(seconds, itertools.repeat(seconds[-1]))

        def kernel(*inputs: Tensor) -> Tensor:
            self.now_s += next(told)
            return inputs[0]

        return kernel


@pytest.mark.parametrize(("share", "wins"), [(FASTER_BY - 0.01, True), (FASTER_BY + 0.01, False)])
def test_a_challenger_wins_where_it_is_clearly_faster(share: float, wins: bool):
    clock = Clock()
    trials = Trials(clock)
    disturbed = [100.0, *[share * 1.5] * (REPEATS - 1), share]  # the first run warms up, then the least counts
    challenger, holder = clock.taking(*disturbed), clock.taking(100.0, *[1.5] * (REPEATS - 1), 1.0)
    assert trials.wins("a geometry", lambda: challenger, holder, [(1, 2, 3, 3)]) == wins


def test_a_challenger_that_fails_loses_for_good():
    def fails() -> Callable[..., Tensor]:
        raise RuntimeError("no memory")

    trials, clock = Trials(), Clock()
    assert not trials.wins("one", fails, clock.taking(1.0), [(1, 2, 3, 3)])
    assert not trials.wins("one", lambda: clock.taking(0.1), clock.taking(1.0), [(1, 2, 3, 3)])


def test_the_least_of_all_trials_counts():
    """The first was disturbed, and found the wrong one faster; a later one that was disturbed changes nothing."""
    clock = Clock()
    trials = Trials(clock)

    def wins(challenger_s: float, holder_s: float) -> bool:
        return trials.wins("one", lambda: clock.taking(challenger_s), clock.taking(holder_s), [(1, 2, 3, 3)])

    assert not wins(1.5, 1.0)
    assert wins(0.5, 1.1)
    assert wins(9.0, 2.0)
    assert not wins(0.5, 0.4)


def test_a_geometry_is_tried_a_few_times():
    clock, made = Clock(), list[int]()
    trials = Trials(clock)

    def challenger() -> Callable[..., Tensor]:
        made.append(1)
        return clock.taking(0.1)

    assert all(trials.wins("one", challenger, clock.taking(1.0), [(1, 2, 3, 3)]) for _ in range(2 * MOST_TRIALS))
    assert len(made) == MOST_TRIALS
    assert not trials.wins("another", challenger, clock.taking(0.01), [(1, 2, 3, 3)])
    assert len(made) == MOST_TRIALS + 1


def test_every_run_finds_the_caches_as_others_left_them(monkeypatch: pytest.MonkeyPatch):
    """A layer that runs again and again finds its own weights there, as no request does; filling them is not timed."""
    clock, order = Clock(), list[str]()

    def others_first(others: Tensor, inputs: Sequence[Tensor]) -> None:
        order.append("others")
        assert others.nbytes == OTHERS_BYTES
        assert [given.shape for given in inputs] == [(1, 2, 3, 3)]
        clock.now_s += 50.0

    def noted(name: str, kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(x: Tensor) -> Tensor:
            order.append(name)
            return kernel(x)

        return run

    monkeypatch.setattr("edgedi.runtime.kernels.trials.come_from_others", others_first)
    challenger, holder = noted("challenger", clock.taking(0.1)), noted("holder", clock.taking(1.0))
    assert Trials(clock).wins("a geometry", lambda: challenger, holder, [(1, 2, 3, 3)])
    assert order == ["others", "challenger", "others", "holder"] * (1 + REPEATS)


def test_what_comes_before_a_run_changes_no_value():
    others, given = torch.full((4,), 3.0), torch.tensor([0.5, -2.0])
    come_from_others(others, [given])
    assert others.tolist() == [3.0] * 4
    assert given.tolist() == [0.5, -2.0]


POINTS_BYTES = 36 * 32 * 32 * 4
"""Of the layer below."""


@pytest.fixture
def layer() -> tuple[Capture, Tensor, Tensor]:
    return captured(Block(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()), (1, 32, 12, 12))


def prepared(capture: Capture, packer: fused.Packer) -> Callable[..., Tensor]:
    (layer,) = capture.graph.layers
    weights = {role: packer.name(capture.weights[name], name) for role, name in layer.weights.items()}
    return prepare(Run(Piece(layer.name), tuple(map(Piece, layer.inputs))), capture.graph, weights, packer)


def outcome(packer: fused.Packer, monkeypatch: pytest.MonkeyPatch, *, wins: bool) -> list[list[tuple[int, ...]]]:
    """Make every trial end so; the shapes of those that there were."""
    tried: list[list[tuple[int, ...]]] = []

    def tell(geometry: object, challenger: object, holder: object, shapes: list[tuple[int, ...]]) -> bool:
        tried.append(shapes)
        return wins

    monkeypatch.setattr(packer.trials, "wins", tell)
    return tried


@pytest.mark.parametrize("wins", [True, False])
def test_who_wins_computes(layer: tuple[Capture, Tensor, Tensor], wins: bool, monkeypatch: pytest.MonkeyPatch):
    capture, x, expected = layer
    packer = fused.Packer()
    tried = outcome(packer, monkeypatch, wins=wins)
    kernel = prepared(capture, packer)
    with torch.inference_mode():
        assert relative(kernel(x), expected) <= LIMIT
    assert tried == [[(1, 32, 12, 12)]]
    assert packer.points_bytes == (4 * capture.weights[next(iter(capture.weights))].nbytes if wins else 0)


def test_narrow_layers_are_not_tried(monkeypatch: pytest.MonkeyPatch):
    capture, _, _ = captured(Block(nn.Conv2d(winograd.LEAST_CHANNELS - 1, 64, 3)), (1, 31, 12, 12))
    packer = fused.Packer()
    tried = outcome(packer, monkeypatch, wins=True)
    prepared(capture, packer)
    assert (tried, packer.points_bytes) == ([], 0)


@pytest.mark.parametrize(("room_bytes", "held"), [(POINTS_BYTES, POINTS_BYTES), (POINTS_BYTES - 1, 0), (0, 0)])
def test_weights_that_find_no_room_are_not_held_again(
    layer: tuple[Capture, Tensor, Tensor], room_bytes: int, held: int, monkeypatch: pytest.MonkeyPatch
):
    capture, x, expected = layer
    packer = fused.Packer(room_bytes=room_bytes)
    outcome(packer, monkeypatch, wins=True)
    kernels = [prepared(capture, packer) for _ in range(2)]  # the second shares what the first has
    with torch.inference_mode():
        assert all(relative(kernel(x), expected) <= LIMIT for kernel in kernels)
    assert packer.points_bytes == held
    assert len(packer.by_winograd) == (2 if held else 0)
    packer.room_bytes = 0
    prepared(capture, packer)
    assert len(packer.by_winograd) == (2 if held else 0), "a lean program shares nothing either"


def test_regions_of_as_many_tiles_share_a_verdict(
    layer: tuple[Capture, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
):
    capture, x, _ = layer
    packer, geometries = fused.Packer(), list[object]()
    monkeypatch.setattr(packer.trials, "wins", lambda geometry, *others: geometries.append(geometry))
    for start, stop in ((0, 4), (1, 4), (5, 9), (0, 5)):
        task, _ = part(capture, x, Region(2, Interval(start, stop)))
        winograd.make(task, packer, lambda *inputs: inputs[0])
    assert len(geometries) == 4
    assert len(set(geometries)) == 2, "one row of tiles, or two"


def test_kernels_share_weights_at_points_while_they_live(
    layer: tuple[Capture, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
):
    capture, _, _ = layer
    packer = fused.Packer()
    outcome(packer, monkeypatch, wins=True)
    kernels = [prepared(capture, packer)]
    once, packed = packer.points_bytes, packer.num_bytes
    kernels.append(prepared(capture, packer))
    assert (packer.points_bytes, packer.num_bytes) == (once, packed) == (36 * 32 * 32 * 4, 9 * 32 * 32 * 4)
    (name,) = packer._packed
    packed_weight = packer.any_of(name)
    assert packed_weight is not None
    assert torch.equal(fused.plain(packed_weight), capture.weights[name]), "a store keeps the original's form"
    kernels.pop()
    assert packer.points_bytes == once
    kernels.clear()
    assert (packer.points_bytes, packer.num_bytes) == (0, packed)


def test_layouts_that_are_equal_are_held_once():
    torch.manual_seed(0)
    packer, weight = fused.Packer(), torch.randn(32, 32, 3, 3)
    made = [
        packer.pack_points(weight, winograd.at_points, ([0, 0], [1, 1], [1, 1], 36, [1, 36 * 32, 1, count]))
        for count in (4, 8)
    ]
    assert made[0] is made[1]
    assert packer.points_bytes == 36 * 32 * 32 * 4
