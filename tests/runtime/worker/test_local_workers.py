"""Child processes as workers: they start, say why they do not, and end with us however we end."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys

import pytest

from edgedi.errors import WorkerLost
from edgedi.runtime.worker import local_workers as module
from edgedi.runtime.worker.local_workers import LocalWorkers, share_cores

WAIT_S = 60


def is_running(process_id: int) -> bool:
    try:
        with open(f"/proc/{process_id}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def wait_for_end(process_id: int) -> None:
    """Until a process that is not our child has ended, told by the kernel and not by looking again and again."""
    try:
        descriptor = os.pidfd_open(process_id)
    except ProcessLookupError:
        return
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        assert selector.select(WAIT_S), f"process {process_id} still runs"
    os.close(descriptor)


def test_workers_start_and_stop() -> None:
    started = LocalWorkers(2)
    try:
        hosts = [address.rsplit(":", 1)[0] for address in started.addresses]
        assert hosts == ["127.0.0.1", "127.0.0.1"]
        assert len(set(started.addresses)) == 2
        assert len(set(started.process_ids)) == 2
        assert all(map(is_running, started.process_ids))
    finally:
        started.stop()
    assert not any(map(is_running, started.process_ids))
    started.stop()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not pin processes")
def test_each_worker_has_cores_of_its_own_and_as_many_threads() -> None:
    cores = sorted(os.sched_getaffinity(0))
    started = LocalWorkers(1, cores=[cores[:1]])
    try:
        assert started.addresses
        assert os.sched_getaffinity(started.process_ids[0]) == set(cores[:1])
    finally:
        started.stop()


def test_cores_are_dealt_out_evenly_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda _: {4, 1, 2, 7, 9}, raising=False)
    assert share_cores(2) == [[1, 2], [4, 7]]
    assert share_cores(5) == [[1], [2], [4], [7], [9]]
    assert share_cores(6) == [[], [], [], [], [], []]
    monkeypatch.delattr(module.os, "sched_getaffinity")
    assert share_cores(2) == [[], []]


@pytest.mark.parametrize("count", [0, -1])
def test_a_number_that_makes_no_sense(count: int) -> None:
    with pytest.raises(ValueError, match=f"workers={count}: give at least 1"):
        LocalWorkers(count)


def test_a_worker_that_cannot_start_says_why() -> None:
    started = LocalWorkers(1, options=("--host", "0.0.0.0"))
    try:
        with pytest.raises(WorkerLost, match=r"local-0 did not start: .*without authorised keys") as caught:
            _ = started.addresses
        assert caught.value.worker == "local-0"
    finally:
        started.stop()


def test_a_worker_that_does_not_start_in_time_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "START_TIMEOUT_S", 0.0)
    started = LocalWorkers(1)
    try:
        with pytest.raises(WorkerLost, match="local-0 did not start within 0 s"):
            _ = started.addresses
    finally:
        started.stop()
    assert not is_running(started.process_ids[0])


def test_a_stopped_process_is_ended_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STOP_TIMEOUT_S", 0.2)
    started = LocalWorkers(1)
    assert started.addresses
    os.kill(started.process_ids[0], signal.SIGSTOP)
    started.stop()
    assert not is_running(started.process_ids[0])


PARENT = """
import sys
from edgedi.runtime.worker.local_workers import LocalWorkers
started = LocalWorkers(2)
print(*started.addresses, *started.process_ids, flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="waits by Linux's pidfd")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_they_end_when_their_parent_does_however_it_ends(number: signal.Signals) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert parent.stdout is not None
        *_, first, second = parent.stdout.readline().split()
        parent.send_signal(number)
        assert parent.wait(WAIT_S) != 0
        wait_for_end(int(first))
        wait_for_end(int(second))
    finally:
        parent.kill()
        parent.communicate()


def test_a_worker_that_complains_a_lot_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    """Its words would fill a pipe that nobody reads; they go to our log."""
    import zmq

    from edgedi.runtime.wire.codec import decode, encode
    from edgedi.runtime.wire.messages import Ping, Pong

    started, context = LocalWorkers(1), zmq.Context()
    try:
        dealer = context.socket(zmq.DEALER)
        dealer.connect(f"tcp://{started.addresses[0]}")
        for _ in range(1_000):  # 100 bytes of complaint each, a pipe holds 64 kB
            dealer.send_multipart([b"\xc1" * 80])
            assert dealer.poll(10_000)
            dealer.recv_multipart()
        dealer.send_multipart(encode(Ping(token=5)))
        assert dealer.poll(10_000)
        assert decode(dealer.recv_multipart()) == Pong(token=5)
    finally:
        context.destroy(0)
        started.stop()
    assert caplog.text.count("local-0: ") >= 1_000
