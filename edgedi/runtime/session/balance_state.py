"""When a session plans anew because its devices are not as fast as it thought: readings in, decisions out.

A *reading* is taken every ``EVERY_REQUESTS`` requests. For each worker it holds the seconds per request that the worker
was busy since the last one, what the plan in use predicts for that, and the *slowdown* that this plan already supposes
against the measured profile. Measured over predicted is the worker's *ratio*. Rules:

* Only ratios of workers against each other count: what the cost model misses for all alike moves no share.
* A worker is *slow* when its ratio is more than ``THRESHOLD`` times the least. The same worker must be slow in
  ``CONFIRMATIONS`` readings one after the other. So noise of up to ``NOISE`` either way never plans anew, and a device
  that is 3 times as slow always does, within ``REPLAN_WITHIN_REQUESTS``: one reading more, as the first may be mixed.
* The new slowdowns are old ones times ratios, the least made 1. A device that recovers is found by the same rule, as
  all others then look slow against it. What is within ``SNAP`` of 1 is 1, so that the first plan comes back.
* After a decision come ``COOL_DOWN`` readings without one; twice as many each time if decisions follow each other
  closely, ``MOST_COOL_DOWN`` at most. Whatever the readings, plans change rarely.
* A worker without a share has no ratio. If it is thought as fast as its profile, the least ratio since the last
  decision stands in. If it is thought slow, nobody would ever learn that it recovered, so it is *probed* every
  ``PROBE_EVERY`` readings; a probe runs layers alone, so what the cost model misses (that least ratio) is put on top.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

EVERY_REQUESTS = 16
NOISE = 0.2
THRESHOLD = (1 + NOISE) / (1 - NOISE)
CONFIRMATIONS = 2
REPLAN_WITHIN_REQUESTS = (CONFIRMATIONS + 1) * EVERY_REQUESTS
COOL_DOWN = 2
MOST_COOL_DOWN = 64
CLOSELY = 4
"""Decisions follow each other closely when fewer than so many cool-downs lie between them."""
PROBE_EVERY = 8
SNAP = 0.15
LEAST_PREDICTED_S = 5e-4
"""A share that is predicted to take less than this says nothing: what a request costs besides layers drowns it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy:
    """One worker's part of a reading. ``measured_s`` is ``None`` where it has served no request of the plan."""

    predicted_s: float
    measured_s: float | None
    slowdown: float = 1.0

    def __post_init__(self) -> None:
        if not self.slowdown > 0:
            raise ValueError(f"slowdown {self.slowdown}: a positive number, 1 for as fast as the profile says")

    @property
    def ratio(self) -> float | None:
        """Measured over predicted, ``None`` where that says nothing."""
        if self.measured_s is None or self.predicted_s < LEAST_PREDICTED_S or self.measured_s <= 0:
            return None
        return self.measured_s / self.predicted_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Every worker by its number, under the plan named ``plan``."""

    plan: str
    workers: Mapping[int, Busy]


@dataclass(frozen=True, slots=True)
class Keep:
    """The plan stays."""


@dataclass(frozen=True, slots=True)
class Probe:
    """The plan stays; measure how slow these workers are now, and tell by ``probed``."""

    workers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Replan:
    """Plan anew with these workers so many times as slow as their profiles say."""

    slowdowns: Mapping[int, float]


Decision = Keep | Probe | Replan


@dataclass(slots=True)
class Balance:
    """All that is remembered between readings."""

    _plan: str = ""
    _slow: frozenset[int] = frozenset()
    _num_slow: int = 0
    _least_ratio: float | None = None
    _probed: dict[int, float] = field(default_factory=dict)
    _cool_down: int = COOL_DOWN
    _since_decision: int = CLOSELY * MOST_COOL_DOWN
    _since_probe: int = 0

    def handle(self, reading: Reading) -> Decision:
        """The only door."""
        self._since_decision += 1
        ratios = self._ratios(reading)
        self._count(reading.plan, slow_of(ratios))
        if self._num_slow >= CONFIRMATIONS and self._since_decision > self._cool_down:
            return self._replan(reading, ratios)
        return self._probe(reading)

    def probed(self, worker: int, slowdown: float) -> None:
        """A worker without a share was measured: so many times as slow as its profile."""
        self._probed[worker] = slowdown

    def _ratios(self, reading: Reading) -> dict[int, float]:
        measured = {k: ratio for k, busy in reading.workers.items() if (ratio := busy.ratio) is not None}
        if measured:
            least = min(measured.values())
            self._least_ratio = least if self._least_ratio is None else min(least, self._least_ratio)
        for k, busy in reading.workers.items():
            if k in measured:
                self._probed.pop(k, None)
            elif self._least_ratio is not None and (k in self._probed or busy.slowdown == 1.0):
                measured[k] = self._least_ratio * self._probed.get(k, busy.slowdown) / busy.slowdown
        return measured

    def _count(self, plan: str, slow: frozenset[int]) -> None:
        """How often one after the other, under one plan, some worker was slow."""
        if plan != self._plan:
            self._plan, self._slow, self._num_slow = plan, frozenset(), 0
        still = self._slow & slow
        self._num_slow = self._num_slow + 1 if still else int(bool(slow))
        self._slow = still or slow

    def _replan(self, reading: Reading, ratios: Mapping[int, float]) -> Replan:
        closely = self._since_decision < CLOSELY * self._cool_down
        self._cool_down = min(MOST_COOL_DOWN, 2 * self._cool_down) if closely else COOL_DOWN
        self._since_decision = self._num_slow = 0
        self._probed.clear()
        self._least_ratio = None
        old = {k: busy.slowdown for k, busy in reading.workers.items()}
        return Replan(new_slowdowns(old, ratios))

    def _probe(self, reading: Reading) -> Keep | Probe:
        idle = tuple(k for k, busy in reading.workers.items() if busy.ratio is None and busy.slowdown != 1.0)
        self._since_probe = self._since_probe + 1 if idle else 0
        if self._since_probe < PROBE_EVERY:
            return Keep()
        self._since_probe = 0
        return Probe(idle)


def slow_of(ratios: Mapping[int, float]) -> frozenset[int]:
    """The workers whose ratio is more than ``THRESHOLD`` times the least."""
    least = min(ratios.values(), default=0.0)
    return frozenset(k for k, ratio in ratios.items() if ratio > THRESHOLD * least)


def new_slowdowns(old: Mapping[int, float], ratios: Mapping[int, float]) -> dict[int, float]:
    """Old slowdowns times ratios, the least made 1; a worker without a ratio keeps its own."""
    found = {k: old[k] * ratio for k, ratio in ratios.items()}
    least = min(found.values())
    return {k: _snapped(found[k] / least) if k in found else slowdown for k, slowdown in old.items()}


def _snapped(slowdown: float) -> float:
    return 1.0 if abs(slowdown - 1.0) <= SNAP else slowdown
