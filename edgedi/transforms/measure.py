"""Runs of a model on the example inputs: its answer, what it costs, and how far another answer is from it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from edgedi.transforms.size import LayerSize, Size


def answer_of(model: nn.Module, arguments: tuple[Any, ...]) -> Any:
    """One run."""
    with torch.no_grad():
        return model(*arguments)


def measured(model: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, tuple[LayerSize, ...], Size]:
    """One run: the answer, each layer's size and the whole network's."""
    with FlopCounterMode(display=False) as counter:
        answer = answer_of(model, arguments)
    root = type(model).__name__
    macs = {name: sum(operators.values()) // 2 for name, operators in counter.get_flop_counts().items()}
    layers = tuple(
        LayerSize(
            name=name,
            kind=type(module).__name__,
            width=_width(module),
            size=_size([*module.parameters(recurse=False), *module.buffers(recurse=False)], module, macs, root, name),
        )
        for name, module in model.named_modules()
        if next(module.parameters(recurse=False), None) is not None
        or next(module.buffers(recurse=False), None) is not None
    )
    parameters = list(model.parameters())
    num_bytes = sum(map(_num_bytes, [*parameters, *model.buffers()]))
    total = Size(
        parameters=sum(parameter.numel() for parameter in parameters),
        macs=counter.get_total_flops() // 2,
        num_bytes=num_bytes,
    )
    return answer, layers, total


def size_of(model: nn.Module, arguments: tuple[Any, ...]) -> Size:
    """Of the whole network, by one run."""
    return measured(model, arguments)[2]


def macs_of(model: nn.Module, arguments: tuple[Any, ...]) -> int:
    """Of one run."""
    return size_of(model, arguments).macs


def difference(found: Any, expected: Any) -> float:
    """max |found - expected| over the largest magnitude of ``expected``, of the worst tensor.

    Infinite where structure, shape or dtype differ, and where one of them alone is not a number.
    """
    if pytree.tree_structure(found) != pytree.tree_structure(expected):
        return float("inf")
    pairs = zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True)
    return max((_relative(a, b) for a, b in pairs), default=0.0)


def _relative(found: Any, expected: Any) -> float:
    if not isinstance(found, Tensor) or not isinstance(expected, Tensor):
        return 0.0 if found is expected or found == expected else float("inf")
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return float("inf")
    same = (found == expected) | (found.isnan() & expected.isnan())
    if bool(same.all()):
        return 0.0
    a, b = (tensor.detach().cpu().double()[~same.cpu()] for tensor in (found, expected))
    largest = expected.detach().cpu().double().abs().nan_to_num(0.0, 0.0).max().item()
    worst = (a - b).abs().max().item()
    return worst / max(largest, 1e-30) if worst == worst else float("inf")


def _size(tensors: list[Tensor], module: nn.Module, macs: dict[str, int], root: str, name: str) -> Size:
    own = not any(True for _ in module.children())
    return Size(
        parameters=sum(tensor.numel() for tensor in module.parameters(recurse=False)),
        macs=macs.get(f"{root}.{name}" if name else root, 0) if own else 0,
        num_bytes=sum(map(_num_bytes, tensors)),
    )


def _num_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _width(module: Any) -> str:
    for first, second in (("in_channels", "out_channels"), ("in_features", "out_features")):
        if hasattr(module, first) and hasattr(module, second):
            return f"{getattr(module, first)} -> {getattr(module, second)}"
    return str(getattr(module, "num_features", ""))
