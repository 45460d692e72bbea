"""Plan: which segment runs split along which axis, and which interval each worker owns. A value that prints and parses.

    plan 2 workers, 12 layers, predicted 0.0122 s, planner oodp
    segment 0  layers 0:9  rows 56  0:28  28:56  compute 0.0104 exchange 0.0005  # next best: channels, 0.0152 s
    segment 1  layers 9:12  whole on 1  compute 0.0013 exchange 0  # no axis to split along; worker 0 would do as well

What follows a ``#`` says why a segment is as it is (``explain``); like costs, it is no part of the plan's digest.

The intervals of a split segment are those of its *reference*: the last tensor of the segment that has the axis. Every
other tensor of the segment is owned in like proportion (``geometry.scale``), so that intervals are written once.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from edgedi.errors import PlanError
from edgedi.partition.graph.axes import AXES, axis_dims
from edgedi.partition.graph.geometry import Interval, scale
from edgedi.partition.graph.graph import LayerGraph

HOME = -1
"""The participant that is the coordinator itself: it holds the graph's inputs and collects the outputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Predicted seconds of one segment: its slowest worker's computation and exchange."""

    compute_s: float = 0.0
    exchange_s: float = 0.0

    @property
    def total_s(self) -> float:
        return self.compute_s + self.exchange_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Layers ``[layers.start, layers.stop)``; ``shares[k]`` is worker k's part of the reference, ``length`` long.

    A ``whole`` segment has no shares and runs on worker ``on`` (``HOME`` for what only the coordinator knows). ``why``
    is a line of text for people.
    """

    layers: Interval
    axis: str
    length: int = 0
    shares: tuple[Interval, ...] = ()
    on: int | None = None
    cost: Cost = Cost()
    why: str = ""

    def __post_init__(self) -> None:
        if self.why != " ".join(self.why.split()):
            raise ValueError(f"why is one line of words with single spaces, not {self.why!r}")
        if self.axis == "whole":
            if self.on is None or self.shares:
                raise ValueError("a whole segment names one worker and has no shares")
            return
        if self.axis not in AXES:
            raise ValueError(f"axis {self.axis!r} is not one of whole, {', '.join(AXES)}")
        position = 0
        for share in self.shares:
            if share.start != position:
                raise ValueError(f"shares {self.shares} leave a hole or overlap at {position}")
            position = share.stop
        if position != self.length or not self.length:
            raise ValueError(f"shares {self.shares} do not cover 0:{self.length}")

    @property
    def workers(self) -> tuple[int, ...]:
        """The participants that do something in this segment."""
        if self.on is not None:
            return (self.on,)
        return tuple(index for index, share in enumerate(self.shares) if len(share))

    def __str__(self) -> str:
        head = f"layers {self.layers}"
        cost = f"compute {self.cost.compute_s:.6g} exchange {self.cost.exchange_s:.6g}"
        cost += f"  # {self.why}" if self.why else ""
        if self.on is not None:
            return f"{head}  whole on {'home' if self.on == HOME else self.on}  {cost}"
        return f"{head}  {self.axis} {self.length}  {'  '.join(map(str, self.shares))}  {cost}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Segments in order, for ``num_workers`` workers; ``graph_digest`` names the graph they belong to."""

    num_workers: int
    segments: tuple[Segment, ...]
    graph_digest: str = ""
    planner: str = ""

    def __post_init__(self) -> None:
        position = 0
        for index, segment in enumerate(self.segments):
            if segment.layers.start != position:
                raise PlanError(f"layers {position} to {segment.layers.start} are in no segment", segment=index)
            if segment.on is None and len(segment.shares) != self.num_workers:
                raise PlanError(f"{len(segment.shares)} shares for {self.num_workers} workers", segment=index)
            if segment.on is not None and not HOME <= segment.on < self.num_workers:
                raise PlanError(f"there is no worker {segment.on}", segment=index)
            position = segment.layers.stop

    @property
    def predicted_s(self) -> float:
        return sum(segment.cost.total_s for segment in self.segments)

    @property
    def digest(self) -> str:
        """Name of the plan: its grid without costs, and the graph that it is for."""
        cells = [re.sub(r"\s+compute .*", "", str(replace(segment, why=""))) for segment in self.segments]
        return hashlib.sha256("\n".join([self.graph_digest, str(self.num_workers), *cells]).encode()).hexdigest()

    def __str__(self) -> str:
        num_layers = self.segments[-1].layers.stop if self.segments else 0
        head = f"plan {self.num_workers} workers, {num_layers} layers, predicted {self.predicted_s:.6g} s"
        head += f", planner {self.planner}" if self.planner else ""
        return "\n".join([head, *(f"segment {index}  {segment}" for index, segment in enumerate(self.segments))])

    @classmethod
    def parse(cls, text: str, *, graph_digest: str = "") -> Plan:
        """The plan that ``str`` printed. ``ValueError`` names the line that is not one."""
        lines = [line.strip() for line in text.strip().splitlines()]
        head = re.fullmatch(r"plan (\d+) workers, \d+ layers, predicted \S+ s(?:, planner (\S+))?", lines[0])
        if not head:
            raise ValueError(f"{lines[0]!r} does not begin a plan; write 'plan N workers, M layers, predicted X s'")
        segments = tuple(_parse_segment(line) for line in lines[1:])
        return cls(num_workers=int(head[1]), segments=segments, graph_digest=graph_digest, planner=head[2] or "")


_SEGMENT = re.compile(
    r"segment \d+\s+layers (?P<layers>\d+:\d+)\s+"
    r"(?:whole on (?P<on>home|\d+)|(?P<axis>[a-z]+) (?P<length>\d+)(?P<shares>(?:\s+\d+:\d+)+))"
    r"(?:\s+compute (?P<compute>\S+) exchange (?P<exchange>\S+))?(?:\s+# (?P<why>\S.*))?"
)


def _parse_segment(line: str) -> Segment:
    match = _SEGMENT.fullmatch(line)
    if not match:
        raise ValueError(f"{line!r} is not a segment; write 'segment 0  layers 0:9  rows 56  0:28  28:56'")
    cost = Cost(compute_s=float(match["compute"] or 0), exchange_s=float(match["exchange"] or 0))
    layers, why = Interval.parse(match["layers"]), match["why"] or ""
    if match["on"]:
        on = HOME if match["on"] == "home" else int(match["on"])
        return Segment(layers=layers, axis="whole", on=on, cost=cost, why=why)
    shares = tuple(map(Interval.parse, match["shares"].split()))
    return Segment(layers=layers, axis=match["axis"], length=int(match["length"]), shares=shares, cost=cost, why=why)


def reference(graph: LayerGraph, layers: Interval, axis: str, dims: Mapping[str, int] | None = None) -> str | None:
    """The last tensor of the run of layers that has the axis, whose intervals a segment's shares are."""
    known = axis_dims(graph, axis) if dims is None else dims
    for layer in reversed(graph.layers[layers.start : layers.stop]):
        if layer.name in known:
            return layer.name
    return None


def owned(segment: Segment, worker: int, length: int) -> Interval:
    """What ``worker`` owns of a tensor of the segment that is ``length`` long along the segment's axis."""
    return scale(segment.shares[worker], length, segment.length)
