"""What training lowers, against values worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from edgedi.transforms.data import Batch
from edgedi.transforms.recover.losses import blend_of, distance, is_class_labels


def test_the_distance_of_classes_is_a_divergence_at_a_temperature():
    ours, theirs = torch.tensor([[0.0, 0.0]]), torch.tensor([[2 * math.log(3.0), 0.0]])
    # At temperature 2 the original says 3/4 and 1/4, we say 1/2 and 1/2.
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert float(distance(ours, theirs, 2.0)) == pytest.approx(4 * expected, rel=1e-5)


def test_the_distance_of_values_is_relative_to_their_spread():
    theirs = torch.tensor([[[1.0, 3.0]]])  # squared deviations from the mean: 1 + 1
    assert float(distance(theirs + 1, theirs, 2.0)) == pytest.approx(1.0)
    assert float(distance({"a": theirs, "b": theirs + 1}, {"a": theirs, "b": theirs}, 2.0)) == pytest.approx(0.5)
    assert float(distance(100 * (theirs + 1), 100 * theirs, 2.0)) == pytest.approx(1.0)


def test_equal_answers_are_at_no_distance():
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    assert float(distance(x, x, 2.0)) == pytest.approx(0.0, abs=1e-6)
    assert float(distance(x[..., None], x[..., None], 2.0)) == 0.0


def test_labels_that_are_classes():
    logits, maps = torch.zeros(4, 3), torch.zeros(4, 3, 5, 5)
    assert is_class_labels(logits, torch.zeros(4, dtype=torch.long))
    assert is_class_labels(maps, torch.zeros(4, 5, 5, dtype=torch.int32))
    assert not is_class_labels(logits, torch.zeros(4))
    assert not is_class_labels(maps, torch.zeros(4, dtype=torch.long))
    assert not is_class_labels((logits, logits), torch.zeros(4, dtype=torch.long))
    assert not is_class_labels(logits, ["cat"])


def test_a_blend_is_each_input_with_another_in_its_own_share():
    x = torch.eye(6)
    blend = blend_of(Batch((x,)), torch.Generator().manual_seed(0))
    assert blend is not None
    assert sorted(blend.order.tolist()) == list(range(6))
    (found,) = blend.of((x,))
    expected = torch.stack(
        [(1 - s) * x[n] + s * x[o] for n, (o, s) in enumerate(zip(blend.order, blend.share, strict=True))]
    )
    assert torch.allclose(found, expected)
    assert len(set(blend.share.tolist())) == 6


def test_the_cross_entropy_of_a_blend_is_that_of_both_labels():
    logits, labels = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 0])
    blend = blend_of(Batch((logits,)), torch.Generator().manual_seed(0))
    assert blend is not None
    shares = blend.share[:, None]
    target = (1 - shares) * F.one_hot(labels, 3) + shares * F.one_hot(labels[blend.order], 3)
    assert float(blend.cross_entropy(logits, labels)) == pytest.approx(float(F.cross_entropy(logits, target)))


@pytest.mark.parametrize("arguments", [(torch.ones(1, 3),), (torch.ones(4, 3, dtype=torch.long),), (torch.ones(4), 3)])
def test_what_cannot_be_blended(arguments: tuple):
    assert blend_of(Batch(arguments), torch.Generator()) is None
