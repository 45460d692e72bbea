"""What a comparison is asked for. Read from the command line before torch is loaded, so it knows nothing of it."""

from __future__ import annotations

from dataclasses import dataclass

from edgedi.bench.testbed.spec import WARM, Spec

ENGINE_NAMES = ("eager", "openvino", "onnxruntime", "inductor")
"""What ``--against`` accepts. OpenVINO's own default precision takes part by itself, beside OpenVINO in float32."""
DEFAULT_ROUNDS = 20
DEFAULT_STREAM = 20
"""Requests of a turn where throughput is measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What to compare. ``workers`` are addresses of running ones; where there are none, those of
    ``testbed`` take part, or ``num_local`` here.

    With ``share`` this process computes too: as the first of the local workers, or besides those that run. In a testbed
    it always does, on the first device.
    """

    model: str
    shapes: tuple[tuple[int, ...], ...] = ((1, 3, 224, 224),)
    num_local: int = 2
    counts: tuple[int, ...] = ()
    """With how many of the workers to run besides all of them, for the curve of speedups."""
    workers: tuple[str, ...] = ()
    share: bool = False
    testbed: Spec | None = None
    planners: tuple[str, ...] = ("oodp",)
    objective: str = "latency"
    engines: tuple[str, ...] | None = None
    """``None`` for all that are installed."""
    rounds: int = DEFAULT_ROUNDS
    repeat: int = 1
    threads: int = 1
    key: str | None = None

    def __post_init__(self) -> None:
        given = self.num_workers
        if any(count > given for count in self.counts):
            text = ",".join(map(str, self.counts))
            raise ValueError(f"--counts {text}: there are {given} workers, so give numbers from 1 to {given}")

    @property
    def num_workers(self) -> int:
        """How many take part, this process among them if it has a share."""
        if self.testbed is not None:
            return len(self.testbed.devices)
        return len(self.workers) + self.share if self.workers else self.num_local

    @property
    def slowdown(self) -> float:
        """Of the device that engines are compared on."""
        return self.testbed.least_slowdown if self.testbed is not None else 1.0

    @property
    def counts_warm(self) -> bool:
        """Whether work counts what it takes with warm caches, and not what it does in its place."""
        return self.testbed is not None and self.testbed.work == WARM and self.slowdown != 1

    @property
    def wanted_engines(self) -> tuple[str, ...]:
        """Whom to compare with, if they are here."""
        return ENGINE_NAMES if self.engines is None else self.engines
