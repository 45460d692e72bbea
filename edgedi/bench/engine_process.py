"""A process for one engine, so that its pinning and threads are its own: ``python -m edgedi.bench.engine_process``.

It reads one JSON object per line from standard input and answers each with one: first the settings, then requests until
standard input ends. Tensors pass through files that torch loads as plain weights. What libraries print goes to standard
error.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

Settings = Mapping[str, Any]


def main() -> int:
    """Serve until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: who started us ends us, in order
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    line = sys.stdin.readline()
    if not line:
        return 0
    try:
        serve = _prepare(json.loads(line), answers)
    except Exception as error:  # an engine fails in its own ways; the run goes on without it and says so
        _tell(answers, error=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        return 1
    for line in sys.stdin:
        serve(json.loads(line))
    return 0


def _prepare(settings: Settings, answers: TextIO) -> Callable[[Settings], None]:
    """Make the engine ready and say so; what is returned answers one request."""
    if settings["cores"]:
        os.sched_setaffinity(0, settings["cores"])
    os.environ["OMP_NUM_THREADS"] = str(settings["threads"])
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # no helpers of torch's that outlive us
    import torch

    from edgedi.bench.engines import ENGINES, Flat
    from edgedi.bench.networks import load_network
    from edgedi.runtime.emulation.calm import CALM
    from edgedi.runtime.execution.rehearsal import steady

    CALM.hears_of(settings["calm_loop_s"])
    torch.set_num_threads(settings["threads"])
    torch.set_grad_enabled(False)
    network = load_network(settings["model"])
    saved = torch.load(settings["tensors"], weights_only=True)
    network.load_state_dict(saved["weights"])
    inputs = [tuple(each) for each in saved["inputs"]]
    del saved
    engine = ENGINES[settings["engine"]](Flat(network), inputs, settings["threads"])
    prepared = [engine.prepare(each) for each in inputs]
    # Once on every input, because torch.compile only now compiles.
    latest = {index: engine.tensors(engine.run(each)) for index, each in enumerate(prepared)}
    stopwatch = stopwatch_of(settings["slowdown"])

    def run(index: int) -> float:
        started_s = stopwatch()
        answer = engine.run(prepared[index])
        taken_s = stopwatch() - started_s
        latest[index] = engine.tensors(answer)
        return taken_s

    def rehearsed(index: int) -> float:
        return steady(lambda: {0: run(index)})[0]

    counted = {index: rehearsed(index) for index in latest} if settings["warm"] else {}

    def serve(request: Settings) -> None:
        if "rehearse" in request:
            counted.update({index: min(before_s, rehearsed(index)) for index, before_s in counted.items()})
            _tell(answers, rehearsed=len(counted))
            return
        index = request["index"]
        if "path" in request:
            torch.save(latest[index], request["path"])
            _tell(answers, saved=index)
            return
        taken_s = run(index)
        _tell(answers, seconds=counted.get(index, taken_s))

    _tell(answers, version=engine.version, precision=engine.precision)
    return serve


def stopwatch_of(
    slowdown: float, *, clock: Callable[[], float] = time.perf_counter, cpu: Callable[[], float] = time.process_time
) -> Callable[[], float]:
    """What to time an engine by: the clock, or for an emulated device the processor time of all its threads, slowed."""
    return clock if slowdown == 1 else lambda: slowdown * cpu()


def _tell(answers: TextIO, **values: Any) -> None:
    answers.write(json.dumps(values) + "\n")


if __name__ == "__main__":
    sys.exit(main())
