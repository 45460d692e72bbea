"""Which replica gets the next request: the one that is predicted to finish it first, given what each has before it.

    finish = latency of the replica + requests before this one / its rate

No clock: what is outstanding says how far everybody is. A slow replica thus gets a request only once the fast ones have
so many before them that it would be done earlier, and all are busy as long as requests come.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgedi.partition.plan.placement import Replica

MIN_IN_FLIGHT = 4
IN_FLIGHT_PER_WORKER = 3
"""One request computing, one there to go on with, one on its way in or out."""


def finish_s(replica: Replica, outstanding: int) -> float:
    """Predicted seconds until a request that comes after ``outstanding`` others is answered."""
    waiting_s = outstanding / replica.rate_per_s if replica.rate_per_s else math.inf if outstanding else 0.0
    return replica.latency_s + waiting_s


def first_to_finish(replicas: Sequence[Replica], outstanding: Sequence[int]) -> int:
    """The position of the replica that gets the next request; of equal ones the first."""
    finishes = [finish_s(replica, count) for replica, count in zip(replicas, outstanding, strict=True)]
    return finishes.index(min(finishes))


def default_in_flight(num_workers: int, objective: str) -> int:
    """How many requests a session lets be under way where the caller does not say."""
    return max(MIN_IN_FLIGHT, IN_FLIGHT_PER_WORKER * num_workers) if objective == "throughput" else MIN_IN_FLIGHT
