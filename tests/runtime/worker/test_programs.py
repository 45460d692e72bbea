"""Which engine a worker lets compute."""

from __future__ import annotations

import pytest

from edgedi.runtime.emulation.speed import Speed
from edgedi.runtime.kernels import openvino_graph
from edgedi.runtime.worker.options import WorkerOptions
from edgedi.runtime.worker.programs import WorkerPrograms

EMULATED = Speed(slowdown=10)
ENGINE = f"torch-{openvino_graph.version()}" if openvino_graph.available() else "torch"


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (WorkerOptions(), ENGINE),
        (WorkerOptions(threads=2), ENGINE),
        (WorkerOptions(memory_limit_bytes=10**6), ENGINE),  # each program by itself says whether there is room
        (WorkerOptions(engine="torch"), "torch"),
        (WorkerOptions(device="cuda"), "torch"),
        (WorkerOptions(speed=EMULATED), ENGINE),
        (WorkerOptions(speed=EMULATED, threads=2), "torch"),  # processor time of its threads would be nobody's
    ],
)
def test_the_engine_that_a_worker_may_use(options: WorkerOptions, name: str) -> None:
    assert WorkerPrograms(options).engine_name == name
