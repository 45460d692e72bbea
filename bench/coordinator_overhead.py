"""What a session adds to a request, and where: a model that computes next to nothing, on one local worker.

    .venv/bin/python -m bench.coordinator_overhead

prints the seconds per request through the session, those of the model alone, and the difference; then what a request
spends where, by the spans of traced requests, medians: taking the input apart, the way to the worker (its message, the
worker waking up), computing, the way back (its message, this process waking up), and putting the answer together with
all that a trace does not see, which is the rest. The bar is 2 ms on an otherwise idle machine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch
from torch import nn

from edgedi import distribute
from edgedi.bench.machine import this_machine
from edgedi.partition.plan.plan import HOME
from edgedi.runtime.session.trace import Span

ROUNDS, TRACED = 500, 100
PARTS = ("taking the input apart", "the way to the worker", "computing", "the way back")


def seconds_each(run: object, x: torch.Tensor) -> list[float]:
    taken = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        run(x)  # type: ignore[operator]
        taken.append(time.perf_counter() - started)
    return taken


def parts_of(spans: Sequence[Span]) -> tuple[float, ...]:
    """Seconds of each of ``PARTS`` in one request: from its beginning to where the coordinator has the answer."""
    (sent,) = (span for span in spans if span.participant == HOME and span.kind == "send")
    (heard,) = (span for span in spans if span.participant == HOME and span.kind == "wait")
    (computed,) = (span for span in spans if span.kind == "compute")
    return (
        sent.start_s, computed.start_s - sent.start_s, computed.stop_s - computed.start_s,
        heard.stop_s - computed.stop_s,
    )  # fmt: skip


def main() -> None:
    machine = this_machine()
    model, x = nn.Conv2d(1, 1, 1).eval(), torch.ones(1, 1, 4, 4)
    with distribute(model, x, 1, planner="single") as session, torch.inference_mode():
        for _ in range(50):
            session(x)
        through, alone = seconds_each(session, x), seconds_each(model, x)
        traced = [parts_of(session.spans(x)) for _ in range(TRACED)]
        assert session.statistics().local_answers == 0
    through_s, alone_s = statistics.median(through), statistics.median(alone)
    added_s = through_s - alone_s
    print(f"{machine}, {ROUNDS} rounds{f'. {machine.busy}' if machine.busy else ''}")
    print(f"through the session {through_s * 1e3:.3f} ms, alone {alone_s * 1e3:.3f} ms")
    print(f"added {added_s * 1e3:.3f} ms (bar 2 ms): {'PASS' if added_s < 2e-3 else 'FAIL'}")
    print(f"of these, by {TRACED} traced requests:")
    medians = [statistics.median(column) for column in zip(*traced, strict=True)]
    for part, seconds in (*zip(PARTS, medians, strict=True), ("the rest", through_s - sum(medians))):
        print(f"  {seconds * 1e3:6.3f} ms  {part}")


if __name__ == "__main__":
    main()
