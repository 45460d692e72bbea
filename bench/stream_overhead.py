"""What a request of a stream costs besides computing: a model that does next to nothing to a photograph.

    .venv/bin/python -m bench.stream_overhead

prints, for one local worker and for two, milliseconds per request of a stream, this process's processor time for each,
and the workers' busy time for each. A worker that computes for longer than the first of these is never kept waiting:
the next input arrives while it computes.
"""

from __future__ import annotations

import os
import platform
import time

import torch
from torch import nn

from edgedi import distribute
from edgedi.bench.cores import start_workers

REQUESTS = 400
SHAPE = (1, 3, 224, 224)


def busy_s(workers: dict[str, dict[str, float]]) -> float:
    return sum(float(values["busy_s"]) for values in workers.values())


def measure(count: int) -> str:
    model, x = nn.Conv2d(3, 1, 1, stride=32).eval(), torch.rand(SHAPE)
    workers = start_workers(count, 1)
    try:
        with distribute(model, x, workers.addresses, objective="throughput", rebalance=False) as session:
            list(session.stream([x] * 50))
            before = busy_s(session.statistics().workers)  # type: ignore[arg-type]
            started_s, started_cpu_s = time.perf_counter(), time.process_time()
            list(session.stream([x] * REQUESTS))
            taken_s, cpu_s = time.perf_counter() - started_s, time.process_time() - started_cpu_s
            statistics = session.statistics()
            assert statistics.local_answers == 0
            busy = busy_s(statistics.workers) - before  # type: ignore[arg-type]
    finally:
        workers.stop()
    each = [f"{1e3 * seconds / REQUESTS:.3f} ms" for seconds in (taken_s, cpu_s, busy)]
    return (
        f"{count} workers: {each[0]} per request, of which this process's processor {each[1]}, workers busy {each[2]}"
    )


def main() -> None:
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {load:.1f}, torch {torch.__version__}, input {SHAPE}")
    for count in (1, 2):
        print(measure(count))


if __name__ == "__main__":
    main()
