"""The networks and images that the bench names as ``module:callable``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench import models
from bench.vgg_cifar import Images


def test_the_pretrained_resnet_is_there_by_name(data: Path) -> None:
    model = models.resnet56_cifar()
    assert not model.training
    assert sum(weights.numel() for weights in model.parameters()) == 853_018
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_training_images_calibrate_without_their_labels(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.arange(600.0).reshape(600, 1, 1, 1)
    learnt, held = (Images(pixels=part, labels=torch.zeros(len(part))) for part in (pixels, -pixels))
    monkeypatch.setattr(models, "training_images", lambda folder: (learnt, held))
    given = models.cifar_images()
    assert set(given) == {"calibration", "example_inputs"}
    assert torch.equal(given["calibration"], pixels[:512])
    assert torch.equal(given["example_inputs"], pixels[:1])


def test_a_compact_network_needs_its_folder_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEDI_COMPACT", raising=False)
    with pytest.raises(ValueError, match="EDGEDI_COMPACT=FOLDER"):
        models.compact()
