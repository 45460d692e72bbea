"""The bound of a plan: what workers tell of their programs, layer by layer."""

from __future__ import annotations

from concurrent.futures import Future
from typing import cast

import torch

from edgedi.partition.capture.capture import capture_model
from edgedi.partition.plan.program import Program, Run
from edgedi.runtime.coordinator.coordinator import Coordinator
from edgedi.runtime.session.alone import seconds_alone
from edgedi.runtime.wire.messages import Measure, Measured
from tests.plans import axis_plan, lower_borders_first


class EveryPartASecond:
    def ask(self, link: int, message: Measure, answer: type[Measured]) -> Future[Measured]:
        runs = [i for i in Program.parse(message.program).instructions if isinstance(i, Run)]
        told: Future[Measured] = Future()
        seconds = tuple((run.piece.tensor, str(run.piece.dim), len(run.piece.interval), 1.0) for run in runs)
        told.set_result(Measured(seconds=seconds, engine_factor=1.0))
        return told


def test_a_layer_that_is_made_in_parts_takes_what_all_of_them_take():
    network = torch.nn.Sequential(*(torch.nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))).eval()
    captured = capture_model(network, (torch.randn(1, 3, 16, 16),))
    programs = lower_borders_first(axis_plan(captured.graph, 2, depth=1), captured.graph)
    coordinator = cast(Coordinator, EveryPartASecond())
    found = seconds_alone(coordinator, programs, captured.weights, (0, 1), lambda tensor: str(id(tensor)))
    first, second = (layer.name for layer in captured.graph.layers)
    assert found == ({first: 2.0, second: 1.0},) * 2
