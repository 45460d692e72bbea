"""When a target is reached, and what is said of one that is not."""

from __future__ import annotations

import pytest

from edgedi.transforms.size import Size, Target

BOTH = Target(macs=50, parameters=7)


@pytest.mark.parametrize(
    ("target", "reached"),
    [
        (Target(), True),
        (Target(macs=50), True),
        (Target(macs=49), False),
        (Target(parameters=8), True),
        (Target(parameters=7), False),
        (Target(macs=50, parameters=8), True),
        (BOTH, False),
        (Target(macs=49, parameters=8), False),
        (Target(parameters=0), False),
    ],
)
def test_a_target_is_reached_where_nothing_asked_for_is_exceeded(target: Target, reached: bool):
    assert target.reached(Size(macs=50, parameters=8, num_bytes=10**9)) is reached


def test_a_size_is_told_against_what_was_asked():
    size = Size(macs=50, parameters=8)
    assert BOTH.against(size) == ((50, 50, "MACs"), (8, 7, "parameters"))
    assert Target(parameters=7).against(size) == ((8, 7, "parameters"),)
    assert Target().against(size) == ()
