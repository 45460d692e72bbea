"""Who sees which images in the bench for ``compact``: none that is scored at the end is seen before.

Images are numbered by their only value; a network that notes what it is given stands for the real ones.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench import compaction_cases as cases
from bench.vgg_cifar import Images, training_images

NOWHERE = Path()


class Noting(nn.Module):
    """Answers each image with two classes, and knows the numbers of all that it was given."""

    heads: tuple[dict[str, str], ...] = ()

    def __init__(self, data: Path = NOWHERE) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.seen |= numbers(x)
        return torch.zeros(len(x), 2)


def numbers(x: Tensor) -> set[int]:
    return {int(value) for value in x.flatten(1)[:, 0]}


def numbered(first: int, count: int) -> Tensor:
    return torch.arange(float(first), float(first + count))[:, None, None, None].expand(count, 3, 16, 16).contiguous()


def scored_by(setting: cases.Setting) -> set[int]:
    network = Noting()
    setting.judge(network)
    return network.seen


@pytest.mark.parametrize("number", [0, 1])
def test_half_of_the_images_calibrate_and_the_others_score(monkeypatch: pytest.MonkeyPatch, number: int):
    monkeypatch.setattr(cases, "imagenet", lambda data: (numbered(0, 9).numpy(), torch.zeros(9, dtype=torch.long)))
    setting = cases.on_imagenet(Noting, torch.from_numpy)(NOWHERE, number)
    calibrates, scored = numbers(setting.options["calibration"]), scored_by(setting)
    assert numbers(setting.example) <= calibrates
    assert not calibrates & scored
    assert calibrates | scored == set(range(9))


@pytest.mark.parametrize("number", [0, 1])
def test_a_detector_is_fitted_chosen_and_scored_on_images_of_their_own(monkeypatch: pytest.MonkeyPatch, number: int):
    def found(model: Noting, x: Tensor, heads: Any, least: float) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        model(x)
        return [(np.array([[0.0, 0.0, 1.0, 1.0]]), np.array([0.9]), np.array([image % 3])) for image in numbers(x)]

    none = (np.zeros((0, 4)), np.zeros(0, int))
    monkeypatch.setattr(cases, "street_scenes", lambda data, count: numbered(0, count))
    monkeypatch.setattr(cases, "true_boxes", lambda data, count: [none] * count)
    monkeypatch.setattr(cases, "Detector", Noting)
    monkeypatch.setattr(cases, "detections", found)
    monkeypatch.setattr(cases, "mean_average_precision", lambda found, true: float(len(true)))
    setting = cases.detector(NOWHERE, number)
    ((kept, own),) = setting.options["validate"]
    fitted, chosen, scored = numbers(setting.options["calibration"]), numbers(kept), scored_by(setting)
    assert numbers(setting.example) <= fitted
    assert (len(fitted), len(chosen), len(scored)) == (32, 32, 64)
    assert fitted | chosen | scored == set(range(128))
    assert [int(classes[0]) for _, classes in own] == [image % 3 for image in sorted(chosen)]


def test_networks_that_are_trained_never_see_test_images(monkeypatch: pytest.MonkeyPatch):
    def part(first: int, count: int) -> Images:
        return Images(pixels=numbered(first, count), labels=torch.zeros(count, dtype=torch.long))

    monkeypatch.setattr(cases, "training_images", lambda data: (part(0, 300), part(300, 100)))
    monkeypatch.setattr(cases, "cifar", lambda data: (numbered(400, 50), torch.zeros(50, dtype=torch.long)))
    setting = cases.on_cifar(Noting)(NOWHERE, 0)
    options = setting.options
    learnt = {int(image) for x, _ in options["train"] for image in x[:, 0, 8, 8]}  # the middle is never shifted out
    held = {image for x, _ in options["validate"] for image in numbers(x)}
    assert numbers(setting.example) | numbers(options["calibration"]) | learnt <= set(range(300))
    assert held == set(range(300, 400))
    assert scored_by(setting) == set(range(400, 450))


def test_validation_images_are_out_of_the_training_images_and_always_the_same(monkeypatch: pytest.MonkeyPatch):
    def load(split: str, data: Path) -> tuple[np.ndarray, np.ndarray]:
        assert split == "train"
        return np.arange(6000.0, dtype=np.float32)[:, None, None, None], np.arange(6000)

    monkeypatch.setitem(sys.modules, "images", SimpleNamespace(cifar10=load, normalise=lambda pixels: pixels))  # type: ignore[arg-type]
    (learnt, held), (_, again) = training_images(NOWHERE), training_images(NOWHERE)
    assert (len(learnt.labels), len(held.labels)) == (1000, 5000)
    assert set(learnt.labels.tolist()) | set(held.labels.tolist()) == set(range(6000))
    assert torch.equal(held.labels, again.labels)
    assert all(torch.equal(part.pixels.flatten().long(), part.labels) for part in (learnt, held))
