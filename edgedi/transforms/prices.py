"""What a multiplication costs in each layer: the same everywhere, what devices were measured to take, or parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import nn

from edgedi.transforms.exact.traced import Layer, trace
from edgedi.transforms.measure import measured
from edgedi.transforms.size import LayerSize, Size
from edgedi.transforms.task import SAME, Prices

_FUSED = 6
"""A profile names a layer by the last operator in it: so many operators after the convolution are looked at."""


class _LayerTime(Protocol):
    @property
    def whole_s(self) -> float: ...


class _Device(Protocol):
    @property
    def layers(self) -> Mapping[str, _LayerTime]: ...


class Profile(Protocol):
    """What ``edgedi.ClusterProfile`` is: devices, each with the seconds of layers of the same model."""

    @property
    def devices(self) -> Sequence[_Device]: ...


def prices_of(cost: Any, model: nn.Module, arguments: tuple[Any, ...]) -> Prices:
    """``cost``: "macs", or a profile of the devices that will run ``model``. ``ValueError`` for anything else."""
    if cost == "macs":
        return SAME
    if not hasattr(cost, "devices"):
        raise ValueError(f'cost is {cost!r}; give "macs", or a ClusterProfile such as session.profile of this model')
    seconds = _mean_seconds(cost)
    macs = {layer.name: layer.size.macs for layer in measured(model, arguments)[1] if layer.size.macs}
    traced = trace(model, arguments)
    found = {layer.name: seconds[name] for layer in traced.layers if (name := _named(layer, seconds)) is not None}
    known = {name: each for name, each in found.items() if each > 0 and macs.get(name, 0) > 0}
    if not known:
        raise ValueError("cost is a profile of another model: none of its layers is one of this model's")
    usual = sum(known.values()) / sum(macs[name] for name in known)
    return {name: each / macs[name] / usual for name, each in known.items()}


def prices_for(shares: Mapping[str, float], prices: Prices, layers: Sequence[LayerSize], size: Size) -> Prices:
    """``prices``, and where a target of ``shares`` counts parameters those that a multiplication of a layer stands for.

    Narrower layers and blocks save about the same share of a layer's parameters as of its multiplications. What is to
    be saved of each sort, of ``size``, counts as much as all that is to be saved of the other.
    """
    less = {name: 1 - share for name, share in shares.items() if share < 1}
    if "parameters" not in less or not size.parameters:
        return prices
    whole = sum(1 / share for share in less.values())
    macs, parameters = (1 / less[name] / whole if name in less else 0.0 for name in ("macs", "parameters"))
    held = {
        layer.name: (layer.size.parameters / size.parameters) / (layer.size.macs / size.macs)
        for layer in layers
        if layer.size.macs
    }
    return {name: macs * prices.get(name, 1.0) + parameters * each for name, each in held.items()}


def _mean_seconds(profile: Profile) -> dict[str, float]:
    """Of each layer, over the devices that were measured on it."""
    told: dict[str, list[float]] = {}
    for device in profile.devices:
        for name, layer in device.layers.items():
            told.setdefault(name, []).append(layer.whole_s)
    return {name: sum(values) / len(values) for name, values in told.items()}


def _named(layer: Layer, seconds: Mapping[str, float]) -> str | None:
    """The profile's name of a layer: its own operator's, or that of what was fused behind it."""
    node = layer.node
    for _ in range(_FUSED):
        if node.name in seconds:
            return str(node.name)
        users = list(node.users)
        if len(users) != 1:
            return None
        node = users[0]
    return None
