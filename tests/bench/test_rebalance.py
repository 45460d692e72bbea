"""The bench of rebalancing really slows its worker down."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from bench.rebalance import Throttled
from edgedi import distribute
from edgedi.runtime.worker.options import WorkerOptions
from tests.runtime.networks import image, small


@pytest.fixture
def worker() -> Iterator[Throttled]:
    before = signal.getsignal(signal.SIGUSR1)
    made = Throttled(WorkerOptions(name="throttled"), slowdown=3.0)
    yield made
    signal.signal(signal.SIGUSR1, before)


def test_a_throttled_worker_waits_twice_as_long_as_it_computed(
    worker: Throttled, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(worker, "_wait", waited.append)
    address = f"127.0.0.1:{worker.bind()}"
    thread = threading.Thread(target=worker.serve)
    thread.start()
    try:
        x = image()
        with distribute(small(), x, [address], rebalance=False, verify="never") as session:
            session(x)
            assert waited == []
            signal.raise_signal(signal.SIGUSR1)
            session(x)
            worker.stop()
    finally:
        worker.stop()
        thread.join()
    assert waited
    assert all(seconds > 0 for seconds in waited)
