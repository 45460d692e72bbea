"""Channels that go together, and the edit that takes them out of the layers that make and read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Array = np.ndarray
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """A layer's inputs or outputs; ``units[channel]`` is the unit of its group that the channel goes with, or -1."""

    layer: str
    reads: bool
    units: Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Group:
    """Channels that can be taken out only together, everywhere: ``num_units`` such sets, each on its own."""

    name: str
    """Of the first layer that makes them."""
    num_units: int
    parts: tuple[Part, ...]

    @property
    def readers(self) -> tuple[Part, ...]:
        """The layers that read them and make other channels of them."""
        return tuple(part for part in self.parts if part.reads)


@dataclass(frozen=True, slots=True)
class Cut:
    """Channels that one layer loses; ``outputs`` of a depthwise convolution or a normalisation are its inputs too."""

    layer: str
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Narrow:
    """The edit of this step (see ``Edit``): layers without some of their channels, the other weights as they are."""

    cuts: tuple[Cut, ...]

    def apply(self, model: nn.Module, arguments: tuple[Any, ...]) -> nn.Module:
        """``model`` itself, narrower. A layer that loses inputs gets a bias: what it lost is made up for there."""
        for cut in self.cuts:
            _narrow(model.get_submodule(cut.layer), cut)
        return model


def narrow(removed: Mapping[str, Sequence[int]], groups: Sequence[Group]) -> Narrow:
    """The edit that takes the units ``removed[group.name]`` out of ``groups``."""
    lost: dict[str, tuple[set[int], set[int]]] = {}
    for group in groups:
        units = list(removed.get(group.name, ()))
        for part in group.parts:
            channels = np.flatnonzero(np.isin(part.units, units)).tolist()
            if channels:
                lost.setdefault(part.layer, (set(), set()))[0 if part.reads else 1].update(channels)
    return Narrow(
        tuple(
            Cut(layer, inputs=tuple(sorted(inputs)), outputs=tuple(sorted(outputs)))
            for layer, (inputs, outputs) in lost.items()
        )
    )


def layers_of(model: nn.Module) -> list[str]:
    """Names of its convolutions, depthwise ones too, and linear layers."""
    return [name for name, module in model.named_modules() if isinstance(module, (*CONVOLUTIONS, nn.Linear))]


def is_one_to_one(module: nn.Module) -> bool:
    """Whether output i is made of input i alone: normalisations, activations with weights, depthwise convolutions."""
    if isinstance(module, CONVOLUTIONS):
        return bool(module.groups == module.in_channels == module.out_channels)
    return isinstance(module, (_BatchNorm, nn.PReLU))


def _narrow(module: Any, cut: Cut) -> None:
    if isinstance(module, nn.Linear):
        _cut_weight(module, cut, 1, 0)
        module.in_features, module.out_features = module.weight.shape[1], module.weight.shape[0]
    elif isinstance(module, TRANSPOSED):
        _cut_weight(module, cut, 0, 1)
        module.in_channels, module.out_channels = module.weight.shape[0], module.weight.shape[1]
    elif is_one_to_one(module):
        _narrow_one_to_one(module, cut.outputs)
    else:
        per_group = module.weight.shape[1]
        # each group of a grouped convolution loses the same of its inputs, so that the first group's say it all
        inputs = tuple(channel for channel in cut.inputs if channel < per_group)
        _cut_weight(module, Cut(cut.layer, inputs=inputs, outputs=cut.outputs), 1, 0)
        module.in_channels, module.out_channels = module.weight.shape[1] * module.groups, module.weight.shape[0]


def _cut_weight(module: Any, cut: Cut, inputs: int, outputs: int) -> None:
    weight = _without(_without(module.weight, cut.inputs, inputs), cut.outputs, outputs)
    if module.bias is not None:
        module.bias = _parameter(_without(module.bias, cut.outputs, 0), module.bias)
    elif cut.inputs:
        module.bias = _parameter(weight.new_zeros(weight.shape[outputs]), module.weight)
    module.weight = _parameter(weight, module.weight)


def _narrow_one_to_one(module: Any, channels: Sequence[int]) -> None:
    for name in ("weight", "bias"):
        old = getattr(module, name, None)
        if old is not None:
            setattr(module, name, _parameter(_without(old, channels, 0), old))
    for name in ("running_mean", "running_var"):
        if getattr(module, name, None) is not None:
            setattr(module, name, _without(getattr(module, name), channels, 0))
    for name in ("num_features", "num_parameters", "in_channels", "out_channels", "groups"):
        if hasattr(module, name):
            setattr(module, name, getattr(module, name) - len(channels))


def _without(tensor: Tensor, channels: Sequence[int], dim: int) -> Tensor:
    keep = torch.ones(tensor.shape[dim], dtype=torch.bool)
    keep[list(channels)] = False
    return tensor.detach().index_select(dim, keep.nonzero().flatten().to(tensor.device)).clone()


def _parameter(values: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=like.requires_grad)
