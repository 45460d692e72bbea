"""How the inputs of layers hang together: second moments of what each reads, from calibration inputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgedi.transforms.prune.watch import Call, Watch
from edgedi.transforms.store import NO_SLOT, Slot, digest_of_model

WIDE = 4608
"""Columns, channels times kernel, up to which a layer's moments are taken whole (512 channels, 3 x 3). Beyond, only
each column's own: how columns make up for each other is then not known."""
LEAST_SAMPLES, MOST_SAMPLES = 4096, 16384


@dataclass(kw_only=True, eq=False)
class Moments:
    """Over samples of one layer's columns, float64: ``mean`` [groups, columns]; ``squares``, sums of centred squares,
    [groups, columns, columns], or [groups, columns] where they are too many."""

    mean: Tensor
    squares: Tensor
    count: int = 0

    @property
    def covariance(self) -> Tensor:
        """Of ``squares``' shape. See ``_shrunk``."""
        found = self.squares / self.count
        return found if found.dim() == 2 else _shrunk(found, self.count)

    def add(self, columns: Tensor) -> None:
        """``columns`` [samples, groups, columns], float32.

        Centred by their own mean before they are squared, and then put together (Chan, Golub and LeVeque, 1983): where
        columns vary little about a large mean, the difference of two large sums would be all rounding.
        """
        x, many = columns.transpose(0, 1), len(columns)
        mean = x.mean(1, dtype=torch.float64)
        x, apart = x - mean[:, None].float(), mean - self.mean
        whole = self.squares.dim() == 3
        self.squares += x.transpose(1, 2) @ x if whole else (x * x).sum(1, dtype=torch.float64)
        between = apart[:, :, None] * apart[:, None, :] if whole else apart * apart
        self.squares += between * (self.count * many / (self.count + many))
        self.mean += apart * (many / (self.count + many))
        self.count += many


def _shrunk(covariance: Tensor, count: int) -> Tensor:
    """What few samples say of how columns hang together is partly chance: in as many samples as columns any column is
    a sum of the others. Correlations times 1 - the share that oracle approximating shrinkage finds (Chen, Wiesel,
    Eldar and Hero, 2010).
    """
    size = covariance.shape[-1]
    scale = covariance.diagonal(dim1=1, dim2=2).clamp_min(1e-30).rsqrt()
    squares = (covariance * scale[:, :, None] * scale[:, None, :]).square().sum((1, 2))
    share = ((1 - 2 / size) * squares + size**2) / ((count + 1 - 2 / size) * (squares - size).clamp_min(1e-30))
    left = (1 - share.clamp(0, 1))[:, None, None]
    return covariance * left + torch.diag_embed(covariance.diagonal(dim1=1, dim2=2)) * (1 - left)


def samples_for(columns: int) -> int:
    """How many samples a layer with so many columns is measured on."""
    return min(max(LEAST_SAMPLES, 3 * columns), MOST_SAMPLES)


@torch.no_grad()
def moments_of(
    model: nn.Module,
    names: Sequence[str],
    batches: Iterable[tuple[Any, ...]],
    num_inputs: int,
    seed: int,
    slot: Slot = NO_SLOT,
) -> dict[str, Moments]:
    """Of each layer named that runs as a convolution or a linear layer; positions are picked by ``seed``.

    ``slot`` keeps the sums of the batches so far.
    """
    whose, known = digest_of_model(model) if slot.keeps else "", slot.load() or {}
    known = known if known.get("model") == whose else {"done": 0, "moments": {}}
    found = {name: Moments(**plain) for name, plain in known["moments"].items()}

    def see(call: Call) -> Tensor:
        width = call.weight[0].numel()
        share = samples_for(width) * len(call.input) / num_inputs
        columns = call.columns(call.picks(seed, max(1, round(share)))).float()
        if call.name not in found:
            shape = (call.groups, width) if width > WIDE else (call.groups, width, width)
            found[call.name] = Moments(
                mean=torch.zeros(shape[:2], dtype=torch.float64), squares=torch.zeros(shape, dtype=torch.float64)
            )
        found[call.name].add(columns)
        return call.run()

    with Watch(model, names, see):
        for number, arguments in enumerate(batches):
            if number < known["done"]:
                continue
            model(*arguments)
            if slot.due:
                plain = {name: vars(moments) for name, moments in found.items()}
                slot.save({"model": whose, "done": number + 1, "moments": plain})
    return found
