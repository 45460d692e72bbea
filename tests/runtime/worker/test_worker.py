"""In which order a worker does what it has to do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edgedi.runtime.wire.messages import Statistics
from edgedi.runtime.worker import worker as worker_module
from edgedi.runtime.worker.actions import TellStatistics
from edgedi.runtime.worker.options import WorkerOptions
from edgedi.runtime.worker.worker import MOST_AT_ONCE, Worker


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker(WorkerOptions())
    yield made
    made.close()


class Flood:
    """Messages that never end, or ``count`` of them; notes when requests were given a turn, by messages before."""

    def __init__(self, worker: Worker, monkeypatch: pytest.MonkeyPatch, count: float = float("inf")) -> None:
        self.received, self.turns, self._left = 0, list[int](), count
        monkeypatch.setattr(worker._sockets, "receive", self._receive)
        monkeypatch.setattr(worker, "_receive", lambda link, frames: None)
        monkeypatch.setattr(worker, "_run_requests", self._run)

    def _receive(self) -> tuple[bytes, list[bytes]] | None:
        if self.received >= self._left:
            return None
        self.received += 1
        return b"greedy", []

    def _run(self) -> bool:
        self.turns.append(self.received)
        return False


def test_who_floods_a_worker_does_not_keep_requests_waiting(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    flood = Flood(worker, monkeypatch)
    assert [worker._drain() for _ in range(3)] == [True] * 3
    assert flood.turns == [MOST_AT_ONCE, 2 * MOST_AT_ONCE, 3 * MOST_AT_ONCE]


def test_how_late_a_device_was_is_told_once(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Statistics] = []
    monkeypatch.setattr(worker, "_send", lambda link, message: told.append(message))
    worker._pace.late_s = 0.25
    for _ in range(2):
        worker._tell(TellStatistics(b"link", "session"))
    assert [message.values["late_s"] for message in told] == [0.25, 0.0]


def test_few_messages_are_all_taken_before_anything_runs(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    flood = Flood(worker, monkeypatch, count=MOST_AT_ONCE - 1)
    assert worker._drain() is False
    assert flood.turns == [MOST_AT_ONCE - 1]


def test_a_worker_does_not_wait_before_it_has_looked_for_more(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    flood, waited = Flood(worker, monkeypatch, count=MOST_AT_ONCE), list[int]()

    def wait(poll: object, milliseconds: int) -> None:
        waited.append(flood.received)
        if flood.received:
            worker.stop()

    monkeypatch.setattr(worker_module, "set_up_torch", lambda threads, device: None)
    monkeypatch.setattr(worker._pace, "wait", wait)
    worker.serve()
    assert waited == [0, MOST_AT_ONCE]
    assert flood.turns == [MOST_AT_ONCE, MOST_AT_ONCE]
