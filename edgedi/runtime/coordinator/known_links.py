"""What a session knows of its links: as its user gave it, else measured when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from types import MappingProxyType

from edgedi.partition.cost.probe import links_along
from edgedi.partition.cost.profile import LinkProfile, Links
from edgedi.partition.plan.plan import HOME
from edgedi.runtime.coordinator.link_probe import PROBE_ROOM_BYTES, LinkProbe
from edgedi.runtime.wire.messages import Welcome

SMALL_DEVICE_LINK = LinkProfile(latency_s=1e-4, bytes_per_s=1.25e7, message_cpu_s=1e-4)
"""Taken where a worker has no room for the programs that measure links: 100 Mbit/s."""


class KnownLinks:
    """Keyed by (source, target): the workers' link numbers, and ``HOME`` for the coordinator."""

    def __init__(
        self, given: Links | None, probe: LinkProbe, welcomes: Sequence[Welcome], say: Callable[[str], None]
    ) -> None:
        """``welcomes`` are the workers', by link number; they may come later."""
        self._known = dict(given or {})
        self.known: Links = MappingProxyType(self._known)
        self._probe, self._welcomes, self._say = probe, welcomes, say

    def among(self, workers: Sequence[int]) -> dict[tuple[int, int], LinkProfile]:
        """Of these workers, numbered anew in their order, and with the coordinator. Neighbours are measured; what is
        not known of others is the worst on the way between them."""
        for worker in workers:
            self._between(HOME, worker)
        there = links_along([self._between(one, other) for one, other in pairwise(workers)])
        back = links_along([self._between(other, one) for one, other in pairwise(workers)])
        ends = [(HOME, HOME), *enumerate(workers)]
        return {(one, other): (there if one < other else back)[one, other] for one, other in there} | {
            (number, other_number): self._known[end, other]
            for number, end in ends
            for other_number, other in ends
            if (end, other) in self._known
        }

    def _between(self, one: int, other: int) -> LinkProfile:
        there, back = (one, other), (other, one)
        if there not in self._known or back not in self._known:
            link = self._measured(*sorted(there))
            self._known.setdefault(there, link)
            self._known.setdefault(back, link)
        return self._known[there]

    def _measured(self, one: int, other: int) -> LinkProfile:
        if not all(self._has_room(end) for end in (one, other) if end != HOME):
            return SMALL_DEVICE_LINK
        name = self._welcomes[other].name
        if one == HOME:
            self._say(f"measuring the link to {name}")
            return self._probe.to_home(other)
        self._say(f"measuring the link between {self._welcomes[one].name} and {name}")
        return self._probe.between(one, other)

    def _has_room(self, worker: int) -> bool:
        limit_bytes = self._welcomes[worker].memory_limit_bytes
        return limit_bytes is None or limit_bytes >= PROBE_ROOM_BYTES
