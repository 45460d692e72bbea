"""Verdicts of the bench for ``compact``, and the training images that it draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.compaction import Augmented, Case, on_imagenet, precision_of, reached, scenes, top_1
from bench.pretrained import normalised, resnet50
from bench.vgg_cifar import Images
from edgedi.transforms.report import Size

CASE = Case(name="x", set_up=on_imagenet(resnet50, normalised), least_cut=0.5, most_fall=0.005, least_parameter_cut=0.9)
BEFORE = Size(macs=1000, parameters=1000)


@pytest.mark.parametrize(
    ("macs", "parameters", "fall", "held"),
    [
        (500, 100, 0.005, True),
        (500, 100, -0.3, True),  # better than the control
        (501, 100, 0.0, False),
        (500, 101, 0.0, False),
        (400, 90, 0.006, False),
    ],
)
def test_a_bar_is_reached_where_all_of_it_is(macs: int, parameters: int, fall: float, held: bool):
    assert reached(CASE, BEFORE, Size(macs=macs, parameters=parameters), fall) is held


def test_training_images_come_in_whole_batches_in_another_order_each_time():
    pixels = torch.arange(10.0)[:, None, None, None].expand(10, 3, 16, 16).contiguous()
    images = Augmented(Images(pixels=pixels, labels=torch.arange(10)), batch=4)
    passes = [list(images) for _ in range(2)]
    for batches in passes:
        assert [(tuple(x.shape), len(labels)) for x, labels in batches] == [((4, 3, 16, 16), 4)] * 2
        for x, labels in batches:
            assert torch.equal(x[:, 0, 8, 8].long(), labels)  # the middle is never shifted out
    orders = [[int(label) for _, labels in batches for label in labels] for batches in passes]
    assert orders[0] != orders[1]
    assert all(len(set(order)) == 8 for order in orders)


def test_top_1_counts_over_all_batches():
    x = torch.eye(4)
    score = top_1(x.split(3), torch.tensor([0, 1, 2, 0]))(torch.nn.Identity())
    assert (score.value, score.count) == (0.75, 4)


def test_a_detector_is_scored_over_all_batches(monkeypatch: pytest.MonkeyPatch):
    box = np.array([[0.0, 0.0, 1.0, 1.0]])
    answers = {1.0: [(box, np.array([0.9]), np.array([2]))], 2.0: [(box[:0], np.zeros(0), np.zeros(0, int))]}
    monkeypatch.setattr("bench.compaction.detections", lambda model, x, heads, least: answers[float(x)])
    data = [(torch.tensor(1.0), [(box, np.array([2]))]), (torch.tensor(2.0), [(box, np.array([2]))])]
    assert precision_of([])(torch.nn.Identity(), data) == pytest.approx(0.5)


@pytest.mark.data
def test_scenes_are_two_squares_of_each_image(data):
    paths = sorted((data / "coco128" / "images").glob("*.jpg"))[:3]
    pixels = scenes(data, 224, paths)
    assert pixels.shape == (6, 224, 224, 3)
    assert pixels.dtype == np.uint8
