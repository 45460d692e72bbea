"""Workers on this machine, as child processes: started in parallel, pinned to cores of their own, ended with us."""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import IO

from edgedi.errors import WorkerLost

log = logging.getLogger("edgedi.worker")
START_TIMEOUT_S = 180.0
"""Importing torch takes a busy small device long; a worker that ends instead is noticed at once."""
_STOP_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One worker to start: options of ``edgedi-worker`` besides those below, ``prefix`` a command that runs it."""

    name: str
    threads: int = 1
    cores: tuple[int, ...] = ()
    options: tuple[str, ...] = ()
    prefix: tuple[str, ...] = ()


class LocalWorkers:
    """``count`` worker processes on loopback. ``addresses`` waits until all listen."""

    def __init__(
        self,
        count: int,
        *,
        threads: int | None = None,
        cores: Sequence[Sequence[int]] | None = None,
        options: Sequence[str] = (),
    ) -> None:
        if count < 1:
            raise ValueError(f"workers={count}: give at least 1")
        cores = share_cores(count) if cores is None else cores
        self._launch(
            Launch(
                name=f"local-{index}",
                threads=len(own) if threads is None and own else threads or 1,
                cores=tuple(own),
                options=tuple(options),
            )
            for index, own in enumerate(cores)
        )

    @classmethod
    def launch(cls, launches: Iterable[Launch]) -> LocalWorkers:
        """Workers each started in its own way."""
        made = cls.__new__(cls)
        made._launch(launches)
        return made

    def _launch(self, launches: Iterable[Launch]) -> None:
        launches = tuple(launches)
        self._processes = [_start(launch) for launch in launches]
        self._words = [_Words(launch.name, process) for launch, process in zip(launches, self._processes, strict=True)]
        self._addresses: list[str] | None = None

    @property
    def addresses(self) -> list[str]:
        """``host:port`` of every worker. ``WorkerLost`` with the worker's own words if one does not start."""
        if self._addresses is None:
            deadline_s = time.monotonic() + START_TIMEOUT_S
            self._addresses = [
                _ready_address(process, words, deadline_s)
                for process, words in zip(self._processes, self._words, strict=True)
            ]
        return self._addresses

    @property
    def process_ids(self) -> list[int]:
        """Process numbers, in the order of ``addresses``."""
        return [process.pid for process in self._processes]

    def stop(self) -> None:
        """Ask all to end, then insist. Idempotent."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        for process in self._processes:
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for stream in (process.stdout, process.stdin):
                if stream is not None:
                    stream.close()
        for words in self._words:
            words.wait()


def share_cores(count: int) -> list[list[int]]:
    """The cores that this process may use, dealt out to ``count`` workers; where too few, nobody is pinned."""
    if not hasattr(os, "sched_getaffinity"):
        return [[] for _ in range(count)]
    available = sorted(os.sched_getaffinity(0))
    per_worker = len(available) // count
    if per_worker == 0:
        return [[] for _ in range(count)]
    return [available[index * per_worker : (index + 1) * per_worker] for index in range(count)]


def _start(launch: Launch) -> subprocess.Popen[str]:
    threads = str(launch.threads)
    command = [
        *launch.prefix, sys.executable, "-m", "edgedi.cli.worker", "--port", "0", "--name", launch.name,
        "--threads", threads, "--end-with-parent", "--log-level", "warning",
    ]  # fmt: skip
    if launch.cores:
        command += ["--cores", ",".join(map(str, launch.cores))]
    command += launch.options
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,  # Ctrl-C is for the coordinator: it ends its workers, in order
    )


class _Words:
    """Reads what a worker says on standard error, so that it never waits for a full pipe, and passes it to our log."""

    def __init__(self, name: str, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        self.name, self.last = name, deque[str](maxlen=3)
        self._thread = threading.Thread(target=self._read, args=(process.stderr,), daemon=True)
        self._thread.start()

    def _read(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                self.last.append(line.rstrip())
                log.warning("%s: %s", self.name, line.rstrip())

    def wait(self) -> str:
        """The last words of a worker that has ended."""
        self._thread.join(_STOP_TIMEOUT_S)
        return " ".join(self.last)


def _ready_address(process: subprocess.Popen[str], words: _Words, deadline_s: float) -> str:
    """The address in the line ``ready host:port`` that a worker prints once it listens."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        if not selector.select(max(0.0, deadline_s - time.monotonic())):
            reason = f"local worker {words.name} did not start within {START_TIMEOUT_S:.0f} s"
            raise WorkerLost(reason, worker=words.name)
    line = process.stdout.readline()
    if not line.startswith("ready "):
        process.wait()
        raise WorkerLost(f"local worker {words.name} did not start: {words.wait()}", worker=words.name)
    return line.split()[1]
