"""Networks for the bars that torchvision builds with weights of a download unless told otherwise."""

from __future__ import annotations

from torch import nn
from torchvision.models import segmentation


def fcn_resnet50() -> nn.Module:
    """FCN on ResNet-50 for 21 classes, weights random."""
    return segmentation.fcn_resnet50(weights=None, weights_backbone=None, num_classes=21)
