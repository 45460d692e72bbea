"""The answer's error along a group's curve, from a few points where it was tried."""

from __future__ import annotations

import pytest

from edgedi.transforms.prune.curves import answer_errors


@pytest.mark.parametrize(
    ("errors", "tried", "wanted"),
    [
        ([0.0, 1.0, 2.0, 4.0], {0: 0.0, 3: 8.0}, [0, 2, 4, 8]),  # as the readers' errors go
        ([0.0, 1.0, 2.0, 4.0], {0: 0.0, 1: 5.0, 3: 8.0}, [0, 5, 6, 8]),  # through every point
        ([0.0, 1.0, 2.0, 4.0], {0: 0.0, 1: 3.0, 2: 2.0, 3: 8.0}, [0, 3, 3, 8]),  # it never falls
        ([0.0, 1.0, 2.0, 4.0], {0: 0.0, 1: 3.0, 2: 6.0}, [0, 3, 6, 12]),  # after the last as before
        ([0.0, 0.0, 0.0], {0: 0.0, 2: 0.0}, [0, 0, 0]),  # dead channels
        ([0.0], {0: 0.0}, [0]),
    ],
)
def test_between_points_it_goes_as_the_readers_errors(
    errors: list[float], tried: dict[int, float], wanted: list[float]
):
    assert answer_errors(errors, tried) == pytest.approx(wanted)
