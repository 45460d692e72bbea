"""Mean average precision on boxes that can be counted by hand, and on a pretrained detector."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.average_precision import average_precision, mean_average_precision, overlaps
from bench.pretrained import Detector, detections, street_scenes, true_boxes

LEFT, RIGHT = [0.0, 0.0, 1.0, 1.0], [2.0, 0.0, 3.0, 1.0]


def boxes(*rows: list[float]) -> np.ndarray:
    return np.array(rows, dtype=float).reshape(-1, 4)


def test_overlap_is_the_shared_area_over_all_of_both():
    found = overlaps(np.array(LEFT), boxes([0, 0, 1, 1], [0.5, 0, 1.5, 1], [1, 0, 2, 1]))
    assert found == pytest.approx([1, 1 / 3, 0])


@pytest.mark.parametrize(
    ("found", "scores", "expected"),
    [
        ([LEFT, RIGHT], [0.9, 0.8], 1.0),
        ([LEFT], [0.9], 0.5),  # one of two found
        ([LEFT, LEFT, RIGHT], [0.9, 0.8, 0.7], 0.5 + 0.5 * 2 / 3),  # the second one finds what is found already
        ([[5, 5, 6, 6], LEFT, RIGHT], [0.9, 0.8, 0.7], 2 / 3),  # precision 1/2 is lifted to the 2/3 that comes later
        ([], [], 0.0),
    ],
)
def test_average_precision_of_two_boxes(found: list[list[float]], scores: list[float], expected: float):
    assert average_precision([(boxes(*found), np.array(scores))], [boxes(LEFT, RIGHT)]) == pytest.approx(expected)


def test_the_mean_is_over_classes_that_have_boxes():
    true = [(boxes(LEFT, RIGHT), np.array([3, 7]))]
    found = [(boxes(LEFT, LEFT), np.array([0.9, 0.8]), np.array([3, 5]))]
    assert mean_average_precision(found, true) == pytest.approx(0.5)


@pytest.mark.data
@pytest.mark.slow
def test_yolo_fastest_reaches_its_precision(data: Path):
    model = Detector(data)
    found = [one for part in street_scenes(data, 128).split(16) for one in detections(model, part, model.heads, 0.01)]
    assert mean_average_precision(found, true_boxes(data, 128)) == pytest.approx(0.362, abs=0.001)
