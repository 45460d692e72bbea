"""What training lowers: the distance to the original's answers and, where there are any, to the labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from edgedi.transforms.data import Batch
from edgedi.transforms.score import is_classes, leaves_of


def distance(answer: Any, target: Any, temperature: float) -> Tensor:
    """How far ``answer`` is from ``target``, the original's: a scalar, 0 where they are equal.

    Of classes, [batch, classes]: the Kullback-Leibler divergence of both at a temperature, times its square, so that
    gradients do not shrink with it (Hinton et al., 2015). Of anything else: the squared difference over the squared
    deviation of ``target`` from its mean, averaged over the tensors of the answer.
    """
    ours, theirs = leaves_of(answer), leaves_of(target)
    if is_classes([theirs]):
        logs = [F.log_softmax(leaf / temperature, 1) for leaf in (ours[0], theirs[0])]
        return F.kl_div(logs[0], logs[1], reduction="batchmean", log_target=True) * temperature**2
    return torch.stack([_relative(a, b) for a, b in zip(ours, theirs, strict=True)]).mean()


def _relative(ours: Tensor, theirs: Tensor) -> Tensor:
    spread = (theirs - theirs.mean()).square().sum()
    return (ours - theirs).square().sum() / spread.clamp_min(1e-12)


def is_class_labels(answer: Any, labels: Any) -> bool:
    """Whether ``labels`` are whole numbers, one for each answer [batch, classes, ...] along dimension 1."""
    leaves = leaves_of(answer)
    if not isinstance(labels, Tensor) or labels.is_floating_point() or len(leaves) != 1 or leaves[0].dim() < 2:
        return False
    return labels.shape == leaves[0].shape[:1] + leaves[0].shape[2:]


@dataclass(frozen=True, slots=True)
class Blend:
    """Each input with another of its batch, in a share of its own (mixup, Zhang et al., 2018).

    The original says what the answer to the blend is, so that nothing about it is guessed.
    """

    order: Tensor
    """Which other, for each input."""
    share: Tensor
    """How much of it, from 0 to 1."""

    def of(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """The blended inputs."""
        return pytree.tree_map(self._blended, arguments)

    def _blended(self, leaf: Tensor) -> Tensor:
        shares = self.share.to(leaf).reshape(-1, *[1] * (leaf.dim() - 1))
        return leaf.lerp(leaf[self.order.to(leaf.device)], shares)

    def cross_entropy(self, answer: Tensor, labels: Tensor) -> Tensor:
        """Of both labels, each by its share."""
        both = (labels.long(), labels.long()[self.order])
        one, other = (F.cross_entropy(answer, classes, reduction="none") for classes in both)
        share = self.share.to(one).reshape(-1, *[1] * (one.dim() - 1))
        return one.lerp(other, share).mean()


def blend_of(batch: Batch, generator: torch.Generator) -> Blend | None:
    """A random one; ``None`` where inputs are no floating point numbers, or there is but one."""
    leaves = pytree.tree_leaves(batch.arguments)
    if batch.size < 2 or not all(_is_blendable(leaf, batch.size) for leaf in leaves):
        return None
    return Blend(torch.randperm(batch.size, generator=generator), torch.rand(batch.size, generator=generator))


def _is_blendable(leaf: Any, size: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim() > 0 and leaf.shape[0] == size
