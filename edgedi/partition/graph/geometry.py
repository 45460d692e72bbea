"""Intervals: the arithmetic under every halo.

An ``Interval`` is half open, ``[start, stop)``; an ``IntervalSet`` is sorted and disjoint with no touching members, so
equal sets are equal values. All lengths are in elements of one dimension (rows, columns, channels or batch). A
``Region`` is an interval of a tensor.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Interval:
    """The half-open range ``[start, stop)``; empty when ``start == stop``."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if self.start > self.stop:
            raise ValueError(f"interval starts at {self.start} after its stop {self.stop}")

    def __len__(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        return f"{self.start}:{self.stop}"

    @classmethod
    def parse(cls, text: str) -> Interval:
        """The interval that ``str`` printed, e.g. ``"3:7"``."""
        start, separator, stop = text.partition(":")
        if not separator:
            raise ValueError(f"{text!r} is not an interval; write start:stop")
        return cls(int(start), int(stop))

    def intersect(self, other: Interval) -> Interval:
        """The common part; when there is none, an empty interval inside or beside ``self``."""
        start = max(self.start, other.start)
        return Interval(start, max(start, min(self.stop, other.stop)))

    def hull(self, other: Interval) -> Interval:
        """The smallest interval that holds both; an empty one adds nothing."""
        if not len(self):
            return other
        if not len(other):
            return self
        return Interval(min(self.start, other.start), max(self.stop, other.stop))

    def contains(self, other: Interval) -> bool:
        return not len(other) or (self.start <= other.start and other.stop <= self.stop)

    def shift(self, offset: int) -> Interval:
        return Interval(self.start + offset, self.stop + offset)


EMPTY = Interval(0, 0)


@dataclass(frozen=True, slots=True)
class Region:
    """``interval`` along dimension ``dim`` of a tensor, everything along the others."""

    dim: int
    interval: Interval


WHOLE = None
Need = Region | None
"""A part of a tensor that somebody reads, or ``WHOLE``."""


@dataclass(frozen=True, slots=True)
class IntervalSet:
    """Sorted, disjoint, non-touching intervals. Build with ``IntervalSet.of``."""

    members: tuple[Interval, ...] = ()

    @classmethod
    def of(cls, *intervals: Interval) -> IntervalSet:
        merged: list[Interval] = []
        for interval in sorted(i for i in intervals if len(i)):
            if merged and interval.start <= merged[-1].stop:
                merged[-1] = merged[-1].hull(interval)
            else:
                merged.append(interval)
        return cls(tuple(merged))

    def __iter__(self) -> Iterator[Interval]:
        return iter(self.members)

    def __len__(self) -> int:
        return sum(len(member) for member in self.members)

    def __str__(self) -> str:
        return "+".join(map(str, self.members)) or "nothing"

    def union(self, other: IntervalSet) -> IntervalSet:
        return IntervalSet.of(*self.members, *other.members)

    def intersect(self, interval: Interval) -> IntervalSet:
        return IntervalSet.of(*(member.intersect(interval) for member in self.members))

    def minus(self, other: IntervalSet) -> IntervalSet:
        left = list(self.members)
        for hole in other.members:
            left = [part for member in left for part in _cut(member, hole)]
        return IntervalSet.of(*left)

    def covers(self, interval: Interval) -> bool:
        return not len(interval) or any(member.contains(interval) for member in self.members)


def _cut(member: Interval, hole: Interval) -> Iterable[Interval]:
    common = member.intersect(hole)
    if not len(common):
        return (member,)
    return (Interval(member.start, common.start), Interval(common.stop, member.stop))


def window(output: Interval, *, kernel: int, stride: int, dilation: int, before: int) -> Interval:
    """Input positions that a sliding window reads for ``output``, before clipping: may be negative or beyond the end.

    ``before`` is the padding in front of the first element.
    """
    return Interval(
        output.start * stride - before,
        (output.stop - 1) * stride - before + dilation * (kernel - 1) + 1,
    )


def clip(interval: Interval, length: int) -> Interval:
    """``interval`` within ``[0, length)``; where nothing is left, the nearest single element, so that none is empty."""
    start = min(max(interval.start, 0), length - 1)
    return Interval(start, max(start + 1, min(interval.stop, length)))


def even_cuts(length: int, parts: int) -> tuple[Interval, ...]:
    """``length`` elements over ``parts`` owners as evenly as integers allow, larger shares last."""
    return weighted_cuts(length, (1.0,) * parts)


def weighted_cuts(length: int, weights: Sequence[float]) -> tuple[Interval, ...]:
    """``length`` elements in proportion to ``weights`` (not all zero), by rounding the cumulative share."""
    total = float(sum(weights))
    if total <= 0 or min(weights) < 0:
        raise ValueError(f"weights must be non-negative with a positive sum, not {list(weights)}")
    cuts, done = [0], 0.0
    for weight in weights:
        done += weight
        cuts.append(int(length * done / total + 0.5))
    cuts[-1] = length
    return tuple(Interval(a, max(a, b)) for a, b in itertools.pairwise(cuts))


def scale(interval: Interval, length: int, reference: int) -> Interval:
    """``interval`` of a dimension of size ``reference``, as the like part of one of size ``length``.

    Neighbours stay neighbours: scaled cuts cover every element exactly once.
    """
    return Interval(_scaled(interval.start, length, reference), _scaled(interval.stop, length, reference))


def _scaled(cut: int, length: int, reference: int) -> int:
    return (2 * cut * length + reference) // (2 * reference)
