"""From a capture to a running plan: greet the workers, know the cluster, plan, prove, ship, install."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import TimeoutError as FutureTimeout  # the builtin one only from Python 3.11 on
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from edgedi.errors import EdgediError, WorkerLost
from edgedi.partition.capture.capture import Capture
from edgedi.partition.cost.busy import busy_seconds
from edgedi.partition.cost.cost import CostModel
from edgedi.partition.cost.overlap import lower_for
from edgedi.partition.cost.profile import ClusterProfile, DeviceProfile, Links
from edgedi.partition.plan.placement import Placement, Replica
from edgedi.partition.plan.plan import HOME, Plan
from edgedi.partition.plan.program import ProgramSet
from edgedi.partition.plan.simulate import simulate
from edgedi.partition.throughput.throughput import place, place_to_try
from edgedi.runtime.coordinator.coordinator import Coordinator
from edgedi.runtime.coordinator.known_devices import KnownDevices
from edgedi.runtime.coordinator.known_links import KnownLinks
from edgedi.runtime.coordinator.link_probe import LinkProbe
from edgedi.runtime.coordinator.profiler import deploy_message, install
from edgedi.runtime.coordinator.trial import answer_seconds, may_be_tried, noise_inputs, quickest, request_seconds
from edgedi.runtime.execution.executor import LoadedProgram
from edgedi.runtime.execution.loading import Shipment
from edgedi.runtime.execution.reference import weights_of
from edgedi.runtime.execution.weights import weight_digest
from edgedi.runtime.kernels import fused
from edgedi.runtime.links import halo_links
from edgedi.runtime.links.keys import WorkerAddress
from edgedi.runtime.version import software_version
from edgedi.runtime.wire.codec import WIRE_VERSION
from edgedi.runtime.wire.messages import Deploy, Hello, Welcome
from edgedi.runtime.worker.local_share import LocalShare

HELLO_TIMEOUT_S = 5.0


@dataclass(slots=True, kw_only=True, eq=False)
class Deployment:
    """One replica, running: what was captured, planned and installed for one input shape."""

    capture: Capture
    replica: Replica
    programs: ProgramSet
    epoch: int
    home: LoadedProgram
    links: tuple[int, ...]
    """The link of every worker of the plan, in the plan's order."""
    verified: bool
    """Whether an answer under this plan has been compared with the model's own."""
    refused: bool = False
    """Whether one differed: then the plan is not used again."""
    outstanding: int = 0
    """Requests that are under way; its ``Dealer`` counts them."""
    slowdowns: tuple[float, ...]
    """Against its profile, how many times as slow the plan takes each of its workers for."""
    alone_here: bool
    """Whether this process's own share answers a request by itself, so that it need not be asked by messages."""
    predicted_busy_s: tuple[float, ...]
    """Seconds per request that each of them is then predicted to compute and send."""

    @property
    def plan(self) -> Plan:
        """The replica's plan; its worker k is behind ``links[k]``."""
        return self.replica.plan


class Deployer:
    """Makes deployments of one session, each under an epoch of its own."""

    def __init__(
        self,
        coordinator: Coordinator,
        addresses: Sequence[WorkerAddress],
        session: str,
        planner: str,
        profile: ClusterProfile | None,
        links: Links | None,
        say: Callable[[str], None],
        share: LocalShare | None = None,
        objective: str = "latency",
        numbers: Iterator[int] | None = None,
    ) -> None:
        """``numbers`` are those of the session's requests: what is tried out here takes some of them."""
        self._numbers = itertools.count() if numbers is None else numbers
        self._share = share
        self._coordinator, self._addresses, self._session = coordinator, addresses, session
        self._planner, self._objective, self._given, self._say = planner, objective, profile, say
        self._packer = fused.Packer() if fused.available() else None
        self._next_epoch = 0
        self._making = threading.RLock()  # one deployment at a time: workers answer in order
        self.welcomes: list[Welcome] = []
        self._devices = KnownDevices(coordinator, say)
        self._links = KnownLinks(links, LinkProbe(coordinator, session, self._install_probe), self.welcomes, say)
        self.slowdowns: dict[int, float] = {}
        """By link, how many times as slow as its profile a worker has been found to be; the others are as measured."""

    def greet(self) -> None:
        """Hear from every worker who it is. ``WorkerLost`` names one that does not answer or is of another version."""
        hello = Hello(wire_version=WIRE_VERSION, software_version=software_version())
        asked = [self._coordinator.ask(index, hello, Welcome) for index in range(len(self._addresses))]
        for address, answer in zip(self._addresses, asked, strict=True):
            try:
                welcome = answer.result(HELLO_TIMEOUT_S)
            except FutureTimeout:
                raise WorkerLost(
                    f"no answer from worker {address} within {HELLO_TIMEOUT_S:g} s: is edgedi-worker running there, "
                    "on that port, and reachable from here?",
                    worker=str(address),
                ) from None
            _check_version(address, welcome)
            self.welcomes.append(welcome)
        for link, welcome in enumerate(self.welcomes):
            if self._is_near(link) and welcome.halo_address is not None:
                self._coordinator.use_halo(link, welcome.halo_address)

    def _is_near(self, link: int) -> bool:
        """Whether the worker is another process of this machine; to the one in this process memory is the way."""
        inside = self._share is not None and link == 0
        return not inside and self.welcomes[link].machine == halo_links.machine_name()

    def deploy(self, capture: Capture, alive: Sequence[int], *, verified: bool) -> tuple[Deployment, ...]:
        """Place ``capture`` on the workers ``alive`` (link numbers) and install it there: a deployment per replica."""
        with self._making:
            if not self._tries_out(capture, alive):
                cluster, placement = self._place(capture, alive)
                return self._install(capture, alive, cluster, placement, verified=verified)
            cluster = self._cluster_now(capture, alive)
            self._say("planning")
            first, *others = place_to_try(capture.graph, cluster)
            if self._all_here(alive):  # a session is to begin soon, and there it is one worker alone that may be better
                others = [one for one in others if _is_alone(one)]
            to_try = (first, *others)
            return self._fastest([self._install(capture, alive, cluster, p, verified=verified) for p in to_try])

    def _tries_out(self, capture: Capture, alive: Sequence[int]) -> bool:
        """Whether several plans are worth a trial: not where a profile is given, which is to be believed."""
        chosen_here = self._planner == "oodp" and self._objective == "latency" and self._given is None
        return chosen_here and len(alive) > 1 and may_be_tried(capture.graph)

    def _all_here(self, alive: Sequence[int]) -> bool:
        return all(self.welcomes[link].machine == halo_links.machine_name() for link in alive)

    def _fastest(self, made: Sequence[tuple[Deployment, ...]]) -> tuple[Deployment, ...]:
        """The fastest of several deployments of one replica each; the others are taken back."""
        if len(made) == 1:
            return made[0]
        self._say(f"trying out {len(made)} plans")
        inputs = noise_inputs(made[0][0].capture.graph)

        def seconds(one: Deployment) -> float:
            if one.alone_here and self._share is not None:
                answer = partial(self._share.answer, self._session, one.epoch, inputs)
                taken_s = answer_seconds(answer, self._coordinator.clock)
                if taken_s is not None:
                    return taken_s
            number = next(self._numbers)
            return request_seconds(self._coordinator, self._session, one.epoch, number, one.home, inputs, one.links)

        best = quickest([partial(seconds, one) for (one,) in made])
        for (one,) in [*made[:best], *made[best + 1 :]]:
            self._coordinator.retire(self._session, one.epoch, one.links)
        return made[best]

    def redeploy(
        self, capture: Capture, links: Sequence[int], known: Sequence[Deployment], *, verified: bool
    ) -> tuple[Deployment, ...] | None:
        """Place ``capture`` anew now that slowdowns are others; ``None`` where ``known`` are still the best, which
        then predict by the new slowdowns."""
        with self._making:
            cluster, placement = self._place(capture, links)
            before = [(one.links, one.plan.digest) for one in known]
            if before == [(tuple(links[k] for k in r.workers), r.plan.digest) for r in placement.replicas]:
                for one, replica in zip(known, placement.replicas, strict=True):
                    one.replica = replica
                    one.slowdowns, one.predicted_busy_s = self._expected(capture, cluster, replica, one.programs, links)
                return None
            return self._install(capture, links, cluster, placement, verified=verified)

    def _place(self, capture: Capture, alive: Sequence[int]) -> tuple[ClusterProfile, Placement]:
        cluster = self._cluster_now(capture, alive)
        self._say("planning")
        return cluster, place(capture.graph, cluster, planner=self._planner, objective=self._objective)

    def _cluster_now(self, capture: Capture, alive: Sequence[int]) -> ClusterProfile:
        """The workers as they were measured, each as much slower as it has been found to be since."""
        cluster = self.cluster(capture, alive)
        if any(link in self.slowdowns for link in alive):
            cluster = cluster.with_speeds([1 / self.slowdowns.get(link, 1.0) for link in alive])
        return cluster

    def _install(
        self, capture: Capture, alive: Sequence[int], cluster: ClusterProfile, placement: Placement, *, verified: bool
    ) -> tuple[Deployment, ...]:
        self._say(f"deploying {_described(placement)}")
        made = [self._prepared(capture, cluster, replica, alive, verified) for replica in placement.replicas]
        shipment = Shipment(capture.weights, weight_digest)
        messages: dict[int, Deploy] = {}
        for one in made:
            messages |= self._messages(one.programs, one.epoch, one.links, shipment)
        try:
            install(self._coordinator, messages, shipment)
        except EdgediError:
            for one in made:  # what others have installed meanwhile
                with contextlib.suppress(EdgediError):
                    self._coordinator.retire(self._session, one.epoch, one.links)
            raise
        return tuple(made)

    def _messages(
        self, programs: ProgramSet, epoch: int, links: Sequence[int], shipment: Shipment
    ) -> dict[int, Deploy]:
        """What tells each worker its part, by link."""
        return {
            link: deploy_message(
                programs, shipment, self._session, epoch, participant, len(links),
                self._peers(links, participant), self._coordinator.halo_address if self._is_near(link) else None,
            )
            for participant, link in enumerate(links)
        }  # fmt: skip

    def _new_epoch(self) -> int:
        epoch, self._next_epoch = self._next_epoch, self._next_epoch + 1
        return epoch

    def _prepared(
        self, capture: Capture, cluster: ClusterProfile, replica: Replica, alive: Sequence[int], verified: bool
    ) -> Deployment:
        """A deployment under an epoch of its own, proven by a dry-run, with the coordinator's program loaded."""
        model = CostModel(capture.graph, cluster.subset(replica.workers))
        programs = lower_for(model, replica.plan, self._objective)
        simulate(programs)
        epoch = self._new_epoch()
        home = LoadedProgram(
            programs.programs[HOME], capture.graph, weights_of(capture), opaque=capture.opaque, packer=self._packer
        )
        slowdowns, predicted_busy_s = self._expected(capture, cluster, replica, programs, alive)
        links = tuple(alive[k] for k in replica.workers)
        return Deployment(
            capture=capture,
            replica=replica,
            programs=programs,
            epoch=epoch,
            home=home,
            links=links,
            verified=verified,
            slowdowns=slowdowns,
            alone_here=self._answers_here(programs, links),
            predicted_busy_s=predicted_busy_s,
        )

    def _answers_here(self, programs: ProgramSet, links: Sequence[int]) -> bool:
        return self._share is not None and 0 in links and programs.answers_alone(links.index(0))

    def _expected(
        self, capture: Capture, cluster: ClusterProfile, replica: Replica, programs: ProgramSet, alive: Sequence[int]
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """(slowdown, predicted busy seconds) of each worker of a replica."""
        slowdowns = tuple(self.slowdowns.get(alive[k], 1.0) for k in replica.workers)
        return slowdowns, busy_seconds(capture.graph, cluster.subset(replica.workers), replica.plan, programs)

    def unscaled(self, capture: Capture, link: int) -> DeviceProfile:
        """The profile of one worker as it was given or measured."""
        with self._making:
            return self.cluster(capture, [link]).devices[0]

    def _peers(self, alive: Sequence[int], me: int) -> tuple[dict[str, Any], ...]:
        mine = self.welcomes[alive[me]].machine
        return tuple(
            {
                "participant": participant,
                "address": self._address_for(link, self._addresses[alive[me]]),
                "public_key": self._addresses[link].public_key,
                "halo_address": self.welcomes[link].halo_address if mine == self.welcomes[link].machine else None,
            }
            for participant, link in enumerate(alive)
            if participant != me
        )

    def _address_for(self, link: int, peer: WorkerAddress) -> str:
        """Where ``peer`` finds the worker of ``link``; this process's own worker is found where this machine is."""
        address = self._addresses[link]
        if self._share is not None and link == 0:
            address = replace(address, host=self._share.host_towards(peer))
        return f"{_host(address)}:{address.port}"

    def cluster(self, capture: Capture, alive: Sequence[int]) -> ClusterProfile:
        """What is known of the workers ``alive``: as given, else measured."""
        if self._given is not None:
            if len(self._given.devices) != len(self._addresses):
                raise ValueError(
                    f"profile has {len(self._given.devices)} devices for {len(self._addresses)} workers: give one each"
                )
            return self._given.subset(alive)
        welcomes = {link: self.welcomes[link] for link in alive}
        devices = self._devices.profiles(capture, welcomes)
        # In a stream the share's requests pass through its mailbox, like any worker's.
        local = self._share is not None and alive[0] == 0 and self._objective == "latency"
        return ClusterProfile(devices=devices, links=self._links.among(alive), local=local)

    @property
    def known_links(self) -> Links:
        """Of all workers, by link number, as given or measured so far."""
        return self._given.links if self._given is not None else self._links.known

    def _install_probe(self, programs: ProgramSet, links: Sequence[int]) -> int:
        epoch = self._new_epoch()
        shipment = Shipment({}, weight_digest)
        install(self._coordinator, self._messages(programs, epoch, links, shipment), shipment)
        return epoch


def _described(placement: Placement) -> str:
    counts = [len(replica.plan.segments) for replica in placement.replicas]
    return f"{counts[0]} segments" if len(counts) == 1 else f"{len(counts)} replicas of {max(counts)} segments at most"


def _check_version(address: WorkerAddress, welcome: Welcome) -> None:
    if welcome.wire_version != WIRE_VERSION or welcome.software_version != software_version():
        raise WorkerLost(
            f"worker {address} runs edgedi {welcome.software_version} (wire {welcome.wire_version}), this is "
            f"edgedi {software_version()} (wire {WIRE_VERSION}): install the same version on both",
            worker=str(address),
        )


def _host(address: WorkerAddress) -> str:
    return f"[{address.host}]" if ":" in address.host else address.host


def _is_alone(placement: Placement) -> bool:
    """Whether one worker computes everything."""
    segments = [segment for replica in placement.replicas for segment in replica.plan.segments]
    return len(segments) == 1 and segments[0].axis == "whole"
