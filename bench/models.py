"""Networks for the bars that ``torchvision:NAME`` does not give: with weights of no download, or our own."""

from __future__ import annotations

import os

import torch
from torch import nn
from torchvision.models import segmentation

from bench.pretrained import data_folder, resnet_cifar
from bench.vgg_cifar import network, training_images
from edgedi import compact as smaller
from edgedi import load
from edgedi.transforms.replace.block import Replace

SCAR_RATIOS = {3: 4, 7: 4, 10: 4, 14: 4, 17: 4, 20: 4, 24: 4, 27: 8, 30: 8, 34: 4, 37: 8, 40: 8}
"""By the convolution's place in VGG-16: the blocks of ``bench.compaction --only scar``, seed 0."""


def fcn_resnet50() -> nn.Module:
    """FCN on ResNet-50 for 21 classes, weights random."""
    return segmentation.fcn_resnet50(weights=None, weights_backbone=None, num_classes=21)


def vgg16_cifar() -> nn.Module:
    """VGG-16 of CIFAR's size, weights random: what an answer takes does not hang on them."""
    return network().eval()


def vgg16_scar() -> nn.Module:
    """The same with SCAR blocks, weights random: for inputs of other sizes, which a saved network does not take."""
    folded = smaller(network().eval(), torch.zeros(1, 3, 32, 32), progress=False)
    return Replace(ratios={f"0.{place}": ratio for place, ratio in SCAR_RATIOS.items()}).apply(folded, ())


def compact() -> nn.Module:
    """The network that ``bench.compaction`` or ``edgedi-compact`` saved in the folder that EDGEDI_COMPACT names."""
    folder = os.environ.get("EDGEDI_COMPACT")
    if not folder:
        raise ValueError("bench.models:compact needs EDGEDI_COMPACT=FOLDER, where a compact network was saved")
    return load(folder)


def resnet56_cifar() -> nn.Module:
    """The pretrained ResNet-56 of CIFAR's size, from the folder of real images and networks."""
    return resnet_cifar(data_folder(), 56)


def cifar_images() -> dict[str, torch.Tensor]:
    """For ``edgedi-compact --data``: unlabelled training images to calibrate with."""
    learnt, _ = training_images(data_folder())
    return {"calibration": learnt.pixels[:512], "example_inputs": learnt.pixels[:1]}
