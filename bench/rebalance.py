"""What a session makes of a device that becomes slow: seconds per request before, right after, and once replanned.

    .venv/bin/python -m bench.rebalance --network resnet50 --slowdown 3

starts two local workers, runs requests, makes one worker slow while they go on, and prints medians of the request time:
with both at full speed, slowed under the old plan, slowed under the plan that the session takes by itself, and slowed
under the plan that the planner makes when it is told the slowdown from the start, which is the ideal (bar: within 15 %
of it). It also prints the ideal of a network without halos and unsplit layers: full speed's time by the sum of speeds.

``--how throttle`` (the default) makes the worker wait after each layer until it has taken ``--slowdown`` times as long,
which is what a clocked-down core does, and precise. ``--how compete`` starts busy processes on the worker's core
instead: real, but how much they take is the scheduler's choice.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from edgedi import ClusterProfile, Session, distribute
from edgedi.runtime.execution.executor import LoadedProgram, ProgramRun
from edgedi.runtime.session.balance_state import EVERY_REQUESTS, REPLAN_WITHIN_REQUESTS
from edgedi.runtime.worker.events import Request
from edgedi.runtime.worker.local_workers import share_cores
from edgedi.runtime.worker.noting import Changed, Kernel, Notebook
from edgedi.runtime.worker.options import WorkerOptions
from edgedi.runtime.worker.worker import Worker

BAR = 1.15
SLOWER = 1.1
"""Requests take at least so many times as long as before, or the worker has not become slow at all."""
SLOW = 1
"""The worker that becomes slow."""


class Stretched(Notebook):
    """Gives runs whose kernels are changed, and notes nothing."""

    def __init__(self, change: Callable[[int, Kernel], Kernel], clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self._change = change

    def run(self, request: Request, program: LoadedProgram) -> ProgramRun:
        return ProgramRun(Changed(program, self._change))


class Throttled(Worker):
    """A worker whose layers take ``slowdown`` times as long from one signal (SIGUSR1) to the next."""

    def __init__(self, options: WorkerOptions, slowdown: float) -> None:
        super().__init__(options)
        self._slowdown, self._is_slow, self._due_s = slowdown, False, 0.0
        self._notebook = Stretched(self._stretched, self._settled_clock)
        signal.signal(signal.SIGUSR1, self._switch)

    def _switch(self, *_: object) -> None:
        self._is_slow, self._due_s = not self._is_slow, 0.0

    def _stretched(self, _: int, kernel: Kernel) -> Kernel:
        def run(*inputs: Tensor) -> Tensor:
            start_s = time.perf_counter()
            made = kernel(*inputs)
            if self._is_slow:
                self._wait((self._slowdown - 1) * (time.perf_counter() - start_s))
            return made

        return run

    def _wait(self, more_s: float) -> None:
        """Wait for what is due; a sleep that was too long shortens the next one."""
        self._due_s += more_s
        if self._due_s > 0:
            start_s = time.perf_counter()
            time.sleep(self._due_s)
            self._due_s -= time.perf_counter() - start_s


def serve(core: int | None, slowdown: float) -> None:
    """A worker process: prints its port, serves until it is ended."""
    if core is not None:
        os.sched_setaffinity(0, [core])
    worker = Throttled(WorkerOptions(name=f"core-{core}"), slowdown)
    signal.signal(signal.SIGTERM, lambda *_: worker.stop())
    print(worker.bind(), flush=True)
    worker.serve()


class Workers:
    """Two worker processes, each on a core of its own if there are two; ``slow`` switches one of them."""

    def __init__(self, how: str, slowdown: float) -> None:
        self._how, self._slowdown = how, slowdown
        self.cores = [cores[0] if cores else None for cores in share_cores(2)]
        command = [sys.executable, "-m", "bench.rebalance", "--slowdown", str(slowdown), "--serve"]
        self._processes = [
            subprocess.Popen([*command, str(core)], stdout=subprocess.PIPE, text=True) for core in self.cores
        ]
        self.addresses = [f"127.0.0.1:{process.stdout.readline().strip()}" for process in self._processes]  # type: ignore[union-attr]  # it is a pipe
        self._rivals: list[subprocess.Popen[str]] = []

    def slow(self, on: bool) -> None:
        """Make worker ``SLOW`` slow, or fast again."""
        if self._how == "throttle":
            self._processes[SLOW].send_signal(signal.SIGUSR1)
            return
        if on:
            code = f"import os; os.sched_setaffinity(0, [{self.cores[SLOW]}])\nwhile True: pass"
            rivals = round(self._slowdown) - 1
            self._rivals = [subprocess.Popen([sys.executable, "-c", code], text=True) for _ in range(rivals)]
        else:
            self._end(self._rivals)

    @staticmethod
    def _end(processes: list[subprocess.Popen[str]]) -> None:
        for process in processes:
            process.kill()
            process.wait()

    def close(self) -> None:
        self._end([*self._rivals, *self._processes])


@contextmanager
def started(how: str, slowdown: float) -> Iterator[Workers]:
    workers = Workers(how, slowdown)
    try:
        yield workers
    finally:
        workers.close()


def seconds_each(session: Session, x: Tensor, count: int) -> list[float]:
    taken = []
    for _ in range(count):
        start_s = time.perf_counter()
        session(x)
        taken.append(time.perf_counter() - start_s)
    return taken


def until_replanned(session: Session, x: Tensor, replans: int) -> tuple[list[float], int]:
    """Request times under the old plan, and how many requests it took until another one was in use."""
    taken: list[float] = []
    while session.statistics().replans < replans and len(taken) < 20 * REPLAN_WITHIN_REQUESTS:
        taken += seconds_each(session, x, EVERY_REQUESTS // 4)
    return taken, len(taken)


def told_profile(session: Session, slowdown: float) -> ClusterProfile:
    """The session's own profile with the slowdown put in by hand."""
    cluster = session.profile
    return cluster.with_speeds([1 / slowdown if k == SLOW else 1.0 for k in range(cluster.num_workers)])


def line(what: str, seconds: list[float], more: str = "") -> float:
    median = statistics.median(seconds)
    low, _, high = statistics.quantiles(seconds, n=4)
    print(f"{what:44} {median * 1e3:8.1f} ms  [{low * 1e3:.1f}, {high * 1e3:.1f}]  {more}", flush=True)
    return median


def compare(model: nn.Module, x: Tensor, workers: Workers, slowdown: float, rounds: int) -> bool:
    """Print the table; whether the bar is met."""
    with distribute(model, x, workers.addresses) as session:
        before = line("both at full speed", seconds_each(session, x, rounds))
        with distribute(model, x, workers.addresses, profile=told_profile(session, slowdown), rebalance=False) as told:
            replans = session.statistics().replans
            workers.slow(True)
            taken, count = until_replanned(session, x, replans + 1)
            slow = line(f"worker {SLOW} slow, old plan", taken, f"{count} requests until replanned")
            if slow < SLOWER * before:
                raise RuntimeError(f"worker {SLOW} was told to be slow and is not: nothing is measured here")
            seconds_each(session, x, EVERY_REQUESTS)
            after, ideal = list[float](), list[float]()
            for _ in range(rounds):  # in turns, so that what else this machine does meets both
                after += seconds_each(session, x, 1)
                ideal += seconds_each(told, x, 1)
        slowdowns = session._plans.latest().main.slowdowns
        found = line("replanned", after, f"for slowdowns of {', '.join(f'{s:.2f}' for s in slowdowns)}")
        wanted = line("planned for these speeds from the start", ideal)
        shared = before * 2 / (1 + 1 / slowdown)
        print(f"full speed by the sum of speeds {shared * 1e3:20.1f} ms  replanned takes {found / shared:.2f} of it")
        workers.slow(False)
        _, count = until_replanned(session, x, session.statistics().replans + 1)
        line("at full speed again", seconds_each(session, x, rounds), f"{count} requests until replanned")
        counted = session.statistics()
        assert counted.local_answers == 0, "every request was answered by the workers"
    print(f"replanned / ideal {found / wanted:.3f} (bar {BAR}): {'PASS' if found <= BAR * wanted else 'FAIL'}")
    print(f"{counted.requests} requests, none lost, {counted.replans} replans")
    return found <= BAR * wanted


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="bench.rebalance", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    made.add_argument("--network", default="resnet50", help="a network of torchvision (default: resnet50)")
    made.add_argument("--size", type=int, default=224, help="rows and columns of the input (default: 224)")
    made.add_argument("--slowdown", type=float, default=3.0, help="how many times as slow (default: 3)")
    made.add_argument("--how", choices=("throttle", "compete"), default="throttle", help="see above")
    made.add_argument("--rounds", type=int, default=64, help="requests of each figure (default: 64)")
    made.add_argument("--serve", metavar="CORE", help="be a worker on this core (for the benchmark itself)")
    return made


def main() -> int:
    arguments = parser().parse_args()
    if arguments.serve is not None:
        serve(int(arguments.serve) if arguments.serve.isdigit() else None, arguments.slowdown)
        return 0
    model = getattr(importlib.import_module("torchvision.models"), arguments.network)(weights=None).eval()
    x = torch.rand(1, 3, arguments.size, arguments.size)
    load = os.getloadavg()[0]
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {load:.1f}, torch {torch.__version__}")
    print(f"{arguments.network} {arguments.size}, {arguments.how} {arguments.slowdown:g} times; median [quartiles]")
    with started(arguments.how, arguments.slowdown) as workers:
        return 0 if compare(model, x, workers, arguments.slowdown, arguments.rounds) else 1


if __name__ == "__main__":
    sys.exit(main())
