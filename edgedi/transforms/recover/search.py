"""How deep to cut next, when each depth has to be trained before it can be judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FIRST_CUT = 0.3
"""The share of the MACs that the first try takes out."""

LEAST_CUT = 0.03
"""A try that would take out less is not made."""

MOST_TRIALS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One depth that was trained: what the network cost, and whether it scored enough."""

    macs: int
    held: bool


def next_macs(start: int, trials: Sequence[Trial]) -> int | None:
    """What the next network is to cost; ``None`` where the search is over.

    From the smallest that held, the first time ``start``, a share of its MACs less: half the share for each try that
    did not hold.
    """
    cut = FIRST_CUT / 2 ** sum(not trial.held for trial in trials)
    if cut < LEAST_CUT or len(trials) >= MOST_TRIALS:
        return None
    smallest = min([trial.macs for trial in trials if trial.held], default=start)
    return round(smallest * (1 - cut))


def share_of(budget_s: float, trials: Sequence[Trial]) -> float:
    """Seconds for the next try: as many as for each that may come."""
    return budget_s / max(1, MOST_TRIALS - len(trials))
