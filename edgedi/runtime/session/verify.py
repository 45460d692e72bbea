"""Is the distributed answer the model's? And if not, at which layer do the two part?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from edgedi.partition.capture.capture import Capture
from edgedi.partition.plan.program import ProgramSet
from edgedi.runtime.execution.reference import InProcess

TOLERANCES = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest allowed difference as a share of the largest value; integers and truth values must be equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The largest difference of any output, as a share of that output's largest value, and what was allowed for it."""

    equal: bool
    difference: float
    tolerance: float


def compare(answer: Any, own: Any) -> Comparison:
    """Compare two outputs of a model leaf by leaf; different structures are infinitely different."""
    leaves, tree = pytree.tree_flatten(answer)
    others, other_tree = pytree.tree_flatten(own)
    if tree != other_tree:
        return Comparison(equal=False, difference=float("inf"), tolerance=0.0)
    worst = Comparison(equal=True, difference=0.0, tolerance=0.0)
    for leaf, other in zip(leaves, others, strict=True):
        if isinstance(leaf, Tensor) or isinstance(other, Tensor):
            found = _compare_tensors(leaf, other)
            if not found.equal or found.difference > worst.difference:
                worst = Comparison(
                    equal=worst.equal and found.equal, difference=found.difference, tolerance=found.tolerance
                )
    return worst


def _compare_tensors(tensor: Any, other: Any) -> Comparison:
    if not (isinstance(tensor, Tensor) and isinstance(other, Tensor)):
        return Comparison(equal=False, difference=float("inf"), tolerance=0.0)
    tolerance = TOLERANCES.get(other.dtype, 0.0)
    if tensor.shape != other.shape or tensor.dtype != other.dtype:
        return Comparison(equal=False, difference=float("inf"), tolerance=tolerance)
    difference = relative_difference(tensor, other)
    return Comparison(equal=difference <= tolerance, difference=difference, tolerance=tolerance)


def relative_difference(tensor: Tensor, other: Tensor) -> float:
    """max |tensor - other| / max |other|; the same infinities and NaNs at the same places differ by nothing."""
    if not tensor.numel():
        return 0.0
    first, second = tensor.detach().double().cpu(), other.detach().double().cpu()
    same = (first == second) | (first.isnan() & second.isnan())
    apart = torch.where(same, torch.zeros_like(first), (first - second).abs())
    if not bool(apart.isfinite().all()):
        return float("inf")
    largest = torch.where(second.isfinite(), second, torch.zeros_like(second)).abs().max()
    return float(apart.max() / largest) if float(largest) > 0 else float(apart.max())


def first_difference(capture: Capture, programs: ProgramSet, inputs: tuple[Any, ...]) -> str:
    """The first layer whose map differs when the programs run in this process; workers alone differ if none does."""
    ours = InProcess(capture, programs).layer_maps(capture.flatten(inputs))
    own = InProcess.whole(capture, fast=False).layer_maps(capture.flatten(inputs))
    for layer in capture.graph.layers:
        if layer.op == "partial":  # each worker's own share, numbered: no part of a whole map
            continue
        for region, tensor in ours.get(layer.name, ()):
            whole = own[layer.name][0][1]
            part = whole if region is None else whole.narrow(region.dim, region.interval.start, len(region.interval))
            if relative_difference(tensor, part) > TOLERANCES.get(whole.dtype, 0.0):
                return layer.name
    return (
        "unknown: the same programs give the right answer in this process, so a worker, a link, or what the worker "
        "lets compute (session.statistics() says it) is at fault"
    )
