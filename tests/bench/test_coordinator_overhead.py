"""Where the time of a request goes: parts that add up, from spans that are known."""

from __future__ import annotations

import pytest

from bench.coordinator_overhead import PARTS, parts_of
from edgedi.partition.plan.plan import HOME
from edgedi.runtime.session.trace import Span


def span(participant: int, kind: str, start_s: float, stop_s: float) -> Span:
    return Span(
        participant=participant, kind=kind, name="x", segment=0, start_s=start_s, stop_s=stop_s, request=1
    )  # fmt: skip


def test_parts_add_up_to_where_the_answer_is_here():
    """Sending may end after the worker has begun: the way there begins where sending does."""
    spans = [
        span(HOME, "send", 0.1, 0.9), span(HOME, "wait", 0.9, 2.0), span(0, "wait", 0.2, 0.4),
        span(0, "compute", 0.4, 1.1), span(0, "send", 1.1, 1.5),
    ]  # fmt: skip
    assert parts_of(spans) == pytest.approx((0.1, 0.3, 0.7, 0.9))
    assert sum(parts_of(spans)) == pytest.approx(2.0)
    assert len(parts_of(spans)) == len(PARTS)
