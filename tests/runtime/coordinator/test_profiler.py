"""From what a worker measured to a profile: an engine's share counts, and counts alike when it is probed later."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
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


@pytest.fixture(autouse=True)
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiler, "CACHE_FOLDER", tmp_path)


@pytest.mark.parametrize(
    ("engine_factor", "share", "alone"), [(0.5, 0.5, 1.0), (0.8, 0.8, 1.0), (0.81, 1.0, 0.81), (1.0, 1.0, 1.0)]
)
def test_a_profile_and_a_later_probe_count_an_engine_alike(engine_factor: float, share: float, alone: float) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    taken = capture_model(network, torch.zeros(1, 3, 16, 16))
    asked = cast(Coordinator, OneWorker(engine_factor))
    (device,) = profiler.device_profiles(asked, taken, {0: WELCOME}, lambda line: None)
    probed = profiler.whole_seconds(asked, taken.graph, taken.weights, 0)
    assert device.alone_share == pytest.approx(alone)
    assert set(probed) == {layer.name for layer in taken.graph.layers}
    for layer in taken.graph.layers:
        assert probed[layer.name] == pytest.approx(share * LAYER_S)
        assert device.seconds(layer, taken.graph.input_shapes(layer)) == pytest.approx(share * LAYER_S)
