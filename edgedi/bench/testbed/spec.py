"""What a testbed consists of. Pure: a table in, as TOML has it, a value or a ``ValueError`` out.

description = "..."
work = "warm"                        # counts what it takes on a busy device; "in place": what it does here, caches cold
dilation = 4                         # time runs so many times as slowly there, links too, and figures are divided by it
[link]                               # of every device that gives none of its own
rate_bits_per_s = 1_000_000_000      # in each direction, at the same time
latency_s = 0.000_1                  # before what is sent to this device is heard there
[[devices]]                          # the first is the coordinator's own
name = "pi4-0"
slowdown = 10                        # times as slow as one core of this machine
memory_bytes = 4_000_000_000         # may be left out: no limit
link = { rate_bits_per_s = 50_000_000, latency_s = 0.000_1 }
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from edgedi.errors import like
from edgedi.runtime.emulation.speed import Speed

MOST_DEVICES = 64
LEAST_LINK_BITS_PER_S = 1e5
"""Of any device. Greetings with their keys are some kilobytes a worker, all through the coordinator's cable: over
slower ones they do not come in the seconds that workers have to answer in, and at a few bits ``tc`` refuses."""
LEAST_RATE_BITS_PER_S = 1.5e6
"""Under a dilation, for each other device, as all share the coordinator's link. Over slower ones a worker looks lost
while a large piece is under way."""
WARM, IN_PLACE = "warm", "in place"
WORK = (WARM, IN_PLACE)
_RATE = re.compile(r"(\d+(?:\.\d+)?)([kMG])")
_UNITS = {"k": 1e3, "M": 1e6, "G": 1e9}


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A device's cable: bits per second in each direction, and the seconds before what is sent to it is heard."""

    rate_bits_per_s: float
    latency_s: float = 0.0

    def __post_init__(self) -> None:
        _require_number("rate_bits_per_s", self.rate_bits_per_s)
        _require_number("latency_s", self.latency_s)
        if not 0 < self.rate_bits_per_s < math.inf:
            raise ValueError(f"rate_bits_per_s is {self.rate_bits_per_s:g}: give bits per second above 0")

    @property
    def bytes_per_s(self) -> float:
        """The rate in bytes."""
        return self.rate_bits_per_s / 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """An emulated device: one core, ``slowdown`` times as slow as this machine's."""

    name: str
    slowdown: float
    link: Link
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"[\w.-]{1,40}", self.name):
            raise ValueError(f"name is {self.name!r}: give 1 to 40 letters, digits, points, dashes and underscores")
        _require_number("slowdown", self.slowdown)
        _ = self.speed
        self._check_link()
        memory = self.memory_bytes
        if memory is not None and (type(memory) is not int or memory < 1):
            raise ValueError(f"memory_bytes is {memory!r}: give a whole number from 1 up, or leave it out")

    def _check_link(self) -> None:
        """Here and not in ``Link``, as a dilation may leave a cable less on this machine."""
        rate, least = self.link.rate_bits_per_s, LEAST_LINK_BITS_PER_S
        if rate < least:
            raise ValueError(
                f"rate_bits_per_s is {rate:g}: give at least {least:g} ({_rate_text(least)}), as over slower links "
                "workers' greetings do not come in time"
            )

    @property
    def speed(self) -> Speed:
        """As the device's own process emulates it, but for the price of messages, which is measured."""
        return Speed(slowdown=self.slowdown, latency_s=self.link.latency_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """A testbed. The first device is the coordinator's own."""

    name: str
    devices: tuple[Device, ...]
    description: str = ""
    work: str = WARM
    """Whether layers and messages count what they take with warm caches, or what they happen to take in their place."""
    dilation: float = 1.0
    """Seconds of this machine for a second of the devices, which gives it time for what it does besides."""

    def __post_init__(self) -> None:
        if self.work not in WORK:
            raise ValueError(f"work is {self.work!r}: give {' or '.join(map(repr, WORK))}")
        self._check_dilation()
        if not 1 <= len(self.devices) <= MOST_DEVICES:
            raise ValueError(f"there are {len(self.devices)} [[devices]]: give 1 to {MOST_DEVICES}")
        twice = [name for name, count in Counter(device.name for device in self.devices).items() if count > 1]
        if twice:
            raise ValueError(f"two devices have the name {twice[0]!r}: give each its own")

    def _check_dilation(self) -> None:
        _require_number("dilation", self.dilation)
        _ = Speed(dilation=self.dilation)
        rate = min((link.rate_bits_per_s for link in self.links), default=math.inf)
        least = LEAST_RATE_BITS_PER_S * (len(self.devices) - 1)
        if self.dilation != 1 and rate < least:
            raise ValueError(
                f"dilation is {self.dilation:g}: it leaves a link {_rate_text(rate)} on this machine, too little for "
                f"signs of life to come in time; give less, or links that keep {_rate_text(least)}"
            )

    @property
    def least_slowdown(self) -> float:
        """Of the fastest device: the one that engines are compared on."""
        return min(device.slowdown for device in self.devices)

    def with_rate(self, rate_bits_per_s: float) -> Spec:
        """The same devices with links of this rate."""
        devices = (
            replace(device, link=replace(device.link, rate_bits_per_s=rate_bits_per_s)) for device in self.devices
        )
        return replace(self, devices=tuple(devices))

    @property
    def links(self) -> tuple[Link, ...]:
        """Cables as this machine has to make them: each device's, under the dilation."""
        return tuple(
            replace(device.link, rate_bits_per_s=device.link.rate_bits_per_s / self.dilation) for device in self.devices
        )

    def __str__(self) -> str:
        devices = ", ".join(
            f"{count} x {slowdown:g} times as slow at {_rate_text(rate)}, {1000 * latency_s:g} ms"
            for (slowdown, rate, latency_s), count in Counter(
                (d.slowdown, d.link.rate_bits_per_s, d.link.latency_s) for d in self.devices
            ).items()
        )
        slowly = f", time {self.dilation:g} times as slowly" if self.dilation != 1 else ""
        return f"{self.name}: {devices}{slowly}"


def spec_of(values: Mapping[str, Any], *, name: str) -> Spec:
    """The testbed that a table describes. ``ValueError`` names spec, place, what was given and what is accepted."""
    try:
        return _spec(values, name)
    except ValueError as error:
        raise ValueError(f"testbed {name}: {error}") from None


def parse_rate(text: str) -> float:
    """Bits per second of a text such as ``100M``. ``ValueError`` for another, and for a rate of zero."""
    if re.fullmatch(r"0+(\.0*)?", text):
        return Link(rate_bits_per_s=0).rate_bits_per_s  # refused like a zero with a unit
    found = _RATE.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not a rate such as 1G, 100M or 50M (bits per second)")
    rate = float(found[1]) * _UNITS[found[2]]
    return Link(rate_bits_per_s=rate).rate_bits_per_s


def _spec(values: Mapping[str, Any], name: str) -> Spec:
    _require_keys(values, "the spec", needed=("devices",), optional=("description", "link", "work", "dilation"))
    listed = values["devices"]
    if not isinstance(listed, list):
        raise ValueError("devices is no list: write [[devices]] above each one")
    default = _link(values["link"], "[link]") if "link" in values else None
    devices = tuple(_device(each, f"device {number}", default) for number, each in enumerate(listed, start=1))
    description, work = str(values.get("description", "")), values.get("work", WARM)
    return Spec(name=name, devices=devices, description=description, work=work, dilation=values.get("dilation", 1.0))


def _device(values: Any, where: str, default: Link | None) -> Device:
    _require_keys(values, where, needed=("name", "slowdown"), optional=("memory_bytes", "link"))
    link = _link(values["link"], f"{where}, link") if "link" in values else default
    if link is None:
        raise ValueError(f"{where} has no link: give it one, or [link] for all")
    try:
        return Device(
            name=values["name"], slowdown=values["slowdown"], link=link, memory_bytes=values.get("memory_bytes")
        )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _link(values: Any, where: str) -> Link:
    _require_keys(values, where, needed=("rate_bits_per_s",), optional=("latency_s",))
    try:
        return Link(rate_bits_per_s=values["rate_bits_per_s"], latency_s=values.get("latency_s", 0.0))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _require_keys(values: Any, where: str, *, needed: tuple[str, ...], optional: tuple[str, ...]) -> None:
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} is {values!r}: give a table with {', '.join(needed)}")
    accepted = (*needed, *optional)
    for key in values:
        if key not in accepted:
            known = f"accepted are {', '.join(accepted)}{like(key, accepted)}"
            raise ValueError(f"{where} has an unknown key {key!r}: {known}")
    lacking = [key for key in needed if key not in values]
    if lacking:
        raise ValueError(f"{where} lacks {' and '.join(lacking)}")


def _require_number(what: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{what} is {value!r}: give a number")


def _rate_text(rate_bits_per_s: float) -> str:
    unit = next((unit for unit in "GM" if rate_bits_per_s >= _UNITS[unit]), "k")
    return f"{rate_bits_per_s / _UNITS[unit]:g} {unit}bit/s"
