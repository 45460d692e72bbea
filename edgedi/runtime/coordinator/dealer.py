"""The deployments of one placement: which of them gets the next request, and which are left when workers are lost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from edgedi.partition.plan.placement import Placement
from edgedi.partition.throughput.dealing import first_to_finish
from edgedi.runtime.coordinator.deployment import Deployment


class Dealer:
    """Deals requests to replicas. Thread-safe; a deployment that was refused gets no more of them."""

    def __init__(self, deployments: Sequence[Deployment]) -> None:
        self.deployments = tuple(deployments)
        self._lock = threading.Lock()  # over what is outstanding, for a moment
        self._free: Callable[[Deployment], None] | None = None

    @property
    def placement(self) -> Placement:
        """What is left of the placement that was deployed."""
        return Placement(replicas=tuple(deployment.replica for deployment in self.deployments))

    @property
    def main(self) -> Deployment:
        """The deployment that answers most requests."""
        return max(self.deployments, key=lambda deployment: deployment.replica.rate_per_s)

    @property
    def open(self) -> bool:
        """Whether anybody takes requests."""
        return not all(deployment.refused for deployment in self.deployments)

    def take(self) -> Deployment | None:
        """The deployment for the next request, which counts from now on until ``give_back``; ``None`` if none is."""
        with self._lock:
            willing = [deployment for deployment in self.deployments if not deployment.refused]
            if not willing:
                return None
            outstanding = [deployment.outstanding for deployment in willing]
            chosen = willing[first_to_finish([deployment.replica for deployment in willing], outstanding)]
            chosen.outstanding += 1
            return chosen

    def give_back(self, deployment: Deployment) -> None:
        """A request that ``take`` gave to this deployment has ended."""
        with self._lock:
            deployment.outstanding -= 1
            free = None if deployment.outstanding else self._free
        if free is not None:
            free(deployment)

    def end(self, free: Callable[[Deployment], None]) -> None:
        """No request is taken from here any more: free each deployment as soon as nothing is outstanding there."""
        with self._lock:
            self._free = free
            idle = [deployment for deployment in self.deployments if not deployment.outstanding]
        for deployment in idle:
            free(deployment)

    def drop(self, is_lost: Callable[[int], bool]) -> tuple[Deployment, ...]:
        """Leave out replicas that lost a worker (by link number); the deployments that are left out."""
        gone = tuple(known for known in self.deployments if any(map(is_lost, known.links)))
        self.deployments = tuple(known for known in self.deployments if known not in gone)
        return gone
