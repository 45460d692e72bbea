"""What compaction and partition give together, from numbers that are known."""

from __future__ import annotations

from typing import Any

import pytest

from bench.together import gain_of, table_of


def run(single_s: float, engine_s: float, split_s: float, rounds: int = 6) -> dict[str, Any]:
    return {
        "settings": {"testbed": {"devices": [{}] * 4}},
        "planners": [
            {"name": "single", "seconds": [single_s] * rounds},
            {"name": "oodp", "seconds": [split_s] * rounds},
        ],
        "engines": [{"name": "eager", "seconds": [9.0] * rounds}, {"name": "openvino", "seconds": [engine_s] * rounds}],
    }


def test_the_gain_is_what_compaction_gives_times_what_partition_adds():
    gain = gain_of("pi4x4", run(1.3, 1.2, 0.5), run(0.3, 0.4, 0.1), original_bytes=100, split_bytes=40)
    assert gain.num_devices == 4
    assert gain.compaction == pytest.approx(4)  # the engine's 1.2 s, the compact network's 0.3 s on one worker
    assert gain.partition == pytest.approx(3)
    assert gain.total.median == pytest.approx(gain.compaction * gain.partition) == pytest.approx(12)
    assert gain.memory == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("num_devices", "split_s", "split_bytes", "above", "fits"),
    [
        (4, 0.29, 50, "PASS", True),
        (4, 0.3, 51, "FAIL", False),  # exactly as many times as there are devices is not above
        (2, 0.3, 51, "PASS", True),  # the bar on memory is on four devices
    ],
)
def test_bars_are_on_the_gain_and_on_four_devices_memory(
    num_devices: int, split_s: float, split_bytes: int, above: str, fits: bool
):
    compact = run(0.3, 0.4, split_s)
    compact["settings"]["testbed"]["devices"] = [{}] * num_devices
    gain = gain_of("pi", run(1.3, 1.2, 0.5), compact, original_bytes=100, split_bytes=split_bytes)
    assert (gain.verdict, gain.fits) == (above, fits)
    cells = [str(next(iter(column.cells))) for column in table_of([gain]).columns]
    assert cells[-3] == ("4.00 [4.00, 4.00]" if split_s == 0.3 else "4.14 [4.14, 4.14]")
    assert cells[-2] == above
    assert cells[-1] == ("0.51" if num_devices == 2 else f"{split_bytes / 100:.2f} {'PASS' if fits else 'FAIL'}")


def test_a_gain_that_rounds_do_not_decide_is_said_to_be_undecided():
    few = gain_of("pi4x4", run(1.3, 1.2, 0.5, 5), run(0.3, 0.4, 0.1, 5), original_bytes=100, split_bytes=40)
    spread = run(0.3, 0.4, 0.3)
    spread["planners"][1]["seconds"] = [0.2, 0.25, 0.28, 0.32, 0.35, 0.4]
    wide = gain_of("pi4x4", run(1.3, 1.2, 0.5), spread, original_bytes=100, split_bytes=40)
    assert few.total.low == pytest.approx(12)
    assert wide.total.low < 4 < wide.total.high
    assert (few.verdict, wide.verdict) == ("UNDECIDED", "UNDECIDED")
