"""What is computed from a run: bounds, shares of them, efficiency, bytes of links, memory."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from edgedi.bench.as_json import report_json
from edgedi.bench.html import report_page
from edgedi.bench.numbers import times_as_fast
from edgedi.bench.report import Disturbance, Memory, link_bytes
from edgedi.bench.tables import planners_table, remarks
from edgedi.bench.words import caveats, computing_remarks, megabytes, memory_remarks, ranges
from edgedi.partition.plan.memory import program_memory
from edgedi.partition.plan.plan import HOME, Plan
from tests.bench.reports import ENGINE, ENGINED, EQUAL, ONE, TWO, report, split
from tests.partition import graphs


def test_the_bound_adds_up_each_segments_slowest_worker():
    graph = graphs.chain(depth=1)
    one = split("equal", "equal", 2, EQUAL, ONE, graph=graph)
    text = [
        "plan 2 workers, 5 layers, predicted 0 s", "segment 0  layers 0:3  rows 8  0:4  4:8",
        "segment 1  layers 3:5  whole on 0",
    ]  # fmt: skip
    plan = Plan.parse("\n".join(text))
    conv, relu, pool, flatten, linear = (layer.name for layer in graph.layers)
    taken = (
        {conv: 0.003, relu: 0.001, pool: 0.001, flatten: 0.0, linear: 0.002},
        {conv: 0.005, relu: 0.001, pool: 0.0},
    )
    made = replace(one, plan=plan, layer_s=taken)
    assert made.segment_s(0) == pytest.approx(0.006)
    assert made.segment_s(1) == pytest.approx(0.002)
    assert made.bound_s == pytest.approx(0.008)


def test_without_measuring_the_bound_is_the_prediction():
    predicted = split("oodp", "oodp", 2, TWO, ONE, layer_s=None)
    assert predicted.bound_s == predicted.predicted_bound_s > 0


def test_the_share_of_the_bound_is_paired_with_every_round():
    made = split("equal", "equal", 2, (0.02, 0.04, 0.04), ONE)
    share = made.share_of_bound
    assert share.median == pytest.approx(made.bound_s / 0.04)
    assert (share.low, share.high) == (pytest.approx(made.bound_s / 0.04), pytest.approx(made.bound_s / 0.02))


def test_efficiency_is_for_each_worker_over_the_best_engine_if_there_is_one():
    assert split("oodp", "oodp", 2, TWO, ONE, ENGINE).efficiency == pytest.approx(0.75)
    assert split("oodp", "oodp", 2, TWO, ONE).efficiency == pytest.approx(1.0)
    assert split("single", "single", 2, ONE, ONE, ENGINE).efficiency == pytest.approx(0.75)


@pytest.mark.parametrize("planner", ["equal", "single"])
def test_links_add_up_to_the_traffic(planner: str):
    made = split(planner, planner, 3, TWO, ONE)
    links = link_bytes(made)
    home = sum(count for source, target, count in links if "home" in (source, target))
    assert home == made.traffic.home_bytes > 0
    assert sum(count for *_, count in links) == made.traffic.total_bytes
    assert (made.traffic.between_workers_bytes > 0) == (planner == "equal")


def test_what_computed_the_layers_is_said_and_written():
    assert list(computing_remarks(report().workers, report().computed_by)) == [
        "Computed by torch: single, equal, equal on 1.",
        "Computed by torch; openvino for 2 of 3 chains (local-0) and torch (local-1): oodp.",
    ]
    said, written = list(remarks(report())), json.loads(report_json(report()))
    assert "Computed by torch: single, equal, equal on 1." in said
    assert [split["computed_by"] for split in written["planners"]] == [
        ["torch", "torch"], [ENGINED, "torch"], ["torch", "torch"], ["torch"]
    ]  # fmt: skip


def test_what_a_memory_limit_bounds_is_the_need_of_the_largest_program():
    needs = [
        program_memory(program, split.programs.graph).total_bytes
        for split in report().splits
        for worker, program in split.programs.programs.items()
        if worker != HOME
    ]
    assert report().largest_plan_bytes == max(needs) > 0
    assert f"here at most {megabytes(max(needs))} on a worker" in list(memory_remarks(report()))[-1]


def test_memory_above_the_baseline_is_never_negative():
    assert Memory(worker="a", peak_bytes=100, baseline_bytes=30).above_bytes == 70
    assert Memory(worker="a", peak_bytes=10, baseline_bytes=30).above_bytes == 0


@pytest.mark.parametrize(
    ("count", "text"), [(12, "12 B"), (1500, "1.5 kB"), (123_456, "123 kB"), (8e8, "800 MB"), (2.5e9, "2.5 GB")]
)
def test_bytes_have_a_unit_that_suits_them(count: float, text: str):
    assert megabytes(count) == text


@pytest.mark.parametrize(("numbers", "text"), [([], ""), ([4], "4"), ([1, 2, 3], "1-3"), ([1, 3, 4, 9], "1, 3-4, 9")])
def test_numbers_of_rounds_are_written_in_short(numbers: list[int], text: str):
    assert ranges(numbers) == text


def test_what_a_reader_has_to_know_is_said():
    assert list(caveats(report(disturbed=(), not_compared={}))) == []
    said = list(caveats(report(ended="after 3 complete rounds: gone")))
    assert said[0] == "THE RUN ENDED EARLY after 3 complete rounds: gone"
    assert "In 1 of 3 rounds others had the processors" in said[1]
    assert said[1].endswith("they are counted: 2.")
    assert [line.split(",")[0] for line in memory_remarks(report())] == [
        "Peak memory of local-0: 800 MB resident", "Peak memory of local-1: 600 MB resident",
        "Memory limits bound weights and maps of one plan",
    ]  # fmt: skip


def test_rounds_in_which_a_device_was_late_are_said_where_devices_are_emulated():
    late = (Disturbance(round=0, late_share=0.05), Disturbance(round=2, late_share=0.03))
    said = list(caveats(report(disturbed=late, emulation="Emulated devices", late_s=0.0015)))
    assert said[0].startswith("In 2 of 3 rounds others had the processors (")
    assert said[0].endswith(
        ", or a device was behind its own time by more than 2 % of a request; they are counted: 1, 3."
    )
    assert said[2].startswith("In these rounds a device was at worst 1.50 ms behind its own time")
    assert json.loads(report_json(report(disturbed=late)))["disturbed_rounds"][0]["late_share"] == 0.05


def test_with_neither_one_worker_nor_an_engine_ratios_are_over_the_first_planner():
    made = (split("oodp", "oodp", 2, TWO, ONE), split("equal", "equal", 2, EQUAL, ONE))
    over = [replace(each, speedup=None, against_first=times_as_fast(each.result.seconds, TWO)) for each in made]
    given = report(splits=tuple(over), singles=(), best=None, not_compared={"single": "it has no room"})
    assert given.bases == ("oodp",)
    assert [[ratio.median for ratio in each.ratios] for each in given.splits] == [
        [1.0], [pytest.approx(0.8, abs=0.02)]
    ]  # fmt: skip
    assert [each.efficiency for each in given.splits] == [None, None]
    assert "times oodp" in [column.header for column in planners_table(given).columns]
    assert "Not compared: single. it has no room" in list(caveats(given))
    page = report_page(given, report_json(given))
    assert ["times oodp" in page, "Nothing on one device could be compared with." in page] == [True, True]
