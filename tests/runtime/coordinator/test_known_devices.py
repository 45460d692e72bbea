"""Devices are measured once, and again where they turn out to have been disturbed then."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import nn

from edgedi.partition.capture.capture import Capture, capture_model
from edgedi.partition.cost.profile import DeviceProfile
from edgedi.partition.plan.program import Program
from edgedi.runtime.coordinator import known_devices
from edgedi.runtime.coordinator.coordinator import Coordinator
from edgedi.runtime.coordinator.known_devices import FASTER_BY, TELLING_S, Kept, KnownDevices
from edgedi.runtime.coordinator.profiler import NUM_SAMPLED
from edgedi.runtime.execution.groups import LEAST_RUNS
from edgedi.runtime.wire.messages import Measure, Measured, Welcome

WELCOME = Welcome(
    wire_version=1, software_version="1", name="a", device="cpu", threads=1, memory_limit_bytes=None, fingerprint="f"
)
BAD_SAMPLE = '{"sample_s": NaN, "profile": ' + json.dumps(DeviceProfile(name="a").to_dict()) + "}"
BOTH = {0: WELCOME, 1: replace(WELCOME, name="b", memory_limit_bytes=1000)}


class Devices:
    """Take so many seconds for each layer, by link, and count how often they were measured and sampled."""

    def __init__(self, layer_s: dict[int, float]) -> None:
        self.layer_s = layer_s
        self.of_samples_s: dict[int, Iterator[float]] = {}
        """What a link's next samples take for each layer, where that is another time."""
        self.sampled: list[int] = []
        self.measured: list[int] = []

    def ask(self, link: int, message: Measure, answer: type[Measured]) -> Future[Measured]:
        pieces = [instruction.piece for instruction in Program.parse(message.program).instructions]
        layer_s = self.layer_s[link]
        if all(piece.dim < 0 for piece in pieces):
            is_sample = len(pieces) <= NUM_SAMPLED
            (self.sampled if is_sample else self.measured).append(link)
            layer_s = next(self.of_samples_s[link]) if is_sample and link in self.of_samples_s else layer_s
        told: Future[Measured] = Future()
        told.set_result(
            Measured(
                seconds=tuple(
                    (p.tensor, "whole" if p.dim < 0 else str(p.dim), max(1, len(p.interval)), layer_s) for p in pieces
                ),
                engine_factor=1.0,
            )
        )
        return told


@pytest.fixture
def taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Capture:
    monkeypatch.setattr(known_devices, "CACHE_FOLDER", tmp_path)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3)).eval()
    return capture_model(network, torch.zeros(1, 3, 16, 16))


def session(devices: Devices, said: list[str] | None = None) -> KnownDevices:
    return KnownDevices(cast(Coordinator, devices), ([] if said is None else said).append)


def seconds(known: KnownDevices, taken: Capture, welcomes: dict[int, Welcome]) -> list[float]:
    """Of the first layer, by each worker."""
    layer = taken.graph.layers[0]
    return [device.seconds(layer, taken.graph.input_shapes(layer)) for device in known.profiles(taken, welcomes)]


def test_a_session_measures_once_and_the_next_one_not_at_all(taken: Capture) -> None:
    devices = Devices({0: 1e-3})
    first = session(devices)
    for _ in range(3):
        assert seconds(first, taken, {0: WELCOME}) == pytest.approx([1e-3])
    assert seconds(session(devices), taken, {0: WELCOME}) == pytest.approx([1e-3])
    assert (devices.measured, devices.sampled) == ([0], [0, 0, 0])  # before and after, and in the next session


def test_two_workers_of_a_kind_have_one_profile_under_their_own_names(taken: Capture) -> None:
    said: list[str] = []
    one, other = session(Devices({0: 1e-3, 1: 1e-3}), said).profiles(taken, BOTH)
    assert said[:2] == ["taking a sample on a, b", "measuring 3 layers on a, b"]
    assert (one.name, one.memory_bytes, other.name, other.memory_bytes) == ("a", None, "b", 1000)
    assert replace(one, name="b", memory_bytes=1000) == other


@pytest.mark.parametrize(
    ("then_s", "now_s", "measured_again"),
    [
        (2e-3, 1e-3, True),  # disturbed then
        (1e-3, 2e-3, False),  # disturbed now
        (1e-3, 1.01 * FASTER_BY * 1e-3, False),  # noise
        (1e-3, 0.99 * FASTER_BY * 1e-3, True),
    ],
)
def test_who_was_disturbed_when_it_was_measured_is_measured_anew(
    taken: Capture, then_s: float, now_s: float, measured_again: bool
) -> None:
    devices = Devices({0: then_s})
    session(devices).profiles(taken, {0: WELCOME})
    devices.layer_s[0] = now_s
    for _ in range(2):  # the second time what was measured anew is kept
        assert seconds(session(devices), taken, {0: WELCOME}) == pytest.approx([now_s if measured_again else then_s])
    assert devices.measured == ([0, 0] if measured_again else [0])


@pytest.mark.parametrize("now_s", [{0: 1e-3, 1: 2e-3}, {0: 2e-3, 1: 1e-3}])
def test_of_two_workers_of_a_kind_the_one_that_is_not_disturbed_counts(
    taken: Capture, tmp_path: Path, now_s: dict[int, float]
) -> None:
    devices = Devices({0: 2e-3, 1: 2e-3})
    session(devices).profiles(taken, BOTH)
    devices.layer_s = now_s
    assert seconds(session(devices), taken, BOTH) == pytest.approx([1e-3, 1e-3])
    assert devices.measured == [0, 1, 0, 1]
    (path,) = tmp_path.glob("*.json")
    assert Kept.from_json(path.read_text()).sample_s == pytest.approx(NUM_SAMPLED * 1e-3)


@pytest.mark.parametrize("disturbed", ["before", "after"])
def test_who_is_disturbed_at_either_end_of_measuring_is_measured_anew(taken: Capture, disturbed: str) -> None:
    devices = Devices({0: 1e-3})
    samples_s = [2e-3, 1e-3] if disturbed == "before" else [1e-3, 2e-3]
    devices.of_samples_s[0] = iter([*samples_s, 1e-3, 1e-3, 1e-3])
    for expected in (1, 2, 2):
        session(devices).profiles(taken, {0: WELCOME})
        assert len(devices.measured) == expected


def test_a_sample_of_next_to_nothing_says_nothing() -> None:
    profile = DeviceProfile(name="a")
    assert Kept(profile=profile, sample_s=0.9 * TELLING_S).holds(0.0)
    assert not Kept(profile=profile, sample_s=1.1 * TELLING_S).holds(0.0)


def test_a_sample_is_no_chain_for_an_engine() -> None:
    assert NUM_SAMPLED < LEAST_RUNS


def test_a_worker_that_joins_is_asked_alone(taken: Capture) -> None:
    devices = Devices({0: 1e-3, 1: 3e-3})
    known = session(devices)
    known.profiles(taken, {0: WELCOME})
    assert seconds(known, taken, {0: WELCOME, 1: replace(WELCOME, fingerprint="g")}) == pytest.approx([1e-3, 3e-3])
    assert (devices.measured, devices.sampled) == ([0, 1], [0, 0, 1, 1])


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"sample_s": 1, "profile": {}}', '{"sample_s": null}', BAD_SAMPLE])
def test_what_is_no_kept_profile_is_measured(taken: Capture, tmp_path: Path, text: str) -> None:
    devices = Devices({0: 1e-3})
    session(devices).profiles(taken, {0: WELCOME})
    (kept,) = tmp_path.glob("*.json")
    kept.write_text(text)
    with pytest.raises(ValueError):
        Kept.from_json(text)
    assert seconds(session(devices), taken, {0: WELCOME}) == pytest.approx([1e-3])
    assert devices.measured == [0, 0]
    assert Kept.from_json(kept.read_text()).sample_s == pytest.approx(2e-3)
