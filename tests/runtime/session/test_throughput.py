"""Throughput on real workers: whole requests each or a pipeline, answers in order, and workers that are lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from edgedi import distribute
from edgedi.errors import WorkerLost
from edgedi.partition.cost.profile import ClusterProfile, LinkProfile
from edgedi.partition.graph.geometry import Interval
from edgedi.partition.plan.placement import Placement, Replica
from edgedi.partition.plan.plan import HOME, Plan, Segment
from edgedi.runtime.coordinator.dealer import Dealer
from edgedi.runtime.session import session as session_module
from edgedi.runtime.session.session import Session
from edgedi.runtime.session.verify import relative_difference
from edgedi.runtime.worker.local_workers import LocalWorkers
from tests.runtime.networks import image, small

TOLERANCE = 2e-5
EQUAL = ClusterProfile.uniform(2, flops_per_s=1e9)
UPHILL = EQUAL.with_links({(HOME, 1): LinkProfile(bytes_per_s=1e3)})
"""Worker 1 can be reached through worker 0 only, so to say: a pipeline is best."""


@pytest.fixture(scope="module")
def addresses() -> Iterator[list[str]]:
    started = LocalWorkers(2)
    yield started.addresses
    started.stop()


def own(model: nn.Module, x: torch.Tensor) -> object:
    with torch.inference_mode():
        return model(x)


def require_in_order(session: Session, model: nn.Module, count: int) -> None:
    """``count`` answers of a stream, each the model's own to the input in its place."""
    images = [image(seed=seed) for seed in range(count)]
    answers = list(session.stream(images))
    assert len(answers) == count
    for x, y in zip(images, answers, strict=True):
        assert relative_difference(y, own(model, x)) <= TOLERANCE


# --- dealing  ---


@dataclass(eq=False)
class Running:
    """As much of a deployment as a dealer looks at."""

    replica: Replica
    links: tuple[int, ...]
    refused: bool = False
    outstanding: int = 0


def running(rate_per_s: float, *links: int) -> Running:
    plan = Plan(num_workers=len(links), segments=(Segment(layers=Interval(0, 1), axis="whole", on=0),))
    return Running(Replica(workers=links, plan=plan, rate_per_s=rate_per_s, latency_s=1 / rate_per_s), links)


def test_a_dealer_counts_what_it_gives_and_gets_back() -> None:
    slow, fast = running(1.0, 0), running(3.0, 1)
    dealer = Dealer([slow, fast])  # type: ignore[list-item]
    assert [dealer.take() for _ in range(4)] == [fast, fast, slow, fast]
    assert (slow.outstanding, fast.outstanding) == (1, 3)
    for _ in range(3):
        dealer.give_back(fast)  # type: ignore[arg-type]
    assert dealer.take() is fast
    assert dealer.main is fast
    assert dealer.placement == Placement(replicas=(slow.replica, fast.replica))


def test_a_refused_replica_gets_nothing_more() -> None:
    slow, fast = running(1.0, 0), running(3.0, 1)
    dealer = Dealer([slow, fast])  # type: ignore[list-item]
    fast.refused = True
    assert dealer.take() is slow
    assert dealer.open
    slow.refused = True
    assert dealer.take() is None
    assert not dealer.open


def test_a_lost_worker_takes_its_replica_along() -> None:
    alone, pair = running(1.0, 0), running(3.0, 1, 2)
    dealer = Dealer([alone, pair])  # type: ignore[list-item]
    assert dealer.drop(lambda link: link == 2) == (pair,)
    assert dealer.deployments == (alone,)
    assert dealer.drop(lambda link: link == 2) == ()


# --- sessions  ---


def test_every_worker_answers_whole_requests_and_the_order_stays(addresses: list[str]) -> None:
    model = small()
    with distribute(model, image(), addresses, profile=EQUAL, objective="throughput") as session:
        assert [replica.workers for replica in session.placement.replicas] == [(0,), (1,)]
        assert session.plan.num_workers == 1
        before = session.statistics().workers
        require_in_order(session, model, 24)
        statistics = session.statistics()
    assert statistics.local_answers == 0
    counted = {name: values["requests"] - before[name]["requests"] for name, values in statistics.workers.items()}
    assert sum(counted.values()) == 24
    assert min(counted.values()) > 0
    assert sum(values["sent_bytes"] for values in statistics.workers.values()) <= 24 * 40 + sum(
        values["sent_bytes"] for values in before.values()
    )  # ten numbers each: nothing passed between the workers


def test_a_pipeline_answers_in_order(addresses: list[str]) -> None:
    model = small()
    with distribute(model, image(), addresses, profile=UPHILL, planner="single", objective="throughput") as session:
        (replica,) = session.placement.replicas
        assert replica.plan.planner == "pipeline"
        assert [segment.on for segment in replica.plan.segments] == [0, 1]
        require_in_order(session, model, 12)
        assert session.statistics().local_answers == 0


def test_each_replica_is_compared_once(addresses: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def counted(answer: object, own_answer: object) -> object:
        compared.append(answer)
        return session_module_compare(answer, own_answer)

    session_module_compare = session_module.compare
    monkeypatch.setattr(session_module, "compare", counted)
    model = small()
    with distribute(model, image(), addresses, profile=EQUAL, objective="throughput", max_in_flight=2) as session:
        require_in_order(session, model, 12)
        assert all(deployment.verified for deployment in session._plans.latest().deployments)
    assert len(compared) == 2


def test_a_replica_that_answers_wrong_is_left_out_and_the_other_goes_on(
    addresses: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first comparison is made to fail: its request is answered here, the rest by the other worker."""
    right, calls = session_module.compare, []

    def fails_first(answer: torch.Tensor, own_answer: torch.Tensor) -> object:
        calls.append(answer)
        return right(answer if len(calls) > 1 else answer + 1, own_answer)

    monkeypatch.setattr(session_module, "compare", fails_first)
    model = small()
    with distribute(model, image(), addresses, profile=EQUAL, objective="throughput") as session:
        for seed in range(4):
            x = image(seed=seed)
            assert relative_difference(session(x), own(model, x)) <= TOLERANCE
        dealer = session._plans.latest()
        assert sorted(deployment.refused for deployment in dealer.deployments) == [False, True]
        assert session.statistics().local_answers == 1
    assert "differs from the model's" in caplog.text


def test_a_lost_worker_drops_its_replica_and_the_other_is_not_planned_anew() -> None:
    started, model, x = LocalWorkers(2), small(), image()
    try:
        with distribute(model, x, started.addresses, profile=EQUAL, objective="throughput") as session:
            require_in_order(session, model, 4)
            kept = session._plans.latest().deployments[0]
            for process in started.process_ids:  # nobody answers the first one before the second is dealt
                os.kill(process, signal.SIGSTOP)
            futures = [session.submit(x) for _ in range(2)]  # one of them at the worker that is to die
            os.kill(started.process_ids[1], signal.SIGKILL)
            os.kill(started.process_ids[0], signal.SIGCONT)
            for future in futures:
                assert relative_difference(future.result(30), own(model, x)) <= TOLERANCE
            assert session.statistics().local_answers == 1
            require_in_order(session, model, 4)
            assert session.statistics().local_answers == 1
            assert session._plans.latest().deployments == (kept,)
            assert [replica.workers for replica in session.placement.replicas] == [(0,)]
    finally:
        started.stop()


def test_a_pipeline_that_loses_a_worker_is_placed_anew_on_the_others() -> None:
    started, model, x = LocalWorkers(2), small(), image()
    try:
        with distribute(
            model, x, started.addresses, profile=UPHILL, planner="single", objective="throughput"
        ) as session:
            assert relative_difference(session(x), own(model, x)) <= TOLERANCE
            os.kill(started.process_ids[0], signal.SIGSTOP)
            future = session.submit(x)
            os.kill(started.process_ids[0], signal.SIGKILL)
            assert relative_difference(future.result(30), own(model, x)) <= TOLERANCE
            require_in_order(session, model, 3)
            assert session.plan.num_workers == 1
            assert session.statistics().local_answers == 1
    finally:
        started.stop()


def test_nobody_left_is_said_where_local_answers_are_forbidden() -> None:
    started, model, x = LocalWorkers(1), small(), image()
    one = ClusterProfile.uniform(1)
    try:
        with distribute(model, x, started.addresses, profile=one, objective="throughput", allow_local=False) as session:
            assert session.placement.rate_per_s > 0
            os.kill(started.process_ids[0], signal.SIGSTOP)
            future = session.submit(x)
            os.kill(started.process_ids[0], signal.SIGKILL)
            with pytest.raises(WorkerLost, match="closed the connection"):
                future.result(30)
            with pytest.raises(WorkerLost, match="no worker is left"):
                session(x)
            with pytest.raises(WorkerLost, match="every worker is lost"):
                _ = session.placement
    finally:
        started.stop()


def test_an_unknown_objective_is_refused_before_anything_starts() -> None:
    with pytest.raises(ValueError, match="objective='speed': accepted are latency, throughput"):
        distribute(small(), image(), ["127.0.0.1:5555"], objective="speed")


def test_latency_is_a_placement_of_one(addresses: list[str]) -> None:
    with distribute(small(), image(), addresses, profile=EQUAL) as session:
        assert [(replica.workers, replica.plan) for replica in session.placement.replicas] == [((0, 1), session.plan)]
