"""What each operator reads: to compute ``interval`` of output dimension ``dim``, which part of each input is needed?

The answer is a ``Region`` per input, ``WHOLE`` for an input that is read entirely, or ``None`` instead of all answers
where the operator cannot be split along that dimension.

Regions are clipped to the true border of the map; padding is whatever clipping cut off, applied per layer by the
kernel. A rule may return more than is read (the hull), never less.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from edgedi.partition.graph.geometry import EMPTY, WHOLE, Interval, Need, Region, clip, window
from edgedi.partition.graph.graph import Layer, Shapes

Rule = Callable[[Layer, Shapes, Region], "tuple[Need, ...] | None"]


def same(layer: Layer, shapes: Shapes, out: Region) -> tuple[Need, ...]:
    """Element by element, with broadcasting: dimensions align from the right, size 1 is read whole."""
    return tuple(_broadcast(shape, layer.spec.shape, out) for shape in shapes)


def _broadcast(shape: tuple[int, ...], out_shape: tuple[int, ...], out: Region) -> Need:
    dim = out.dim - (len(out_shape) - len(shape))
    return WHOLE if dim < 0 or shape[dim] != out_shape[out.dim] else Region(dim, out.interval)


def never(layer: Layer, shapes: Shapes, out: Region) -> None:
    """Nothing in part: the operator runs whole."""
    return


def constant(layer: Layer, shapes: Shapes, out: Region) -> tuple[Need, ...]:
    """Nothing at all: there are no inputs."""
    return ()


def conv(layer: Layer, shapes: Shapes, out: Region) -> tuple[Need, ...]:
    """Inputs: the map and, when fused with a residual add, the tensor added to the result."""
    rest = tuple(Region(out.dim, out.interval) for _ in shapes[1:])
    return (_conv_map(layer, shapes[0], out), *rest)


def _conv_map(layer: Layer, shape: tuple[int, ...], out: Region) -> Need:
    if out.dim == 0:
        return out
    if out.dim == 1:
        if layer.attributes["groups"] == 1:
            return WHOLE
        per_group = shape[1] // layer.attributes["groups"]
        groups = covering_groups(layer, out.interval)
        return Region(1, Interval(groups.start * per_group, groups.stop * per_group))
    return Region(out.dim, clip(unclipped(layer, out), shape[out.dim]))


def covering_groups(layer: Layer, channels: Interval) -> Interval:
    """The convolution groups that make output ``channels``."""
    per_group = layer.spec.shape[1] // layer.attributes["groups"]
    return Interval(channels.start // per_group, -(-channels.stop // per_group))


def unclipped(layer: Layer, out: Region) -> Interval:
    """Input positions that a sliding window reads, as if the map went on beyond its border."""
    axis = out.dim - 2
    return window(
        out.interval,
        kernel=layer.attributes["kernel"][axis],
        stride=layer.attributes["stride"][axis],
        dilation=layer.attributes["dilation"][axis],
        before=layer.attributes["pad_before"][axis],
    )


def conv_transpose(layer: Layer, shapes: Shapes, out: Region) -> tuple[Need, ...] | None:
    """The positions whose kernels touch the interval; channels are not split."""
    if out.dim == 0:
        return (out,)
    if out.dim == 1:
        return None
    axis = out.dim - 2
    stride, before = layer.attributes["stride"][axis], layer.attributes["pad_before"][axis]
    reach = layer.attributes["dilation"][axis] * (layer.attributes["kernel"][axis] - 1)
    first = -(-(out.interval.start + before - reach) // stride)
    last = (out.interval.stop - 1 + before) // stride
    return (Region(out.dim, clip(Interval(first, max(first, last + 1)), shapes[0][out.dim])),)


def pool(layer: Layer, shapes: Shapes, out: Region) -> tuple[Need, ...]:
    """A window along the map; channel by channel and image by image otherwise."""
    if out.dim < 2:
        return (out,)
    return (Region(out.dim, clip(unclipped(layer, out), shapes[0][out.dim])),)


def adaptive_pool(layer: Layer, shapes: Shapes, out: Region) -> tuple[Need, ...]:
    """Windows that share the map evenly: their borders are rounded outward."""
    if out.dim < layer.spec.rank - len(layer.attributes["size"]):
        return (out,)
    size, length = layer.spec.shape[out.dim], shapes[0][out.dim]
    start = out.interval.start * length // size
    return (Region(out.dim, clip(Interval(start, max(start, -(-out.interval.stop * length // size))), length)),)


def resize(layer: Layer, shapes: Shapes, out: Region) -> tuple[Need, ...]:
    """A resampling window around the scaled position; the margin covers every mode and torch's own float32 rounding."""
    if out.dim < 2:
        return (out,)
    length, size = shapes[0][out.dim], layer.spec.shape[out.dim]
    if length == 1:
        return (WHOLE,)
    if length == size and layer.attribute("scales") is None:
        return (out,)
    ratio = max(length / size, (length - 1) / max(size - 1, 1))
    margin = 2 + math.ceil(2 * max(ratio, 1.0)) if layer.attributes["mode"] == "bicubic" else 2 + math.ceil(ratio)
    low = min(out.interval.start * length / size, out.interval.start * (length - 1) / max(size - 1, 1))
    high = max(out.interval.stop * length / size, out.interval.stop * (length - 1) / max(size - 1, 1))
    return (Region(out.dim, clip(Interval(math.floor(low) - margin, math.ceil(high) + margin), length)),)


def linear(layer: Layer, shapes: Shapes, out: Region) -> tuple[Need, ...]:
    """A new channel reads all features; along every other dimension it is row by row."""
    return (WHOLE if out.dim == layer.spec.rank - 1 else out,)


def cat(layer: Layer, shapes: Shapes, out: Region) -> tuple[Need, ...]:
    """Along the joined dimension, of each input what lies in the interval."""
    if out.dim != layer.attributes["dim"]:
        return tuple(out for _ in shapes)
    needs, offset = [], 0
    for shape in shapes:
        common = out.interval.intersect(Interval(offset, offset + shape[out.dim]))
        needs.append(Region(out.dim, common.shift(-offset) if len(common) else EMPTY))
        offset += shape[out.dim]
    return tuple(needs)


def slice_(layer: Layer, shapes: Shapes, out: Region) -> tuple[Need, ...]:
    """Along the sliced dimension, from the first element taken to the last."""
    if out.dim != layer.attributes["dim"]:
        return (out,)
    start, step = layer.attributes["start"], layer.attributes["step"]
    return (Region(out.dim, Interval(start + out.interval.start * step, start + (out.interval.stop - 1) * step + 1)),)


def permute(layer: Layer, shapes: Shapes, out: Region) -> tuple[Need, ...]:
    """The same interval of the dimension that was moved."""
    return (Region(layer.attributes["dims"][out.dim], out.interval),)


def reshape(layer: Layer, shapes: Shapes, out: Region) -> tuple[Need, ...] | None:
    """A dimension survives where the elements before it number the same; merged or split ones map by blocks."""
    shape, target = shapes[0], layer.spec.shape
    before = math.prod(target[: out.dim])
    after = math.prod(target[out.dim + 1 :])
    for dim in range(len(shape)):
        if math.prod(shape[:dim]) != before or shape[dim] == 1:
            continue
        inner = math.prod(shape[dim + 1 :])
        first = out.interval.start * after // inner
        last = -(-out.interval.stop * after // inner)
        if inner % after and after % inner:
            return None
        return (Region(dim, Interval(first, last)),)
    return None


def pad(layer: Layer, shapes: Shapes, out: Region) -> tuple[Need, ...]:
    """Constant padding shifts; wrapped padding reads the far border, so there the hull is the whole map."""
    before, after = layer.attributes["before"][out.dim], layer.attributes["after"][out.dim]
    length = shapes[0][out.dim]
    inside = out.interval.shift(-before)
    if layer.attributes["mode"] == "constant" or not (before or after):
        return (Region(out.dim, clip(inside, length)),)
    if inside.start >= 0 and inside.stop <= length:
        return (Region(out.dim, inside),)
    if layer.attributes["mode"] == "circular":
        return (Region(out.dim, Interval(0, length)),)
    mirrored = [pad_source(position, length, layer.attributes["mode"]) for position in range(inside.start, inside.stop)]
    return (Region(out.dim, Interval(min(mirrored), max(mirrored) + 1)),)


def pad_source(position: int, length: int, mode: str) -> int:
    """Input index that non-constant padding shows at ``position`` (negative before the map)."""
    if mode == "circular":
        return position % length
    if mode == "replicate":
        return min(max(position, 0), length - 1)
    return length - 1 - abs(length - 1 - abs(position))  # reflect, border not repeated


def along(attribute: str) -> Rule:
    """An operator that mixes along the listed dimensions and is element-wise along all others."""

    def rule(layer: Layer, shapes: Shapes, out: Region) -> tuple[Need, ...] | None:
        mixed = layer.attributes[attribute]
        mixed = mixed if isinstance(mixed, tuple) else (mixed,)
        return None if out.dim in mixed else tuple(out for _ in shapes)

    return rule


def layer_norm(layer: Layer, shapes: Shapes, out: Region) -> tuple[Need, ...] | None:
    """The last dimensions are normalised together; nothing mixes along the others."""
    return None if out.dim >= layer.spec.rank - layer.attributes["num_dims"] else (out,)


def group_norm(layer: Layer, shapes: Shapes, out: Region) -> tuple[Need, ...] | None:
    """Image by image: a group's mean reads its channels and the whole map."""
    return (out,) if out.dim == 0 else None


def partial(layer: Layer, shapes: Shapes, out: Region) -> tuple[Need, ...] | None:
    """Output: [parts, *input shape with reduced dimensions at 1]. Which part of the input a part sums follows from
    ownership, not from demand, so lowering says it; along dimensions that are not reduced it is element-wise."""
    if out.dim == 0 or out.dim - 1 in layer.attributes["dims"]:
        return None
    return (Region(out.dim - 1, out.interval),)


def combine(layer: Layer, shapes: Shapes, out: Region) -> tuple[Need, ...]:
    """Every part of the sum, which stands in a dimension in front."""
    return (Region(out.dim + 1, out.interval),)


def pixel_shuffle(layer: Layer, shapes: Shapes, out: Region) -> tuple[Need, ...] | None:
    """Channels become rows and columns: many channels for each one, one row for many."""
    factor = layer.attributes["factor"]
    if out.dim == layer.spec.rank - 3:
        squared = factor * factor
        return (Region(out.dim, Interval(out.interval.start * squared, out.interval.stop * squared)),)
    if out.dim < layer.spec.rank - 3:
        return (out,)
    return (Region(out.dim, Interval(out.interval.start // factor, -(-out.interval.stop // factor))),)


def matmul(layer: Layer, shapes: Shapes, out: Region) -> tuple[Need, ...] | None:
    """Rows of the first factor, columns of the second; batches with broadcasting."""
    rank = layer.spec.rank
    if min(map(len, shapes)) < 2:
        return None
    if out.dim >= rank - 2:
        moved = Region(out.dim - (rank - len(shapes[0])), out.interval)
        return (moved, WHOLE) if out.dim == rank - 2 else (WHOLE, Region(len(shapes[1]) - 1, out.interval))
    return tuple(_broadcast(shape, layer.spec.shape, out) for shape in shapes)


def attention(layer: Layer, shapes: Shapes, out: Region) -> tuple[Need, ...] | None:
    """Scaled dot-product attention over [..., tokens, features]: independent along every leading dimension."""
    if out.dim >= layer.spec.rank - 2:
        return None
    return tuple(_broadcast(shape, layer.spec.shape, out) for shape in shapes)


def expand(layer: Layer, shapes: Shapes, out: Region) -> tuple[Need, ...]:
    """As element by element: a dimension that grew from 1 is read whole."""
    return same(layer, shapes, out)
