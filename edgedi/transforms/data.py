"""The inputs and labels that a user gives, as batches: looked at once, read as often as needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import length_hint
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from edgedi.transforms.numbers import Numbers

CHUNK = 32
"""Inputs in a batch where one tensor holds them all."""
MOST_KEPT = 1024
"""Inputs without labels that are looked at: a few hundred do."""

_END = object()


FEATURE_MAPS = 4
"""Dimensions of [batch, channels, rows, columns]."""


def maps_channels_last(leaf: Any) -> Any:
    """Feature maps in the layout in which processors compute convolutions in less time; anything else as it is."""
    is_map = isinstance(leaf, Tensor) and leaf.dim() == FEATURE_MAPS
    return leaf.contiguous(memory_format=torch.channels_last) if is_map else leaf


@torch.no_grad()
def takes_channels_last(model: Callable[..., Any], arguments: tuple[Any, ...]) -> bool:
    """Whether ``model`` runs on maps of that layout. A ``view`` that puts channels and positions together does not."""
    try:
        model(*pytree.tree_map(maps_channels_last, arguments))
    except RuntimeError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Batch:
    """Arguments of the model, and what belongs to them; ``labels`` is ``None`` where there are none."""

    arguments: tuple[Any, ...]
    labels: Any = None

    @property
    def size(self) -> int:
        """How many inputs it holds: the first dimension of its first tensor."""
        tensors = [leaf for leaf in pytree.tree_leaves(self.arguments) if isinstance(leaf, Tensor)]
        return int(tensors[0].shape[0]) if tensors and tensors[0].dim() else 1

    def at(self, rows: Tensor) -> Batch:
        """These of its inputs, in this order."""

        def chosen(leaf: Any) -> Any:
            has_rows = isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == self.size
            return leaf[rows.to(leaf.device)] if has_rows else leaf

        return Batch(*pytree.tree_map(chosen, (self.arguments, self.labels)))


class Data:
    """Batches of ``given``, in its order, as often as it is iterated.

    ``given``: a tensor of inputs (of the first dimension's length); or anything that can be read again and again and
    yields inputs or (inputs, labels), such as a list or a ``DataLoader``; inputs are a tensor, or a tuple of the
    model's arguments. ``name`` is what the user calls it, for errors.
    """

    def __init__(self, given: Any, name: str, *, num_arguments: int = 1, labelled: bool, ordered: bool = False) -> None:
        """``ordered``: its first batch must be the same every time. ``ValueError`` where it is not as said."""
        self._given, self.name, self.num_arguments, self._labelled = given, name, num_arguments, labelled
        if not isinstance(given, Iterable):
            raise TypeError(f"{name} is a {type(given).__name__}; give a tensor, a list of batches or a DataLoader")
        if isinstance(given, Iterator):
            raise ValueError(f"{name} can be read only once; give a list or a DataLoader, which start anew each time")
        with Numbers(0, self._generator).inside():
            first = self._first()
            again = self._first() if ordered else first
        if first is None or not first.size:
            raise ValueError(f"{name} is empty; give at least one batch")
        if ordered and again is not None and not _same(first, again):
            raise ValueError(
                f"{name} shuffles: its first batch is another one each time. Give it in a fixed order, as with "
                "DataLoader(..., shuffle=False)"
            )

    def __iter__(self) -> Iterator[Batch]:
        """In its order; one that shuffles, in the same order each time."""
        return self._read(self._elements(), 0)

    def epoch(self, seed: int) -> Iterator[Batch]:
        """In a random order: the inputs of a tensor, the batches of a list. A loader decides by itself."""
        generator = torch.Generator().manual_seed(seed)
        if isinstance(self._given, Tensor):
            order = torch.randperm(len(self._given), generator=generator)
            return self._read((self._given[rows] for rows in order.split(CHUNK)), seed)
        if isinstance(self._given, Sequence):
            order = torch.randperm(len(self._given), generator=generator)
            return self._read((self._given[int(place)] for place in order), seed)
        return self._read(self._given, seed)

    @property
    def _generator(self) -> torch.Generator | None:
        """That of a loader which has one of its own."""
        found = getattr(self._given, "generator", None)
        return found if isinstance(found, torch.Generator) else None

    def _first(self) -> Batch | None:
        return next(map(self._batch, self._elements()), None)

    def _elements(self) -> Iterable[Any]:
        return self._given.split(CHUNK) if isinstance(self._given, Tensor) else self._given

    def _read(self, elements: Iterable[Any], seed: int) -> Iterator[Batch]:
        """What a loader draws while it is read are numbers of ``seed``; nobody else's change."""
        numbers = Numbers(seed, self._generator)
        with numbers.inside():
            iterator = iter(elements)
        while True:
            with numbers.inside():
                element = next(iterator, _END)
            if element is _END:
                return
            yield self._batch(element)

    def _batch(self, element: Any) -> Batch:
        batch = self._parted(element)
        if any(_is_broken(leaf) for leaf in pytree.tree_leaves(batch.arguments)):
            raise ValueError(f"{self.name} holds NaN; nothing can be learnt from such inputs: leave them out")
        return batch

    def _parted(self, element: Any) -> Batch:
        """Into arguments and labels."""
        if isinstance(element, Tensor) and self.num_arguments == 1 and not self._labelled:
            return Batch((element,))
        if isinstance(element, (tuple, list)):
            if len(element) == 2 and isinstance(element[0], (tuple, list)):
                arguments, labels = tuple(element[0]), (element[1],)
            else:
                arguments, labels = tuple(element[: self.num_arguments]), tuple(element[self.num_arguments :])
            if len(arguments) == self.num_arguments and len(labels) in ((1,) if self._labelled else (0, 1)):
                return Batch(arguments, labels[0] if self._labelled else None)
        wanted = "(inputs, labels)" if self._labelled else "inputs, or (inputs, labels)"
        many = "" if self.num_arguments == 1 else f"; inputs are a tuple of {self.num_arguments} arguments"
        raise ValueError(f"{self.name} yields {_described(element)}; each batch must be {wanted}{many}")

    def traits(self) -> tuple[Any, ...]:
        """By which to tell it from other data: type, length, the first batch's tensors if chance has no part in it."""
        first, other = (next(self._read(self._elements(), seed)) for seed in (0, 1))
        leaves = pytree.tree_leaves((first.arguments, first.labels)) if _same(first, other) else []
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        return type(self._given).__qualname__, length_hint(self._given, -1), tensors

    def first(self, most: int) -> list[Batch]:
        """Batches that hold the first ``most`` inputs, kept."""
        found: list[Batch] = []
        for batch in self:
            left = most - sum(one.size for one in found)
            if left <= 0:
                break
            found.append(batch if batch.size <= left else batch.at(torch.arange(left)))
        return found


def quartered(data: Data) -> tuple[Data, Data]:
    """``fourths`` of at most ``MOST_KEPT`` inputs."""
    most, fourth = (
        Data([batch.arguments for batch in part], data.name, num_arguments=data.num_arguments, labelled=False)
        for part in fourths(data.first(MOST_KEPT))
    )
    return most, fourth


def fourths(batches: Sequence[Batch]) -> tuple[list[Batch], list[Batch]]:
    """Three of four inputs, and every fourth, without labels. Of fewer than 8 inputs, both times all."""
    if sum(batch.size for batch in batches) < 8:
        return list(batches), list(batches)
    parts: tuple[list[Batch], list[Batch]] = ([], [])
    number = 0
    for batch in batches:
        fourth = (torch.arange(number, number + batch.size) % 4) == 3
        number += batch.size
        for part, chosen in zip(parts, (~fourth, fourth), strict=True):
            if chosen.any():
                part.append(Batch(batch.at(chosen.nonzero().flatten()).arguments))
    return parts


def _is_broken(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point() and bool(leaf.isnan().any())


def _same(one: Batch, other: Batch) -> bool:
    leaves, others = (pytree.tree_leaves((batch.arguments, batch.labels)) for batch in (one, other))
    pairs = zip(leaves, others, strict=False)
    return len(leaves) == len(others) and all(_equal(a, b) for a, b in pairs)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return bool(np.array_equal(one, other))  # of labels that may be anything, arrays among them


def _described(element: Any) -> str:
    if isinstance(element, Tensor):
        return f"tensors of shape {list(element.shape)}"
    if isinstance(element, (tuple, list)):
        return f"{type(element).__name__}s of {len(element)}"
    return f"{type(element).__name__}s"
