"""How exactness is measured: every piece that every worker computes, against the same part of a float64 run.

The chain of proof: the model in float64 is the truth; the captured graph run whole in float64, on plain torch, gives
every layer's map and is itself held against the truth; every piece of a split run is compared with its part of those
maps, relative to that layer's largest value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from edgedi.partition.capture.capture import Capture
from edgedi.partition.graph.graph import LayerGraph, TensorSpec
from edgedi.partition.plan.lowering import lower
from edgedi.partition.plan.plan import Plan
from edgedi.partition.plan.program import UNSPLIT, Piece, ProgramSet
from edgedi.partition.plan.simulate import simulate
from edgedi.runtime.execution.reference import InProcess

TOLERANCE = {"float32": 2e-5, "float64": 1e-11}
"""Largest difference, relative to the largest value of the map (REVIEW.md, A2)."""

Maps = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The relative difference nearest to (or farthest beyond) its limit, and where it was."""

    value: float
    limit: float
    where: str

    @property
    def passes(self) -> bool:
        return self.value <= self.limit

    def __str__(self) -> str:
        return f"{self.value:.2e} (limit {self.limit:.2e}) at {self.where}"


def relative(found: Tensor, expected: Tensor, scale: float | None = None) -> float:
    """max |found - expected| over the largest magnitude of ``expected`` (or ``scale``); infinite for other shapes."""
    if found.shape != expected.shape:
        return float("inf")
    if not found.numel():
        return 0.0
    largest = expected.double().abs().max().item() if scale is None else scale
    worst = (found.double() - expected.double()).abs().max().item()
    return float("inf") if worst != worst else worst / max(largest, 1e-30)


def leaves(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def worst_output(found: Any, expected: Any) -> float:
    """Largest relative difference over all tensors of two outputs of the same structure."""
    assert pytree.tree_structure(found) == pytree.tree_structure(expected)
    return max(relative(a, b) for a, b in zip(leaves(found), leaves(expected), strict=True))


def recorded(process: InProcess, inputs: Maps) -> list[tuple[int, Piece, Tensor]]:
    """Run ``process`` and give every computed piece: (participant, piece, a copy of its values)."""
    seen: list[tuple[int, Piece, Tensor]] = []

    def watcher(participant: int) -> Callable[[Piece, Tensor], None]:
        return lambda piece, made: seen.append((participant, piece, made.clone()))

    for participant, loaded in process.loaded.items():
        loaded.watch = watcher(participant)
    try:
        process.run(inputs)
    finally:
        for loaded in process.loaded.values():
            loaded.watch = None
    return seen


def whole_maps(capture: Capture, inputs: Maps, *, fast: bool = False) -> dict[str, Tensor]:
    """Every layer's map, unsplit."""
    maps = {piece.tensor: made for _, piece, made in recorded(InProcess.whole(capture, fast=fast), inputs)}
    return {**inputs, **maps}


def cast(capture: Capture, dtype: torch.dtype) -> Capture:
    """The same graph and weights in another precision. Opaque layers keep constants of their own: not with those."""
    return replace(
        capture,
        graph=_cast_graph(capture.graph, str(dtype).removeprefix("torch.")),
        weights={n: t.to(dtype) if t.is_floating_point() else t for n, t in capture.weights.items()},
    )


def _cast_graph(graph: LayerGraph, dtype: str) -> LayerGraph:
    def spec(old: TensorSpec) -> TensorSpec:
        return replace(old, dtype=dtype) if "float" in old.dtype else old

    return replace(
        graph,
        inputs={name: spec(old) for name, old in graph.inputs.items()},
        layers=tuple(replace(layer, spec=spec(layer.spec)) for layer in graph.layers),
        weights={name: spec(old) for name, old in graph.weights.items()},
    )


def own_rounding(capture: Capture, inputs: Maps, expected: Maps) -> dict[str, float]:
    """By layer: how far the unsplit graph itself, on plain torch, is from ``expected`` there or anywhere before."""
    maps, found, largest = whole_maps(capture, inputs), {}, 0.0
    for layer in capture.graph.layers:
        largest = max(largest, relative(maps[layer.name], expected[layer.name]))
        found[layer.name] = largest
    return found


def worst_layer(
    capture: Capture,
    plan: Plan,
    inputs: Maps,
    expected: Maps,
    *,
    fast: bool,
    own: Mapping[str, float] | None = None,
    lowered: Callable[[Plan, LayerGraph], ProgramSet] = lower,
) -> Difference:
    """Simulate ``plan``, run it, and compare every piece that anyone computes with its part of ``expected``.

    The limit is ``TOLERANCE``, or three times the unsplit graph's ``own`` rounding where that is more: deep calibrated
    networks magnify a rounding in their first layer a hundred times, whoever computes them.
    """
    basis = TOLERANCE[next(iter(capture.graph.inputs.values())).dtype]
    programs = lowered(plan, capture.graph)
    simulate(programs)
    scales = {name: tensor.double().abs().max().item() for name, tensor in expected.items() if tensor.numel()}
    worst = Difference(value=0.0, limit=basis, where="nothing")
    for participant, piece, made in recorded(InProcess(capture, programs, fast=fast), inputs):
        if capture.graph.by_name[piece.tensor].op == "partial" and piece.dim == 0:
            continue  # a part of a sum: the layer that combines the parts is compared
        part = expected[piece.tensor]
        if piece.dim != UNSPLIT:
            part = part.narrow(piece.dim, piece.interval.start, len(piece.interval))
        value = relative(made, part, scales[piece.tensor])
        limit = max(basis, 3 * own[piece.tensor]) if own else basis
        if value / limit > worst.value / worst.limit:
            op = capture.graph.by_name[piece.tensor].op
            worst = Difference(value=value, limit=limit, where=f"{piece} ({op}) on {participant}")
    return worst


def check_argmax(found: Any, truth: Any, tolerance: float) -> float:
    """The same class wherever the two largest are over twice the tolerance apart; gives the share that is excluded."""
    excluded, total = 0, 0
    for a, b in zip(leaves(found), leaves(truth), strict=True):
        if b.dim() < 2 or b.shape[1] < 2:
            continue
        top = b.double().topk(2, dim=1).values
        clear = (top[:, 0] - top[:, 1]) > 2 * tolerance * b.double().abs().max()
        same = a.argmax(1) == b.argmax(1)
        assert bool(same[clear].all()), "another class where the two largest are far apart"
        excluded, total = excluded + int((~clear).sum()), total + clear.numel()
    return excluded / total if total else 0.0
