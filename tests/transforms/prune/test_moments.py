"""Moments of columns, summed batch by batch, against those of all samples at once in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from edgedi.transforms.prune.moments import Moments, _shrunk


def summed(columns: Tensor, shape: tuple[int, ...]) -> Moments:
    made = Moments(mean=torch.zeros(shape[:2], dtype=torch.float64), squares=torch.zeros(shape, dtype=torch.float64))
    for part in columns.split([500, 1, 300, 1199]):
        made.add(part)
    return made


@pytest.mark.parametrize("mean", [0.0, 1.0, 1000.0])
def test_little_variance_about_a_large_mean_is_not_lost(mean: float):
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(2000, 2, 6, generator=generator) @ torch.randn(6, 6, generator=generator)
    columns = mixed + mean
    exact = columns.double() - columns.double().mean(0)
    wanted = torch.einsum("sgi,sgj->gij", exact, exact) / 2000
    made, own = summed(columns, (2, 6, 6)), summed(columns, (2, 6))
    assert made.count == own.count == 2000
    for found in (made, own):
        assert torch.allclose(found.mean, columns.double().mean(0), rtol=1e-9, atol=1e-9)
    assert torch.allclose(made.squares / 2000, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    assert torch.allclose(made.covariance, _shrunk(made.squares / 2000, 2000))
    assert torch.allclose(own.covariance, wanted.diagonal(dim1=1, dim2=2), rtol=1e-4)
