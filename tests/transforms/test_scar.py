"""The SCAR block is the published one, costs what it should, and split over workers it gives its own answer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import vgg16

from edgedi.partition.capture.capture import capture_model
from edgedi.partition.plan.lowering import lower
from edgedi.runtime.execution.reference import InProcess
from edgedi.transforms.scar import Scar
from tests.exactness import TOLERANCE, relative
from tests.plans import axis_plan


def parameters(modules: list[nn.Module]) -> int:
    return sum(weight.numel() for module in modules for name, weight in module.named_parameters() if "bias" not in name)


def macs(module: nn.Module, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(x)
    return counter.get_total_flops() // 2


def test_the_block_is_its_four_parts_and_nothing_else():
    torch.manual_seed(0)
    block = Scar(12, 32, ratio=8, padding=1)
    assert {name: tuple(weight.shape) for name, weight in block.named_parameters()} == {
        "squeeze.weight": (4, 12, 1, 1),
        "convolution.weight": (4, 4, 3, 3),
        "attention.weight": (4, 4),
        "restore.weight": (32, 4, 1, 1),
    }
    x = torch.randn(2, 12, 7, 9)
    y = nn.functional.conv2d(nn.functional.conv2d(x, block.squeeze.weight), block.convolution.weight, padding=1)
    gate = torch.sigmoid(torch.einsum("mk,bk->bm", block.attention.weight, y.mean((2, 3))))
    expected = torch.einsum("om,bmhw->bohw", block.restore.weight[:, :, 0, 0], torch.einsum("bmhw,bm->bmhw", y, gate))
    assert relative(block(x), expected) < 1e-6


def test_vgg16_falls_from_14_7_to_0_71_million_parameters():
    convolutions = [module for module in vgg16(weights=None).features if isinstance(module, nn.Conv2d)]
    assert parameters(list(convolutions)) == 14_710_464
    assert parameters([Scar.like(convolution, 8) for convolution in convolutions]) == 713_496


@pytest.mark.parametrize(("ratio", "per_position"), [(8, 2 * 64 * 8 + 9 * 8 * 8), (4, 2 * 64 * 16 + 9 * 16 * 16)])
def test_macs_of_64_to_64_channels(ratio: int, per_position: int):
    convolution, x = nn.Conv2d(64, 64, 3, padding=1, bias=False), torch.randn(1, 64, 10, 12)
    middle = 64 // ratio
    assert macs(convolution, x) == 9 * 64 * 64 * 120
    assert macs(Scar.like(convolution, ratio), x) == per_position * 120 + middle * middle


@pytest.mark.parametrize(
    "options",
    [
        {"padding": 1},
        {"stride": 2},
        {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)},
        {"padding": "same", "dilation": 3},
        {"padding": 1, "groups": 2},
        {"padding": 1, "groups": 4, "stride": 3},
        {"padding": 1, "padding_mode": "reflect"},
    ],
)
def test_shapes_are_those_of_the_convolution(options: dict):
    convolution, x = nn.Conv2d(8, 32, 3, **options), torch.randn(2, 8, 17, 14)
    block = Scar.like(convolution, 4)
    assert block(x).shape == convolution(x).shape
    own = block.convolution
    geometry = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    assert [getattr(own, name) for name in geometry] == [getattr(convolution, name) for name in geometry]


def test_it_takes_dtype_and_mode_from_the_convolution():
    block = Scar.like(nn.Conv2d(8, 16, 3).double().eval(), 8)
    assert {weight.dtype for weight in block.parameters()} == {torch.float64}
    assert not any(module.training for module in block.modules())


def test_ratios_and_groups_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="ratio is 8; it must be positive and divide the 20 output channels"):
        Scar(8, 20, ratio=8)
    with pytest.raises(ValueError, match="4 channels between do not make 8 groups; 4 groups would do"):
        Scar(8, 32, ratio=8, groups=8)


def three_blocks() -> nn.Module:
    torch.manual_seed(1)
    convolutions = [
        nn.Conv2d(3, 32, 3, padding=1),
        nn.Conv2d(32, 48, 3, stride=2, padding=1),
        nn.Conv2d(48, 64, 3, padding=2, dilation=2, groups=2),
    ]
    parts = [part for c in convolutions for part in (Scar.like(c, 8), nn.ReLU(), nn.BatchNorm2d(c.out_channels))]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)).eval()


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("axis", ["rows", "columns", "channels"])
def test_split_over_workers_it_is_exact(workers: int, axis: str):
    model, x = three_blocks(), torch.randn(1, 3, 31, 23, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected = model(x)
    capture = capture_model(model, x)
    assert not capture.opaque
    found = InProcess(capture, lower(axis_plan(capture.graph, workers, axis), capture.graph))(x)
    assert relative(found, expected) <= TOLERANCE["float32"]
