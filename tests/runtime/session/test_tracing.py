"""Traces of real sessions: every participant's work is in them, in order, and a bad place is named before a request."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgedi import Session, distribute
from edgedi.errors import WorkerLost
from edgedi.partition.plan.plan import HOME
from edgedi.partition.plan.program import Recv
from edgedi.runtime.session.trace import Span
from edgedi.runtime.worker.local_workers import LocalWorkers
from tests.runtime.networks import image, small

NUM_WORKERS = 2


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    """Without engines, which note a chain of layers as one."""
    workers = LocalWorkers(NUM_WORKERS, options=("--engine", "torch"))
    try:
        with distribute(
            small(), image(height=64, width=64), workers.addresses, planner="equal", allow_local=False
        ) as s:
            yield s
    finally:
        workers.stop()


@pytest.fixture(scope="module")
def spans(session: Session) -> tuple[Span, ...]:
    return session.spans(image(height=64, width=64))


def of(spans: tuple[Span, ...], participant: int, kind: str) -> list[Span]:
    return [span for span in spans if (span.participant, span.kind) == (participant, kind)]


def test_everybody_computes_and_sends_what_the_programs_say(session: Session, spans: tuple[Span, ...]) -> None:
    deployment = session._plans.latest().main
    for participant, program in deployment.programs.programs.items():
        num_recv = sum(isinstance(i, Recv) for i in program.instructions)
        noted = of(spans, participant, "compute") + of(spans, participant, "send")
        assert len(noted) == len(program.instructions) - num_recv
        assert len(of(spans, participant, "wait")) <= num_recv
    assert {span.participant for span in spans} == {HOME, 0, 1}
    assert {span.segment for span in spans} == set(range(len(session.plan.segments)))
    assert len({span.request for span in spans}) == 1


def test_nobody_does_two_things_at_once(spans: tuple[Span, ...]) -> None:
    for participant in (HOME, 0, 1):
        mine = [span for span in spans if span.participant == participant]
        assert all(a.stop_s <= b.start_s for a, b in itertools.pairwise(mine))
        assert mine[0].start_s >= 0.0


def test_one_clock_a_piece_leaves_before_it_is_there(spans: tuple[Span, ...]) -> None:
    """Both workers and the coordinator are on this machine: what home waits for cannot come before it was sent."""
    left_s = {span.name.partition(" to ")[0]: span.start_s for span in spans if span.name.endswith(" to home")}
    waits = [span for span in of(spans, HOME, "wait") if span.name.partition(" from ")[0] in left_s]
    assert waits
    assert all(left_s[span.name.partition(" from ")[0]] <= span.stop_s for span in waits)


def test_the_file_holds_the_latest_request_again(session: Session, tmp_path: Path) -> None:
    session(image(height=64, width=64, seed=3))
    requests = session.statistics().requests
    session.trace(tmp_path / "run.json")
    assert session.statistics().requests == requests + 1
    read = json.loads((tmp_path / "run.json").read_text())
    events = [event for event in read["traceEvents"] if event["ph"] == "X"]
    assert {event["pid"] for event in events} == {0, 1, 2}
    assert read["otherData"]["clock_error_s"] == {"home": 0.0, "0:local-0": 0.0, "1:local-1": 0.0}


def test_other_requests_are_not_noted_and_answers_stay_right(session: Session) -> None:
    before, x = session(image(height=64, width=64)), image(height=64, width=64)
    session.spans(x)
    assert session(x).equal(before)


@pytest.mark.parametrize(
    ("path", "words"), [("no/folder/run.json", "there is no folder"), (".", "is a folder: name a file in it")]
)
def test_a_place_that_cannot_hold_a_trace_costs_no_request(
    session: Session, tmp_path: Path, path: str, words: str
) -> None:
    requests = session.statistics().requests
    with pytest.raises(ValueError, match=words):
        session.trace(tmp_path / path)
    assert session.statistics().requests == requests


def test_without_a_request_there_is_nothing_to_run_again(tmp_path: Path) -> None:
    with distribute(small(), image(), 1, planner="single") as fresh:
        with pytest.raises(ValueError, match="there is no request to run again yet: call the session first"):
            fresh.trace(tmp_path / "run.json")
        fresh.trace(tmp_path / "run.json", image())
        assert json.loads((tmp_path / "run.json").read_text())["traceEvents"]


def test_a_request_that_no_worker_ran_has_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    with distribute(small(), image(), 1, planner="single") as lonely:
        monkeypatch.setattr(lonely._plans, "deal", lambda inputs: (None, None))
        with pytest.raises(WorkerLost, match="answered by the model here, not by workers"):
            lonely.spans(image())
