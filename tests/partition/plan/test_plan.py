"""Plans and programs as text. ``python -m tests.partition.plan.test_plan`` writes the golden files; read the diff."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgedi.errors import PlanError
from edgedi.partition.cost.profile import ClusterProfile
from edgedi.partition.graph.geometry import Interval
from edgedi.partition.graph.graph import LayerGraph
from edgedi.partition.plan import plan as module
from edgedi.partition.plan.lowering import lower
from edgedi.partition.plan.plan import HOME, Cost, Plan, Segment, owned
from edgedi.partition.plan.program import Program, parse_instruction
from edgedi.partition.planners.by_name import plan, planners
from tests.partition.graphs import chain, clusters, concat, graphs, residual

GOLDEN = Path(__file__).parent / "golden"
CLUSTER = ClusterProfile.uniform(
    2, flops_per_s=1e8, seconds_per_layer=1e-5, latency_s=1e-4, bytes_per_s=1e8, message_cpu_s=1e-5
).with_speeds((1.0, 1.5))
NETWORKS: Mapping[str, LayerGraph] = {
    "chain": chain(rows=24, channels=8),
    "residual": residual(rows=32, channels=16),
    "concat": concat(rows=15, channels=8),
}


def as_text(graph: LayerGraph) -> str:
    found = plan(graph, CLUSTER)
    return f"{graph}\n\n{found}\n\n{lower(found, graph)}\n"


@pytest.mark.parametrize("name", NETWORKS)
def test_plans_and_programs_are_as_they_were(name: str) -> None:
    assert as_text(NETWORKS[name]) == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NETWORKS)
def test_golden_plans_really_split(name: str) -> None:
    assert any(len(segment.workers) > 1 for segment in plan(NETWORKS[name], CLUSTER).segments)


def close(one: Cost, other: Cost) -> bool:
    return one.compute_s == pytest.approx(other.compute_s, rel=1e-5) and one.exchange_s == pytest.approx(
        other.exchange_s, rel=1e-5
    )


@settings(max_examples=60, deadline=None)
@given(graphs(), clusters(), st.sampled_from(planners()))
def test_plans_and_programs_parse_back(graph: LayerGraph, cluster: ClusterProfile, name: str) -> None:
    found = plan(graph, cluster, name)
    parsed = Plan.parse(str(found), graph_digest=graph.digest)
    assert str(parsed).splitlines()[1:] == str(found).splitlines()[1:]  # the head's sum is rounded once more
    assert parsed.predicted_s == pytest.approx(found.predicted_s, rel=1e-4)
    assert parsed.digest == found.digest
    assert parsed.planner == name
    assert all(close(a.cost, b.cost) for a, b in zip(parsed.segments, found.segments, strict=True))
    for program in lower(found, graph).programs.values():
        assert Program.parse(str(program)) == program


@pytest.mark.parametrize(
    "text",
    [
        "plans 2 workers",
        "plan 2 workers, 3 layers, predicted 1 s\nsegment 0  layers 0:3",
        "plan 2 workers, 3 layers, predicted 1 s\nsegment 0  layers 0:3  rows 4",
        "plan 2 workers, 3 layers, predicted 1 s\nsegment 0  layers 0:3  diagonals 4  0:2  2:4",
        "plan 2 workers, 3 layers, predicted 1 s\nsegment 0  layers 0:3  rows 4  0:2  3:4",
        "plan 2 workers, 3 layers, predicted 1 s\nsegment 0  layers 0:3  rows 4  0:2  2:3",
    ],
)
def test_another_text_is_no_plan(text: str) -> None:
    with pytest.raises(ValueError, match=r"write|not one of|hole|cover"):
        Plan.parse(text)


@pytest.mark.parametrize("text", ["", "JUMP a", "RUN a[1:2] <- b", "RECV a from nobody", "SEND a@2[3] of a to 1"])
def test_another_text_is_no_instruction(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        parse_instruction(text)


def test_segments_follow_one_another() -> None:
    first = Segment(layers=Interval(0, 2), axis="whole", on=0)
    with pytest.raises(PlanError, match="layers 2 to 3 are in no segment in segment 1"):
        Plan(num_workers=1, segments=(first, Segment(layers=Interval(3, 4), axis="whole", on=0)))
    with pytest.raises(PlanError, match="there is no worker 1"):
        Plan(num_workers=1, segments=(Segment(layers=Interval(0, 2), axis="whole", on=1),))
    shares = (Interval(0, 2), Interval(2, 4))
    with pytest.raises(PlanError, match="2 shares for 3 workers"):
        Plan(num_workers=3, segments=(Segment(layers=Interval(0, 1), axis="rows", length=4, shares=shares),))


def test_a_plan_is_lowered_for_its_own_graph_only() -> None:
    found = plan(chain(), CLUSTER)
    with pytest.raises(PlanError, match="the graph 17"):
        lower(found, residual())
    with pytest.raises(PlanError, match="the plan is for graph"):
        lower(found, chain(rows=17))


def test_the_digest_is_of_the_grid_not_of_its_price() -> None:
    def one(cost: Cost, on: int) -> Plan:
        return Plan(num_workers=2, segments=(Segment(layers=Interval(0, 2), axis="whole", on=on, cost=cost),))

    assert one(Cost(), 0).digest == one(Cost(compute_s=1.0), 0).digest
    assert one(Cost(), 0).digest != one(Cost(), 1).digest
    assert one(Cost(), HOME).segments[0].workers == (HOME,)


def test_the_example_in_the_docstring_is_what_is_printed() -> None:
    assert module.__doc__ is not None
    shown = textwrap.dedent("\n".join(module.__doc__.splitlines()[2:5]))
    assert str(Plan.parse(shown)) == shown


def test_tensors_are_owned_in_like_proportion() -> None:
    shares = (Interval(0, 3), Interval(3, 7))
    segment = Segment(layers=Interval(0, 1), axis="rows", length=7, shares=shares)
    assert [owned(segment, worker, 14) for worker in (0, 1)] == [Interval(0, 6), Interval(6, 14)]


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for network, layers in NETWORKS.items():
        (GOLDEN / f"{network}.txt").write_text(as_text(layers), encoding="utf-8")
