"""What a session knows of its devices: kept from an earlier session where that still holds, else measured.

A worker is measured once per device and graph. The result is kept under its fingerprint and the graph's digest, as JSON
beside other caches of the user's, with the longer of two samples: a few layers, right before and right after. Every
session takes the sample anew: a device that is faster by then was disturbed when it was measured, and by such a profile
more devices would seem to pay than do. One that is slower is disturbed now, and its profile stays: what is kept is of
the fastest conditions that were seen.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from edgedi.partition.capture.capture import Capture
from edgedi.partition.cost.profile import DeviceProfile
from edgedi.partition.graph.graph import LayerGraph
from edgedi.partition.graph.operators import OPERATOR_TABLE_VERSION
from edgedi.runtime.coordinator.coordinator import Coordinator
from edgedi.runtime.coordinator.profiler import Say, measured_profiles, sample_seconds
from edgedi.runtime.wire.messages import Welcome

KEPT_VERSION = 5
"""Raised where a kept profile lacks what one that is measured now would hold: other numbers, other engine chains, or a
sample of other layers."""
CACHE_FOLDER = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "edgedi" / "profiles"
FASTER_BY = 0.75
"""A profile holds no longer where its sample takes less than this share of what it took: less is noise, or caches."""
TELLING_S = 2e-4
"""A sample that takes less says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A kind of device as it was measured, and what its sample took then."""

    profile: DeviceProfile
    sample_s: float

    def holds(self, sample_s: float) -> bool:
        """Whether a device that now takes ``sample_s`` was not disturbed then."""
        return self.sample_s < TELLING_S or sample_s >= FASTER_BY * self.sample_s

    def to_json(self) -> str:
        """One JSON object as text."""
        return json.dumps({"sample_s": self.sample_s, "profile": self.profile.to_dict()}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Kept:
        """What ``to_json`` wrote. ``ValueError`` for any other text."""
        try:
            values = json.loads(text)
            kept = cls(profile=DeviceProfile.from_dict(values["profile"]), sample_s=float(values["sample_s"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a kept profile: {error}") from error
        if not 0 <= kept.sample_s < math.inf:
            raise ValueError(f"not a kept profile: a sample that took {kept.sample_s} s")
        return kept


class KnownDevices:
    """Profiles of workers. Those of one fingerprint are devices of one kind, and have one profile."""

    def __init__(self, coordinator: Coordinator, say: Say) -> None:
        self._coordinator, self._say = coordinator, say
        self._known: dict[tuple[str, str], DeviceProfile] = {}

    def profiles(self, capture: Capture, welcomes: Mapping[int, Welcome]) -> tuple[DeviceProfile, ...]:
        """One for each worker, in their order; ``welcomes`` by link number."""
        digest = capture.graph.digest
        new = {link: w for link, w in welcomes.items() if (w.fingerprint, digest) not in self._known}
        if new:
            found = self._kept_or_measured(capture, new)
            self._known |= {(fingerprint, digest): profile for fingerprint, profile in found.items()}
        return tuple(
            replace(self._known[w.fingerprint, digest], name=w.name, memory_bytes=w.memory_limit_bytes)
            for w in welcomes.values()
        )

    def _kept_or_measured(self, capture: Capture, welcomes: Mapping[int, Welcome]) -> dict[str, DeviceProfile]:
        """By fingerprint."""
        self._say(f"taking a sample on {', '.join(welcome.name for welcome in welcomes.values())}")
        before_s = self._samples(capture, welcomes)
        kept = {kind: _read(kind, capture.graph) for kind in before_s}
        found = {kind: k.profile for kind, k in kept.items() if k is not None and k.holds(before_s[kind])}
        lacking = {link: welcome for link, welcome in welcomes.items() if welcome.fingerprint not in found}
        if lacking:
            measured = measured_profiles(self._coordinator, capture, lacking, self._say)
            after_s = self._samples(capture, lacking)  # what disturbs may have come, or gone, meanwhile
            for kind, profile in _fastest_of_each(measured.values()).items():
                found[kind] = profile
                _write(Kept(profile=profile, sample_s=max(before_s[kind], after_s[kind])), capture.graph)
        return found

    def _samples(self, capture: Capture, welcomes: Mapping[int, Welcome]) -> dict[str, float]:
        """Seconds by fingerprint: of several devices of a kind the least, as the others are disturbed."""
        least_s: dict[str, float] = {}
        for link, seconds in sample_seconds(self._coordinator, capture, list(welcomes)).items():
            kind = welcomes[link].fingerprint
            least_s[kind] = min(seconds, least_s.get(kind, seconds))
        return least_s


def _fastest_of_each(profiles: Iterable[DeviceProfile]) -> dict[str, DeviceProfile]:
    """By fingerprint; of several the one that takes least for all layers."""
    fastest: dict[str, DeviceProfile] = {}
    for profile in sorted(profiles, key=lambda profile: sum(layer.whole_s for layer in profile.layers.values())):
        fastest.setdefault(profile.fingerprint, profile)
    return fastest


def _path(fingerprint: str, graph: LayerGraph) -> Path:
    return CACHE_FOLDER / f"{fingerprint}-{graph.digest[:16]}-t{OPERATOR_TABLE_VERSION}-p{KEPT_VERSION}.json"


def _read(fingerprint: str, graph: LayerGraph) -> Kept | None:
    try:
        return Kept.from_json(_path(fingerprint, graph).read_text())
    except (OSError, ValueError):
        return None


def _write(kept: Kept, graph: LayerGraph) -> None:
    path = _path(kept.profile.fingerprint, graph)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}.tmp")
        draft.write_text(kept.to_json())
        draft.replace(path)
    except OSError:
        pass  # a cache that cannot be written costs time, in every session, not results
