"""Keeps a session's plan in balance: reads how busy workers were, and replaces the plan when ``balance_state`` says so.

Everything happens in a thread of its own, beside requests. A new plan is made, installed under a new epoch next to the
old one, and tried out on a request that nobody waits for, which compares its answer as the session's rules say. Only
then do requests go to it; the old epoch is freed when the last of its requests has ended. Where anything of this fails,
the old plan stays.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from edgedi.errors import EdgediError
from edgedi.runtime.coordinator.coordinator import Coordinator, answer_of
from edgedi.runtime.coordinator.dealer import Dealer
from edgedi.runtime.coordinator.deployment import Deployer, Deployment
from edgedi.runtime.coordinator.profiler import whole_seconds
from edgedi.runtime.session.balance_state import Balance, Busy, Probe, Reading, Replan
from edgedi.runtime.wire.messages import AskStatistics, Statistics, busy_s_of, requests_of

log = logging.getLogger("edgedi")
TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class SessionPlans:
    """What a session lets its rebalancer do with plans."""

    in_use: Callable[[], Dealer | None]
    """Who deals the latest requests; ``None`` when nobody does."""
    try_out: Callable[[Deployment], None]
    """Answer a request by a deployment that is not in use, and compare the answer if the session's rules say so."""
    exchange: Callable[[Dealer, Dealer], bool]
    """Let the second deal from now on and free the first; ``False``, and nothing done, where that does not any more."""
    free: Callable[[Deployment], None]
    """Free a deployment on its workers once its requests have ended."""


class Rebalancer:
    """``wake`` it every so many requests, from any thread; it returns at once."""

    def __init__(
        self, coordinator: Coordinator, deployer: Deployer, session: str, plans: SessionPlans, *, verified: bool
    ) -> None:
        """``verified`` says that new plans need no comparison."""
        self._verified = verified
        self._coordinator, self._deployer, self._session, self._plans = coordinator, deployer, session, plans
        self._balance = Balance()
        self._counted: dict[tuple[int, int], tuple[int, float]] = {}
        """(requests, busy seconds) that a worker, by epoch and link, had told of at the last reading."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="edgedi-balance")
        self._awake = False
        self.num_replans = 0

    def wake(self) -> None:
        """Take a reading soon; not another one before the last has been dealt with."""
        if not self._awake:
            self._awake = True
            self._thread.submit(self._take_reading)

    def close(self) -> None:
        """Wait for what is being done."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _take_reading(self) -> None:
        try:
            dealer = self._plans.in_use()
            if dealer is not None:
                self._decide(dealer)
        except EdgediError as error:  # a worker is lost, has no room, or the session closed: the plan in use stays
            log.info("not rebalanced: %s", error)
        except Exception:  # a bug of ours must not end the session; the plan in use stays
            log.exception("rebalancing failed")
        finally:
            self._awake = False

    def _decide(self, dealer: Dealer) -> None:
        match self._balance.handle(self._read(dealer)):
            case Replan(slowdowns=slowdowns):
                self._deployer.slowdowns |= slowdowns
                self._replan(dealer)
            case Probe(workers=workers):
                for link in workers:
                    self._balance.probed(link, self._probe(dealer, link))

    # --- reading -----------------------------------------------------------------------------------------------------

    def _read(self, dealer: Dealer) -> Reading:
        workers, counted = dict[int, Busy](), dict[tuple[int, int], tuple[int, float]]()
        for deployment in dealer.deployments:
            for link, told in told_by(self._coordinator, self._session, deployment).items():
                key = (deployment.epoch, link)
                num_before, busy_before_s = self._counted.get(key, (0, 0.0))
                num, busy_s = told[0] - num_before, told[1] - busy_before_s
                worker, counted[key] = deployment.links.index(link), told
                workers[link] = Busy(
                    predicted_s=deployment.predicted_busy_s[worker],
                    measured_s=busy_s / num if num else None,
                    slowdown=deployment.slowdowns[worker],
                )
        self._counted = counted
        return Reading(plan=" ".join(str(deployment.epoch) for deployment in dealer.deployments), workers=workers)

    def _probe(self, dealer: Dealer, link: int) -> float:
        """How many times as slow as its profile an idle worker is, by running the whole network there once."""
        deployment = next(deployment for deployment in dealer.deployments if link in deployment.links)
        capture = deployment.capture
        device = self._deployer.unscaled(capture, link)
        measured = whole_seconds(self._coordinator, capture.graph, capture.weights, link)
        layers = [layer for layer in capture.graph.layers if layer.name in measured]
        expected_s = sum(device.seconds(layer, capture.graph.input_shapes(layer)) for layer in layers)
        return sum(measured.values()) / max(1e-9, expected_s)

    # --- planning anew -----------------------------------------------------------------------------------------------

    def _replan(self, dealer: Dealer) -> None:
        capture = dealer.deployments[0].capture
        alive = [link for link in range(len(self._deployer.welcomes)) if self._coordinator.lost(link) is None]
        made = self._deployer.redeploy(capture, alive, dealer.deployments, verified=self._verified)
        if made is None:
            log.info("devices have changed their speed, %s; the plan stays the best", self._described())
            return
        try:
            for deployment in made:
                self._plans.try_out(deployment)
            taken = not any(deployment.refused for deployment in made) and self._plans.exchange(dealer, Dealer(made))
        except EdgediError:
            taken = False
        if not taken:
            for deployment in made:
                self._plans.free(deployment)
            return
        self.num_replans += 1
        log.info("devices have changed their speed, %s: planned anew", self._described())

    def _described(self) -> str:
        names = [welcome.name for welcome in self._deployer.welcomes]
        slowdowns = sorted(self._deployer.slowdowns.items())
        return ", ".join(f"{names[link]} {slowdown:.2g} times as slow as measured" for link, slowdown in slowdowns)


def told_by(coordinator: Coordinator, session: str, deployment: Deployment) -> dict[int, tuple[int, float]]:
    """(requests that ended under a deployment, seconds busy with them) of each of its workers, by link."""
    asked = {link: coordinator.ask(link, AskStatistics(session=session), Statistics) for link in deployment.links}
    told = {}
    for link, answer in asked.items():
        values = answer_of(answer, TIMEOUT_S, "asking how busy a worker is").values
        num, busy_s = values.get(requests_of(deployment.epoch), 0), values.get(busy_s_of(deployment.epoch), 0.0)
        told[link] = (int(num), float(busy_s))
    return told


def busy_seconds_of(
    deployments: Sequence[Deployment], name: Callable[[int], str], told: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, float], dict[str, float]]:
    """(predicted, measured) busy seconds per request of each worker by its name; ``told`` is what workers count."""
    predicted, measured = dict[str, float](), dict[str, float]()
    for deployment in deployments:
        for link, seconds in zip(deployment.links, deployment.predicted_busy_s, strict=True):
            predicted[name(link)] = seconds
            values = told.get(name(link), {})
            if num := int(values.get(requests_of(deployment.epoch), 0)):
                measured[name(link)] = float(values[busy_s_of(deployment.epoch)]) / num
    return predicted, measured
