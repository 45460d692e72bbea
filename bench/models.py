"""Networks for the bars that ``torchvision:NAME`` does not give: with weights of no download, or our own."""

from __future__ import annotations

import os

from torch import nn
from torchvision.models import segmentation

from bench.vgg_cifar import network
from edgedi import load


def fcn_resnet50() -> nn.Module:
    """FCN on ResNet-50 for 21 classes, weights random."""
    return segmentation.fcn_resnet50(weights=None, weights_backbone=None, num_classes=21)


def vgg16_cifar() -> nn.Module:
    """VGG-16 of CIFAR's size, weights random: what an answer takes does not hang on them."""
    return network().eval()


def compact() -> nn.Module:
    """The network that ``bench.compaction`` or ``edgedi-compact`` saved in the folder that EDGEDI_COMPACT names."""
    folder = os.environ.get("EDGEDI_COMPACT")
    if not folder:
        raise ValueError("bench.models:compact needs EDGEDI_COMPACT=FOLDER, where a compact network was saved")
    return load(folder)
