"""Operators without weights: what they make of channels of which something is known. One table, ``RULES``.

A rule returns ``None`` where this use of its operator is not understood; then nothing is removed before or after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import torch

from edgedi.transforms.exact.facts import Array, Channels, joined, product, settled
from edgedi.transforms.exact.flow import Flow, Rule
from edgedi.transforms.exact.traced import GETITEM, shape_of


def _arguments(node: Any) -> dict[str, Any]:
    """The node's arguments by their names in the operator's schema, defaults included."""
    schema = node.target._schema.arguments
    given = dict(zip((argument.name for argument in schema), node.args, strict=False))
    return {argument.name: argument.default_value for argument in schema} | given | dict(node.kwargs)


def _source(flow: Flow, node: Any) -> Channels | None:
    """The channels of the only tensor that ``node`` reads."""
    inputs = node.all_input_nodes
    return flow.values.get(inputs[0]) if len(inputs) == 1 and node.args[0] is inputs[0] else None


def _operator(node: Any, operands: int = 1) -> tuple[Any, ...]:
    """What is computed, but for the maps: with their sizes, since a number has the same id whatever its map's size."""
    sizes = [(shape_of(argument) or ())[2:] for argument in node.args[:operands]]
    return str(node.target), *sizes, repr(node.args[operands:]), repr(node.kwargs)


# --- one tensor, channel by channel -----------------------------------------------------------------------------------


def _same(flow: Flow, node: Any) -> Channels | None:
    """Hands its input on."""
    return _source(flow, node)


def _dropout(flow: Flow, node: Any) -> Channels | None:
    return None if _arguments(node)["train"] else _source(flow, node)


def _evaluated(node: Any, values: Array) -> Array:
    with torch.no_grad():
        return np.asarray(node.target(torch.from_numpy(values), *node.args[1:], **node.kwargs).numpy())


def _elementwise(monotone: bool) -> Rule:
    """Numbers stay numbers; where the function only rises or only falls, bounds are what it makes of bounds."""

    def rule(flow: Flow, node: Any) -> Channels | None:
        source = _source(flow, node)
        if source is None:
            return None
        known = np.full(len(source), True) if monotone else source.constant
        low, high = np.full(len(source), -np.inf), np.full(len(source), np.inf)
        ends = np.stack([_evaluated(node, end[known].astype(np.float64)) for end in (source.low, source.high)])
        low[known], high[known] = ends.min(axis=0), ends.max(axis=0)
        ids = flow.named(_operator(node), source.ids)
        return settled(low, high, ids, source.members, flow.known, source.num_dims)

    return rule


def _spatial(keeps: str) -> Rule:
    """What computes each output from positions of one channel. ``keeps``: which bounds stay.

    "bounds": all, as of a maximum or a mean. "numbers": those of constants, the weights' sum being 1. "zero": zeros.
    """

    def rule(flow: Flow, node: Any) -> Channels | None:
        source = _source(flow, node)
        if source is None or source.num_dims != 1 or not _over_positions(node):
            return None
        stay = {"bounds": np.full(len(source), True), "numbers": source.constant, "zero": source.constant}[keeps]
        if keeps == "zero":
            stay = stay & (source.low == 0)
        low, high = np.where(stay, source.low, -np.inf), np.where(stay, source.high, np.inf)
        return settled(low, high, flow.named(_operator(node), source.ids), source.members, flow.known)

    return rule


def _over_positions(node: Any) -> bool:
    """Whether the dimensions that an operator works along, if it names any, leave out batch and channels."""
    dims, rank = _arguments(node).get("dim", (2,)), len(shape_of(node.args[0]) or ())
    if isinstance(dims, int):
        dims = (dims,)
    return bool(dims) and all(dim % rank >= 2 for dim in dims)


def _avg_pool(flow: Flow, node: Any) -> Channels | None:
    """A mean over positions, of padding too; of what a divisor makes of it only zero is known."""
    arguments = _arguments(node)
    made = _spatial("zero" if arguments.get("divisor_override") else "bounds")(flow, node)
    padding = arguments["padding"]
    padded = any(padding) if isinstance(padding, (list, tuple)) else bool(padding)
    return _around(flow, node, made, 0.0) if made is not None and padded else made


def _pad(flow: Flow, node: Any) -> Channels | None:
    """Padding of positions with a number, or with values of the map; and of channels, with channels of a number."""
    source, arguments = _source(flow, node), _arguments(node)
    pad, num_positions = arguments["pad"], len(shape_of(node.args[0]) or ()) - 2
    numbers, value = arguments.get("mode", "constant") == "constant", float(arguments.get("value") or 0.0)
    around, beside = pad[: 2 * num_positions], pad[2 * num_positions :]
    if source is None or source.num_dims != 1 or len(beside) > 2 or min(beside, default=0) < 0:
        return None
    ids = flow.named(_operator(node), source.ids)
    made = settled(source.low, source.high, ids, source.members, flow.known)
    if numbers and any(around):
        made = _around(flow, node, made, value)
    return _beside(flow, made, beside, value) if numbers else None if any(beside) else made


def _beside(flow: Flow, made: Channels, counts: Sequence[int], value: float) -> Channels:
    """``made`` between so many channels of ``value``, which stay: the model's own code says how many."""
    constant = [flow.constants(count, value) for count in counts]
    for each in constant:
        flow.pin(each)
    return joined([*constant[:1], made, *constant[1:]])


def _around(flow: Flow, node: Any, made: Channels, value: float) -> Channels:
    """``made`` with ``value`` somewhere among its elements. Only a constant of that value is still one."""
    low, high = np.minimum(made.low, value), np.maximum(made.high, value)
    ids = flow.named(("around", *_operator(node)), made.ids)
    return settled(low, high, ids, made.members, flow.known)


# --- two tensors ------------------------------------------------------------------------------------------------------


def _binary(function: str) -> Rule:
    """Channel c of both makes channel c: they go together. A number as the second operand is elementwise."""

    def rule(flow: Flow, node: Any) -> Channels | None:
        if not isinstance(node.args[1], torch.fx.Node):
            return _elementwise(monotone=function != "div" or node.args[1] != 0)(flow, node)
        pair = _operands(flow, node)
        if pair is None:
            return None
        first, second = pair
        flow.groups.join(first.members, second.members)
        low, high = _bounds(function, first, second) if len(node.args) == 2 and not node.kwargs else _unbounded(first)
        operands = (first.ids, second.ids)
        if function in _COMMUTE:
            operands = (np.minimum(*operands), np.maximum(*operands))
        return settled(low, high, flow.named(_operator(node, 2), *operands), first.members, flow.known)

    return rule


_COMMUTE = frozenset({"add", "mul", "maximum", "minimum"})


def _operands(flow: Flow, node: Any) -> tuple[Channels, Channels] | None:
    """Both operands with the result's number of channels; ``None`` where they do not match channel by channel."""
    ranks = {len(shape_of(argument) or ()) for argument in node.args[:2]}
    first, second = (flow.values.get(argument) for argument in node.args[:2])
    if first is None or second is None or first.num_dims != 1 or second.num_dims != 1 or len(ranks) != 1:
        return None
    count = max(len(first), len(second))
    return _repeated(flow, first, count), _repeated(flow, second, count)


def _repeated(flow: Flow, single: Channels, count: int) -> Channels:
    """One channel for each of the other operand's. It stays, and does not tie them together."""
    if len(single) == count:
        return single
    flow.pin(single)
    return replace(single.at(np.zeros(count, dtype=np.int64)), members=flow.groups.add(count))


def _unbounded(channels: Channels) -> tuple[Array, Array]:
    infinite = np.full(len(channels), np.inf)
    return -infinite, infinite


def _bounds(function: str, first: Channels, second: Channels) -> tuple[Array, Array]:
    if function == "add":
        return first.low + second.low, first.high + second.high
    if function == "sub":
        return first.low - second.high, first.high - second.low
    if function == "mul":
        return product(first, second)
    if function in ("maximum", "minimum"):
        pick = np.maximum if function == "maximum" else np.minimum
        return pick(first.low, second.low), pick(first.high, second.high)
    return _unbounded(first)


# --- where channels go ------------------------------------------------------------------------------------------------


def _cat(flow: Flow, node: Any) -> Channels | None:
    parts = [flow.values.get(item) for item in node.args[0]]
    rank = len(shape_of(node) or ())
    found = [part for part in parts if part is not None and part.num_dims == 1]
    return joined(found) if len(found) == len(parts) and rank and _arguments(node)["dim"] % rank == 1 else None


def _reshape(flow: Flow, node: Any) -> Channels | None:
    """Positions folded otherwise, channels in one dimension or two, or everything but the batch in one."""
    source, before, after = _source(flow, node), shape_of(node.args[0]), shape_of(node)
    if source is None or before is None or after is None or flow.rigid or before[0] != after[0] or len(after) < 2:
        return None
    positions = before[1 + source.num_dims :]
    num_dims = _leading(after[1:], len(source))
    if source.num_dims == num_dims == 2 and before[1:3] != after[1:3]:
        return None
    if num_dims in (1, 2) and prod(after[1 + num_dims :]) == prod(positions):
        return _viewed(flow, node, source, positions, after, num_dims)
    if len(after) == 2 and source.num_dims == 1 and after[1] == len(source) * prod(positions):
        return _flattened(flow, source, positions)
    return None


def _leading(sizes: tuple[int, ...], count: int) -> int:
    """How many of the first sizes make ``count`` together; 0 if none do."""
    return next((number for number in range(1, len(sizes) + 1) if prod(sizes[:number]) == count), 0)


def _viewed(
    flow: Flow, node: Any, source: Channels, positions: tuple[int, ...], after: tuple[int, ...], num_dims: int
) -> Channels:
    """The same channels in another form. Two dimensions of them can only shrink in the second, in all rows alike."""
    if num_dims == 2 and source.num_dims == 1:
        _tie_rows(flow, source.members.reshape(after[1], after[2]))
    made = replace(source, num_dims=num_dims)
    if after[1 + num_dims :] == positions:
        return made
    ids = flow.named(("view", positions, after[1 + num_dims :]), source.ids)
    return settled(source.low, source.high, ids, source.members, flow.known, num_dims)


def _tie_rows(flow: Flow, rows: Array) -> None:
    """What has the same place in each row goes together."""
    for row in rows[1:]:
        flow.groups.join(rows[0], row)


def _flattened(flow: Flow, source: Channels, positions: tuple[int, ...]) -> Channels:
    """Every position of a channel becomes a channel, and goes with the others."""
    count = prod(positions)
    spread = source.at(np.repeat(np.arange(len(source)), count))
    if count == 1:
        return spread
    place = np.tile(np.arange(count), len(source))
    ids = flow.named(("flatten", positions), spread.ids, place)
    return settled(spread.low, spread.high, ids, spread.members, flow.known)


def _permute(flow: Flow, node: Any) -> Channels | None:
    """Only the two channel dimensions of a shuffle change places."""
    source, shape, arguments = _source(flow, node), shape_of(node.args[0]), _arguments(node)
    if source is None or shape is None:
        return None
    order = list(range(len(shape)))
    if "dim0" in arguments:
        a, b = arguments["dim0"] % len(shape), arguments["dim1"] % len(shape)
        order[a], order[b] = b, a
    else:
        order = [dim % len(shape) for dim in arguments["dims"]]
    if order == list(range(len(shape))):
        return source
    if source.num_dims != 2 or order != [0, 2, 1, *range(3, len(shape))]:
        return None
    return source.at(np.arange(len(source)).reshape(shape[1], shape[2]).T.ravel())


def _shuffle(flow: Flow, node: Any) -> Channels | None:
    source, groups = _source(flow, node), _arguments(node)["groups"]
    if source is None or source.num_dims != 1:
        return None
    _tie_rows(flow, source.members.reshape(groups, -1))
    return source.at(np.arange(len(source)).reshape(groups, -1).T.ravel())


def _split(flow: Flow, node: Any) -> Channels | None:
    """Equal parts stay equal: what has the same place in each goes together. The parts are read by ``getitem``."""
    source, shape = _source(flow, node), shape_of(node.args[0])
    if source is None or source.num_dims != 1 or shape is None or _arguments(node)["dim"] % len(shape) != 1:
        return None
    sizes = {part.shape[1] for part in node.meta["val"]}
    if flow.rigid or len(sizes) > 1:
        flow.pin(source)
    else:
        _tie_rows(flow, source.members.reshape(len(node.meta["val"]), -1))
    return source


def _getitem(flow: Flow, node: Any) -> Channels | None:
    whole, index = node.args
    source = flow.values.get(whole)
    if source is None or not isinstance(whole.meta.get("val"), (list, tuple)):
        return None
    starts = np.cumsum([0, *(part.shape[1] for part in whole.meta["val"])])
    return source.at(np.arange(starts[index], starts[index + 1]))


def _slice(flow: Flow, node: Any) -> Channels | None:
    """Positions are cut like any map; cut channels stay, for the model's own code says which they are."""
    source, before, after = _source(flow, node), shape_of(node.args[0]), shape_of(node)
    if source is None or source.num_dims != 1 or before is None or after is None or before[0] != after[0]:
        return None
    arguments = _arguments(node)
    if arguments["dim"] % len(before) != 1:
        return _spatial("bounds")(flow, node)
    flow.pin(source)
    return source.at(np.arange(before[1])[slice(arguments["start"], arguments["end"], arguments["step"])])


# --- the table --------------------------------------------------------------------------------------------------------


def _default(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys((f"aten.{name}.default" for name in names.split()), rule)


RULES: Mapping[str, Rule] = {
    **_default(_same, "alias detach clone contiguous lift_fresh_copy"),
    **_default(_dropout, "dropout feature_dropout alpha_dropout feature_alpha_dropout"),
    **_default(_elementwise(monotone=True), "relu relu6 hardtanh sigmoid tanh hardsigmoid clamp clamp_min exp neg"),
    **_default(
        _elementwise(monotone=False),
        "silu hardswish gelu mish leaky_relu elu celu selu softplus log_sigmoid abs square threshold",
    ),
    **{f"aten.{name}.Tensor": _binary(name) for name in ("add", "sub", "mul", "div")},
    **_default(_binary("maximum"), "maximum"),
    **_default(_binary("minimum"), "minimum"),
    **_default(_spatial("bounds"), "max_pool1d max_pool2d max_pool3d adaptive_max_pool2d"),
    **_default(_spatial("bounds"), "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d amax amin"),
    **_default(_avg_pool, "avg_pool1d avg_pool2d avg_pool3d"),
    "aten.mean.dim": _spatial("bounds"),
    "aten.sum.dim_IntList": _spatial("zero"),
    **{
        f"aten.upsample_{mode}2d.{kind}": _spatial(keeps)
        for mode, keeps in (("nearest", "bounds"), ("bilinear", "bounds"), ("bicubic", "numbers"))
        for kind in ("vec", "default")
    },
    **_default(_spatial("bounds"), "reflection_pad2d replication_pad2d"),
    **_default(_pad, "pad constant_pad_nd"),
    "aten.cat.default": _cat,
    **_default(_reshape, "view _unsafe_view reshape unsqueeze"),
    **{f"aten.{name}": _reshape for name in ("flatten.using_ints", "unflatten.int", "squeeze.dim", "squeeze.dims")},
    "aten.permute.default": _permute,
    "aten.transpose.int": _permute,
    "aten.channel_shuffle.default": _shuffle,
    **{f"aten.{name}": _split for name in ("split.Tensor", "split_with_sizes.default", "chunk.default")},
    GETITEM: _getitem,
    "aten.slice.Tensor": _slice,
}
