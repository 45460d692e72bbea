"""Which group gives up channels next: from curves of error and what channels cost, a path of widths. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCost:
    """A layer's multiplications, which go with inputs times outputs: the share of both that each group's unit takes."""

    macs: int
    inputs: Mapping[str, float]
    outputs: Mapping[str, float]
    price: float = 1.0
    """Of one multiplication, against those of other layers."""
    layer: str = ""
    """Its name; none for all the rest, which no group changes."""

    def left(self, removed: Mapping[str, int]) -> float:
        """Once so many units of each group are gone."""
        kept = self.macs * (1 - sum(share * removed[group] for group, share in self.inputs.items()))
        return kept * (1 - sum(share * removed[group] for group, share in self.outputs.items()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """A group's ``counts`` of units that may be gone, 0 first, and the error of each; neither ever falls."""

    counts: Sequence[int]
    errors: Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Width:
    """A point of the path: units gone of each group, and the multiplications then left, predicted."""

    removed: Mapping[str, int]
    macs: float


def path_of(groups: Mapping[str, Steps], layers: Sequence[LayerCost]) -> list[Width]:
    """From nothing removed to all that may be: each time the step with the least error for what it saves.

    Steps are those of each curve's lower hull: where the error grows ever more slowly, a leap is the better bargain.
    What a step saves only falls while others are taken, so an offer that is still the best when looked at again is it.
    """
    hulls = {name: _hull(steps) for name, steps in groups.items()}
    touched = {name: [cost for cost in layers if name in cost.inputs or name in cost.outputs] for name in groups}
    removed, at = dict.fromkeys(groups, 0), dict.fromkeys(groups, 0)
    macs = float(sum(layer.macs for layer in layers))

    def offer(name: str) -> tuple[float, str, float]:
        """Error of the group's next step for what it saves, its name, the multiplications that it saves."""
        error = hulls[name][at[name] + 1][1] - hulls[name][at[name]][1]
        after = {**removed, name: hulls[name][at[name] + 1][0]}
        less = [(layer.price, layer.left(removed) - layer.left(after)) for layer in touched[name]]
        saved = sum(price * macs for price, macs in less)
        return error / max(saved, 1e-9), name, sum(macs for _, macs in less)

    offers = [offer(name) for name in groups if len(hulls[name]) > 1]
    heapq.heapify(offers)
    path = [Width(removed=dict(removed), macs=macs)]
    while offers:
        ratio, name, saved = offer(heapq.heappop(offers)[1])
        if offers and (ratio, name) > offers[0][:2]:
            heapq.heappush(offers, (ratio, name, saved))
            continue
        at[name] += 1
        removed[name] = hulls[name][at[name]][0]
        macs -= saved
        path.append(Width(removed=dict(removed), macs=macs))
        if at[name] + 1 < len(hulls[name]):
            heapq.heappush(offers, offer(name))
    return path


def _hull(steps: Steps) -> list[tuple[int, float]]:
    """The lower convex hull of (count, error)."""
    hull: list[tuple[int, float]] = []
    for x, y in zip(steps.counts, steps.errors, strict=True):
        while len(hull) > 1 and (hull[-1][1] - hull[-2][1]) * (x - hull[-2][0]) >= (y - hull[-2][1]) * (
            hull[-1][0] - hull[-2][0]
        ):
            hull.pop()
        hull.append((x, y))
    return hull
