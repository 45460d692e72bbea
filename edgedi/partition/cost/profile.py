"""Profiles: what was measured of devices and links, as values. SI units throughout; JSON in and out.

A layer is measured by how long a device takes to make *part* of its output: points of (length along an axis, seconds),
joined by straight lines and made non-decreasing. Where an axis was not measured, the like fraction of one that was
stands in; where a layer was not measured at all, its floating-point operations do. Keeping the measured curve instead
of one speed per device, and the fixed cost of a message, is ours; the published planners fit one straight line per
device.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from edgedi.partition.graph.geometry import WHOLE, Need
from edgedi.partition.graph.graph import Layer, Shapes
from edgedi.partition.graph.operators import flops

MEASURED_AXES = ("rows", "columns", "channels", "batch", "whole")
"""What a layer may be measured along; ``whole`` is one point, all of the output at length 1."""

PROFILE_VERSION = 1
"""Version of the JSON form."""

Points = tuple[tuple[float, float], ...]

_AXIS_OF_DIM: Mapping[int, tuple[str, ...]] = MappingProxyType(
    {
        1: ("channels",),
        2: ("batch", "channels"),
        3: ("batch", "rows", "channels"),
        4: ("batch", "channels", "rows", "columns"),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerProfile:
    """Seconds to make so many elements of a layer's output along each measured axis.

    ``curves`` maps an axis to points ``(length, seconds)``. The longest length of an axis is the layer's whole extent.
    """

    curves: Mapping[str, Points]

    def __post_init__(self) -> None:
        unknown = [axis for axis in self.curves if axis not in MEASURED_AXES]
        if unknown or not self.curves:
            raise ValueError(f"measured axes {unknown or 'none'}: accepted are {', '.join(MEASURED_AXES)}, one or more")
        curves = {axis: _non_decreasing(points) for axis, points in self.curves.items()}
        object.__setattr__(self, "curves", MappingProxyType(curves))

    def __reduce__(self) -> Any:
        raise TypeError("profiles travel as JSON: use DeviceProfile.to_json")

    def seconds(self, axis: str, length: int, extent: int) -> float:
        """Seconds for ``length`` of ``extent`` elements along ``axis``, measured or by the like fraction of another."""
        if axis in self.curves:
            return _at(self.curves[axis], length)
        stand_in = next(self.curves[other] for other in MEASURED_AXES if other in self.curves)
        return _at(stand_in, stand_in[-1][0] * length / max(1, extent))

    @property
    def whole_s(self) -> float:
        """Seconds for all of the layer's output."""
        return self.curves["whole"][-1][1] if "whole" in self.curves else max(p[-1][1] for p in self.curves.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceProfile:
    """What one device takes for each layer. ``fingerprint`` names hardware, engine and threads it was measured with.

    ``seconds_per_flop`` and ``seconds_per_layer`` (a fixed cost of every layer) price layers that were not measured.
    ``alone_share`` is what a whole network takes of the sum of its layers where this device runs it alone: an engine
    takes long chains of layers in less than one after another, and a split plan has short ones.
    ``memory_bytes`` is what weights and activations may take; ``None`` for no limit known.
    """

    name: str
    fingerprint: str = ""
    layers: Mapping[str, LayerProfile] = field(default_factory=dict)
    seconds_per_flop: float = 1e-10
    seconds_per_layer: float = 0.0
    alone_share: float = 1.0
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        _require_amount("seconds_per_flop", self.seconds_per_flop)
        _require_amount("alone_share", self.alone_share)
        _require_amount("seconds_per_layer", self.seconds_per_layer)
        object.__setattr__(self, "layers", MappingProxyType(dict(self.layers)))

    def __reduce__(self) -> Any:
        raise TypeError("profiles travel as JSON: use to_json")

    def seconds(self, layer: Layer, shapes: Shapes, need: Need = WHOLE) -> float:
        """Seconds to compute ``need`` of the layer's output; ``shapes`` are the whole shapes of its inputs."""
        known = self.layers.get(layer.name)
        if known is None:
            return flops(layer, shapes, need) * self.seconds_per_flop + self.seconds_per_layer
        if need is WHOLE:
            return known.whole_s
        axes = _AXIS_OF_DIM.get(layer.spec.rank, ())
        axis = axes[need.dim] if need.dim < len(axes) else "whole"
        extent = layer.spec.shape[need.dim]
        if axis == "whole":
            return known.whole_s * len(need.interval) / extent
        return known.seconds(axis, len(need.interval), extent)

    def scaled(self, factor: float, *, name: str | None = None) -> DeviceProfile:
        """The same device, taking ``factor`` times as long for everything."""
        layers = {
            layer: LayerProfile(
                curves={axis: tuple((n, s * factor) for n, s in points) for axis, points in known.curves.items()}
            )
            for layer, known in self.layers.items()
        }
        return replace(
            self,
            name=name or self.name,
            layers=layers,
            seconds_per_flop=self.seconds_per_flop * factor,
            seconds_per_layer=self.seconds_per_layer * factor,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON values; ``from_dict`` reads them back."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "seconds_per_flop": self.seconds_per_flop,
            "seconds_per_layer": self.seconds_per_layer,
            "alone_share": self.alone_share,
            "memory_bytes": self.memory_bytes,
            "layers": {
                layer: {axis: [list(point) for point in points] for axis, points in known.curves.items()}
                for layer, known in self.layers.items()
            },
        }

    @classmethod
    def from_dict(cls, values: Any) -> DeviceProfile:
        """The profile that ``to_dict`` made; ``ValueError`` names the field that does not fit."""
        memory = _take(values, "device", "memory_bytes", (int, type(None)), None)
        layers = _take(values, "device", "layers", dict, {})
        return cls(
            name=_take(values, "device", "name", str),
            fingerprint=_take(values, "device", "fingerprint", str, ""),
            seconds_per_flop=float(_take(values, "device", "seconds_per_flop", (int, float))),
            seconds_per_layer=float(_take(values, "device", "seconds_per_layer", (int, float), 0.0)),
            alone_share=float(_take(values, "device", "alone_share", (int, float), 1.0)),
            memory_bytes=memory,
            layers={layer: LayerProfile(curves=_curves_from(layer, curves)) for layer, curves in layers.items()},
        )

    def to_json(self) -> str:
        """One JSON object as text."""
        return _dumps("device", self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> DeviceProfile:
        """The profile that ``to_json`` wrote. ``ValueError`` says what is wrong with another text."""
        return cls.from_dict(_loads("device", text))


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkProfile:
    """One direction between two participants: seconds before the first byte, bytes per second afterwards, and the
    seconds of processor time that a message costs at *each* end."""

    latency_s: float = 0.0
    bytes_per_s: float = math.inf
    message_cpu_s: float = 0.0

    def __post_init__(self) -> None:
        _require_amount("latency_s", self.latency_s)
        _require_amount("message_cpu_s", self.message_cpu_s)
        if not self.bytes_per_s > 0:
            raise ValueError(f"bytes_per_s is {self.bytes_per_s}; it must be positive")

    def to_dict(self) -> dict[str, Any]:
        """JSON values; unlimited bandwidth is null."""
        bandwidth = None if math.isinf(self.bytes_per_s) else self.bytes_per_s
        return {"latency_s": self.latency_s, "bytes_per_s": bandwidth, "message_cpu_s": self.message_cpu_s}

    @classmethod
    def from_dict(cls, values: Any) -> LinkProfile:
        """The link that ``to_dict`` made; ``ValueError`` names the field that does not fit."""
        bandwidth = _take(values, "link", "bytes_per_s", (int, float, type(None)))
        return cls(
            latency_s=float(_take(values, "link", "latency_s", (int, float))),
            bytes_per_s=math.inf if bandwidth is None else float(bandwidth),
            message_cpu_s=float(_take(values, "link", "message_cpu_s", (int, float), 0.0)),
        )


Links = Mapping[tuple[int, int], LinkProfile]
"""By (source, target): the workers' numbers, and ``plan.HOME`` (-1) for the coordinator."""


def require_links(links: Links, num_workers: int) -> None:
    """``ValueError`` unless each is between two of so many workers, or between one and the coordinator; ``TypeError``
    unless it is a ``LinkProfile``."""
    for (source, target), link in links.items():
        if not isinstance(link, LinkProfile):
            raise TypeError(f"the link from {source} to {target} is {link!r}: give a LinkProfile")
        if source == target or not all(-1 <= end < num_workers for end in (source, target)):
            raise ValueError(f"there is no link from {source} to {target} among {num_workers} workers")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterProfile:
    """The workers' devices in order, and the links between participants.

    ``links`` overrides ``link`` for single directions, keyed ``(source, target)`` with ``plan.HOME`` (-1) for the
    coordinator. ``home`` is the coordinator's own device, ``None`` where it was not measured (the fastest worker's
    profile then stands in for it). ``local``: worker 0 is in the coordinator's own process, so that nothing is sent
    where it answers alone.
    """

    devices: tuple[DeviceProfile, ...]
    link: LinkProfile = field(default_factory=LinkProfile)
    links: Links = field(default_factory=dict)
    home: DeviceProfile | None = None
    local: bool = False

    def __post_init__(self) -> None:
        if not self.devices:
            raise ValueError("a cluster has at least one device")
        object.__setattr__(self, "links", MappingProxyType(dict(self.links)))
        require_links(self.links, len(self.devices))

    def __reduce__(self) -> Any:
        raise TypeError("profiles travel as JSON: use to_json")

    @property
    def num_workers(self) -> int:
        return len(self.devices)

    def link_between(self, source: int, target: int) -> LinkProfile:
        """The link from one participant to another."""
        return self.links.get((source, target), self.link)

    @classmethod
    def uniform(
        cls,
        num_workers: int,
        *,
        flops_per_s: float = 2e10,
        seconds_per_layer: float = 2e-5,
        latency_s: float = 1e-4,
        bytes_per_s: float = 1.25e8,
        message_cpu_s: float = 3e-5,
    ) -> ClusterProfile:
        """Equal devices and links from four round numbers (defaults: a small board on 1 Gbit/s), nothing measured."""
        devices = tuple(
            DeviceProfile(name=f"worker{k}", seconds_per_flop=1 / flops_per_s, seconds_per_layer=seconds_per_layer)
            for k in range(num_workers)
        )
        link = LinkProfile(latency_s=latency_s, bytes_per_s=bytes_per_s, message_cpu_s=message_cpu_s)
        return cls(devices=devices, link=link)

    def with_speeds(self, speeds: Sequence[float]) -> ClusterProfile:
        """A copy whose device k is ``speeds[k]`` times as fast as here."""
        if len(speeds) != self.num_workers or min(speeds) <= 0:
            raise ValueError(f"{self.num_workers} positive speeds are needed, not {list(speeds)}")
        devices = tuple(device.scaled(1 / speed) for device, speed in zip(self.devices, speeds, strict=True))
        return replace(self, devices=devices)

    def with_links(self, links: Links) -> ClusterProfile:
        """A copy with these links overridden as well."""
        return replace(self, links={**self.links, **links})

    def subset(self, workers: Sequence[int]) -> ClusterProfile:
        """These workers alone, numbered anew in this order."""
        number = {worker: index for index, worker in enumerate(workers)} | {-1: -1}
        links = {
            (number[source], number[target]): link
            for (source, target), link in self.links.items()
            if source in number and target in number
        }
        local = self.local and number.get(0) == 0
        return replace(self, devices=tuple(self.devices[worker] for worker in workers), links=links, local=local)

    def to_json(self) -> str:
        """One JSON object as text."""
        values = {
            "devices": [device.to_dict() for device in self.devices],
            "link": self.link.to_dict(),
            "links": [{"source": s, "target": t, **link.to_dict()} for (s, t), link in sorted(self.links.items())],
            "home": self.home.to_dict() if self.home else None,
            "local": self.local,
        }
        return _dumps("cluster", values)

    @classmethod
    def from_json(cls, text: str) -> ClusterProfile:
        """The profile that ``to_json`` wrote. ``ValueError`` says what is wrong with another text."""
        values = _loads("cluster", text)
        home = _take(values, "cluster", "home", (dict, type(None)), None)
        links = {
            (_take(link, "link", "source", int), _take(link, "link", "target", int)): LinkProfile.from_dict(link)
            for link in _take(values, "cluster", "links", list, [])
        }
        return cls(
            devices=tuple(map(DeviceProfile.from_dict, _take(values, "cluster", "devices", list))),
            link=LinkProfile.from_dict(_take(values, "cluster", "link", dict)),
            links=links,
            home=None if home is None else DeviceProfile.from_dict(home),
            local=_take(values, "cluster", "local", bool, False),
        )


# --- curves ----------------------------------------------------------------------------------------------------------


def _non_decreasing(points: Sequence[tuple[float, float]]) -> Points:
    """Sorted by length, each second at least that of any shorter length: more work never takes less time."""
    if not points:
        raise ValueError("a measured axis needs at least one point (length, seconds)")
    ordered, slowest = [], 0.0
    for length, seconds in sorted((float(length), float(seconds)) for length, seconds in points):
        if not (length > 0 and 0 <= seconds < math.inf):
            raise ValueError(f"point ({length:g}, {seconds:g}): length and seconds must be positive and finite")
        slowest = max(slowest, seconds)
        ordered.append((length, slowest))
    return tuple(ordered)


def _at(points: Points, length: float) -> float:
    """Seconds at ``length``: between points on the line that joins them, outside on the line of the nearest two.

    One point alone is taken as proportional to length.
    """
    if length <= 0:
        return 0.0
    if len(points) == 1:
        return points[0][1] * length / points[0][0]
    upper = min(max(bisect_left(points, (length,)), 1), len(points) - 1)
    (left, low), (right, high) = points[upper - 1], points[upper]
    if right == left:
        return high
    return max(0.0, low + (high - low) * (length - left) / (right - left))


# --- JSON ------------------------------------------------------------------------------------------------------------


def _dumps(kind: str, values: Mapping[str, Any]) -> str:
    return json.dumps({"edgedi_profile": kind, "version": PROFILE_VERSION, **values}, indent=1)


def _loads(kind: str, text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"a {kind} profile is JSON; this is not: {error}") from None
    if not isinstance(values, dict) or values.get("edgedi_profile") != kind:
        raise ValueError(f'a {kind} profile is a JSON object with "edgedi_profile": "{kind}"')
    if values.get("version") != PROFILE_VERSION:
        raise ValueError(f"profile version {values.get('version')!r}; this release reads {PROFILE_VERSION}")
    return values


_REQUIRED = object()


def _take(values: Any, what: str, key: str, kind: Any, default: Any = _REQUIRED) -> Any:
    if not isinstance(values, dict):
        raise ValueError(f"a {what} profile is an object, not {values!r}")
    value = values.get(key, default)
    if value is _REQUIRED:
        raise ValueError(f"a {what} profile has a field {key!r}; this one has {', '.join(map(repr, values))}")
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"field {key!r} of a {what} profile cannot be {value!r}")
    return value


def _curves_from(layer: str, curves: Any) -> dict[str, Points]:
    try:
        return {axis: tuple((float(n), float(s)) for n, s in points) for axis, points in curves.items()}
    except (AttributeError, TypeError, ValueError):
        raise ValueError(f"layer {layer!r}: curves are axis -> [[length, seconds], ...], not {curves!r}") from None


def _require_amount(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} is {value}; it must be finite and not negative")
