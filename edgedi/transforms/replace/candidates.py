"""Which convolutions could give way to a SCAR block, what each would save, and in which order to take them.

Only work is weighed here: a fully connected head stays, however many parameters it has. VGG-16's ImageNet head is the
larger part of what is left after replacement; to give it up for global pooling is the user's choice of another network.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from torch import nn

from edgedi.transforms.exact.traced import Traced, shape_of
from edgedi.transforms.replace.block import stand_in
from edgedi.transforms.size import Size, Target
from edgedi.transforms.task import SAME, Prices

RATIOS = (4, 8)
"""Of output channels to channels inside a block: the published ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A convolution for which a block costs less."""

    name: str
    saved: Mapping[int, int]
    """MACs of one run on the example, by ratio; only ratios that save some."""
    saved_parameters: Mapping[int, int]
    """The same of parameters; less than 0 where a block has more of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One block that could be put in, fitted: what it saves, and how far its output is from the layer's."""

    name: str
    ratio: int
    saved: int
    error: float
    saved_parameters: int


def candidates(traced: Traced, ratios: Sequence[int] = RATIOS) -> tuple[Candidate, ...]:
    """In the order they run: two-dimensional convolutions larger than 1x1 that run once and have no code of their own.

    A ratio must divide the output channels, the convolution's groups those inside. Depthwise layers never qualify: a
    block of as many groups costs more.
    """
    found = []
    for layer in traced.layers:
        before, after = shape_of(layer.source), shape_of(layer.output)
        if not (layer.plain and isinstance(layer.module, nn.Conv2d) and before and after and len(before) == 4):
            continue
        before = _unpadded(layer.module, before)
        saved = {ratio: _saved(layer.module, ratio, before, after) for ratio in ratios}
        paying = {ratio: macs for ratio, macs in saved.items() if macs > 0}
        if paying and prod(layer.module.kernel_size) > 1:
            parameters = {ratio: _saved_parameters(layer.module, ratio) for ratio in paying}
            found.append(Candidate(name=layer.name, saved=paying, saved_parameters=parameters))
    return tuple(found)


def in_order(options: Iterable[Option], prices: Prices = SAME) -> tuple[Option, ...]:
    """The order in which to put blocks in, most saved per error first: MACs, at what they cost in their layer.

    A layer's higher ratio comes after its lower one and replaces it: what counts for it is how much more it saves, and
    how much more it errs. Any first part of the order is therefore a choice: see ``ratios_of``.
    """
    by_layer: dict[str, list[Option]] = {}
    for option in sorted(options, key=lambda option: option.ratio):
        by_layer.setdefault(option.name, []).append(option)
    gains: list[tuple[float, Option]] = []
    for steps in by_layer.values():
        gain, saved, error = float("inf"), 0, 0.0
        for option in steps:
            worse = max(option.error - error, 1e-12)
            gain = min(gain, prices.get(option.name, 1.0) * (option.saved - saved) / worse)
            gains.append((gain, option))
            saved, error = option.saved, option.error
    return tuple(option for _, option in sorted(gains, key=lambda pair: -pair[0]))


def ratios_of(options: Iterable[Option]) -> dict[str, int]:
    """Each layer's ratio where all ``options`` are taken, in their order."""
    return {option.name: option.ratio for option in options}


def least_of(found: Sequence[Candidate], size: Size) -> Size:
    """What is left of ``size`` where every layer gives way to the block that saves most, of each sort by itself."""
    return replace(
        size,
        macs=size.macs - sum(max(candidate.saved.values()) for candidate in found),
        parameters=size.parameters - sum(max(candidate.saved_parameters.values()) for candidate in found),
    )


def size_with(options: Iterable[Option], size: Size) -> Size:
    """What is left of ``size`` where all ``options`` are taken, in their order."""
    taken = {option.name: option for option in options}.values()
    return replace(
        size,
        macs=size.macs - sum(option.saved for option in taken),
        parameters=size.parameters - sum(option.saved_parameters for option in taken),
    )


def enough(order: Sequence[Option], size: Size, target: Target) -> Sequence[Option]:
    """The first of ``order`` that bring ``size`` to ``target``, without those of them that it does not need; all where
    that is not enough.

    Those that save least for their error are the first to stay away. There may be a better choice where a target is of
    two sorts, as an option may save much of what is no longer needed.
    """
    reached = (count for count in range(1, len(order)) if target.reached(size_with(order[:count], size)))
    taken = list(order[: next(reached, len(order))])
    for place in reversed(range(len(taken))):
        rest = taken[:place] + taken[place + 1 :]
        if target.reached(size_with(rest, size)):
            taken = rest
    return taken


def _saved_parameters(convolution: nn.Conv2d, ratio: int) -> int:
    own, block = (
        sum(tensor.numel() for tensor in module.parameters()) for module in (convolution, stand_in(convolution, ratio))
    )
    return own - block


def _unpadded(convolution: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that the module is given: what pads by other than zeros does so in a layer before it."""
    if convolution.padding_mode == "zeros":
        return shape
    left, right, top, bottom = convolution._reversed_padding_repeated_twice
    return (*shape[:2], shape[2] - top - bottom, shape[3] - left - right)


def _saved(convolution: Any, ratio: int, before: tuple[int, ...], after: tuple[int, ...]) -> int:
    """MACs of the convolution less those of its block; 0 where there is no such block."""
    outputs, groups, kernel = convolution.out_channels, convolution.groups, prod(convolution.kernel_size)
    middle = outputs // ratio
    if outputs % ratio or middle % groups:
        return 0
    batch, inputs = before[:2]
    read, written = batch * prod(before[2:]), batch * prod(after[2:])
    own = written * outputs * inputs // groups * kernel
    inside = written * (middle * middle // groups * kernel + middle * outputs) + batch * middle * middle
    return own - read * inputs * middle - inside
