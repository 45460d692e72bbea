"""What compaction and partition give together, from numbers that are known."""

from __future__ import annotations

from typing import Any

import pytest

from bench.together import gain_of, table_of


def run(single_s: float, engine_s: float, split_s: float) -> dict[str, Any]:
    return {
        "settings": {"testbed": {"devices": [{}] * 4}},
        "planners": [{"name": "single", "median_s": single_s}, {"name": "oodp", "median_s": split_s}],
        "engines": [{"name": "eager", "median_s": 9.0}, {"name": "openvino", "median_s": engine_s}],
    }


def test_the_gain_is_what_compaction_gives_times_what_partition_adds():
    gain = gain_of("pi4x4", run(1.3, 1.2, 0.5), run(0.3, 0.4, 0.1), original_bytes=100, split_bytes=40)
    assert gain.num_devices == 4
    assert gain.compaction == pytest.approx(4)  # the engine's 1.2 s, the compact network's 0.3 s on one worker
    assert gain.partition == pytest.approx(3)
    assert gain.total == pytest.approx(gain.compaction * gain.partition) == pytest.approx(12)
    assert gain.memory == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("num_devices", "split_s", "split_bytes", "above", "fits"),
    [
        (4, 0.29, 50, True, True),
        (4, 0.3, 51, False, False),  # exactly as many times as there are devices is not above
        (2, 0.3, 51, True, True),  # the bar on memory is on four devices
    ],
)
def test_bars_are_on_the_gain_and_on_four_devices_memory(
    num_devices: int, split_s: float, split_bytes: int, above: bool, fits: bool
):
    compact = run(0.3, 0.4, split_s)
    compact["settings"]["testbed"]["devices"] = [{}] * num_devices
    gain = gain_of("pi", run(1.3, 1.2, 0.5), compact, original_bytes=100, split_bytes=split_bytes)
    assert (gain.is_above_n, gain.fits) == (above, fits)
    cells = [str(next(iter(column.cells))) for column in table_of([gain]).columns]
    assert cells[-2] == ("PASS" if above else "FAIL")
    assert cells[-1] == ("0.51" if num_devices == 2 else f"{split_bytes / 100:.2f} {'PASS' if fits else 'FAIL'}")
