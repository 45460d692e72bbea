"""Sessions that plan anew when a device becomes slow: on real workers that say what the test wants of their speed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from edgedi import ClusterProfile, LayerGraph, Plan, Session, capture, distribute, lower, plan
from edgedi.errors import WorkerLost
from edgedi.partition.cost.busy import busy_seconds
from edgedi.runtime.coordinator.dealer import Dealer
from edgedi.runtime.coordinator.deployment import Deployer, Deployment
from edgedi.runtime.session import rebalance as rebalance_module
from edgedi.runtime.session import session as session_module
from edgedi.runtime.session.balance_state import COOL_DOWN, EVERY_REQUESTS, PROBE_EVERY, REPLAN_WITHIN_REQUESTS
from edgedi.runtime.session.verify import Comparison, relative_difference
from edgedi.runtime.wire.messages import Message, Statistics, busy_s_of, requests_of
from edgedi.runtime.worker.options import WorkerOptions
from edgedi.runtime.worker.worker import Worker
from tests.runtime.networks import image, small

TOLERANCE = 2e-5
FREE_LINKS: dict[str, float] = {"latency_s": 1e-6, "bytes_per_s": 1e12, "message_cpu_s": 0.0}
PROFILE = ClusterProfile.uniform(2, flops_per_s=1e7, seconds_per_layer=0.0, **FREE_LINKS)
"""Devices so slow, and links so fast, that splitting pays by all means, and seconds that the tests' workers obey."""

SLOWED = PROFILE.with_speeds((1.0, 1 / 3))
"""The same devices, of which the second is known to be three times as slow."""
WITHIN = 1.15
"""What a request may take once a session has planned anew, against the ideal plan for the devices' true speeds."""

Pledged = dict[tuple[int, int], float]
"""By epoch and link: seconds per request that a worker is predicted to be busy at its profile's speed."""


class Scripted(Worker):
    """Computes as fast as it can, and says that it took ``slowdown`` times as long as its profile predicts."""

    def __init__(self, link: int, pledged: Pledged) -> None:
        super().__init__(WorkerOptions(name=f"scripted-{link}"))
        self.link, self.pledged, self.slowdown = link, pledged, 1.0
        self.told: dict[int, tuple[int, float]] = {}

    def _send(self, link: bytes, message: Message) -> None:
        if isinstance(message, Statistics):
            message = replace(message, values=self._scripted(message.values))
        super()._send(link, message)

    def _scripted(self, values: dict[str, Any]) -> dict[str, Any]:
        said = dict(values)
        for epoch in range(100):
            if requests_of(epoch) in values:
                before, busy_s = self.told.get(epoch, (0, 0.0))
                count = values[requests_of(epoch)]
                busy_s += (count - before) * self.pledged[epoch, self.link] * self.slowdown
                self.told[epoch] = (count, busy_s)
                said[busy_s_of(epoch)] = busy_s
        return said


@dataclass(slots=True)
class Bed:
    """Two scripted workers."""

    workers: list[Scripted]
    addresses: list[str]


@pytest.fixture
def bed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bed]:
    pledged: Pledged = {}
    prepared = Deployer._prepared

    def noted(self: Deployer, *arguments: Any) -> Deployment:
        made = prepared(self, *arguments)
        for link, slowdown, seconds in zip(made.links, made.slowdowns, made.predicted_busy_s, strict=True):
            pledged[made.epoch, link] = seconds / slowdown
        return made

    monkeypatch.setattr(Deployer, "_prepared", noted)
    workers = [Scripted(link, pledged) for link in range(2)]
    addresses = [f"127.0.0.1:{worker.bind()}" for worker in workers]
    threads = [threading.Thread(target=worker.serve) for worker in workers]
    for thread in threads:
        thread.start()
    yield Bed(workers, addresses)
    for worker, thread in zip(workers, threads, strict=True):
        worker.stop()
        thread.join()


def own(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(x)


def settle(session: Session) -> None:
    """Return when the rebalancer has done what it was woken for."""
    assert session._rebalancer is not None
    session._rebalancer._thread.submit(lambda: None).result()


def readings(session: Session, x: torch.Tensor, count: int) -> torch.Tensor:
    """So many readings, each after its requests; the last answer."""
    for _ in range(count * EVERY_REQUESTS):
        answer = session(x)
        if session._tally.read().requests % EVERY_REQUESTS == 0:
            settle(session)
    return answer


def shares(plan: Plan) -> tuple[int, int]:
    """Elements that each worker owns, over all split segments."""
    split = [segment for segment in plan.segments if segment.on is None]
    return sum(len(s.shares[0]) for s in split), sum(len(s.shares[1]) for s in split)


def busiest_s(graph: LayerGraph, chosen: Plan) -> float:
    """Seconds per request of the worker that a plan keeps busiest, where the second is slow."""
    return max(busy_seconds(graph, SLOWED, chosen, lower(chosen, graph)))


def test_a_slow_worker_gets_less_and_all_of_it_back_when_it_recovers(bed: Bed) -> None:
    model, x = small(), image(height=64, width=64)
    expected, graph = own(model, x), capture(model, x)
    with distribute(model, x, bed.addresses, profile=PROFILE) as session:
        readings(session, x, 2)
        first = session.plan
        assert shares(first)[0] == pytest.approx(shares(first)[1], rel=0.2)
        bed.workers[1].slowdown = 3.0
        answer = readings(session, x, REPLAN_WITHIN_REQUESTS // EVERY_REQUESTS)
        assert session.statistics().replans == 1
        assert shares(session.plan)[0] > 1.8 * shares(session.plan)[1]
        assert relative_difference(answer, expected) <= TOLERANCE
        readings(session, x, COOL_DOWN)
        statistics = session.statistics()
        assert statistics.measured_busy_s == pytest.approx(statistics.predicted_busy_s)
        assert statistics.predicted_busy_s["0:scripted-0"] == pytest.approx(
            statistics.predicted_busy_s["1:scripted-1"], rel=0.25
        )
        ideal = plan(graph, SLOWED)
        assert session.plan.predicted_s <= WITHIN * ideal.predicted_s
        assert max(statistics.measured_busy_s.values()) <= WITHIN * busiest_s(graph, ideal)
        assert busiest_s(graph, first) > 1.4 * busiest_s(graph, ideal)  # it had to be planned anew for that
        bed.workers[1].slowdown = 1.0
        answer = readings(session, x, REPLAN_WITHIN_REQUESTS // EVERY_REQUESTS)
        assert session.statistics().replans == 2
        assert session.plan.digest == first.digest
        assert relative_difference(answer, expected) <= TOLERANCE
        readings(session, x, 10)
        statistics = session.statistics()
    assert (statistics.replans, statistics.local_answers) == (2, 0)
    assert statistics.requests == (2 + 3 + COOL_DOWN + 3 + 10) * EVERY_REQUESTS  # trials are not counted


def test_the_old_epoch_is_freed_and_the_new_one_verified_before_anybody_gets_an_answer_of_it(bed: Bed) -> None:
    model, x = small(), image(height=64, width=64)
    with distribute(model, x, bed.addresses, profile=PROFILE) as session:
        bed.workers[0].slowdown = 3.0
        readings(session, x, 3)
        (deployment,) = session._plans.latest().deployments
        assert (deployment.epoch, deployment.verified, deployment.refused) == (1, True, False)
        assert deployment.slowdowns == (pytest.approx(3.0), 1.0)
        for values in session.statistics().workers.values():
            assert requests_of(1) in values
            assert requests_of(0) not in values


def test_no_request_is_lost_while_plans_change(bed: Bed) -> None:
    model, images = small(), [image(height=64, width=64, seed=seed) for seed in range(8)]
    expected = [own(model, x) for x in images]
    with distribute(model, images[0], bed.addresses, profile=PROFILE) as session:
        bed.workers[1].slowdown = 5.0
        for number, answer in enumerate(session.stream(images[k % 8] for k in range(200))):
            assert relative_difference(answer, expected[number % 8]) <= TOLERANCE
        settle(session)
        readings(session, images[0], 3)
        statistics = session.statistics()
    assert statistics.replans == 1
    assert statistics.local_answers == 0
    assert statistics.requests >= 200 + 3 * EVERY_REQUESTS


def test_a_new_plan_with_wrong_numbers_is_freed_and_the_old_one_stays(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = small(), image(height=64, width=64)
    with distribute(model, x, bed.addresses, profile=PROFILE) as session:
        session(x)
        before = session.plan
        wrong = Comparison(equal=False, difference=1.0, tolerance=TOLERANCE)
        monkeypatch.setattr(session_module, "compare", lambda answer, own: wrong)
        bed.workers[1].slowdown = 3.0
        answer = readings(session, x, 4)
        statistics = session.statistics()
        assert session.plan == before
    assert (statistics.replans, statistics.local_answers) == (0, 0)
    assert relative_difference(answer, own(model, x)) <= TOLERANCE
    assert all(requests_of(0) in values and requests_of(1) not in values for values in statistics.workers.values())


def test_a_new_plan_that_no_worker_takes_leaves_the_old_one(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **more: Any) -> None:
        raise WorkerLost("no room")

    model, x = small(), image(height=64, width=64)
    with distribute(model, x, bed.addresses, profile=PROFILE) as session:
        session(x)
        monkeypatch.setattr(session._deployer, "redeploy", fail)
        bed.workers[1].slowdown = 3.0
        answer = readings(session, x, 4)
        statistics = session.statistics()
    assert (statistics.replans, statistics.local_answers) == (0, 0)
    assert relative_difference(answer, own(model, x)) <= TOLERANCE


def test_a_planner_whose_plan_stays_the_same_deploys_nothing(bed: Bed) -> None:
    x = image(height=64, width=64)
    with distribute(small(), x, bed.addresses, profile=PROFILE, planner="equal") as session:
        bed.workers[1].slowdown = 3.0
        readings(session, x, 10)
        (deployment,) = session._plans.latest().deployments
        assert (deployment.epoch, session.statistics().replans) == (0, 0)
        assert deployment.slowdowns == (1.0, pytest.approx(3.0))


def test_a_worker_without_a_share_is_measured_now_and_then(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links so slow that one worker does everything: the other takes over, until the first is measured as recovered."""
    recovered: list[int] = []

    def measured(coordinator: object, graph: Any, weights: object, link: int) -> dict[str, float]:
        recovered.append(link)
        device = slow_links.devices[link]
        return {layer.name: device.seconds(layer, graph.input_shapes(layer)) for layer in graph.layers}

    monkeypatch.setattr(rebalance_module, "whole_seconds", measured)
    slow_links = ClusterProfile.uniform(2, flops_per_s=1e7, latency_s=1.0)
    x = image(height=64, width=64)
    with distribute(small(), x, bed.addresses, profile=slow_links) as session:
        assert {segment.on for segment in session.plan.segments} == {0}
        readings(session, x, 1)
        bed.workers[0].slowdown = 3.0
        readings(session, x, 3)
        assert {segment.on for segment in session.plan.segments} == {1}
        bed.workers[0].slowdown = 1.0
        readings(session, x, PROBE_EVERY)
        assert recovered == [0]
        readings(session, x, 2)
        assert {segment.on for segment in session.plan.segments} == {0}
        assert session.statistics().replans == 2


def test_without_rebalancing_nothing_is_read(bed: Bed) -> None:
    x = image(height=64, width=64)
    with distribute(small(), x, bed.addresses, profile=PROFILE, rebalance=False) as session:
        bed.workers[1].slowdown = 3.0
        for _ in range(4 * EVERY_REQUESTS):
            session(x)
        assert all(worker.told == {} for worker in bed.workers)
        assert session.statistics().replans == 0


def test_a_real_probe_gives_seconds_of_every_layer(bed: Bed) -> None:
    x = image()
    with distribute(small(), x, bed.addresses, profile=PROFILE) as session:
        assert session._rebalancer is not None
        dealer = session._plans.latest()
        assert session._rebalancer._probe(dealer, 1) > 0.0
        capture = dealer.deployments[0].capture
        measured = rebalance_module.whole_seconds(session._coordinator, capture.graph, capture.weights, 1)
        assert set(measured) == {layer.name for layer in capture.graph.layers}


# --- freeing what is replaced ---


class Freed(list[str]):
    """Names of what was freed, in order."""

    def __call__(self, deployment: Any) -> None:
        self.append(deployment.name)


@dataclass(eq=False)
class Running:
    """As much of a deployment as ending a dealer looks at."""

    name: str
    outstanding: int = 0


def test_what_is_replaced_is_freed_when_its_last_request_has_ended() -> None:
    idle, busy = Running("idle"), Running("busy", outstanding=2)
    dealer, freed = Dealer([idle, busy]), Freed()  # type: ignore[list-item]
    dealer.end(freed)
    assert freed == ["idle"]
    dealer.give_back(busy)  # type: ignore[arg-type]
    assert freed == ["idle"]
    dealer.give_back(busy)  # type: ignore[arg-type]
    assert freed == ["idle", "busy"]


def test_a_session_that_closes_in_the_middle_of_a_reading_ends(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, go = threading.Event(), threading.Event()
    x = image()
    with distribute(small(), x, bed.addresses, profile=PROFILE) as session:
        rebalancer = session._rebalancer
        assert rebalancer is not None

        def held(dealer: Dealer) -> Any:
            entered.set()
            assert go.wait(30.0)
            raise WorkerLost("the session is closed")

        monkeypatch.setattr(rebalancer, "_read", held)
        answers: list[Future[Any]] = [session.submit(x) for _ in range(EVERY_REQUESTS)]
        assert all(answer.result().shape == (1, 10) for answer in answers)
        assert entered.wait(30.0)
        go.set()
    assert rebalancer.num_replans == 0
