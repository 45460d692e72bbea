"""Pretrained networks on real images, over two worker processes: the model's own predictions, and the known accuracy.

The default suite takes a stated subset of each set, most images in batches and some one by one; the slow suite takes
all and reproduces the accuracies that the data's README gives.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.pretrained import (
    Detector,
    cifar,
    imagenet,
    mobilenet,
    normalised,
    plus_minus_one,
    resnet50,
    resnet_cifar,
    street_scenes,
)
from edgedi import distribute
from edgedi.runtime.session.verify import relative_difference
from edgedi.runtime.worker.local_workers import LocalWorkers

pytestmark = pytest.mark.data
TOLERANCE = 2e-5
MOST_TIES = 0.02
"""Share of images whose two best classes may lie so close that rounding decides."""


@pytest.fixture(scope="module")
def workers() -> Iterator[list[str]]:
    started = LocalWorkers(2)
    yield started.addresses
    started.stop()


# --- comparing -------------------------------------------------------------------------------------------------------


def same_predictions(ours: Tensor, own: Tensor) -> None:
    """Same numbers to rounding, and the same class wherever rounding does not decide; that is nearly everywhere."""
    assert relative_difference(ours, own) <= TOLERANCE
    best = own.topk(2, dim=1).values
    clear = best[:, 0] - best[:, 1] > 2 * TOLERANCE * own.abs().max()
    assert torch.equal(ours.argmax(1)[clear], own.argmax(1)[clear])
    assert (~clear).float().mean() <= MOST_TIES


def distributed(
    model: nn.Module, workers: Sequence[str], singles: Sequence[Tensor], batches: Sequence[Tensor], **options: Any
) -> Tensor:
    """Answers of a session to images one by one and in batches, each compared with the model's own."""
    answers = []
    with distribute(model, singles[0], workers, **options) as session:
        for x in [*singles, *batches]:
            y = session(x)
            with torch.inference_mode():
                same_predictions(y, model(x))
            answers.append(y)
        assert session.statistics().local_answers == 0
        assert len({segment.on for segment in session.plan.segments if segment.axis == "whole"}) <= 2
    return torch.cat(answers)


def accuracy(answers: Tensor, labels: Tensor) -> float:
    return round(float((answers.argmax(1) == labels).float().mean()) * 100, 2)


# --- a subset, in every run -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("planner", ["oodp", "equal"])
def test_resnet_20_on_300_images(data: Path, workers: list[str], planner: str) -> None:
    x, labels = cifar(data)
    answers = distributed(
        resnet_cifar(data, 20), workers, x[:50].split(1), x[50:300].split(50), planner=planner, verify="always"
    )
    assert 75 <= accuracy(answers, labels[:300]) <= 90


@pytest.mark.parametrize("planner", ["oodp", "equal"])
def test_mobilenet_v2_with_padding_on_one_side_on_20_images(data: Path, workers: list[str], planner: str) -> None:
    pixels, labels = imagenet(data)
    x = plus_minus_one(pixels[:20])
    answers = distributed(mobilenet(data), workers, x[:8].split(1), [x[8:]], planner=planner)
    assert accuracy(answers, labels[:20]) >= 70


@pytest.mark.parametrize("planner", ["oodp", "equal"])
def test_resnet_50_on_12_images(data: Path, workers: list[str], planner: str) -> None:
    pixels, labels = imagenet(data)
    x = normalised(pixels[:12])
    answers = distributed(resnet50(data), workers, x[:8].split(1), [x[8:]], planner=planner)
    assert accuracy(answers, labels[:12]) >= 50


# --- all images ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "top_1"), [(20, 81.00), (56, 83.12)])
def test_cifar_resnets_reach_their_accuracy(data: Path, workers: list[str], depth: int, top_1: float) -> None:
    x, labels = cifar(data)
    answers = distributed(resnet_cifar(data, depth), workers, x[:100].split(1), x[100:].split(100), planner="equal")
    assert accuracy(answers, labels) == top_1


@pytest.mark.slow
def test_resnet_50_reaches_its_accuracy(data: Path, workers: list[str]) -> None:
    pixels, labels = imagenet(data)
    x = normalised(pixels)
    answers = distributed(resnet50(data), workers, x[:50].split(1), x[50:].split(10), planner="equal")
    assert round(accuracy(answers, labels), 1) == 77.8


@pytest.mark.slow
def test_mobilenet_v2_reaches_its_accuracy(data: Path, workers: list[str]) -> None:
    pixels, labels = imagenet(data)
    x = plus_minus_one(pixels)
    answers = distributed(mobilenet(data), workers, x[:50].split(1), x[50:].split(10), planner="equal")
    assert round(accuracy(answers, labels), 1) == 88.4


# --- a detector ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("planner", "count"), [("oodp", 16), ("equal", 16), pytest.param("equal", 128, marks=pytest.mark.slow)]
)
def test_yolo_fastest_finds_the_same_boxes(data: Path, workers: list[str], planner: str, count: int) -> None:
    import darknet

    model, x = Detector(data), street_scenes(data, count)
    num_boxes = 0
    with distribute(model, x[:1], workers, planner=planner) as session:
        for part in [*x[:8].split(1), *x[8:].split(8)]:
            with torch.inference_mode():
                own = model(part)
            ours = session(part)
            for y, expected in zip(ours, own, strict=True):
                assert relative_difference(y, expected) <= TOLERANCE
            found = darknet.decode(list(zip(ours, model.heads, strict=True)), 320, 0.3)
            wanted = darknet.decode(list(zip(own, model.heads, strict=True)), 320, 0.3)
            for (boxes, scores, classes), (own_boxes, own_scores, own_classes) in zip(found, wanted, strict=True):
                assert classes.tolist() == own_classes.tolist()
                torch.testing.assert_close(boxes, own_boxes, atol=1e-4, rtol=0)
                torch.testing.assert_close(scores, own_scores, atol=1e-4, rtol=0)
                num_boxes += len(classes)
        assert session.statistics().local_answers == 0
    assert num_boxes >= 2 * count
