"""Pipelines and divisions against brute force, and what the best placement is in cases that leave no doubt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, pairwise, permutations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edgedi.errors import PlanError
from edgedi.partition.cost.cost import CostModel
from edgedi.partition.cost.profile import ClusterProfile, DeviceProfile, LayerProfile, LinkProfile
from edgedi.partition.cost.settle import settled
from edgedi.partition.graph.geometry import Interval
from edgedi.partition.graph.graph import LayerGraph
from edgedi.partition.plan.lowering import lower
from edgedi.partition.plan.placement import Placement
from edgedi.partition.plan.plan import HOME, Plan, Segment
from edgedi.partition.plan.simulate import simulate
from edgedi.partition.planners.by_name import plan
from edgedi.partition.search.fitting import fits, limits_of
from edgedi.partition.throughput.load import load_of
from edgedi.partition.throughput.pipelines import Pipelines, Stage, Team, neighbours, singles, stage_seconds
from edgedi.partition.throughput.throughput import better, divided, division, part_of, place
from tests.partition.graphs import Builder, chain, clusters, concat, graphs, residual, vgg16, with_opaque

# --- an oracle that shares no table with the search  ---


def alive(graph: LayerGraph, cut: int) -> list[int]:
    """Bytes of every tensor made before a cut and read after it."""
    after = {name for layer in graph.layers[cut:] for name in layer.inputs}
    return [layer.spec.num_bytes for layer in graph.layers[:cut] if layer.name in after]


def price_alone(model: CostModel, stage: Stage) -> float:
    """The stage of one worker, by the formulae in the docstring of ``pipelines``."""
    (me,), layers, graph, cluster = stage.team, stage.layers, model.graph, model.cluster
    inside = graph.layers[layers.start : layers.stop]
    shapes = {layer.name: graph.input_shapes(layer) for layer in inside}
    seconds = sum(cluster.devices[me].seconds(layer, shapes[layer.name]) for layer in inside)
    seconds *= cluster.devices[me].alone_share if len(inside) == len(graph.layers) else 1.0
    others = [worker for worker in model.workers if worker != me]
    links = [cluster.link_between(*ends) for worker in others for ends in ((me, worker), (worker, me))]
    message_s = max((link.message_cpu_s for link in links), default=0.0)
    num_messages = len(alive(graph, layers.start)) if layers.start else 0
    num_messages += len(alive(graph, layers.stop)) if layers.stop < len(graph.layers) else 0
    read = {name for layer in inside for name in layer.inputs if name in graph.inputs}
    made = {layer.name for layer in inside if layer.name in graph.outputs}
    down, up = cluster.link_between(HOME, me), cluster.link_between(me, HOME)
    seconds += num_messages * message_s + len(read) * down.message_cpu_s + len(made) * up.message_cpu_s
    down_s = sum(graph.spec(name).num_bytes for name in read) / down.bytes_per_s
    up_s = sum(graph.spec(name).num_bytes for name in made) / up.bytes_per_s
    return max(seconds, down_s, up_s)


def transfer_s(model: CostModel, source: Team, target: Team, cut: int) -> float:
    rates = [model.cluster.link_between(s, t).bytes_per_s for s in source for t in target]
    return sum(alive(model.graph, cut)) / len(rates) / min(rates)


def orders(workers: frozenset[int], teams: Sequence[Team]) -> Iterator[tuple[Team, ...]]:
    """Every sequence of teams in which each worker comes once."""
    if not workers:
        yield ()
    for team in teams:
        if workers.issuperset(team):
            yield from ((team, *rest) for rest in orders(workers.difference(team), teams))


def cheapest(model: CostModel, workers: frozenset[int], teams: Sequence[Team]) -> float:
    """All orders and all cuts, one by one."""
    end = len(model.graph.layers)
    shared = stage_seconds(model, [team for team in teams if len(team) > 1], limits_of(model.cluster))
    best = float("inf")
    for order in orders(workers, teams):
        for cuts in combinations(range(1, end), len(order) - 1):
            borders = [Interval(*pair) for pair in pairwise((0, *cuts, end))]
            stages = [Stage(layers=layers, team=team) for layers, team in zip(borders, order, strict=True)]
            prices = [
                price_alone(model, s) if len(s.team) == 1 else float(shared[s.team][s.layers.start, s.layers.stop])
                for s in stages
            ]
            prices += [transfer_s(model, a.team, b.team, b.layers.start) for a, b in pairwise(stages)]
            best = min(best, max(prices))
    return best


def sets(workers: Sequence[int]) -> Iterator[frozenset[int]]:
    for size in range(1, len(workers) + 1):
        yield from map(frozenset, combinations(workers, size))


def partitions(workers: frozenset[int]) -> Iterator[list[frozenset[int]]]:
    """Every way to divide some of the workers into sets."""
    if not workers:
        yield []
        return
    first = min(workers)
    yield from partitions(workers - {first})
    for group in sets(sorted(workers)):
        if first in group:
            yield from ([group, *rest] for rest in partitions(workers - group))


@settings(max_examples=60, deadline=None)
@given(graphs(max_steps=3, max_size=8, opaque=False), clusters(max_workers=3), st.sampled_from((singles, neighbours)))
def test_no_pipeline_is_estimated_better(graph: LayerGraph, cluster: ClusterProfile, teams_of) -> None:  # type: ignore[no-untyped-def]
    assume(len(graph.layers) <= 8)
    model = CostModel(graph, cluster)
    teams = teams_of(model.workers)
    found = Pipelines(model, teams)
    for workers in sets(model.workers):
        best = cheapest(model, workers, teams)
        pipeline = found.best(workers)
        if pipeline is None:
            assert best == float("inf")
            continue
        assert pipeline.bottleneck_s == pytest.approx(best, rel=1e-9)
        assert {worker for stage in pipeline.stages for worker in stage.team} == workers
        assert [s.layers.start for s in pipeline.stages[1:]] == [s.layers.stop for s in pipeline.stages[:-1]]


@settings(max_examples=40, deadline=None)
@given(graphs(max_steps=3, max_size=8, opaque=False), clusters(max_workers=4))
def test_no_division_answers_more(graph: LayerGraph, cluster: ClusterProfile) -> None:
    model = CostModel(graph, cluster)
    pipelines = Pipelines(model, singles(model.workers))
    rate = {group: 1 / p.bottleneck_s if (p := pipelines.best(group)) else 0.0 for group in sets(model.workers)}
    best = max(sum(rate[group] for group in groups) for groups in partitions(frozenset(model.workers)))
    found = division(pipelines, model.workers)
    assert sum(1 / pipeline.bottleneck_s for pipeline in found) == pytest.approx(best, rel=1e-7)
    taken = [worker for pipeline in found for stage in pipeline.stages for worker in stage.team]
    assert len(set(taken)) == len(taken)


def test_the_oracle_sees_every_order_and_every_division() -> None:
    assert len(list(orders(frozenset(range(3)), singles(range(3))))) == len(list(permutations(range(3))))
    assert len(list(orders(frozenset(range(2)), neighbours(range(2))))) == 3
    divisions = {frozenset(found) for found in partitions(frozenset(range(3)))}
    assert len(divisions) == 15  # of three workers, each left out or not: the Bell number of four


# --- what place promises  ---


def reruns(graph: LayerGraph, cluster: ClusterProfile, placement: Placement) -> Iterator[float]:
    """Each replica's plan proven and priced again, from the plan alone."""
    for replica in placement.replicas:
        simulate(lower(replica.plan, graph))
        yield 1 / max(load_of(CostModel(graph, cluster.subset(replica.workers)), replica.plan).bottleneck_s, 1e-30)


@settings(max_examples=40, deadline=None)
@given(graphs(), clusters())
def test_never_below_a_simple_candidate_and_every_plan_runs(graph: LayerGraph, cluster: ClusterProfile) -> None:
    found = place(graph, cluster, objective="throughput")
    rates = list(reruns(graph, cluster, found))
    assert found.rate_per_s <= sum(rates) * (1 + 1e-9)
    assert all(replica.plan.graph_digest == graph.digest for replica in found.replicas)
    alone = [1 / max(load_of(CostModel(graph, one), plan(graph, one, "single")).bottleneck_s, 1e-30)
             for one in (cluster.subset([worker]) for worker in range(cluster.num_workers))]  # fmt: skip
    together = place(graph, cluster)
    simple = [together.rate_per_s, *(p.rate_per_s for p in divided(graph, cluster))]
    assert found.rate_per_s >= max(simple) * (1 - 1e-6)
    home_s = max(load_of(CostModel(graph, cluster), plan(graph, cluster, "single")).home_s, 1e-30)
    assert found.rate_per_s >= min(sum(alone), 1 / home_s) * (1 - 1e-6) or cluster.num_workers == 1


def test_latency_is_the_planners_plan_alone() -> None:
    cluster = ClusterProfile.uniform(3)
    found = place(residual(), cluster, planner="equal")
    assert [(replica.workers, replica.plan) for replica in found.replicas] == [
        ((0, 1, 2), plan(residual(), cluster, "equal"))
    ]
    assert found.latency_s == pytest.approx(found.replicas[0].plan.predicted_s)


def test_equal_devices_on_good_links_run_whole_requests() -> None:
    found = place(vgg16(64), ClusterProfile.uniform(4), objective="throughput")
    assert [replica.workers for replica in found.replicas] == [(0,), (1,), (2,), (3,)]
    one = place(vgg16(64), ClusterProfile.uniform(1))
    assert found.rate_per_s == pytest.approx(4 * one.rate_per_s)
    assert found.latency_s == pytest.approx(one.latency_s)


def test_unequal_devices_answer_in_proportion_to_their_speed() -> None:
    cluster = ClusterProfile.uniform(2, seconds_per_layer=0, message_cpu_s=0).with_speeds((1, 3))
    found = place(chain(rows=48, channels=16), cluster, objective="throughput")
    rates = {replica.workers: replica.rate_per_s for replica in found.replicas}
    assert rates[(1,)] == pytest.approx(3 * rates[(0,)])


def test_a_device_may_be_too_slow_for_a_single_row() -> None:
    """Its share of a small map is empty; a window that jumps rows reads less than nothing for that."""
    b = Builder(1, 4, 8, 8)
    graph = b.graph(b.conv(b.conv("x", 4), 4, kernel=1, stride=2))
    cluster = ClusterProfile.uniform(2).with_speeds((1, 40))
    found = place(graph, cluster, objective="throughput")
    assert found.rate_per_s >= place(graph, cluster.subset([1]), objective="throughput").rate_per_s


def uphill() -> LayerGraph:
    """A large input and small maps behind: the way home is what costs."""
    b = Builder(1, 8, 32, 32)
    x = b.conv("x", 4, 3, stride=4)
    for _ in range(3):
        x = b.conv(x, 4, 3)
    return b.graph(x)


def test_one_good_way_home_makes_a_pipeline_that_begins_there() -> None:
    cluster = ClusterProfile.uniform(3, flops_per_s=1e7, message_cpu_s=0, seconds_per_layer=0)
    slow = {(HOME, worker): LinkProfile(bytes_per_s=100.0) for worker in (0, 2)}
    found = place(uphill(), cluster.with_links(slow), objective="throughput")
    first = found.replicas[0]
    assert first.plan.planner == "pipeline"
    assert first.workers[first.plan.segments[0].workers[0]] == 1
    alone = place(uphill(), cluster.subset([1]))
    assert found.rate_per_s > 1.2 * alone.rate_per_s


def test_devices_that_are_good_at_different_layers_take_those() -> None:
    b = Builder(1, 4, 16, 16)
    graph = b.graph(b.conv(b.conv("x", 4, name="a"), 4, name="b"))
    quick, slow = LayerProfile(curves={"whole": ((1, 1.0),)}), LayerProfile(curves={"whole": ((1, 9.0),)})
    devices = (
        DeviceProfile(name="0", layers={"a": slow, "b": quick}),
        DeviceProfile(name="1", layers={"a": quick, "b": slow}),
    )
    found = place(graph, ClusterProfile(devices=devices), objective="throughput")
    assert [segment.on for segment in found.replicas[0].plan.segments] == [1, 0]
    assert found.rate_per_s == pytest.approx(1.0)  # 2 replicas would answer 0.2, the plan for latency as much as this


def test_weights_too_many_for_one_device_go_on_several() -> None:
    graph = vgg16(64)
    num_bytes = sum(spec.num_bytes for spec in graph.weights.values())
    limited = tuple(
        DeviceProfile(name=str(k), seconds_per_flop=1e-9, memory_bytes=int(num_bytes * 0.7)) for k in range(2)
    )
    model = CostModel(graph, ClusterProfile(devices=limited))
    pipelines = Pipelines(model, singles((0, 1)))
    assert pipelines.best(frozenset({0})) is None
    (found,) = division(pipelines, (0, 1))
    assert [stage.team for stage in found.stages] in ([(0,), (1,)], [(1,), (0,)])


def with_memory(cluster: ClusterProfile, *limits_bytes: int) -> ClusterProfile:
    devices = (replace(d, memory_bytes=limit) for d, limit in zip(cluster.devices, limits_bytes, strict=True))
    return replace(cluster, devices=tuple(devices))


@settings(max_examples=40, deadline=None)
@given(graphs(opaque=False), clusters(max_workers=3), st.lists(st.integers(0, 12_000), min_size=3, max_size=3))
def test_what_is_placed_fits(graph: LayerGraph, cluster: ClusterProfile, limits_bytes: list[int]) -> None:
    """Either every replica fits into the memory of its workers, or an error names a worker that lacks some."""
    limited = with_memory(cluster, *limits_bytes[: cluster.num_workers])
    rate = place(graph, cluster, objective="throughput").rate_per_s
    try:
        found = place(graph, limited, objective="throughput")
    except PlanError:
        with pytest.raises(PlanError, match="has not the memory"):
            place(graph, limited)
        return
    assert all(fits(graph, limited.subset(replica.workers), replica.plan) for replica in found.replicas)
    assert found.rate_per_s <= rate * (1 + 1e-6)


def test_a_worker_without_room_for_all_is_given_a_part() -> None:
    graph = vgg16(64)
    num_bytes = sum(spec.num_bytes for spec in graph.weights.values())
    cluster = with_memory(ClusterProfile.uniform(3), *(int(num_bytes * share) for share in (0.8, 0.8, 1.1)))
    found = place(graph, cluster, planner="single", objective="throughput")
    assert sorted(worker for replica in found.replicas for worker in replica.workers) == [0, 1, 2]
    alone = place(graph, cluster.subset([2]))
    assert found.rate_per_s > 1.5 * alone.rate_per_s


def test_nothing_fits_and_the_error_says_who_lacks_what() -> None:
    cluster = with_memory(ClusterProfile.uniform(2), 1000, 1000)
    with pytest.raises(PlanError, match=r"worker \d .* needs .* its limit is 0\.001 MB"):
        place(vgg16(64), cluster, objective="throughput")


def test_a_team_shares_the_stage_that_would_hold_up_the_others() -> None:
    """One layer is most of the work, and only one worker has a good way home: the others share that layer."""
    b = Builder(1, 2, 64, 64)
    heavy = b.conv(b.conv("x", 16, 1, name="light"), 16, 7, name="heavy")
    graph = b.graph(b.max_pool(heavy, 16))
    cluster = ClusterProfile.uniform(3, flops_per_s=1e8, message_cpu_s=0, seconds_per_layer=0, bytes_per_s=1e9)
    slow = {(HOME, worker): LinkProfile(bytes_per_s=10.0) for worker in (1, 2)}
    *_, best_alone, found = divided(graph, cluster.with_links(slow))
    shared = [segment for segment in found.replicas[0].plan.segments if len(segment.workers) == 2]
    assert found.replicas[0].workers == (0, 1, 2)
    assert [(segment.axis, segment.workers) for segment in shared] == [("rows", (1, 2))]
    assert found.rate_per_s == pytest.approx(2 * best_alone.rate_per_s, rel=0.01)
    simulate(lower(found.replicas[0].plan, graph))


def test_the_coordinator_limits_all_replicas_together() -> None:
    cluster = ClusterProfile.uniform(4, flops_per_s=1e15, seconds_per_layer=0, message_cpu_s=1.0)
    found = place(chain(), cluster, objective="throughput")
    assert found.rate_per_s == pytest.approx(0.5)  # two messages of a second each at the coordinator for each request


def test_opaque_operators_stay_at_the_coordinator() -> None:
    found = place(with_opaque(), ClusterProfile.uniform(2), objective="throughput")
    assert any(segment.on == HOME for replica in found.replicas for segment in replica.plan.segments)


def test_many_workers_are_divided_in_groups() -> None:
    found = place(chain(), ClusterProfile.uniform(11, message_cpu_s=0), objective="throughput")
    assert sorted(worker for replica in found.replicas for worker in replica.workers) == list(range(11))


def test_an_unknown_objective_lists_the_known() -> None:
    with pytest.raises(ValueError, match="objective='speed': accepted are latency, throughput"):
        place(chain(), ClusterProfile.uniform(2), objective="speed")
    with pytest.raises(ValueError, match=r"there is no planner 'odp'; accepted are .*; did you mean oodp"):
        place(chain(), ClusterProfile.uniform(2), planner="odp", objective="throughput")


def test_of_equal_rates_the_faster_is_better() -> None:
    cluster = ClusterProfile.uniform(1)
    one = place(chain(), cluster)
    slower = place(chain(), cluster.with_links({(HOME, 0): LinkProfile(latency_s=1.0, message_cpu_s=3e-5)}))
    assert one.rate_per_s == pytest.approx(slower.rate_per_s)
    assert better([slower, one]) == one
    assert better([one, slower]) == one


@pytest.mark.parametrize("graph", [chain(), residual(), concat()])
def test_a_part_of_a_network_is_a_network(graph: LayerGraph) -> None:
    end = len(graph.layers)
    for start, stop in combinations(range(end + 1), 2):
        part = part_of(graph, Interval(start, stop))
        assert [layer.name for layer in part.layers] == [layer.name for layer in graph.layers[start:stop]]
        assert all(part.spec(name) == graph.spec(name) for name in part.inputs)
    assert set(part_of(graph, Interval(0, end)).outputs) == set(graph.outputs)


def test_a_plan_that_a_pipeline_became_computes_everything_once() -> None:
    """Broken on purpose: with a stage left out, the plan does not exist."""
    graph, cluster = residual(), ClusterProfile.uniform(2)
    half = len(graph.layers) // 2
    segments = tuple(
        Segment(layers=layers, axis="whole", on=k)
        for k, layers in enumerate((Interval(0, half), Interval(half, len(graph.layers))))
    )
    made = Plan(num_workers=2, segments=segments)
    assert settled(CostModel(graph, cluster), made).predicted_s > 0
    with pytest.raises(Exception, match="are in no segment"):
        Plan(num_workers=2, segments=segments[1:])
