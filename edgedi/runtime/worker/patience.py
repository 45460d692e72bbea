"""How long to look for a halo before going to sleep for it.

Waking from sleep takes some tens of microseconds, and then the code that takes the halo is no longer in the cache: as
long as the exchange itself. So a worker whose request waits looks again and again, for a bounded time. Where looking
was in vain the bound is halved, down to nothing: on a core that is shared with the very worker that is waited for,
looking is what delays it. Every sixteenth wait tries the shortest bound again.
"""

from __future__ import annotations

MOST_S = 0.0005
"""About two exchanges on one machine: whoever is not there by then is behind by more than sleeping costs."""
LEAST_S = 0.00005
RETRY_EVERY = 16


class Patience:
    """The bound of one worker, as it learns; takes no clock, its user measures."""

    def __init__(self) -> None:
        self._bound_s = MOST_S
        self._waits = 0

    @property
    def spin_s(self) -> float:
        """How long to look this time, 0 for not at all."""
        if self._bound_s >= LEAST_S:
            return self._bound_s
        return LEAST_S if self._waits % RETRY_EVERY == 0 else 0.0

    def came(self) -> None:
        """It came in time: looking pays."""
        self._waits = 0
        self._bound_s = min(MOST_S, 2 * max(self._bound_s, LEAST_S))

    def did_not_come(self) -> None:
        """It did not."""
        self._waits += 1
        self._bound_s = self._bound_s / 2 if self._bound_s >= LEAST_S else 0.0
