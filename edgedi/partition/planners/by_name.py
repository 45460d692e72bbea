"""The planners by name: one signature, ``(LayerGraph, ClusterProfile) -> Plan``, and nothing else to know of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from edgedi.errors import like
from edgedi.partition.cost.profile import ClusterProfile
from edgedi.partition.graph.graph import LayerGraph
from edgedi.partition.plan.plan import Plan
from edgedi.partition.planners.baselines import equal, ocbp, oodp_greedy, proportional, single
from edgedi.partition.planners.oodp import oodp
from edgedi.partition.planners.published import aofl, coedge, deepthings
from edgedi.partition.search.fitting import require_fit

Planner = Callable[[LayerGraph, ClusterProfile], Plan]

_PLANNERS: Mapping[str, Planner] = MappingProxyType(
    {
        "oodp": oodp,
        "oodp-greedy": oodp_greedy,
        "ocbp": ocbp,
        "proportional": proportional,
        "equal": equal,
        "deepthings": deepthings,
        "aofl": aofl,
        "coedge": coedge,
        "single": single,
    }
)


def planners() -> tuple[str, ...]:
    """The names that ``plan`` accepts."""
    return tuple(_PLANNERS)


def plan(graph: LayerGraph, cluster: ClusterProfile, planner: str = "oodp") -> Plan:
    """The plan that the named planner makes for ``graph`` on ``cluster``.

    ``ValueError`` lists the accepted names; ``PlanError`` names a worker whose memory the plan does not fit into.
    """
    if planner not in _PLANNERS:
        raise ValueError(
            f"there is no planner {planner!r}; accepted are {', '.join(_PLANNERS)}{like(planner, _PLANNERS)}"
        )
    found = _PLANNERS[planner](graph, cluster)
    require_fit(graph, cluster, found)
    return found
