"""The list of networks is torchvision's own, whole."""

from __future__ import annotations

import torch
from torch import nn
from torchvision import models

from tests.networks import FAMILIES, calibrated


def test_every_classification_and_segmentation_builder_is_listed():
    listed = {name for names in FAMILIES.values() for name in names}
    assert listed == {*models.list_models(module=models), *models.list_models(module=models.segmentation)}


def test_calibrated_statistics_are_those_of_the_noise():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).eval()
    noise = torch.randn(2, 3, 9, 9)
    calibrated(model, noise)
    mean = model[0](noise).mean((0, 2, 3))
    assert torch.allclose(model[1].running_mean, mean, atol=1e-6)
    assert not any(module.training for module in model.modules())
    assert model[1].momentum == 0.1
