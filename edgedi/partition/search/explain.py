"""Why a plan's segments are as they are, in a few words each: what the same layers would cost in another way.

The other ways are the other axes, with their best shares, and the best worker alone, priced by the search's estimate
after the same layout. One may cost less here: then what it leaves behind is dearer for the segments after it, or does
not fit into a worker's memory. A segment on one worker says besides why on that one. A plan that is all on one worker
is held against whole plans, as its layers need not be split all along one axis.
"""

from __future__ import annotations

from dataclasses import replace
from math import isclose

from edgedi.partition.cost.cost import CostModel, Layout
from edgedi.partition.plan.plan import HOME, Cost, Plan, Segment
from edgedi.partition.search.estimate import segment_cost
from edgedi.partition.search.fitting import limits_of, memories
from edgedi.partition.search.search import axes_worth, best_segment


def explained(model: CostModel, plan: Plan, *, faster: Plan | None = None, split: Plan | None = None) -> Plan:
    """``plan`` with a reason at each segment; ``faster`` is one that workers have not the memory for, ``split`` the
    best one known in which several work."""
    layout: Layout = HOME
    segments = []
    for segment in plan.segments:
        why = _why_alone(plan, split) or _why(model, segment, layout)
        there = _why_there(model, segment, layout)
        why += f"; {there}" if there else ""
        if faster is not None and not any(_alike(segment, other) for other in faster.segments):
            why += f"; {_lack(model, faster)}"
        segments.append(replace(segment, why=why))
        layout = segment.axis if segment.on is None else segment.on
    return replace(plan, segments=tuple(segments))


def _alike(one: Segment, other: Segment) -> bool:
    return (one.layers, one.axis, one.shares, one.on) == (other.layers, other.axis, other.shares, other.on)


def _lack(model: CostModel, plan: Plan) -> str:
    needed, limits = memories(model.graph, plan), limits_of(model.cluster)
    lacking = [str(k) for k in model.workers if needed[k].total_bytes > limits[k]]
    return "memory of worker " + ", ".join(lacking)


def _why_alone(plan: Plan, split: Plan | None) -> str:
    """Why one worker does everything, as far as ``split`` tells; nothing where several do."""
    if split is None or len(plan.segments) != 1 or plan.segments[0].on in (None, HOME):
        return ""
    if split.predicted_s < plan.predicted_s:
        return f"worth a trial: the best plan that splits is predicted {split.predicted_s:.3g} s"
    here = plan.segments[0].cost
    saved = here.compute_s - sum(segment.cost.compute_s for segment in split.segments)
    paid = sum(segment.cost.exchange_s for segment in split.segments) - here.exchange_s
    if saved <= 0:
        return f"alone: the best plan that splits is predicted {split.predicted_s:.3g} s"
    return f"alone: the best plan that splits would save {saved:.3g} s of computing for {paid:.3g} s of exchange"


def _why_there(model: CostModel, segment: Segment, layout: Layout) -> str:
    """Why this worker does all of the segment and not another; nothing where none or several could."""
    costs = {worker: _cost(model, replace(segment, on=worker), layout) for worker in model.workers}
    if segment.on not in costs or len(costs) == 1:
        return ""
    here = costs.pop(segment.on)
    other, cost = min(costs.items(), key=lambda item: item[1].total_s)
    if model.cluster.local and segment.on == 0 and len(segment.layers) == len(model.graph.layers):
        return "nothing is sent: worker 0 is in this process"
    if isclose(cost.total_s, here.total_s):
        return f"worker {other} would do as well"
    if cost.total_s < here.total_s:
        return f"on {other} it costs less by itself, {cost.total_s:.3g} s, but not with the rest"
    if cost.compute_s > here.compute_s:
        return f"fastest on {segment.on}: {here.compute_s:.3g} s of computing, {cost.compute_s:.3g} s on {other}"
    return f"least exchange on {segment.on}: {here.exchange_s:.3g} s, {cost.exchange_s:.3g} s on {other}"


def _why(model: CostModel, segment: Segment, layout: Layout) -> str:
    if segment.on == HOME:
        return "an operator that only the coordinator knows"
    here = _cost(model, segment, layout)
    others = _other_ways(model, segment, layout)
    if not others:
        return "no other way: one worker" if len(model.workers) == 1 else "no axis to split along"
    name, cost = min(others.items(), key=lambda item: item[1].total_s)
    if cost.total_s < here.total_s:
        return f"{name} costs less here, {cost.total_s:.3g} s, but not with the rest"
    if segment.on is not None and cost.compute_s < here.compute_s:
        saved, paid = here.compute_s - cost.compute_s, cost.exchange_s - here.exchange_s
        return f"alone: {name} would save {saved:.3g} s of computing for {paid:.3g} s of exchange"
    return f"next best: {name}, {cost.total_s:.3g} s"


def _other_ways(model: CostModel, segment: Segment, layout: Layout) -> dict[str, Cost]:
    found = {}
    if segment.on is None:
        wholes = [Segment(layers=segment.layers, axis="whole", on=worker) for worker in model.workers]
        best = min(wholes, key=lambda whole: _cost(model, whole, layout).total_s)
        found[f"whole on {best.on}"] = _cost(model, best, layout)
    for axis in axes_worth(model) if len(model.workers) > 1 else ():
        other = best_segment(model, segment.layers, axis, layout) if axis != segment.axis else None
        if other is not None:
            found[axis] = _cost(model, other, layout)
    return found


def _cost(model: CostModel, segment: Segment, layout: Layout) -> Cost:
    """The estimate, with the outputs' way home for the last segment."""
    cost = segment_cost(model, segment, layout)
    if segment.layers.stop < len(model.graph.layers):
        return cost
    home_s = model.outputs_home(segment.axis if segment.on is None else segment.on)
    return replace(cost, exchange_s=cost.exchange_s + home_s)
