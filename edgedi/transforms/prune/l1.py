"""The published rule, to compare with: filters by their L1 norm, layer after layer, without fitting anything anew.

Filters are scored once. Round and round the layers, each loses its lowest filter and what reads it. Where the score of
the network falls below what is needed, the filter comes back and the layer is locked; the end is when all are. (As the
authors' code does it, but judged by validation data, and with the very columns that read a filter taken out of the
first linear layer.) Layers whose filters hang together lose them together; their norms are added up.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
from torch import nn

from edgedi.transforms.prune.cut import TRANSPOSED, Array, Group, Narrow, is_one_to_one, narrow
from edgedi.transforms.prune.groups import groups_of
from edgedi.transforms.prune.path import layer_costs
from edgedi.transforms.size import Size
from edgedi.transforms.store import digest_of_model
from edgedi.transforms.task import Outcome, Point, Task


def prune_by_l1(model: nn.Module, task: Task) -> Outcome:
    """Until all layers are locked, ``task.target`` is reached, however long that takes, or the time is over."""
    groups, left_alone = groups_of(model, task.arguments)
    rule = _Rule(model, task, groups)
    rule.run()
    misses = task.target is not None and not rule.is_over
    stopped = "one filter less of any layer scores too little, or it has but one: a larger tolerance goes further"
    return Outcome(
        model=rule.small, edits=() if rule.small is model else (rule.edit(rule.gone),),
        note=stopped if misses else "", left_alone=left_alone, curve=tuple(rule.curve),
    )  # fmt: skip


def norms_of(model: nn.Module, group: Group) -> Array:
    """The sum of absolute weights of the filters that each unit is made of, [units]."""
    total = np.zeros(group.num_units)
    for part in group.parts:
        module = model.get_submodule(part.layer)
        if not part.reads and not is_one_to_one(module):
            weight = module.weight.detach().cpu().double().abs()
            filters = (weight.transpose(0, 1) if isinstance(module, TRANSPOSED) else weight).flatten(1).sum(1).numpy()
            total += np.bincount(part.units + 1, weights=filters, minlength=group.num_units + 1)[1:]
    return total


class _Rule:
    """The walk round the layers. ``gone``: how many of each group's units, the lowest first. A checkpoint keeps it."""

    def __init__(self, model: nn.Module, task: Task, groups: Sequence[Group]) -> None:
        self._model, self._task, self._groups = model, task, groups
        self._costs = layer_costs(model, task.arguments, groups)
        self._order = {group.name: np.argsort(norms_of(model, group), kind="stable").tolist() for group in groups}
        self._slot, self._whose = task.store.slot("l1"), digest_of_model(model)
        saved = self._slot.load() or {}
        saved = saved if saved.get("model") == self._whose else {}
        self.gone: dict[str, int] = saved.get("gone", {group.name: 0 for group in groups})
        self._unlocked = deque(saved.get("unlocked", self.gone))
        """Names of groups, the next first."""
        self.curve = [Point(**point) for point in saved.get("curve", ())]
        self.small = self._without(self.gone) if any(self.gone.values()) else model

    def run(self) -> None:
        sizes = {group.name: group.num_units for group in self._groups}
        while self._unlocked and not self.is_over:
            name = self._unlocked.popleft()
            if self._drop(name) and self.gone[name] < sizes[name] - 1:
                self._unlocked.append(name)
            if self._slot.due:
                curve = [asdict(point) for point in self.curve]
                self._slot.save(
                    {"model": self._whose, "gone": self.gone, "unlocked": list(self._unlocked), "curve": curve}
                )

    def edit(self, gone: Mapping[str, int]) -> Narrow:
        return narrow({name: self._order[name][:count] for name, count in gone.items()}, self._groups)

    def _without(self, gone: Mapping[str, int]) -> nn.Module:
        return self.edit(gone).apply(copy.deepcopy(self._model), self._task.arguments)

    def _drop(self, name: str) -> bool:
        """One unit of a group less, if the score allows."""
        assert self._task.judge is not None  # the arguments were checked
        after = {**self.gone, name: self.gone[name] + 1}
        tried = self._without(after)
        score, macs = self._task.judge(tried), self._macs(after)
        share = macs / self._macs(dict.fromkeys(after, 0))
        self._task.say(f"prune: {share:.1%} of the MACs score {score}, {self._task.least_score:.4g} is needed")
        self.curve.append(Point(macs=macs, score=score.value, step="prune"))
        if score.value < self._task.least_score:
            return False
        self.gone, self.small = after, tried
        return True

    @property
    def is_over(self) -> bool:
        """Whether the target is reached; the time over, where there is none."""
        target = self._task.target
        return self._task.budget.left_s <= 0 if target is None else target.reached(self._size)

    @property
    def _size(self) -> Size:
        parameters = sum(tensor.numel() for tensor in self.small.parameters())
        return Size(parameters=parameters, macs=self._macs(self.gone))

    def _macs(self, gone: Mapping[str, int]) -> int:
        return round(sum(cost.left(gone) for cost in self._costs))
