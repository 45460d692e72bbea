"""torchvision's classification and segmentation networks, with weights that let no fault hide.

At birth many of these networks hardly look at their own insides: batch statistics do not fit, ConvNeXt's blocks weigh
1e-6, heads are zero. A missing halo row then changes the answer by less than any tolerance. ``calibrated`` mends that.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision import models
from torchvision.models.efficientnet import FusedMBConv, MBConv
from torchvision.models.resnet import Bottleneck

SEED = 20251120

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "AlexNet": ("alexnet",),
    "VGG": ("vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn"),
    "ResNet": ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    "ResNeXt": ("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
    "WideResNet": ("wide_resnet50_2", "wide_resnet101_2"),
    "DenseNet": ("densenet121", "densenet161", "densenet169", "densenet201"),
    "GoogLeNet": ("googlenet",),
    "Inception": ("inception_v3",),
    "MobileNetV2": ("mobilenet_v2",),
    "MobileNetV3": ("mobilenet_v3_small", "mobilenet_v3_large"),
    "MNASNet": ("mnasnet0_5", "mnasnet0_75", "mnasnet1_0", "mnasnet1_3"),
    "ShuffleNetV2": ("shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0"),
    "SqueezeNet": ("squeezenet1_1", "squeezenet1_0"),
    "EfficientNet": tuple(f"efficientnet_b{k}" for k in range(8)),
    "EfficientNetV2": ("efficientnet_v2_s", "efficientnet_v2_m", "efficientnet_v2_l"),
    "RegNet": (
        *(f"regnet_x_{size}" for size in ("400mf", "800mf", "1_6gf", "3_2gf", "8gf", "16gf", "32gf")),
        *(f"regnet_y_{size}" for size in ("400mf", "800mf", "1_6gf", "3_2gf", "8gf", "16gf", "32gf", "128gf")),
    ),
    "ConvNeXt": ("convnext_tiny", "convnext_small", "convnext_base", "convnext_large"),
    "ViT": ("vit_b_32", "vit_b_16", "vit_l_32", "vit_l_16", "vit_h_14"),
    "Swin": ("swin_t", "swin_s", "swin_b"),
    "SwinV2": ("swin_v2_t", "swin_v2_s", "swin_v2_b"),
    "MaxViT": ("maxvit_t",),
    "FCN": ("fcn_resnet50", "fcn_resnet101"),
    "DeepLab": ("deeplabv3_mobilenet_v3_large", "deeplabv3_resnet50", "deeplabv3_resnet101"),
    "LR-ASPP": ("lraspp_mobilenet_v3_large",),
}
"""Builders by family, the smallest member first: that one is in ``make test``."""

TRANSFORMERS = frozenset({"ViT", "Swin", "SwinV2", "MaxViT"})
"""Families that run, but of which only the convolutions are split by rows."""
SEGMENTATION = frozenset({"FCN", "DeepLab", "LR-ASPP"})
FIXED_SIZE = frozenset({"ViT", "MaxViT"})
"""Families that take no other size than their own."""

ODD_SIZE = (83, 101)
_OWN_SIZES = {
    "inception_v3": 299, "efficientnet_b1": 240, "efficientnet_b2": 288, "efficientnet_b3": 300, "efficientnet_b4": 380,
    "efficientnet_b5": 456, "efficientnet_b6": 528, "efficientnet_b7": 600, "efficientnet_v2_s": 384,
    "efficientnet_v2_m": 480, "efficientnet_v2_l": 480, "swin_v2_t": 256, "swin_v2_s": 256, "swin_v2_b": 256,
}  # fmt: skip
_OPTIONS: dict[str, dict[str, Any]] = {"googlenet": {"init_weights": False}, "inception_v3": {"init_weights": False}}


def family_of(name: str) -> str:
    return next(family for family, names in FAMILIES.items() if name in names)


def own_size(name: str) -> tuple[int, int]:
    """Rows and columns of the input that torchvision evaluates the network with."""
    side = 520 if family_of(name) in SEGMENTATION else _OWN_SIZES.get(name, 224)
    return side, side


def sizes(name: str) -> tuple[tuple[int, int], ...]:
    """Its own size, and an odd one that is not square where the network takes any."""
    return (own_size(name),) if family_of(name) in FIXED_SIZE else (own_size(name), ODD_SIZE)


def build(name: str, size: tuple[int, int]) -> nn.Module:
    """The named network in evaluation mode, calibrated for inputs of ``size``; the same weights at every call.

    Statistics of another size would not do: forty layers on, maps can be a hundred times what they were calibrated for.
    """
    torch.manual_seed(SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if family_of(name) in SEGMENTATION:
            model = getattr(models.segmentation, name)(weights=None, weights_backbone=None)
        else:
            model = getattr(models, name)(weights=None, **_OPTIONS.get(name, {}))
    return calibrated(model.eval(), noise(_images(name, size), size))


def _images(name: str, size: tuple[int, int]) -> int:
    """How many images a network is calibrated on: two, or more where its last maps are small and it is deep.

    An EfficientNet sees 3 x 4 positions of an odd image at its end. Statistics of two such maps amplify rounding from
    block to block, until the model's own float32 answer is off by half of its value: there would be nothing to compare.
    """
    if not family_of(name).startswith("EfficientNet"):
        return 2
    return 64 if size == ODD_SIZE else 8


def calibrated(model: nn.Module, noise: Tensor) -> nn.Module:
    """``model`` in evaluation mode with weights under which every layer matters to the answer.

    Batch normalisation: gamma U(.5, 1.5), beta N(0, .3), statistics those of ``noise`` (one forward with momentum 1,
    all else in evaluation mode: dropout and stochastic depth are off). Layer scales U(.5, 1.5); what was zero is not.

    Gamma of a residual branch's last normalisation is U(.15, .45), about what training makes of it: where every branch
    weighs as much as what it is added to, a hundred layers amplify float32's rounding to 2e-4 of the answer.
    """
    norms, ends = [module for module in model.modules() if isinstance(module, _BatchNorm)], _branch_ends(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layer_scale" in name:
                nn.init.uniform_(parameter, 0.5, 1.5)
            elif not parameter.any():
                nn.init.normal_(parameter, 0, 0.1 if parameter.dim() < 2 else parameter.shape[-1] ** -0.5)
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            nn.init.uniform_(norm.weight, *((0.15, 0.45) if norm in ends else (0.5, 1.5)))
            nn.init.normal_(norm.bias, 0, 0.3)
            norm.train()
            norm.momentum = 1.0
        if norms:
            model(noise)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return model.eval()


def _branch_ends(model: nn.Module) -> set[nn.Module]:
    """The last normalisation of every residual branch of the two families that are a hundred layers deep."""
    ends: set[nn.Module] = {block.bn3 for block in model.modules() if isinstance(block, Bottleneck)}
    for block in model.modules():
        if isinstance(block, (MBConv, FusedMBConv)):
            ends.add([module for module in block.modules() if isinstance(module, _BatchNorm)][-1])
    return ends


def noise(batch: int, size: tuple[int, int], generator: torch.Generator | None = None) -> Tensor:
    """Noise of all wavelengths, [batch, 3, rows, columns]. White noise averages out: deep maps become nearly constant,
    and normalising them by their tiny variance magnifies float32's own rounding several times more."""
    total = torch.randn(batch, 3, *size, generator=generator)
    for cells in (2, 4, 8, 16):
        grid = torch.randn(batch, 3, cells, cells, generator=generator)
        total += nn.functional.interpolate(grid, size, mode="bicubic")
    return total / 2


def noise_for(name: str, size: tuple[int, int], batch: int = 1) -> Tensor:
    """An input for the named network, the same at every call."""
    generator = torch.Generator().manual_seed(SEED)
    return noise(batch, size, generator)
