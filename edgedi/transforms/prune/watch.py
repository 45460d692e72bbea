"""What convolutions and linear layers read and make while a network runs, however their module's forward calls them."""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Call:
    """One run of a layer. A linear layer is a convolution without kernel over all dimensions but first and last."""

    name: str
    run: Callable[[], Tensor]
    input: Tensor
    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1

    @property
    def is_linear(self) -> bool:
        return self.weight.dim() == 2

    @property
    def map_size(self) -> tuple[int, ...]:
        """Of the output, without batch and channels."""
        if self.is_linear:
            return tuple(self.input.shape[1:-1])
        sizes = zip(self.input.shape[2:], self.weight.shape[2:], self.stride, self.padding, self.dilation, strict=True)
        return tuple((n + sum(pad) - d * (k - 1) - 1) // s + 1 for n, k, s, pad, d in sizes)

    def picks(self, seed: int, most: int) -> Tensor:
        """At most ``most`` positions, [inputs, picked], counted row by row; the same for one seed and layer."""
        many, size = len(self.input), math.prod(self.map_size)
        each = -(-most // many)
        if size <= each:
            return torch.arange(size).expand(many, size)
        generator = torch.Generator().manual_seed(seed + zlib.crc32(self.name.encode()))
        return torch.randint(size, (many, each), generator=generator)

    def columns(self, picks: Tensor) -> Tensor:
        """What each picked output is made of, [picked of all inputs, groups, channels of a group * kernel]."""
        kernel = tuple(self.weight.shape[2:])
        if self.is_linear:
            flat, at = (
                self.input.flatten(1, -2).transpose(1, 2) if self.input.dim() > 2 else self.input[:, :, None],
                [picks],
            )
        else:
            padded = F.pad(self.input, [edge for pad in reversed(self.padding) for edge in pad])
            flat, at = padded.flatten(2), list(self._sources(picks, tuple(padded.shape[2:]), kernel))
        found = torch.stack([flat.gather(2, p[:, None].expand(-1, flat.shape[1], -1)) for p in at], dim=2)
        return found.permute(0, 3, 1, 2).reshape(picks.numel(), self.groups, -1)

    def _sources(self, picks: Tensor, size: tuple[int, ...], kernel: tuple[int, ...]) -> Iterable[Tensor]:
        """For each place in the kernel, where in the padded map of ``size`` it lies for each picked position."""
        at = torch.unravel_index(picks, self.map_size)
        for place in itertools.product(*map(range, kernel)):
            flat = torch.zeros_like(picks)
            for here, k, s, d, n in zip(at, place, self.stride, self.dilation, size, strict=True):
                flat = flat * n + here * s + k * d
            yield flat

    def made(self, output: Tensor, picks: Tensor) -> Tensor:
        """The picked outputs, [picked of all inputs, outputs]."""
        flat = _channels_first(output) if self.is_linear else output.flatten(2)
        return flat.gather(2, picks[:, None].expand(-1, flat.shape[1], -1)).transpose(1, 2).flatten(0, 1)


def _channels_first(x: Tensor) -> Tensor:
    """[inputs, channels, positions] of a linear layer's input or output."""
    return x.flatten(1, -2).transpose(1, 2) if x.dim() > 2 else x[:, :, None]


class Watch(TorchFunctionMode):
    """While it is entered, ``see(call)`` gives the output of each call of the layers named."""

    def __init__(self, model: nn.Module, names: Iterable[str], see: Callable[[Call], Tensor]) -> None:
        super().__init__()
        self._names = {id(model.get_submodule(name).weight): name for name in names}
        self._see = see

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        bound = {**dict(zip(_ARGUMENTS[func], args, strict=False)), **given} if func in _ARGUMENTS else {}
        name = self._names.get(id(bound.get("weight")))
        if name is None or (func is not F.linear and bound["input"].dim() != bound["weight"].dim()):
            return func(*args, **given)
        return self._see(_call(name, bound, lambda: func(*args, **given)))


_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_ARGUMENTS: Mapping[Any, tuple[str, ...]] = {
    F.linear: ("input", "weight", "bias"),
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), _CONVOLUTION),
}


def _call(name: str, bound: Mapping[str, Any], run: Callable[[], Tensor]) -> Call:
    x, weight, bias = bound["input"], bound["weight"], bound.get("bias")
    rank = weight.dim() - 2
    if rank == 0:
        return Call(name=name, run=run, input=x, weight=weight, bias=bias)

    def each(value: Any) -> tuple[int, ...]:
        return tuple(value) * (rank // len(value)) if isinstance(value, (tuple, list)) else (value,) * rank

    dilation, padding = each(bound.get("dilation", 1)), bound.get("padding", 0)
    if isinstance(padding, str):
        totals = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, weight.shape[2:], strict=True)]
        pads = tuple((total // 2, total - total // 2) for total in totals)
    else:
        pads = tuple((edge, edge) for edge in each(padding))
    return Call(
        name=name, run=run, input=x, weight=weight, bias=bias, stride=each(bound.get("stride", 1)), padding=pads,
        dilation=dilation, groups=bound.get("groups", 1),
    )  # fmt: skip
