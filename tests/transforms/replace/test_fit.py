"""A block fitted to a layer is nearer to it than its start, and a layer that is a block inside is found again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgedi.transforms.data import Data
from edgedi.transforms.replace import squares
from edgedi.transforms.replace.block import stand_in
from edgedi.transforms.replace.fit import Fitted, fit
from edgedi.transforms.replace.record import record


def maps(*shape: int, seed: int = 3) -> Tensor:
    """Inputs whose channels hang together, as those of networks do."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    mixing = torch.randn(shape[1], shape[1] // 4, generator=generator)
    return torch.einsum("oc,nchw->nohw", mixing, x[:, : shape[1] // 4]).relu() + 0.1 * x


def layer(*args: Any, **options: Any) -> nn.Conv2d:
    torch.manual_seed(1)
    return nn.Conv2d(*args, **options).eval()


def relative(part: nn.Module, convolution: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        expected = convolution(x)
        off = (part(x) - expected).double().square().sum()
        return float(off / (expected - expected.mean((0, 2, 3), keepdim=True)).double().square().sum())


def same(one: Fitted, other: Fitted) -> bool:
    tensors, others = one.block.state_dict(), other.block.state_dict()
    return tensors.keys() == others.keys() and all(torch.equal(tensors[name], others[name]) for name in tensors)


@pytest.mark.parametrize(
    "options",
    [
        {"padding": 1},
        {"stride": 2, "bias": False},
        {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)},
        {"padding": "same", "dilation": 3},
        {"padding": 1, "groups": 2},
        {"padding": 1, "padding_mode": "reflect"},
    ],
)
def test_fitting_lowers_the_error(options: dict[str, Any]):
    convolution, x = layer(16, 32, 3, **options), maps(40, 16, 12, 11)
    fitted = fit(convolution, x, 4, seed=0, steps=40)
    assert fitted.error < 0.9 * fitted.start_error
    assert fitted.error < 0.6
    assert relative(fitted.block, convolution, x[35:]) == pytest.approx(fitted.error, rel=1e-3)
    assert not any(module.training for module in fitted.block.modules())
    assert [name for name, _ in fitted.block.named_parameters() if "bias" in name] == ["restore.bias"]


def test_more_steps_fit_better():
    convolution, x = layer(16, 32, 3), maps(40, 16, 12, 11)
    errors = [fit(convolution, x, 8, seed=0, steps=steps).error for steps in (0, 20, 100)]
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_of_low_rank_is_found_by_its_factors_alone(groups: int):
    torch.manual_seed(2)
    narrow = [nn.Conv2d(16, 8, 1, groups=groups, bias=False), nn.Conv2d(8, 8, 3, groups=groups, bias=False)]
    parts = nn.Sequential(*narrow, nn.Conv2d(8, 32, 1, groups=groups, bias=False)).double()
    convolution = layer(16, 32, 3, padding=1, groups=groups).double()
    with torch.no_grad():
        points = nn.functional.pad(torch.eye(16).double()[:, :, None, None], (2, 2, 2, 2))
        weight = parts(points).flip(2, 3).transpose(0, 1)  # what comes out of a point is the kernel, mirrored
        own = [block[:, i * 16 // groups : (i + 1) * 16 // groups] for i, block in enumerate(weight.chunk(groups))]
        convolution.weight.copy_(torch.cat(own))
        fitted = fit(convolution, maps(16, 16, 9, 9).double(), 4, seed=0, steps=0)
    assert fitted.start_error < 1e-12
    assert fitted.error < 1e-12


def test_more_channels_inside_than_inputs_can_all_learn():
    convolution, x = layer(3, 64, 3, padding=1), maps(24, 4, 16, 16)[:, :3]
    fitted = fit(convolution, x, 8, seed=0, steps=60)
    assert fitted.error < fitted.start_error
    assert bool((fitted.block.squeeze.weight.flatten(1).abs().amax(1) > 0).all())


def test_the_same_seed_gives_the_same_and_nobody_elses_random_numbers_are_used():
    convolution, x = layer(16, 32, 3), maps(16, 16, 12, 11)
    before, weights = torch.get_rng_state(), convolution.weight.clone()
    one, other, third = (fit(convolution, x, 4, seed=seed, steps=10) for seed in (5, 5, 6))
    assert same(one, other)
    assert not same(one, third)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(convolution.weight, weights)
    assert convolution.weight.grad is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype: torch.dtype):
    convolution, x = layer(16, 32, 3).to(dtype), maps(16, 16, 12, 11).to(dtype)
    fitted = fit(convolution, x, 4, seed=0, steps=20)
    assert {parameter.dtype for parameter in fitted.block.parameters()} == {dtype}
    assert fitted.error < fitted.start_error


def test_one_image_is_enough_and_a_dead_layer_is_fitted():
    convolution = layer(16, 32, 3)
    assert fit(convolution, maps(1, 16, 20, 20), 4, seed=0, steps=10).error < 1
    nn.init.zeros_(convolution.weight)
    fitted = fit(convolution, maps(4, 16, 9, 9), 4, seed=0, steps=3)
    assert torch.allclose(fitted.block(maps(4, 16, 9, 9)), convolution(maps(4, 16, 9, 9)), atol=1e-5)


def test_least_squares_are_those_of_torch():
    block = stand_in(layer(16, 32, 3), 4)
    x, y = maps(6, 16, 8, 8), torch.randn(6, 32, 6, 6, generator=torch.Generator().manual_seed(8))
    with torch.no_grad():
        sums = squares.moments(block, x, y)
        columns = squares.best(sums)
        inside = block.gated(x).permute(0, 2, 3, 1).reshape(-1, 8).double()
        features, wanted = torch.cat([inside, torch.ones(len(inside), 1)], 1), y.permute(0, 2, 3, 1).double()
        wanted = wanted.reshape(-1, 32)
        expected = torch.linalg.lstsq(features, wanted).solution
        off = (features @ columns - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum()
    assert torch.allclose(features @ columns, features @ expected, atol=1e-3)
    assert squares.error(sums, columns) == pytest.approx(float(off), rel=1e-9)


# --- what is recorded -------------------------------------------------------------------------------------------------


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3, stride=2)).eval()


def data_of(batches: Any) -> Data:
    return Data(batches, "calibration", labelled=False)


def order_of(images: Tensor, among: Tensor) -> list[int]:
    return [int((among == image).flatten(1).all(1).nonzero()) for image in images]


def test_inputs_are_recorded_as_far_as_memory_allows():
    model, x = two_layers(), torch.randn(70, 3, 10, 10, generator=torch.Generator().manual_seed(0))
    first, second = record(model, ["0", "2"], data_of(x), 0)
    assert sorted(order_of(first, x)) == list(range(70))
    with torch.no_grad():
        assert torch.allclose(second, model[:2](first), atol=1e-6)
    one_image = 4 * (3 * 100 + 8 * 64)
    some, others = record(model, ["0", "2"], data_of(x), 0, num_bytes=40 * one_image)
    assert torch.equal(some, first[:40])
    assert len(others) == 40 * one_image // (4 * (8 * 64 + 4 * 9))
    assert len(record(model, ["0"], data_of(x), 0, num_bytes=1)[0]) == 1
    assert not model[0]._forward_hooks


def test_of_several_sizes_the_first_is_recorded():
    (found,) = record(two_layers(), ["0"], data_of([torch.zeros(2, 3, size, size) for size in (9, 11, 9)]), 1)
    assert found.shape in ((4, 3, 9, 9), (2, 3, 11, 11))


def test_a_loader_that_shuffles_does_so_by_the_seed():
    x = torch.arange(64.0).reshape(64, 1, 1, 1).expand(64, 3, 9, 9)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, torch.zeros(64)), 8, shuffle=True)
    data, model = Data(loader, "train", labelled=True), two_layers()
    before = torch.get_rng_state()
    one, other, third = (record(model, ["0"], data, seed)[0] for seed in (1, 1, 2))
    assert torch.equal(one, other)
    assert not torch.equal(one, third)
    assert torch.equal(torch.get_rng_state(), before)
