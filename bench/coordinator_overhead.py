"""What a session adds to a request: a model that computes next to nothing, on one local worker.

    .venv/bin/python -m bench.coordinator_overhead

prints the seconds per request through the session, those of the model alone, and the difference: capture's flattening,
two messages, two processes' wake-ups, the future. The bar is 2 ms on an otherwise idle machine.
"""

from __future__ import annotations

import os
import platform
import statistics
import time

import torch
from torch import nn

from edgedi import distribute

ROUNDS = 500


def seconds_each(run: object, x: torch.Tensor) -> list[float]:
    taken = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        run(x)  # type: ignore[operator]
        taken.append(time.perf_counter() - started)
    return taken


def main() -> None:
    model, x = nn.Conv2d(1, 1, 1).eval(), torch.ones(1, 1, 4, 4)
    with distribute(model, x, 1, planner="single") as session, torch.inference_mode():
        for _ in range(50):
            session(x)
        through, alone = seconds_each(session, x), seconds_each(model, x)
        assert session.statistics().local_answers == 0
    added = statistics.median(through) - statistics.median(alone)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {load:.1f}, torch {torch.__version__}, {ROUNDS} rounds")
    print(
        f"through the session {statistics.median(through) * 1e3:.3f} ms, alone {statistics.median(alone) * 1e3:.3f} ms"
    )
    print(f"added {added * 1e3:.3f} ms (bar 2 ms): {'PASS' if added < 2e-3 else 'FAIL'}")


if __name__ == "__main__":
    main()
