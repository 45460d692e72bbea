"""Groups as the exact step follows channels: through shuffles and padded shortcuts, where Torch-Pruning does not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import nn

from edgedi.errors import CompactionError
from edgedi.transforms.exact.flow import Flow, follow
from edgedi.transforms.exact.rules import RULES
from edgedi.transforms.exact.traced import Layer, trace
from edgedi.transforms.exact.weights import layer_rule
from edgedi.transforms.prune.cut import Array, Group, Part, is_one_to_one


def followed_groups(model: nn.Module, arguments: tuple[Any, ...]) -> tuple[Group, ...]:
    """Every group of ``model``; none where it cannot be traced. Channels that somebody needs as they are stay out."""
    try:
        traced = trace(model, arguments)
    except CompactionError:
        return ()
    flow = follow(traced, RULES, layer_rule)
    known = [layer for layer in traced.layers if layer.output in flow.values and layer.source in flow.values]
    return tuple(_groups(known, _free(flow), flow))


def _free(flow: Flow) -> Array:
    """The set of each number in ``flow.groups``, -1 where it stays."""
    roots = flow.groups.roots(np.arange(len(flow.groups)))
    stays = np.zeros(len(roots), dtype=bool)
    for members in flow.pinned:
        stays[roots[members]] = True
    return np.where(stays[roots], -1, roots)


def _groups(layers: Sequence[Layer], free: Array, flow: Flow) -> Iterator[Group]:
    made = {layer.name: free[flow.values[layer.output].members] for layer in layers}
    read = {layer.name: free[flow.values[layer.source].members] for layer in layers if not is_one_to_one(layer.module)}
    for first, units in _together(made, list(read)):
        parts = [
            Part(layer=name, reads=reads, units=np.where(np.isin(sets, units), np.searchsorted(units, sets), -1))
            for reads, side in ((False, made), (True, read))
            for name, sets in side.items()
            if np.isin(sets, units).any()
        ]
        yield Group(name=first, num_units=len(units), parts=tuple(parts))


def _together(made: dict[str, Array], makers: Sequence[str]) -> Iterator[tuple[str, Array]]:
    """What the layers in ``makers`` make, joined where two make some of the same: the first maker, and the sets."""
    groups: list[tuple[str, set[int]]] = []
    for name in makers:
        sets = set(made[name][made[name] >= 0].tolist())
        if not sets:
            continue
        same = [group for group in groups if group[1] & sets]
        groups = [group for group in groups if group not in same]
        groups.append((same[0][0] if same else name, sets.union(*(group[1] for group in same))))
    for name, sets in groups:
        yield name, np.array(sorted(sets))
