"""What compaction and partition give together, from numbers that are known."""

from __future__ import annotations

from typing import Any

import pytest

from bench.together import gain_of


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
