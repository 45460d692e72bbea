"""Pipelines: runs of layers on teams of workers, one after another, the busiest resource as little busy as can be.

A *team* is a worker, or neighbouring workers that share layers along rows; what one team does is a *stage*. While a
team works on one request, the team before it works on the next: what counts is the busiest stage or link, not the sum.
Dynamic programming over cuts and over sets of workers, in any order of the teams,

    best[S, t, j] = min over i < j, previous team p in S less t of
                    max(best[S less t, p, i], transfer(p, t, i), stage(t, i, j))

    stage(t, i, j) = compute(t, i..j) + message_cpu(t) * tensors alive at cuts i and j + messages from and to HOME
                     or, where that takes longer, the graph's inputs and outputs over the links to HOME
    transfer       = bytes alive at the cut / bytes_per_s, for teams an equal part of them on each of their links
    compute        = of one worker its seconds; of a team, layer by layer, the slowest share in proportion to speed with
                     its halo messages, or the layer whole on the fastest: a bound, mended when the plan is made

and the same programme gives the best pipeline of every set of workers, of which ``throughput`` composes placements.
Pipelines of single workers are DP over cuts as in PipeDream; several devices in a stage is PICO's idea (their order of
devices is fixed, ours is not). It is exact for these formulae, and brute force in the tests agrees; that a skip over a
whole stage does not pass through it, that messages cost what their own link says, and how well a team splits its layers
is left to the price of the finished plan. Infinite are stages whose weights exceed a worker's limit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from edgedi.partition.cost.cost import CostModel
from edgedi.partition.graph.geometry import WHOLE, Interval, Region, weighted_cuts
from edgedi.partition.graph.graph import LayerGraph
from edgedi.partition.graph.operators import needs
from edgedi.partition.plan.plan import HOME
from edgedi.partition.search.fitting import limits_of

Team = tuple[int, ...]
Seconds = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What one team does of a request."""

    layers: Interval
    team: Team


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """Stages in order, and the estimated seconds of the busiest resource."""

    stages: tuple[Stage, ...]
    bottleneck_s: float


def singles(workers: Sequence[int]) -> tuple[Team, ...]:
    """Every worker as a team of its own."""
    return tuple((worker,) for worker in workers)


def neighbours(workers: Sequence[int]) -> tuple[Team, ...]:
    """Every run of neighbouring workers, single ones first."""
    count = len(workers)
    return tuple(tuple(workers[k : k + size]) for size in range(1, count + 1) for k in range(count - size + 1))


class Pipelines:
    """The best pipeline of every set of workers, out of ``teams``; ``limits`` are bytes of weights by worker."""

    def __init__(self, model: CostModel, teams: Sequence[Team], limits: Sequence[float] | None = None) -> None:
        self._model, self._teams = model, tuple(teams)
        self._end = len(model.graph.layers)
        self._cuts = crossing(model.graph)
        self._stage = stage_seconds(model, teams, limits_of(model.cluster) if limits is None else limits)
        self._best: dict[tuple[frozenset[int], Team], Seconds] = {}

    def best(self, workers: frozenset[int]) -> Pipeline | None:
        """The best pipeline in which each of ``workers`` has a part; ``None`` if there is none that fits."""
        last = [(self._arrive(workers, team)[self._end], team) for team in self._last_teams(workers)]
        seconds, team = min(last, default=(np.inf, ()))
        if not np.isfinite(seconds):
            return None
        return Pipeline(stages=tuple(self._trace(workers, team)), bottleneck_s=float(seconds))

    def _last_teams(self, workers: frozenset[int]) -> list[Team]:
        return [team for team in self._teams if workers.issuperset(team)]

    def _arrive(self, workers: frozenset[int], team: Team) -> Seconds:
        """Least bottleneck, for every cut, of the layers before it done by ``workers``, ``team`` coming last."""
        key = (workers, team)
        if key not in self._best:
            rest = workers.difference(team)
            if rest:
                before = np.minimum.reduce([start for _, start in self._starts(rest, team)], initial=np.inf)
                self._best[key] = np.maximum(before[:, None], self._stage[team]).min(axis=0)
            else:
                self._best[key] = self._stage[team][0]
        return self._best[key]

    def _starts(self, rest: frozenset[int], team: Team) -> Iterator[tuple[Team, Seconds]]:
        """For each team that may come before: least bottleneck, for every cut, until ``team`` has its input."""
        for previous in self._last_teams(rest):
            yield previous, np.maximum(self._arrive(rest, previous), self._transfer(previous, team))

    def _transfer(self, source: Team, target: Team) -> Seconds:
        links = [self._model.cluster.link_between(s, t) for s in source for t in target]
        return self._cuts.num_bytes / len(links) / min(link.bytes_per_s for link in links)

    def _trace(self, workers: frozenset[int], team: Team) -> list[Stage]:
        stop, stages = self._end, list[Stage]()
        while rest := workers.difference(team):
            ways = [
                (max(start[cut], self._stage[team][cut, stop]), cut, previous)
                for previous, start in self._starts(rest, team)
                for cut in range(1, stop)
            ]
            _, cut, previous = min(ways)
            stages.append(Stage(layers=Interval(cut, stop), team=team))
            workers, team, stop = rest, previous, cut
        stages.append(Stage(layers=Interval(0, stop), team=team))
        return stages[::-1]


# --- the tables -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Crossing:
    """For every cut, how many tensors are made before it and read after it, and their bytes."""

    count: Seconds
    num_bytes: Seconds


def crossing(graph: LayerGraph) -> Crossing:
    """What is alive at every cut, the graph's own inputs and outputs left out."""
    last_read = {name: index for index, layer in enumerate(graph.layers) for name in layer.inputs}
    count, num_bytes = np.zeros(len(graph.layers) + 1), np.zeros(len(graph.layers) + 1)
    for index, layer in enumerate(graph.layers):
        alive = slice(index + 1, last_read.get(layer.name, index) + 1)
        count[alive] += 1
        num_bytes[alive] += layer.spec.num_bytes
    return Crossing(count, num_bytes)


def stage_seconds(model: CostModel, teams: Sequence[Team], limits: Sequence[float]) -> dict[Team, Seconds]:
    """``table[team][i, j]``: the busiest resource of the stage of layers i to j; infinite where it cannot be."""
    graph, cuts = model.graph, crossing(model.graph)
    end = len(graph.layers)
    inner = np.where((np.arange(end + 1) > 0) & (np.arange(end + 1) < end), cuts.count, 0.0)
    reads, gives = _reads(graph), _gives(graph)
    held = _prefix([float(_weight_bytes(graph, index)) for index in range(end)])
    tables = {}
    for team in teams:
        down = [model.cluster.link_between(HOME, worker) for worker in team]
        up = [model.cluster.link_between(worker, HOME) for worker in team]
        seconds = _prefix(_layer_seconds(model, team))
        if len(team) == 1:
            seconds[0, end] = model.whole_compute(team[0], Interval(0, end))
        seconds += _message_cpu(model, team) * (inner[:, None] + inner[None, :])
        for (count, _), links in ((reads, down), (gives, up)):
            seconds += count * max(link.message_cpu_s for link in links)
        for (_, num_bytes), links in ((reads, down), (gives, up)):
            seconds = np.maximum(seconds, num_bytes / len(team) / min(link.bytes_per_s for link in links))
        forbidden = np.tri(end + 1, dtype=bool) | (held > min(limits[worker] for worker in team))
        tables[team] = np.where(forbidden, np.inf, seconds)
    return tables


def _prefix(of_layers: Sequence[float]) -> Seconds:
    """Sums of runs: ``[i, j]`` is that of layers i to j."""
    sums = np.array([0.0, *accumulate(of_layers)])
    runs: Seconds = sums[None, :] - sums[:, None]
    return runs


def _message_cpu(model: CostModel, team: Team) -> float:
    """The dearest message among those that a member may exchange with another worker, at its own end."""
    between = model.cluster.link_between
    ends = ((m, w) for m in team for w in model.workers if w != m)
    return max((max(between(m, w).message_cpu_s, between(w, m).message_cpu_s) for m, w in ends), default=0.0)


def _reads(graph: LayerGraph) -> tuple[Seconds, Seconds]:
    """(messages, bytes) of the graph's inputs that each run of layers reads."""
    readers = {name: [k for k, layer in enumerate(graph.layers) if name in layer.inputs] for name in graph.inputs}
    return _any_of(graph, readers)


def _gives(graph: LayerGraph) -> tuple[Seconds, Seconds]:
    """(messages, bytes) of the graph's outputs that each run of layers makes."""
    made = {name: [graph.position[name]] for name in graph.outputs if name not in graph.inputs}
    return _any_of(graph, made)


def _any_of(graph: LayerGraph, positions: dict[str, list[int]]) -> tuple[Seconds, Seconds]:
    end = len(graph.layers)
    count, num_bytes = np.zeros((end + 1, end + 1)), np.zeros((end + 1, end + 1))
    for name, places in positions.items():
        inside = _prefix([float(index in places) for index in range(end)]) > 0
        count += inside
        num_bytes += inside * graph.spec(name).num_bytes
    return count, num_bytes


def _weight_bytes(graph: LayerGraph, index: int) -> int:
    return sum(graph.weights[name].num_bytes for name in graph.layers[index].weights.values())


# --- a team's layers --------------------------------------------------------------------------------------------------


def _layer_seconds(model: CostModel, team: Team) -> list[float]:
    """Seconds of every layer, of one worker or of a team that shares it along rows."""
    layers = range(len(model.graph.layers))
    alone = [[model.layer_compute(worker, k) for k in layers] for worker in team]
    fastest = min(alone, key=sum)
    if len(team) == 1:
        return fastest
    return [min(fastest[k], _shared_seconds(model, team, k)) for k in layers]


def _shared_seconds(model: CostModel, team: Team, position: int) -> float:
    """A layer in shares of rows in proportion to speed, with the halo messages that each share waits for and sends."""
    layer, dims = model.graph.layers[position], model.dims("rows")
    if layer.name not in dims or any(name not in dims for name in layer.inputs):
        return np.inf
    cuts = weighted_cuts(layer.spec.shape[dims[layer.name]], [model.speed_shares[worker] for worker in team])
    first = next(cut for cut in cuts if len(cut))  # a slow worker's share may be none of few rows
    halo_s = 4 * _message_cpu(model, team) if _reads_beyond(model, position, first) else 0.0
    return halo_s + max(model.table(k, position, "rows")[len(cut)] for k, cut in zip(team, cuts, strict=True))


def _reads_beyond(model: CostModel, position: int, share: Interval) -> bool:
    """Whether the first share of a layer's rows reads rows that another worker owns."""
    graph, dims = model.graph, model.dims("rows")
    layer = graph.layers[position]
    extent = layer.spec.shape[dims[layer.name]]
    parts = needs(layer, graph.input_shapes(layer), Region(dims[layer.name], share)) or ()
    owned = ((part, graph.spec(name).shape[dims[name]]) for name, part in zip(layer.inputs, parts, strict=False))
    return any(part is WHOLE or part.interval.stop * extent > share.stop * length for part, length in owned)
