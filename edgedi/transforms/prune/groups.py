"""Which channels hang together: Torch-Pruning's dependency groups, each proven on the example before it is used.

The only module that imports torch_pruning (Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023). It
follows the graph of autograd and guesses at what it does not know. So a third of every group's channels is taken out of
a copy: where that does not run, or does not answer as a copy does whose readers have zeros for those channels, the
group is left alone and named.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edgedi.errors import CompactionError, install
from edgedi.transforms.measure import answer_of, difference
from edgedi.transforms.prune.cut import CONVOLUTIONS, TRANSPOSED, Array, Group, Part, is_one_to_one, narrow
from edgedi.transforms.prune.followed import followed_groups

SAME = 1e-4
"""Largest difference, relative to the largest value, that float32 makes of the same sums in another order."""


def groups_of(model: nn.Module, arguments: tuple[Any, ...]) -> tuple[tuple[Group, ...], tuple[str, ...]]:
    """The groups that can be made narrower, in the model's order, and the layers whose channels are left alone.

    Channels that the model gives out are in neither. ``CompactionError`` where torch_pruning is missing.
    """
    work, inputs = _in_float(model), pytree.tree_map(_float, arguments)
    found, failed = list[Group](), dict[str, str]()
    for name, made in _dependencies(work, inputs):
        if isinstance(made, str):
            failed[name] = made
        elif _can_shrink(made):
            found.append(made)
    good = _accepted(work, inputs, found)
    failed |= {group.name: "narrower, it does not compute the same" for group in found if group not in good}
    if failed:
        more = [group for group in followed_groups(work, inputs) if _can_shrink(group) and not _overlap(group, good)]
        good = _accepted(work, inputs, [*good, *more])
    made_now = {part.layer for group in good for part in group.parts if not part.reads}
    left_alone = [f"{name} ({reason})" for name, reason in failed.items() if name not in made_now]
    return tuple(good), tuple(left_alone)


def _can_shrink(group: Group) -> bool:
    return bool(group.readers) and group.num_units > 1


def _overlap(group: Group, others: Sequence[Group]) -> bool:
    """Whether some channel that a layer makes is in one of ``others`` too."""
    taken = {
        (part.layer, channel) for other in others for part in other.parts if not part.reads for channel in _in(part)
    }
    return any((part.layer, channel) in taken for part in group.parts if not part.reads for channel in _in(part))


def _in(part: Part) -> list[int]:
    found: list[int] = np.flatnonzero(part.units >= 0).tolist()
    return found


def library() -> ModuleType:
    """Torch-Pruning; ``CompactionError`` where it is missing."""
    try:
        import torch_pruning
    except ImportError as error:
        raise CompactionError(
            f"the step 'prune' needs Torch-Pruning, which is not installed: {install('compact')}, or leave the step "
            "out of steps"
        ) from error
    return torch_pruning


def _in_float(model: nn.Module) -> nn.Module:
    """A copy to try things out on; half precision would hide what is wrong."""
    work = copy.deepcopy(model)
    wide = any(tensor.dtype == torch.float64 for tensor in work.parameters())
    return (work if wide else work.float()).requires_grad_(True)


def _float(leaf: Any) -> Any:
    half = isinstance(leaf, Tensor) and leaf.dtype in (torch.float16, torch.bfloat16)
    return leaf.float() if half else leaf


# --- from Torch-Pruning's groups to ours ------------------------------------------------------------------------------


def _dependencies(model: nn.Module, arguments: tuple[Any, ...]) -> Iterator[tuple[str, Group | str]]:
    """The name of the first layer of each group, and the group, or why there is none."""
    pruning, graph = library(), None
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        try:
            graph = pruning.DependencyGraph().build_dependency(
                model, arguments, forward_fn=lambda network, given: network(*given), verbose=False
            )
        except Exception as error:  # the library guesses at what it does not know, and may fail anywhere
            yield type(model).__name__, f"Torch-Pruning fails with {type(error).__name__}: {error}"
            return
        names = {module: name for name, module in model.named_modules()}
        seen: dict[str, set[int]] = {}
        for root, name in names.items():
            if root not in graph.module2node or not _is_mixing(root) or is_one_to_one(root):
                continue
            rest = sorted(set(range(_num_channels(root, reads=False))) - seen.get(name, set()))
            if not rest:
                continue
            try:
                items = _items(pruning, graph, root, rest)
                made = _group(name, items, names)
            except _GivenOut:
                continue
            except Exception as error:
                made = f"Torch-Pruning fails with {type(error).__name__}: {error}"
            yield name, made
            seen.setdefault(name, set()).update(rest)
            if isinstance(made, Group):
                for part in made.parts:
                    if not part.reads:
                        seen.setdefault(part.layer, set()).update(np.flatnonzero(part.units >= 0).tolist())


def _is_mixing(module: Any) -> bool:
    return isinstance(module, _MIXING) and not (isinstance(module, TRANSPOSED) and module.groups > 1)


_MIXING = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)


def _items(pruning: Any, graph: Any, root: nn.Module, channels: list[int]) -> list[tuple[Any, bool, Any, Any]]:
    """Of each layer or operator in the group: it, whether it reads, its channels and the root's that they go with."""
    pruner = graph.get_pruner_of_module(root)
    group = graph.get_pruning_group(root, pruner.prune_out_channels, channels)
    found = []
    for item in group.items:
        module, kind = item.dep.target.module, item.dep.target.type
        if kind == pruning.ops.OPTYPE.OUTPUT:
            raise _GivenOut
        out = graph.is_out_channel_pruning_fn(item.dep.handler)
        found.append((module, not out, item.idxs, item.root_idxs))
    return found


class _GivenOut(Exception):
    """The model's own outputs are in the group."""


def _group(name: str, items: Sequence[tuple[Any, bool, Any, Any]], names: dict[nn.Module, str]) -> Group | str:
    parts = []
    for module, reads, channels, roots in items:
        if type(module).__module__.startswith("torch_pruning."):  # an operator without weights
            continue
        if not (_is_mixing(module) or (isinstance(module, nn.Module) and is_one_to_one(module))):
            return f"{names.get(module, type(module).__name__)} reads all of its channels at once"
        if isinstance(module, nn.PReLU) and module.num_parameters == 1:
            continue
        one_to_one = is_one_to_one(module)
        units = np.full(_num_channels(module, reads and not one_to_one), -1)
        units[channels] = roots
        parts.append(Part(layer=names[module], reads=reads and not one_to_one, units=units))
    return _coupled(name, _merged(parts), names)


def _merged(parts: Sequence[Part]) -> list[Part]:
    """One part for each layer and side."""
    found: dict[tuple[str, bool], Part] = {}
    for part in parts:
        before = found.get((part.layer, part.reads))
        units = part.units if before is None else np.where(before.units >= 0, before.units, part.units)
        found[part.layer, part.reads] = Part(layer=part.layer, reads=part.reads, units=units)
    return list(found.values())


def _coupled(name: str, parts: Sequence[Part], modules: dict[nn.Module, str]) -> Group:
    """Units numbered from 0. Each group of a grouped convolution loses the same of its channels: these go together."""
    layers = {name: module for module, name in modules.items()}
    parent = {unit: unit for part in parts for unit in part.units[part.units >= 0].tolist()}

    def root(unit: int) -> int:
        while parent[unit] != unit:
            unit = parent[unit]
        return unit

    for part in parts:
        many = getattr(layers[part.layer], "groups", 1)
        if many == 1 or is_one_to_one(layers[part.layer]):
            continue
        for same in part.units.reshape(many, -1).T.tolist():
            for unit in same:
                if unit >= 0 and same[0] >= 0:
                    parent[root(unit)] = root(same[0])
    sets = sorted({root(unit) for unit in parent})
    number = {unit: sets.index(root(unit)) for unit in parent} | {-1: -1}
    return Group(
        name=name,
        num_units=len(sets),
        parts=tuple(
            Part(layer=part.layer, reads=part.reads, units=np.array([number[unit] for unit in part.units.tolist()]))
            for part in parts
        ),
    )


def _num_channels(module: Any, reads: bool) -> int:
    for inputs, outputs in (("in_channels", "out_channels"), ("in_features", "out_features")):
        if hasattr(module, inputs):
            return int(getattr(module, inputs if reads else outputs))
    return int(getattr(module, "num_features", 0) or module.num_parameters)


# --- each group proven ------------------------------------------------------------------------------------------------


def _accepted(model: nn.Module, arguments: tuple[Any, ...], groups: Sequence[Group]) -> list[Group]:
    """The groups that are right, all of them together."""
    if not groups or _is_right(model, arguments, groups):
        return list(groups)
    if len(groups) == 1:
        return []
    middle = len(groups) // 2
    first, second = (_accepted(model, arguments, half) for half in (groups[:middle], groups[middle:]))
    both = [*first, *second]
    return both if not first or not second or _is_right(model, arguments, both) else first


def _is_right(model: nn.Module, arguments: tuple[Any, ...], groups: Sequence[Group]) -> bool:
    """Whether the network without a third of the channels answers as one whose readers have zeros for them."""
    removed = {group.name: range(max(1, group.num_units // 3)) for group in groups}
    narrower, zeroed = copy.deepcopy(model), copy.deepcopy(model)
    narrow(removed, groups).apply(narrower, arguments)
    for group in groups:
        for part in group.readers:
            _zero(zeroed.get_submodule(part.layer), np.flatnonzero(np.isin(part.units, removed[group.name])))
    try:
        found = answer_of(narrower, arguments)
    except Exception:  # whatever the model's own code does with layers of another width
        return False
    return difference(found, answer_of(zeroed, arguments)) <= SAME


@torch.no_grad()
def _zero(module: Any, channels: Array) -> None:
    if isinstance(module, TRANSPOSED):
        module.weight[channels] = 0
    elif getattr(module, "groups", 1) == 1:
        module.weight[:, channels] = 0
    else:
        per_input, per_output = module.weight.shape[1], module.weight.shape[0] // module.groups
        for channel in channels.tolist():
            rows = slice(channel // per_input * per_output, (channel // per_input + 1) * per_output)
            module.weight[rows, channel % per_input] = 0
