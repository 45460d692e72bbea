"""What is known of each channel of a value, whatever the input: bounds, and which channels are equal.

A channel that is always the number c has bounds (c, c). Two channels of one value are equal where their ``ids`` are:
an id stands for a way to compute a map, and the same operators on the same maps with the same weights get the same id.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

Array = np.ndarray


class Ids:
    """Gives the same number to the same key, a fresh one where nothing is known."""

    def __init__(self) -> None:
        self._known: dict[Hashable, int] = {}
        self._next = 0

    def of(self, key: Hashable) -> int:
        if key not in self._known:
            self._known[key] = self._fresh()
        return self._known[key]

    def fresh(self, count: int) -> Array:
        return np.array([self._fresh() for _ in range(count)], dtype=np.int64)

    def _fresh(self) -> int:
        self._next += 1
        return self._next


class Groups:
    """Channels that can only be removed together: disjoint sets of numbers (a union-find)."""

    def __init__(self) -> None:
        self._parents: list[int] = []

    def add(self, count: int) -> Array:
        """``count`` new channels, each on its own."""
        start = len(self._parents)
        self._parents.extend(range(start, start + count))
        return np.arange(start, start + count, dtype=np.int64)

    def join(self, first: Array, second: Array) -> None:
        """Element by element: from now on both go or stay together."""
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            self._parents[self._root(b)] = self._root(a)

    def roots(self, members: Array) -> Array:
        """The set of each channel, as a number."""
        return np.array([self._root(member) for member in members.tolist()], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._parents)

    def _root(self, member: int) -> int:
        parents = self._parents
        while parents[member] != member:
            parents[member] = parents[parents[member]]
            member = parents[member]
        return member


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Channels:
    """One value, [batch, *channel dimensions, *positions]: its channels in order, all arrays of that length."""

    low: Array
    high: Array
    ids: Array
    members: Array
    """The number of each channel in ``Groups``: values that hand channels on share them."""
    num_dims: int = field(default=1)
    """How many dimensions count the channels: two between the two views of a channel shuffle."""

    @property
    def constant(self) -> Array:
        """Which channels are the same finite number everywhere."""
        return (self.low == self.high) & np.isfinite(self.low)

    def __len__(self) -> int:
        return len(self.ids)

    def at(self, index: Array) -> Channels:
        """These channels in another order, fewer or repeated."""
        return replace(
            self, low=self.low[index], high=self.high[index], ids=self.ids[index], members=self.members[index]
        )

    def with_zero(self) -> Channels:
        """The bounds once zeros stand around the map. Ids stay: the caller makes new ones."""
        return replace(self, low=np.minimum(self.low, 0), high=np.maximum(self.high, 0))


def joined(parts: Sequence[Channels]) -> Channels:
    """Values one after the other along the channels."""
    return Channels(
        low=np.concatenate([part.low for part in parts]),
        high=np.concatenate([part.high for part in parts]),
        ids=np.concatenate([part.ids for part in parts]),
        members=np.concatenate([part.members for part in parts]),
    )


def settled(low: Array, high: Array, ids: Array, members: Array, known: Ids, num_dims: int = 1) -> Channels:
    """Channels with these bounds; no bounds where arithmetic on infinities gave none; constants by their number."""
    unknown = np.isnan(low) | np.isnan(high)
    low, high = np.where(unknown, -np.inf, low) + 0.0, np.where(unknown, np.inf, high) + 0.0
    ids = ids.copy()
    for index in np.flatnonzero((low == high) & np.isfinite(low)):
        ids[index] = known.of(("constant", float(low[index])))
    return Channels(low=low, high=high, ids=ids, members=members, num_dims=num_dims)


def product(first: Channels, second: Channels) -> tuple[Array, Array]:
    """Bounds of the product. Zero times anything is zero: values are finite."""
    ends = [_times(a, b) for a in (first.low, first.high) for b in (second.low, second.high)]
    return np.minimum.reduce(ends), np.maximum.reduce(ends)


def weighted_sum(positive: Array, negative: Array, low: Array, high: Array) -> tuple[Array, Array]:
    """Bounds of sums of inputs [channels] times weights [outputs, channels], given by the sums of each sign."""
    return _dot(positive, low) + _dot(negative, high), _dot(positive, high) + _dot(negative, low)


def _times(a: Array, b: Array) -> Array:
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(a * b, nan=0.0, posinf=np.inf, neginf=-np.inf)


def _dot(weights: Array, bounds: Array) -> Array:
    """``weights @ bounds``, all weights of one sign, where zero times infinity is zero."""
    total = weights @ np.where(np.isfinite(bounds), bounds, 0.0)
    for sign in (1.0, -1.0):
        infinite = bounds == sign * np.inf
        if infinite.any():
            reach = weights @ (sign * infinite)
            total = total + np.where(reach > 0, np.inf, np.where(reach < 0, -np.inf, 0.0))
    return total
