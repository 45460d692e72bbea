"""The page of a report whose numbers are known: what it says, how long its bars are, what it never holds."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from edgedi.bench.as_json import report_json
from edgedi.bench.html import report_page
from edgedi.bench.report import Report
from tests.bench.html.reading import Element, read
from tests.bench.reports import SPANS, TWO, report, result, split

WIDEST_LETTER = 7
"""Pixels of a letter or digit in labels of axes, at the size that the style gives them."""
EVIL = "</style><script>alert('x & y')</script>\"'"


def page(given: Report | None = None) -> Element:
    made = report() if given is None else given
    return read(report_page(made, report_json(made)))


def section(name: str, given: Report | None = None) -> Element:
    found = [each for each in page(given).all("section") if each.all("h2", id=name)]
    assert len(found) == 1
    return found[0]


# --- the whole --------------------------------------------------------------------------------------------------------


def test_the_page_needs_nothing_else():
    text = report_page(report(), "{}")
    assert re.findall(r"https?:|//[a-z]|<script|<link|<img|<iframe|@import|\bsrc=|\bhref=|\bon\w+=", text) == []
    assert [target for target in re.findall(r"url\(([^)]*)\)", text) if not target.startswith("#")] == []


def test_every_hatch_that_is_used_is_there():
    found = page()
    known = {pattern.attributes["id"] for pattern in found.all("pattern")}
    used = {fill.removeprefix("url(#").rstrip(")") for each in found.all() if (fill := each.attributes.get("fill", ""))}
    assert used - known == {""} or used - known == set()


def test_sections_come_in_the_order_in_which_a_reader_asks():
    names = [head.attributes["id"] for head in page().all("h2")]
    assert names == [
        "contenders", "plan", "timeline", "speedup", "predicted", "wire", "memory", "exactness", "redo", "limits",
    ]  # fmt: skip


def test_every_section_says_what_to_see_and_every_figure_has_a_title():
    found = page()
    assert [len(each.all("p", class_="see")) >= 1 for each in found.all("section")] == [True] * 10
    figures = found.all("svg", role="img")
    assert len(figures) >= 7
    assert [figure.children[0].name for figure in figures] == ["title"] * len(figures)
    assert all(len(figure.attributes["aria-label"].split()) > 3 for figure in figures)


def test_figures_are_xml_too():
    text = report_page(report(), "{}")
    figures = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(figures) >= 7
    for figure in figures:
        assert ElementTree.fromstring(figure).tag == "svg"


def test_names_from_outside_are_text_and_never_markup():
    given = report(model=EVIL, worker=EVIL, not_compared={EVIL: EVIL}, ended=EVIL)
    given = replace(given, machine=replace(given.machine, command=EVIL, processor=EVIL))
    text = report_page(given, json.dumps({"model": EVIL}))
    assert "<script" not in text
    found = read(text)
    assert found.all("h1")[0].text == EVIL
    assert found.all("pre", class_="wrap")[0].text == EVIL


def test_the_page_reads_in_light_dark_and_print():
    style = page().all("style")[0].text
    assert "prefers-color-scheme:dark" in style
    assert "@media print" in style
    assert "max-width:600px" in style


def contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("mode", [0, 1])
def test_colours_stand_out_from_the_ground_in_both_modes(mode: int):
    style = page().all("style")[0].text
    values = [dict(re.findall(r"--(\w+):(#\w+)", block)) for block in re.findall(r":root\{[^}]*\}", style)]
    assert len(values) == 2
    colours = values[mode]
    ground = colours.pop("ground")
    for name in ("ink", "soft", "bad"):
        assert contrast(colours[name], ground) >= 4.5, name
    for name in [f"w{k}" for k in range(8)] + ["home"]:
        assert contrast(colours[name], ground) >= 3.0, name


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_the_head_has_the_numbers_that_matter():
    cards = [card.text for card in page().all("div", class_="card")]
    assert cards[0] == "20.0 ms a request, by planner oodp (median)"
    assert cards[1].startswith("1.50 times as fast as openvino on one worker's cores [1.4")
    assert cards[2].startswith("2.00 times as fast as one worker")
    assert cards[-1] == "Same answers largest difference 3.0e-07 of the largest value"


def test_an_answer_that_differs_is_not_to_be_overlooked():
    other = report()
    worse = replace(other.splits[1], result=result("oodp", *TWO, difference=1e-3))
    found = page(replace(other, splits=(other.splits[0], worse, *other.splits[2:])))
    assert [card.all("b")[0].text for card in found.all("div", class_="card")][-1] == "NOT THE SAME"
    assert "AN ANSWER WAS NOT THE MODEL'S OWN" in found.text


def test_the_table_has_a_row_for_each_contender_and_sets_off_the_fastest():
    rows = [[cell.text for cell in row.all("td")] for row in section("contenders").all("tr")][1:]
    assert [row[0] for row in rows] == ["single", "oodp", "equal", "equal on 1", "openvino 2026.4"]
    assert rows[1][1] == "20.0"
    assert rows[1][3].startswith("2.00 [")
    assert rows[1][4].startswith("1.50 [")
    assert rows[1][5] == "75%"
    assert rows[1][-1] == "3.0e-07"
    (best,) = section("contenders").all("tr", class_="best")
    assert best.all("td")[0].text == "oodp"


def test_dots_stand_where_their_milliseconds_say_and_disturbed_rounds_are_marked():
    dots = [each for each in section("contenders").all("circle") if "data-ms" in each.attributes]
    assert len(dots) == 5 * 3
    first, last = min(dots, key=lambda d: d.number("data-ms")), max(dots, key=lambda d: d.number("data-ms"))
    per_ms = (last.number("cx") - first.number("cx")) / (last.number("data-ms") - first.number("data-ms"))
    for dot in dots:
        assert dot.number("cx") - first.number("cx") == pytest.approx(
            per_ms * (dot.number("data-ms") - first.number("data-ms")), abs=0.02
        )
    assert len([dot for dot in dots if dot.has_class("disturbed")]) == 5
    assert "1 of 3 rounds" in page().text


def test_the_timeline_is_as_wide_as_its_spans_lasted():
    bars = [each for each in section("timeline").all("rect") if "data-kind" in each.attributes]
    order = sorted(SPANS, key=lambda span: (span.participant, span.start_s))
    assert [bar.attributes["data-kind"] for bar in bars] == [span.kind for span in order]
    per_s = bars[1].number("width") / 0.005
    for bar, span in zip(bars, order, strict=True):
        assert bar.number("width") == pytest.approx(per_s * (span.stop_s - span.start_s), abs=1e-3)
        assert bar.number("x") - bars[0].number("x") == pytest.approx(per_s * span.start_s, abs=0.02)
    rows = [[cell.text for cell in row.all("td")] for row in section("timeline").all("tr")][1:]
    assert rows[1] == ["local-0", "5.00", "0.50", "1.50", "1.00", "62%"]


def test_labels_below_an_axis_end_within_the_figure():
    """The last one carries the unit; figures cut off what stands beyond their edge."""
    for name in ("contenders", "timeline", "predicted"):
        figure = max(section(name).all("svg"), key=lambda each: len(each.all("text")))  # the others are keys to colours
        width = float(figure.attributes["viewbox"].split()[2])
        ticks = [each for each in figure.all("text") if "tick" in (each.attributes.get("class") or "")]
        last = max(ticks, key=lambda each: float(each.attributes["x"]))
        assert last.text.endswith(" ms")
        assert float(last.attributes["x"]) + WIDEST_LETTER * len("1000 ms") / 2 <= width


def test_without_a_trace_the_timeline_says_so():
    bare = report()
    untraced = replace(bare, splits=tuple(replace(each, spans=()) for each in bare.splits))
    assert "No request of this run was traced." in section("timeline", untraced).text


def test_curves_begin_with_one_worker_and_carry_their_bounds():
    given = report()
    points = [each for each in section("speedup", given).all("circle") if "data-bound" in each.attributes]
    speedup, efficiency = points[: len(points) // 2], points[len(points) // 2 :]
    assert [(p.attributes["data-workers"], p.number("data-value")) for p in speedup] == [
        ("1", pytest.approx(0.75)), ("2", pytest.approx(1.5)), ("1", pytest.approx(0.75)), ("2", pytest.approx(1.2)),
    ]  # fmt: skip
    oodp = given.splits[1]
    assert speedup[1].number("data-bound") == pytest.approx(0.03 / oodp.bound_s, rel=0.01)
    assert efficiency[1].number("data-value") == pytest.approx(0.75)


def test_memory_bars_are_in_proportion():
    bars = [each for each in section("memory").all("rect") if "data-bytes" in each.attributes]
    assert [bar.number("data-bytes") for bar in bars] == [500e6, 300e6, 500e6, 100e6]
    assert bars[1].number("width") / bars[3].number("width") == pytest.approx(3.0, rel=0.01)
    assert "800 MB, 300 MB above" in section("memory").text


def test_every_link_has_its_bytes():
    given = report()
    found = section("wire", given)
    counted = [each.number("data-bytes") for each in found.all("rect")]
    assert sum(counted) == given.splits[1].traffic.total_bytes
    assert "coordinator \u2192 local-0" in found.text


def test_a_run_that_ended_early_says_so_at_the_top():
    given = report(ended="after 3 complete rounds: worker local-1 closed the connection")
    (notes,) = page(given).all("ul", class_="caveats")
    assert "THE RUN ENDED EARLY after 3 complete rounds: worker local-1" in notes.text


def test_everything_needed_to_do_it_again_is_there():
    found = page()
    for words in (
        report().machine.command,
        "Some Processor <1>",
        "torch 2.15",
        "openvino 2026.4",
        "Computed by torch; openvino for 2 of 3 chains (local-0) and torch (local-1): oodp.",
        "2026-11-21 02:20 UTC",
    ):
        assert words in found.text
    assert "nothing of a network is modelled" in section("limits").text
    numbers = json.loads(found.all("details")[-1].all("pre")[0].text)
    assert numbers["planners"][1]["seconds"] == list(TWO)


def test_emulation_is_said_at_the_top_and_among_the_limits():
    given = report(emulation="testbed pi4x2: 2 devices, 10 times as slow", late_s=0.002, pinned=False)
    (notes,) = page(given).all("ul", class_="caveats")
    assert "testbed pi4x2: 2 devices, 10 times as slow. A device's time is its processor time here" in notes.text
    assert "In these rounds a device was at worst 2.00 ms behind its own time" in notes.text
    limits = section("limits", given).text
    assert "The devices and links are emulated: testbed pi4x2" in limits
    assert "Nothing is emulated" not in limits


def test_one_worker_alone_makes_a_page_too():
    base = report()
    alone = split("single", "single", 1, TWO, TWO, layer_s=None)
    given = replace(base, splits=(alone,), singles=(), best=None, memory=(), workers=("local-0",), disturbed=())
    found = page(given)
    assert "Only one worker was measured." in found.text
    assert "The workers did not tell." in found.text
    assert found.all("h2", id="plan")[0].text == "The plan of single"
