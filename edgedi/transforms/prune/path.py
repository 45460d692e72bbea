"""A network's way from its own widths to narrow ones: found once, then any point of it is a network."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import nn

from edgedi.transforms.data import Batch, fourths
from edgedi.transforms.measure import measured
from edgedi.transforms.prune.allocate import LayerCost, Steps, Width, path_of
from edgedi.transforms.prune.curves import Curve, curve_of
from edgedi.transforms.prune.cut import Group, Narrow, narrow
from edgedi.transforms.prune.groups import groups_of
from edgedi.transforms.prune.moments import Moments, moments_of
from edgedi.transforms.prune.probe import Probe
from edgedi.transforms.prune.refit import Teacher, together
from edgedi.transforms.size import Size
from edgedi.transforms.store import NOWHERE, Slot, Store, digest_of_model
from edgedi.transforms.task import SAME, Budget, Prices, Say

LOOKING = 0.5
"""The share of the time left that looking at groups may take; those with most multiplications come first."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Path:
    """``widths[0]`` is the network as it was, each one after has fewer channels; ``network(i)`` makes it."""

    model: nn.Module
    arguments: tuple[Any, ...]
    groups: tuple[Group, ...]
    left_alone: tuple[str, ...]
    """Layers whose channels stay, each with the reason in brackets."""
    curves: dict[str, Curve]
    widths: list[Width]
    teacher: Teacher

    def edit(self, index: int) -> Narrow:
        """What leads from the network as it was to point ``index``."""
        removed = {name: self.curves[name].order[:count] for name, count in self.widths[index].removed.items()}
        return narrow(removed, self.groups)

    def network(self, index: int) -> nn.Module:
        """Point ``index``, its weights fitted to the network as it was."""
        edit = self.edit(index)
        small = edit.apply(copy.deepcopy(self.model), self.arguments)
        self.teacher.fit(small, edit)
        return small

    def macs(self, index: int) -> int:
        """Of one run on the example inputs."""
        return round(self.widths[index].macs)

    def size(self, index: int) -> Size:
        """Of point ``index``: its parameters are counted, as biases do not shrink as weights do."""
        small = self.edit(index).apply(copy.deepcopy(self.model), self.arguments)
        return Size(parameters=sum(tensor.numel() for tensor in small.parameters()), macs=self.macs(index))


def find_path(
    model: nn.Module,
    arguments: tuple[Any, ...],
    calibration: Sequence[Batch],
    seed: int,
    say: Say,
    prices: Prices = SAME,
    *,
    budget: Budget | None = None,
    store: Store = NOWHERE,
) -> Path:
    """Its ``widths`` are one where no width can change; errors as of ``groups_of``.

    Groups for which ``budget`` leaves no time stay as they are. ``store`` keeps what has been found of ``model``.
    """
    groups, left_alone = groups_of(model, arguments)
    names = sorted({part.layer for group in groups for part in group.readers})
    # A change is tried on inputs that no moment has seen: of few inputs a wide layer learns to make up for channels on
    # these alone.
    most, unseen = fourths(calibration)
    moments = moments_of(
        model, names, [batch.arguments for batch in most], sum(batch.size for batch in most), seed,
        store.slot("moments"),
    )  # fmt: skip
    probe = Probe(model, together(unseen))
    macs = {cost.layer: cost.macs for cost in layer_costs(model, arguments, groups)}
    ordered = sorted(groups, key=lambda group: -sum(macs[part.layer] for part in group.parts if part.layer in macs))
    curves = _curves(model, ordered, moments, probe, say, budget or Budget(None), store.slot("path"))
    looked = tuple(group for group in groups if group.name in curves)
    no_time = tuple(f"{group.name} (no time)" for group in groups if group.name not in curves)
    if no_time:
        say(f"prune: no time to look at {len(no_time)} groups, which have the fewest multiplications")
    steps = {group.name: Steps(counts=curves[group.name].counts, errors=curves[group.name].errors) for group in looked}
    return Path(
        model=model, arguments=arguments, groups=looked, left_alone=(*left_alone, *no_time),
        curves=curves,
        widths=path_of(steps, layer_costs(model, arguments, looked, prices)),
        teacher=Teacher(model, together(calibration), seed, store.slot("fit")),
    )  # fmt: skip


def _curves(
    model: nn.Module,
    groups: Sequence[Group],
    moments: Mapping[str, Moments],
    probe: Probe,
    say: Say,
    budget: Budget,
    slot: Slot,
) -> dict[str, Curve]:
    """By group, in their order: of all that there is time for, the first one always."""
    whose, known = digest_of_model(model), slot.load() or {}
    known = known if known.get("model") == whose else {"curves": {}, "until_s": budget.used_s + LOOKING * budget.left_s}
    curves = {name: Curve(**plain) for name, plain in known["curves"].items()}
    left = [group for group in groups if group.name not in curves]
    while left and not (curves and budget.used_s >= known["until_s"]):
        group = left.pop(0)
        curves[group.name] = curve_of(model, group, moments, probe)
        say(f"prune: {len(curves)} of {len(groups)} groups of channels looked at")
        if slot.due:
            slot.save({**known, "model": whose, "curves": {name: asdict(curve) for name, curve in curves.items()}})
    if left:  # whoever goes on from here is not to look further, or it would find another path
        known["until_s"] = 0.0
    slot.save({**known, "model": whose, "curves": {name: asdict(curve) for name, curve in curves.items()}})
    return curves


def layer_costs(
    model: nn.Module, arguments: tuple[Any, ...], groups: Sequence[Group], prices: Prices = SAME
) -> list[LayerCost]:
    """Every layer with multiplications, and what share of its inputs and outputs a unit of each group is."""
    _, layers, total = measured(model, arguments)
    shares: dict[tuple[str, bool], dict[str, float]] = {}
    for group in groups:
        for part in group.parts:
            share = np.count_nonzero(part.units >= 0) / len(part.units) / group.num_units
            shares.setdefault((part.layer, part.reads), {})[group.name] = share
    known = [
        LayerCost(
            layer=layer.name,
            macs=layer.size.macs,
            inputs=shares.get((layer.name, True), {}),
            outputs=shares.get((layer.name, False), {}),
            price=prices.get(layer.name, 1.0),
        )
        for layer in layers
        if layer.size.macs
    ]
    return [*known, LayerCost(macs=total.macs - sum(cost.macs for cost in known), inputs={}, outputs={})]
