"""The best split of one map over unequal workers: contiguous shares in worker order, the slowest as fast as can be.

Bisection on the time T that every worker may take [ours; the published planners move single rows from the slowest to
the fastest worker and stop at the first local best]. A worker's cost may depend on its *role*: the first active worker
has no neighbour above, the last none below, so that the cost of a given worker falls at the border, and a greedy pass
that ignored this would be wrong. For each role, though, cost never falls as the share grows, and therefore:

* whoever is the first active worker takes the most it can finish in T from the start on;
* from the furthest border reached, a middle worker takes the most that it can, or nothing (idle costs nothing): a
  further border only makes the rest smaller, so the furthest is all that one pass has to remember, whoever was first;
* whoever is the last one must finish from the furthest border reached before it.

One pass tries every first and every last worker: feasibility is exact. T is halved until less than a billionth is
open. Cost: O(workers log(length) log(1/eps)) evaluations. With two workers, one cost rises and one falls as the border
moves, and a binary search for where they meet does without T.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from edgedi.partition.graph.geometry import Interval

FIRST, MIDDLE, LAST, ALONE = range(4)
"""What a worker is among the active ones: decides on which sides it has neighbours."""

ShareCost = Callable[[int, int, int, int], float]
"""(worker, start, stop, role) -> seconds for the non-empty share, non-decreasing in it for a given worker and role."""

PRECISION = 1e-9
"""Relative distance from the best time that is accepted as the best."""


@dataclass(frozen=True, slots=True)
class Split:
    """Shares of all workers (empty ones for idle workers) and the seconds of the slowest."""

    shares: tuple[Interval, ...]
    seconds: float


def minimax(num_workers: int, length: int, cost: ShareCost, *, grain: int = 1, limit: float = math.inf) -> Split | None:
    """The split whose slowest worker is fastest, cuts at multiples of ``grain``; ``None`` if none is under ``limit``.

    A cost of infinity forbids: with ``cost(..., ALONE) = inf`` at least two workers share the map.
    """
    search = _Search(num_workers, length, cost, grain)
    if num_workers == 2:
        crossing = search.crossing()
        return crossing if crossing.seconds < limit else None
    best = search.within(math.nextafter(limit, -math.inf))  # under the limit; infinity is not a time
    if best is None:
        return None
    low = 0.0
    while low < best.seconds * (1 - PRECISION):
        middle = (low + best.seconds) / 2
        if best.seconds - low < 1e-3 * best.seconds:
            middle = max(middle, best.seconds * (1 - PRECISION))  # nearly done: is there anything better at all?
        found = search.within(middle)
        if found is None:
            low = middle
        else:
            best = found
    return best


def feasible(num_workers: int, length: int, cost: ShareCost, *, grain: int = 1, limit: float) -> bool:
    """Whether some split takes nobody longer than ``limit``: one pass, for bounds."""
    return _Search(num_workers, length, cost, grain).within(min(limit, math.nextafter(math.inf, 0))) is not None


class _Search:
    def __init__(self, num_workers: int, length: int, cost: ShareCost, grain: int) -> None:
        self._workers = range(num_workers)
        self._cuts = (*range(0, length, grain), length)
        self._cost = cost

    def within(self, seconds: float) -> Split | None:
        """A split in which nobody takes longer than ``seconds``."""
        end = len(self._cuts) - 1
        reached, path = 0, dict[int, tuple[int, int]]()  # border -> (worker that ended there, border it began at)
        for worker in self._workers:
            if reached and self._of(worker, reached, end, LAST) <= seconds:
                return self._trace(path, worker, reached)
            if self._of(worker, 0, end, ALONE) <= seconds:
                return self._trace({}, worker, 0)
            border, began = 0, 0
            if reached:
                border, began = self._furthest(worker, reached, reached, MIDDLE, seconds), reached
            if border < end - 1 and self._of(worker, 0, border + 1, FIRST) <= seconds:
                border, began = self._furthest(worker, 0, border + 1, FIRST, seconds), 0
            if border > reached:
                path[border] = (worker, began)
                reached = border
        return None

    def crossing(self) -> Split:
        """Two workers' best split: as the border moves, one cost rises and one falls; the best is where they meet."""
        end = len(self._cuts) - 1
        low, high = 1, max(1, end - 1)
        while low < high:
            middle = (low + high) // 2
            if self._of(0, 0, middle, FIRST) < self._of(1, middle, end, LAST):
                low = middle + 1
            else:
                high = middle
        borders = [border for border in (low - 1, low) if 0 < border < end]
        splits = [self._trace({border: (0, 0)}, 1, border) for border in borders]
        return min([self._trace({}, 0, 0), self._trace({}, 1, 0), *splits], key=lambda split: split.seconds)

    def _of(self, worker: int, start: int, stop: int, role: int) -> float:
        return self._cost(worker, self._cuts[start], self._cuts[stop], role)

    def _furthest(self, worker: int, start: int, low: int, role: int, seconds: float) -> int:
        """The furthest border short of the end that ``worker`` reaches in time; ``low``, which it reaches, at least."""
        high = len(self._cuts) - 2
        while low < high:
            middle = (low + high + 1) // 2
            if self._of(worker, start, middle, role) <= seconds:
                low = middle
            else:
                high = middle - 1
        return low

    def _trace(self, path: dict[int, tuple[int, int]], last: int, border: int) -> Split:
        owned = {last: (border, len(self._cuts) - 1)}
        while border:
            worker, began = path[border]
            owned[worker] = (began, border)
            border = began
        shares, position = [], 0
        for worker in self._workers:
            start, stop = owned.get(worker, (position, position))
            shares.append(Interval(self._cuts[start], self._cuts[stop]))
            position = stop
        return Split(tuple(shares), self._slowest(owned))

    def _slowest(self, owned: dict[int, tuple[int, int]]) -> float:
        active = sorted(owned)
        roles = {active[0]: FIRST, active[-1]: LAST} if len(active) > 1 else {active[0]: ALONE}
        return max(self._of(worker, *owned[worker], roles.get(worker, MIDDLE)) for worker in active)
