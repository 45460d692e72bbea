"""Placement: which workers serve which copy of the network, and by which plan. A value that prints and parses.

    placement 2 replicas, 53.2 requests/s, latency 0.0376 s
    replica on 0  26.4 requests/s, latency 0.0379 s
    plan 1 workers, 54 layers, predicted 0.0379 s
    segment 0  layers 0:54  whole on 0  compute 0.0373 exchange 0.0006
    replica on 1  26.8 requests/s, latency 0.0373 s
    ...

A *replica* is a copy of the network on some of the workers: on one alone, on several as a pipeline of whole segments,
or on several that share segments. Its plan numbers its own workers from 0; ``workers`` says who they are. Every worker
belongs to one replica at most, so that replicas are lost, refused and loaded by themselves. A plan alone is a placement
of one replica.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from edgedi.partition.plan.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One copy of the network: ``workers[k]`` of the cluster is worker k of ``plan``.

    ``rate_per_s`` is the predicted number of requests a second with enough of them in flight, ``latency_s`` the
    predicted time of one request that is alone.
    """

    workers: tuple[int, ...]
    plan: Plan
    rate_per_s: float
    latency_s: float

    def __post_init__(self) -> None:
        if len(self.workers) != self.plan.num_workers or len(set(self.workers)) != len(self.workers):
            raise ValueError(f"workers {self.workers}: the plan is for {self.plan.num_workers}, each named once")
        if not (self.rate_per_s >= 0 and self.latency_s >= 0):
            raise ValueError(f"rate {self.rate_per_s} and latency {self.latency_s} must be 0 or more")

    def __str__(self) -> str:
        numbers = " ".join(map(str, self.workers))
        head = f"replica on {numbers}  {self.rate_per_s:.6g} requests/s, latency {self.latency_s:.6g} s"
        return f"{head}\n{self.plan}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Replicas side by side, each with workers of its own."""

    replicas: tuple[Replica, ...]

    def __post_init__(self) -> None:
        taken = [worker for replica in self.replicas for worker in replica.workers]
        if not self.replicas:
            raise ValueError("a placement has at least one replica")
        if len(set(taken)) != len(taken):
            raise ValueError(f"workers {sorted(w for w in set(taken) if taken.count(w) > 1)} are in several replicas")

    @property
    def rate_per_s(self) -> float:
        """Predicted requests a second, all replicas together."""
        return sum(replica.rate_per_s for replica in self.replicas)

    @property
    def latency_s(self) -> float:
        """Predicted seconds of a request that is alone: the mean over the replicas, by how many each answers."""
        if not self.rate_per_s:
            return max(replica.latency_s for replica in self.replicas)
        return sum(replica.latency_s * replica.rate_per_s for replica in self.replicas) / self.rate_per_s

    def __str__(self) -> str:
        num = len(self.replicas)
        head = f"placement {num} replicas, {self.rate_per_s:.6g} requests/s, latency {self.latency_s:.6g} s"
        return "\n".join([head, *map(str, self.replicas)])

    @classmethod
    def parse(cls, text: str, *, graph_digest: str = "") -> Placement:
        """The placement that ``str`` printed. ``ValueError`` names the line that is not one."""
        head, *lines = text.strip().splitlines()
        if not re.fullmatch(r"placement \d+ replicas, \S+ requests/s, latency \S+ s", head.strip()):
            raise ValueError(f"{head!r} begins no placement; write 'placement N replicas, X requests/s, latency Y s'")
        starts = [number for number, line in enumerate(lines) if line.strip().startswith("replica")]
        if not starts or starts[0] != 0:
            raise ValueError(f"{lines[0] if lines else ''!r} follows the head; a line 'replica on ...' must")
        stops = [*starts[1:], len(lines)]
        parts = [lines[start:stop] for start, stop in zip(starts, stops, strict=True)]
        return cls(replicas=tuple(_parse_replica(part, graph_digest) for part in parts))


_REPLICA = re.compile(r"replica on (\d+(?: \d+)*)  (\S+) requests/s, latency (\S+) s")


def _parse_replica(lines: Sequence[str], graph_digest: str) -> Replica:
    match = _REPLICA.fullmatch(lines[0].strip())
    if not match or len(lines) < 2:
        raise ValueError(f"{lines[0]!r} begins no replica; write 'replica on 0 1  X requests/s, latency Y s', a plan")
    return Replica(
        workers=tuple(map(int, match[1].split())),
        plan=Plan.parse("\n".join(lines[1:]), graph_digest=graph_digest),
        rate_per_s=float(match[2]),
        latency_s=float(match[3]),
    )
