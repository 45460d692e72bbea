"""What a session tells of itself: how many requests, how long they took, who was busy, and what each link carried."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import TimeoutError as FutureTimeout  # the builtin one only from Python 3.11 on
from dataclasses import dataclass
from typing import Any

from edgedi.errors import EdgediError
from edgedi.runtime.coordinator.coordinator import Coordinator
from edgedi.runtime.wire.messages import AskStatistics, Statistics

TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionStatistics:
    """A snapshot of a session. Times are wall-clock seconds as the caller of a request sees them."""

    requests: int
    local_answers: int
    mean_s: float
    last_s: float
    predicted_s: float
    bytes_per_link: Mapping[str, int]
    """Payload bytes sent over each link since the session began: ``home -> name`` and back."""
    busy_share: Mapping[str, float]
    """Part of the time that requests were in flight in which each worker computed or sent."""
    replans: int
    """How often devices changed their speed so much that another plan was taken."""
    predicted_busy_s: Mapping[str, float]
    """Seconds per request that each worker is busy by the plan in use, for the latest input shape."""
    measured_busy_s: Mapping[str, float]
    """The same as measured under that plan; workers that have ended no request under it are left out."""
    workers: Mapping[str, Mapping[str, Any]]
    """What each worker counts of itself, all sessions together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Requests that have ended, and their wall-clock seconds."""

    requests: int = 0
    local_answers: int = 0
    total_s: float = 0.0
    last_s: float = 0.0


class Tally:
    """Counts requests as they end. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # for a moment
        self._counts = Counts()

    def read(self) -> Counts:
        """What has been counted up to now."""
        return self._counts

    def add(self, seconds: float, *, local: bool) -> Counts:
        """Count one more request; ``local`` says that it was answered here."""
        with self._lock:
            known = self._counts
            self._counts = Counts(
                requests=known.requests + 1,
                local_answers=known.local_answers + local,
                total_s=known.total_s + seconds,
                last_s=seconds,
            )
            return self._counts


def told_by_workers(coordinator: Coordinator, session: str, names: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """What each worker that is still there counts of itself, by number and name."""
    told: dict[str, Mapping[str, Any]] = {}
    for index, name in enumerate(names):
        if coordinator.lost(index) is None:
            try:
                answer = coordinator.ask(index, AskStatistics(session=session), Statistics)
                told[f"{index}:{name}"] = answer.result(TIMEOUT_S).values
            except (EdgediError, FutureTimeout):
                continue
    return told


def bytes_per_link(coordinator: Coordinator, names: Sequence[str]) -> dict[str, int]:
    """Payload bytes over each link of the coordinator, to and fro."""
    traffic: dict[str, int] = {}
    for index, (name, (sent, received)) in enumerate(zip(names, coordinator.link_bytes(), strict=True)):
        traffic[f"home -> {index}:{name}"], traffic[f"{index}:{name} -> home"] = sent, received
    return traffic
