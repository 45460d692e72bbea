"""From what a worker measured to a profile: an engine's share counts, and counts alike when it is probed later."""

from __future__ import annotations

from concurrent.futures import Future
from typing import cast

import pytest
import torch
from torch import nn

from edgedi.partition.capture.capture import capture_model
from edgedi.partition.plan.program import Program, Run
from edgedi.runtime.coordinator import profiler
from edgedi.runtime.coordinator.coordinator import Coordinator
from edgedi.runtime.wire.messages import Measure, Measured, Welcome

LAYER_S = 1e-3
WELCOME = Welcome(
    wire_version=1, software_version="1", name="pi", device="cpu", threads=1, memory_limit_bytes=None, fingerprint="f"
)


class OneWorker:
    """Asks a worker whose layers take ``LAYER_S`` each in torch, all of them whole ``engine_factor`` of that."""

    def __init__(self, engine_factor: float) -> None:
        self._engine_factor = engine_factor

    def ask(self, link: int, message: Measure, answer: type[Measured]) -> Future[Measured]:
        runs = [run for run in Program.parse(message.program).instructions if isinstance(run, Run)]
        kinds = {run.piece.dim for run in runs}
        told: Future[Measured] = Future()
        told.set_result(
            Measured(
                seconds=tuple((r.piece.tensor, "whole" if r.piece.dim < 0 else str(r.piece.dim),
                               max(1, len(r.piece.interval)), LAYER_S) for r in runs),
                engine_factor=self._engine_factor if kinds == {-1} else 1.0,
            )
        )  # fmt: skip
        return told


@pytest.mark.parametrize(
    ("engine_factor", "share", "alone"), [(0.5, 0.5, 1.0), (0.8, 0.8, 1.0), (0.81, 1.0, 0.81), (1.0, 1.0, 1.0)]
)
def test_a_profile_and_a_later_probe_count_an_engine_alike(engine_factor: float, share: float, alone: float) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    taken = capture_model(network, torch.zeros(1, 3, 16, 16))
    asked = cast(Coordinator, OneWorker(engine_factor))
    device = profiler.measured_profiles(asked, taken, {0: WELCOME}, lambda line: None)[0]
    probed = profiler.whole_seconds(asked, taken.graph, taken.weights, 0)
    assert device.alone_share == pytest.approx(alone)
    assert set(probed) == {layer.name for layer in taken.graph.layers}
    for layer in taken.graph.layers:
        assert probed[layer.name] == pytest.approx(share * LAYER_S)
        assert device.seconds(layer, taken.graph.input_shapes(layer)) == pytest.approx(share * LAYER_S)


class Worker(OneWorker):
    """Notes which layers it was asked for, each time."""

    def __init__(self) -> None:
        super().__init__(1.0)
        self.asked: list[tuple[str, ...]] = []

    def ask(self, link: int, message: Measure, answer: type[Measured]) -> Future[Measured]:
        runs = Program.parse(message.program).instructions
        self.asked.append(tuple(run.piece.tensor for run in runs))
        return super().ask(link, message, answer)


def test_a_sample_is_of_the_two_layers_with_most_to_compute_whose_weights_are_small() -> None:
    head = nn.Linear(64, 50_000)  # 12.8 MB: as much to compute as the second, but a worker would make it up each time
    layers = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 4, 1), nn.AdaptiveAvgPool2d(4), nn.Flatten(), head
    taken = capture_model(nn.Sequential(*layers).eval(), torch.zeros(1, 3, 16, 16))
    worker = Worker()
    sampled = profiler.sample_seconds(cast(Coordinator, worker), taken, [0, 1])
    first, second = [layer.name for layer in taken.graph.layers if layer.op == "conv"][:2]
    assert worker.asked == [(first, second)] * 2
    assert sampled == {0: 2 * LAYER_S, 1: 2 * LAYER_S}


def test_a_network_of_heavy_layers_alone_has_no_sample() -> None:
    taken = capture_model(nn.Linear(64, 50_000).eval(), torch.zeros(1, 64))
    worker = Worker()
    assert profiler.sample_seconds(cast(Coordinator, worker), taken, [0]) == {0: 0.0}
    assert worker.asked == []
