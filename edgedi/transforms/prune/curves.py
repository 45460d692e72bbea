"""In which order a group's channels go, and what that costs once the layers that read them are fitted anew.

Greedy, as in optimal brain surgeon (Hassibi and Stork, 1993) with a reader's columns of one channel as the unit: of
||(W - W')X||^2, the least over all W' without these columns is tr(W_u inv(inv(H)_uu) W_u'), with H = XX' + ridge. What
goes is made up for by the columns left, and inv(H) follows by a Schur complement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from edgedi.transforms.prune.cut import TRANSPOSED, Group, Part
from edgedi.transforms.prune.moments import Moments
from edgedi.transforms.prune.probe import Probe

RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
"""Added to the diagonal of the covariance, as a share of its mean: keeps weights from growing on what hardly varies.
The first that leaves it positive in spite of rounding."""
STEPS = 64
"""A group is emptied in about so many steps; narrow groups unit by unit."""
KEPT = 8
"""At least one of so many units stays."""
TRIED = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Once these shares of a group are gone, the answer's change is tried out; between, it goes as the readers' errors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """``order``: units as they go. ``counts[i]`` of them gone cost ``errors[i]``, as a share of the variance of the
    model's answer. Both begin with 0 and never fall."""

    order: tuple[int, ...]
    counts: tuple[int, ...]
    errors: tuple[float, ...]


class _Reader:
    """A layer that loses inputs: its weights [groups, outputs, columns] as they are fitted to the columns left.

    ``inverse`` [groups, columns, columns] is that of the covariance; without, each column only costs what it adds.
    """

    def __init__(self, module: nn.Module, part: Part, moments: Moments | None) -> None:
        self.name, self.original = part.layer, _weight_of(module)
        self.weight, self.transposed = self.original.clone(), isinstance(module, TRANSPOSED)
        self.num_inputs = len(part.units)
        many, _, width = self.weight.shape
        self.units = np.repeat(part.units.reshape(many, -1), width * many // len(part.units), axis=1)
        self.mean = None if moments is None else moments.mean
        self.covariance = torch.ones(many, width, dtype=torch.float64) if moments is None else moments.covariance
        self.inverse = None
        if self.covariance.dim() == 3:
            self.inverse = _inverse(self.covariance)
        self.variance = max(float(self._variances().sum()), 1e-30)
        self.columns = [
            {unit: torch.from_numpy(np.flatnonzero(row == unit)) for unit in set(row.tolist()) - {-1}}
            for row in self.units
        ]

    def costs(self, alive: Sequence[int]) -> Tensor:
        """Of each unit, were it the next, relative to the variance of the output."""
        found = torch.zeros(len(alive), dtype=torch.float64)
        for group, columns in enumerate(self.columns):
            here = [i for i, unit in enumerate(alive) if unit in columns]
            if here:
                at = torch.stack([columns[alive[i]] for i in here])
                weight = self.weight[group][:, at].transpose(0, 1)
                found[here] += (self._raised(group, at, weight) * weight).sum((1, 2))
        return found / self.variance

    def remove(self, units: Sequence[int]) -> float:
        """Take units out, the others make up for them; what that costs."""
        cost = 0.0
        for group, columns in enumerate(self.columns):
            there = [columns[unit] for unit in units if unit in columns]
            if not there:
                continue
            at = torch.cat(there)
            weight = self.weight[group][:, at]
            cost += float((self._raised(group, at[None], weight[None])[0] * weight).sum())
            if self.inverse is not None:
                rows = self.inverse[group][at]
                solved = torch.linalg.solve(rows[:, at], rows)
                self.weight[group] -= weight @ solved
                self.inverse[group] -= rows.T @ solved
            self.weight[group][:, at] = 0
        return cost / self.variance

    def now(self) -> tuple[Tensor, Tensor | None]:
        """The weights, as the module has them but for the shape, and what the bias gains."""
        lost = self.original - self.weight
        weight = self.weight
        if self.transposed:
            weight = weight.reshape(weight.shape[1], self.num_inputs, -1).transpose(0, 1)
        return weight, None if self.mean is None else torch.einsum("gok,gk->go", lost, self.mean)

    def _raised(self, group: int, at: Tensor, weight: Tensor) -> Tensor:
        """``weight`` [units, outputs, columns of a unit] times what a squared one of them costs."""
        if self.inverse is None:
            return weight * self.covariance[group][at][:, None]
        own = self.inverse[group][at[:, :, None], at[:, None, :]]
        return torch.linalg.solve(own, weight.transpose(1, 2)).transpose(1, 2)

    def _variances(self) -> Tensor:
        if self.covariance.dim() == 2:
            return self.weight.square().sum(1) * self.covariance
        return (self.weight @ self.covariance) * self.weight


def _inverse(covariance: Tensor) -> Tensor:
    """Of [groups, columns, columns], with one of ``RIDGES``."""
    size = covariance.diagonal(dim1=1, dim2=2).mean(1)
    eye = torch.eye(covariance.shape[1], dtype=torch.float64)
    for ridge in RIDGES:
        factor, failed = torch.linalg.cholesky_ex(covariance + (ridge * size + 1e-12)[:, None, None] * eye)
        if not bool(failed.any()):
            break
    return torch.cholesky_inverse(factor)


def curve_of(model: nn.Module, group: Group, moments: Mapping[str, Moments], probe: Probe) -> Curve:
    """``moments`` by reader; a reader without is judged by its weights alone."""
    readers = [_Reader(model.get_submodule(part.layer), part, moments.get(part.layer)) for part in group.readers]
    alive, gone = list(range(group.num_units)), []
    counts, errors, tried = [0], [0.0], {0: 0.0}
    step, least = max(1, group.num_units // STEPS), max(1, group.num_units // KEPT)
    shares = [share for share in TRIED if share * group.num_units >= 1 or share == TRIED[-1]]
    while len(alive) > least:
        costs = sum((reader.costs(alive) for reader in readers), torch.zeros(len(alive), dtype=torch.float64))
        cheapest = torch.argsort(costs, stable=True)[: min(step, len(alive) - least)]
        units = [alive[i] for i in cheapest.tolist()]
        gone += units
        alive = [unit for unit in alive if unit not in set(units)]
        counts.append(len(gone))
        errors.append(errors[-1] + max(0.0, sum(reader.remove(units) for reader in readers)))
        if shares and (len(gone) >= shares[0] * group.num_units or len(alive) == least):
            shares = [share for share in shares if len(gone) < share * group.num_units]
            tried[len(errors) - 1] = probe.change({reader.name: reader.now() for reader in readers})
    return Curve(order=tuple(gone), counts=tuple(counts), errors=tuple(answer_errors(errors, tried)))


def answer_errors(errors: Sequence[float], tried: Mapping[int, float]) -> list[float]:
    """The answer's error at every point, from that of the readers and, at some points, what was ``tried``.

    Between these points it goes as the readers' errors do, after the last as it did before; it never falls.
    """
    points = sorted(tried)
    most = np.maximum.accumulate([tried[point] for point in points])
    found = np.interp(errors, [errors[point] for point in points], most)
    last = points[-1]
    beyond = np.asarray(errors) - errors[last]
    return (found + np.maximum(0, beyond) * most[-1] / max(errors[last], 1e-30)).tolist()


def _weight_of(module: nn.Module) -> Tensor:
    """[groups, outputs of a group, columns], float64."""
    weight = module.weight.detach().cpu().double()
    if isinstance(module, TRANSPOSED):
        weight = weight.transpose(0, 1)
    many = getattr(module, "groups", 1)
    return weight.reshape(many, weight.shape[0] // many, -1)
