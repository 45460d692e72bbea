from __future__ import annotations

from dataclasses import replace

import pytest

from edgedi.partition.cost.cost import CostModel
from edgedi.partition.cost.profile import ClusterProfile, LinkProfile
from edgedi.partition.graph.geometry import Interval
from edgedi.partition.plan.plan import HOME, Plan, Segment
from edgedi.partition.planners.by_name import plan
from edgedi.partition.planners.oodp import contenders, oodp
from edgedi.partition.search.estimate import segment_cost
from edgedi.partition.search.search import best_segment
from tests.partition.graphs import Builder, chain, residual, vgg16, with_opaque


def reasons(found: Plan) -> list[str]:
    return [segment.why for segment in found.segments]


def test_every_segment_says_why() -> None:
    found = oodp(vgg16(64), ClusterProfile.uniform(3, flops_per_s=1e9))
    assert all(reasons(found))
    assert any(why.startswith("next best: ") for why in reasons(found))


def test_the_next_best_way_is_priced_as_the_search_would() -> None:
    b = Builder(1, 8, 16, 16)
    graph, cluster = b.graph(b.conv("x", 8)), ClusterProfile.uniform(2, flops_per_s=1e8)
    model, found = CostModel(graph, cluster), oodp(graph, cluster)
    assert [segment.axis for segment in found.segments] == ["rows"]
    other = best_segment(model, Interval(0, 1), "channels", HOME)
    assert other is not None
    seconds = segment_cost(model, other, HOME).total_s + model.outputs_home("channels")
    whole_s = model.whole_cost(Interval(0, 1), 0, HOME).total_s + model.outputs_home(0)
    name, least = min((("channels", seconds), ("whole on 0", whole_s)), key=lambda way: way[1])
    assert reasons(found) == [f"next best: {name}, {least:.3g} s"]


def test_alone_is_explained_by_what_an_exchange_would_cost() -> None:
    b = Builder(1, 3, 16, 16)
    cluster = ClusterProfile.uniform(2, message_cpu_s=1.0).with_links({(-1, 0): LinkProfile(), (0, -1): LinkProfile()})
    (why,) = reasons(oodp(b.graph(b.conv(b.conv("x", 8), 8)), cluster))
    assert why.startswith("alone: the best plan that splits would save ")
    assert " s of exchange; least exchange on 0: 0 s, " in why


def test_all_on_one_worker_is_held_against_the_best_plan_that_splits() -> None:
    graph, cluster = vgg16(64), ClusterProfile.uniform(2, flops_per_s=1e11, latency_s=0.01)
    alone = oodp(graph, cluster)
    split = next(plan for plan in contenders(graph, cluster) if len(plan.segments) > 1)
    saved = alone.segments[0].cost.compute_s - sum(segment.cost.compute_s for segment in split.segments)
    paid = sum(segment.cost.exchange_s for segment in split.segments) - alone.segments[0].cost.exchange_s
    (why,) = reasons(alone)
    told = f"would save {saved:.3g} s of computing for {paid:.3g} s of exchange"
    assert (saved > 0, paid > saved) == (True, True)
    assert why == f"alone: the best plan that splits {told}; worker 1 would do as well"


def test_the_coordinators_own_process_is_chosen_as_nothing_is_sent_there() -> None:
    cluster = replace(ClusterProfile.uniform(2, flops_per_s=1e11, latency_s=0.01), local=True)
    far = cluster.with_links({(-1, 0): LinkProfile(latency_s=0.02), (0, -1): LinkProfile(latency_s=0.02)})
    (why,) = reasons(oodp(vgg16(64), far))
    assert why.endswith("; nothing is sent: worker 0 is in this process")


def test_one_worker_that_is_only_worth_a_trial_says_so() -> None:
    graph, cluster = chain(), ClusterProfile.uniform(2, flops_per_s=4e8)
    quickest, *others = contenders(graph, cluster)
    alone = next(plan for plan in others if len(plan.segments) == 1)
    told = f"worth a trial: the best plan that splits is predicted {quickest.predicted_s:.3g} s"
    assert reasons(alone) == [f"{told}; worker 1 would do as well"]


@pytest.mark.parametrize("fast", [0, 1])
def test_a_segment_on_one_worker_says_why_on_that_one(fast: int) -> None:
    cluster = ClusterProfile.uniform(2, flops_per_s=1e9, latency_s=1.0)
    devices = [replace(device, seconds_per_flop=2e-9) for device in cluster.devices]
    devices[fast] = cluster.devices[fast]
    (found,) = oodp(residual(rows=32), replace(cluster, devices=tuple(devices))).segments
    model = CostModel(residual(rows=32), replace(cluster, devices=tuple(devices)))
    here, there = (model.whole_compute(worker, found.layers) for worker in (fast, 1 - fast))
    assert found.on == fast
    assert found.why.endswith(f"; fastest on {fast}: {here:.3g} s of computing, {there:.3g} s on {1 - fast}")


def test_where_there_is_no_choice_it_says_so() -> None:
    assert reasons(oodp(chain(), ClusterProfile.uniform(1))) == ["no other way: one worker"]
    found = oodp(with_opaque(), ClusterProfile.uniform(2))
    assert [s.why for s in found.segments if s.on == HOME] == ["an operator that only the coordinator knows"]


def test_memory_is_named_where_it_decided() -> None:
    cluster = ClusterProfile.uniform(2, latency_s=1.0)
    b = Builder(1, 256)
    graph = b.graph(b.linear(b.linear("x", 256), 256))
    devices = tuple(replace(device, memory_bytes=300_000) for device in cluster.devices)
    assert any(why.endswith("; memory of worker 0") for why in reasons(plan(graph, replace(cluster, devices=devices))))
    assert not any("memory" in why for why in reasons(plan(graph, cluster)))


def test_reasons_print_and_parse_and_are_no_part_of_the_digest() -> None:
    found = oodp(residual(rows=32), ClusterProfile.uniform(2, flops_per_s=1e8))
    assert f"  # {found.segments[0].why}" in str(found)
    assert reasons(Plan.parse(str(found))) == reasons(found)
    silent = replace(found, segments=tuple(replace(segment, why="") for segment in found.segments))
    assert silent.digest == found.digest
    assert "#" not in str(silent)
    with pytest.raises(ValueError, match="one line of words"):
        Segment(layers=Interval(0, 1), axis="whole", on=0, why="two\nlines")
