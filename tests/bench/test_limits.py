"""What stands before a bar, from numbers that are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.limits import Limit, limit_of, main, recorded_limits, wire_seconds

RUN: dict[str, Any] = {
    "machine": {"date": "2026-11-22 02:06 UTC"},
    "settings": {
        "model": "torchvision:vgg16",
        "shapes": [[1, 3, 224, 224]],
        "testbed": {"name": "pi4x2", "devices": [{"slowdown": 10, "link": {"rate_bits_per_s": 8e6}}] * 2},
    },
    "engines": [{"name": "eager", "median_s": 3.0}, {"name": "openvino", "median_s": 1.2}],
    "planners": [
        {"name": "single", "bound_s": 1.1, "median_s": 1.1, "bytes_per_link": {}},
        {"name": "oodp", "bound_s": 0.6, "median_s": 0.9, "bytes_per_link": {"0 -> 1": 30_000, "1 -> 0": 100_000}},
    ],
}


def test_a_run_is_held_against_what_the_best_engine_and_its_slice_take():
    limit = limit_of(RUN, engine_s=1.25, slice_s=0.55, least_speedup=1.6)
    assert limit is not None
    assert limit.name == "pi4x2 vgg16 224, 2026-11-22 02:06"
    assert limit.bar_ms == pytest.approx(750)
    assert limit.wire_ms == pytest.approx(100)
    assert limit.divided_ms == pytest.approx(625)
    assert (limit.engine_ms, limit.slice_ms, limit.bound_ms, limit.measured_ms) == pytest.approx((1250, 550, 600, 900))
    assert limit.executor == "PASS"
    assert limit.verdict == "messages and waiting"
    assert limit_of({**RUN, "planners": RUN["planners"][:1]}, 1.0, 0.5, 1.0) is None


@pytest.mark.parametrize(
    ("slice_ms", "bound_ms", "wire_ms", "measured_ms", "executor", "verdict"),
    [
        (110, 120, 0, 150, "PASS", "computing, in either executor"),
        (120, 105, 0, 150, "PASS", "computing, in either executor"),
        (90, 105, 0, 150, "FAIL", "computing, in our executor"),
        (90, 95, 10, 150, "PASS", "bytes on the wire"),
        (90, 95, 2, 150, "PASS", "messages and waiting"),
        (90, 95, 2, 99, "PASS", "reached"),
        (None, 105, 0, 150, "", "computing"),
        (None, 95, 10, 150, "", "bytes on the wire"),
    ],
)
def test_what_stands_before_the_bar(
    slice_ms: float | None, bound_ms: float, wire_ms: float, measured_ms: float, executor: str, verdict: str
):
    limit = Limit(
        name="x", engine_ms=200, divided_ms=100, bar_ms=100, slice_ms=slice_ms, least_ms=bound_ms, bound_ms=bound_ms,
        wire_ms=wire_ms, measured_ms=measured_ms,
    )  # fmt: skip
    assert (limit.executor, limit.verdict) == (executor, verdict)


def test_a_plan_that_computes_more_than_another_to_spare_messages_is_told():
    limit = Limit(
        name="x", engine_ms=200, divided_ms=100, bar_ms=100, slice_ms=None, least_ms=95, bound_ms=105, wire_ms=1,
        measured_ms=150,
    )  # fmt: skip
    assert limit.verdict == "messages: computing more spares some"


def test_a_cable_carries_all_that_its_device_sends_and_the_coordinator_is_on_the_first():
    bytes_per_link = {
        "home -> 0": 1_000, "home -> 1": 200, "0 -> 1": 30, "1 -> 2": 400, "2 -> 1": 5, "0 -> home": 9, "2 -> home": 60,
    }  # fmt: skip
    devices = [{"link": {"rate_bits_per_s": 8}}] * 3
    assert wire_seconds(bytes_per_link, devices) == 400
    assert wire_seconds({"home -> 0:here": 1_000, "home -> 1:pi": 200, "home -> 2:pi": 300}, devices) == 500
    assert wire_seconds({"home -> 1": 100, "home -> 2": 300}, [*devices[:2], {"link": {"rate_bits_per_s": 2}}]) == 1200
    assert wire_seconds({}, devices) == 0
    assert wire_seconds(bytes_per_link, []) == 0


def test_of_runs_on_another_machine_their_own_numbers_are_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    slow = {"slowdown": 20, "link": {"rate_bits_per_s": 8e6}}
    devices = [*RUN["settings"]["testbed"]["devices"], slow]
    settings = {**RUN["settings"], "testbed": {"name": "pi3x2_pi4x2@100M", "devices": devices}}
    (tmp_path / "pi3x2-pi4x2-100M-vgg16.json").write_text(json.dumps({**RUN, "settings": settings}))
    (tmp_path / "of-no-case.json").write_text(json.dumps(RUN))
    (tmp_path / "other.json").write_text("[1]")
    (limit,) = recorded_limits([tmp_path])
    assert (limit.engine_ms, limit.divided_ms, limit.slice_ms) == (pytest.approx(1200), pytest.approx(480), None)
    assert limit.bar_ms == pytest.approx(1200 / (0.85 * 10 / 3))
    assert limit.verdict == "computing"
    main(["--recorded", "--results", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "computing" in printed
    assert "a slice" not in printed


def test_a_folder_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["--results", str(tmp_path / "nowhere")])
    assert ended.value.code == 2
    assert "no such folder" in capsys.readouterr().err


def test_folders_without_a_run_that_counts_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["--recorded", "--results", str(tmp_path)])
    assert ended.value.code == 2
    assert "no run in these folders" in capsys.readouterr().err
