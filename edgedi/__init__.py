"""edgedi: one neural network on several edge devices together, with the same answer.

``distribute`` splits a network's feature maps over workers that exchange halos, ``compact`` takes out of a network what
its answer does not need, ``save`` and ``load`` keep it in files without code. Names load when first used, so that a
module without torch can be imported without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgedi.partition.capture.capture import capture
    from edgedi.partition.cost.profile import ClusterProfile
    from edgedi.partition.graph.graph import LayerGraph
    from edgedi.partition.plan.lowering import lower
    from edgedi.partition.plan.placement import Placement
    from edgedi.partition.plan.plan import Plan
    from edgedi.partition.plan.simulate import simulate
    from edgedi.partition.planners.by_name import plan, planners
    from edgedi.partition.throughput.throughput import place
    from edgedi.runtime.session.distribute import distribute
    from edgedi.runtime.session.session import Session
    from edgedi.transforms.compact import compact
    from edgedi.transforms.saved.folder import load, save

_HOMES = {
    "capture": "edgedi.partition.capture.capture",
    "LayerGraph": "edgedi.partition.graph.graph",
    "lower": "edgedi.partition.plan.lowering",
    "Placement": "edgedi.partition.plan.placement",
    "Plan": "edgedi.partition.plan.plan",
    "place": "edgedi.partition.throughput.throughput",
    "plan": "edgedi.partition.planners.by_name",
    "planners": "edgedi.partition.planners.by_name",
    "ClusterProfile": "edgedi.partition.cost.profile",
    "simulate": "edgedi.partition.plan.simulate",
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
