"""edgedi: one neural network on several edge devices together, with the same answer.

``distribute`` splits a network's feature maps over workers that exchange halos, ``compact`` takes out of a network what
its answer does not need, ``save`` and ``load`` keep it in files without code. Names load when first used, so that a
module without torch can be imported without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgedi.partition.capture import capture
    from edgedi.partition.graph import LayerGraph
    from edgedi.partition.lowering import lower
    from edgedi.partition.placement import Placement
    from edgedi.partition.plan import Plan
    from edgedi.partition.planners import plan, planners
    from edgedi.partition.profile import ClusterProfile
    from edgedi.partition.simulate import simulate
    from edgedi.partition.throughput import place
    from edgedi.runtime.session.distribute import distribute
    from edgedi.runtime.session.session import Session
    from edgedi.transforms.compact import compact
    from edgedi.transforms.saved.folder import load, save

_HOMES = {
    "capture": "edgedi.partition.capture",
    "LayerGraph": "edgedi.partition.graph",
    "lower": "edgedi.partition.lowering",
    "Placement": "edgedi.partition.placement",
    "Plan": "edgedi.partition.plan",
    "place": "edgedi.partition.throughput",
    "plan": "edgedi.partition.planners",
    "planners": "edgedi.partition.planners",
    "ClusterProfile": "edgedi.partition.profile",
    "simulate": "edgedi.partition.simulate",
    "Session": "edgedi.runtime.session.session",
    "distribute": "edgedi.runtime.session.distribute",
    "compact": "edgedi.transforms.compact",
    "load": "edgedi.transforms.saved.folder",
    "save": "edgedi.transforms.saved.folder",
}

__all__ = [
    "ClusterProfile", "LayerGraph", "Placement", "Plan", "Session", "capture", "compact", "distribute", "load",
    "lower", "place", "plan", "planners", "save", "simulate",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("edgedi")
    if name not in _HOMES:
        raise AttributeError(f"module 'edgedi' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
