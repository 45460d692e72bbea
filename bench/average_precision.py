"""Mean average precision of a detector: the share of boxes found, over classes and over every threshold of score.

mAP@0.5 as in PASCAL VOC from 2010 on (Everingham et al.): a detection counts where its overlap with a box of its class
that is not yet taken is at least 0.5; precision is made monotone, and the area under it against recall is the class's
average precision; the mean is over classes that have boxes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.floating]
"""[number, 4]: left, top, right, bottom."""
OVERLAP = 0.5


def overlaps(box: NDArray[np.floating], others: Boxes) -> NDArray[np.floating]:
    """Intersection over union of ``box`` with each of ``others``."""
    size = np.clip(np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2]), 0, None).prod(1)
    areas = (others[:, 2:] - others[:, :2]).prod(1) + (box[2:] - box[:2]).prod() - size
    return size / np.maximum(areas, 1e-12)


def average_precision(
    found: Sequence[tuple[Boxes, NDArray[np.floating]]], true: Sequence[Boxes], overlap: float = OVERLAP
) -> float:
    """Of one class: for each image its detections (boxes, scores) and its true boxes."""
    count = sum(len(boxes) for boxes in true)
    hits = sorted(
        (hit for (boxes, scores), own in zip(found, true, strict=True) for hit in _hits(boxes, scores, own, overlap)),
        key=lambda hit: -hit[0],
    )
    right = np.cumsum([hit for _, hit in hits])
    if not count or not len(right):
        return 0.0
    recall, precision = right / count, right / np.arange(1, len(right) + 1)
    monotone = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * monotone))


def _hits(boxes: Boxes, scores: NDArray[np.floating], own: Boxes, overlap: float) -> list[tuple[float, bool]]:
    """(score, whether it found a box that no better detection had found) of one image."""
    taken, hits = np.zeros(len(own), dtype=bool), []
    for index in np.argsort(-scores, kind="stable"):
        shares = overlaps(boxes[index], own) if len(own) else np.zeros(0)
        best = int(shares.argmax()) if len(own) else -1
        hit = best >= 0 and bool(shares[best] >= overlap) and not taken[best]
        if hit:
            taken[best] = True
        hits.append((float(scores[index]), hit))
    return hits


def mean_average_precision(
    found: Sequence[tuple[Boxes, NDArray[np.floating], NDArray[np.integer]]],
    true: Sequence[tuple[Boxes, NDArray[np.integer]]],
    overlap: float = OVERLAP,
) -> float:
    """Over images: detections (boxes, scores, classes), true (boxes, classes)."""
    classes = sorted({int(label) for _, labels in true for label in labels})
    return float(
        np.mean(
            [
                average_precision(
                    [(boxes[labels == each], scores[labels == each]) for boxes, scores, labels in found],
                    [boxes[labels == each] for boxes, labels in true],
                    overlap,
                )
                for each in classes
            ]
        )
    )
