"""The report of a compaction as JSON and as a page: numbers that are known, and text that must not become markup."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from edgedi.transforms.report import Compaction, LayerChange, Step
from edgedi.transforms.saved.as_json import compaction_json
from edgedi.transforms.saved.page import compaction_page
from edgedi.transforms.score import Score
from edgedi.transforms.size import LayerSize, Size
from edgedi.transforms.task import Point
from tests.bench.html.reading import Element, read

LETTERS_HIGH = 12
"""Pixels above the line that a label stands on."""
EVIL = "</style><script>alert('x & y')</script>\"'"


def layer(name: str, before: str, after: str | None, kind: str = "Conv2d") -> LayerChange:
    size = Size(parameters=100, macs=2_000, num_bytes=400)
    small = Size(parameters=50, macs=1_000, num_bytes=200)
    return LayerChange(
        before=LayerSize(name=name, kind=kind, width=before, size=size),
        after=None if after is None else LayerSize(name=name, kind=kind, width=after, size=small),
    )


def step(name: str, before: int, after: int, score: Score | None = None, note: str = "") -> Step:
    sizes = (Size(parameters=each, macs=10 * each, num_bytes=4 * each) for each in (before, after))
    return Step(
        name=name, before=next(sizes), after=next(sizes), difference=0.25, seconds=1.5, training_steps=3000,
        score=score, note=note, left_alone=tuple(f"layer{i} (too odd)" for i in range(8)) if note else (),
    )  # fmt: skip


def report(note: str = "") -> Compaction:
    return Compaction(
        steps=(
            step("simplify", 1000, 900, Score(value=0.8, count=100)),
            step("prune", 900, 500, Score(value=0.79, count=100), note),
        ),
        layers=(
            layer("first", "3 -> 64", "3 -> 16"), layer("norm", "64", None, "BatchNorm2d"),
            layer("second", "64 -> 32", None), layer("head", "32 -> 10", "8 -> 10", "Linear"),
        ),
        score=Score(value=0.8, count=100),
        curve=(
            Point(macs=10_000, score=0.8, step="original"), Point(macs=9_000, score=0.8, step="simplify"),
            Point(macs=4_000, score=0.6, step="prune"), Point(macs=5_000, score=0.79, step="prune"),
        ),
    )  # fmt: skip


def text(given: Compaction, name: str = "ResNet") -> str:
    return compaction_page(given, name, compaction_json(given))


def section(name: str, given: Compaction | None = None) -> Element:
    found = [each for each in read(text(given or report())).all("section") if each.all("h2", id=name)]
    assert len(found) == 1
    return found[0]


# --- JSON -------------------------------------------------------------------------------------------------------------


def test_the_json_has_these_fields_and_numbers():
    found = json.loads(compaction_json(report("two layers left alone")))
    assert list(found) == ["format", "version", "difference", "score", "steps", "layers", "curve"]
    assert (found["format"], found["version"], found["difference"]) == ("edgedi-compaction", 1, 0.25)
    assert found["score"] == {
        "value": 0.8, "count": 100, "low": pytest.approx(0.7112, abs=1e-4), "high": pytest.approx(0.8666, abs=1e-4),
    }  # fmt: skip
    assert found["steps"][1] == {
        "name": "prune",
        "before": {"parameters": 900, "macs": 9_000, "bytes": 3_600},
        "after": {"parameters": 500, "macs": 5_000, "bytes": 2_000},
        "difference": 0.25,
        "score": {**found["steps"][1]["score"], "value": 0.79, "count": 100},
        "seconds": 1.5,
        "training_steps": 3000,
        "note": "two layers left alone",
        "left_alone": [f"layer{i} (too odd)" for i in range(8)],
    }
    assert found["layers"][0] == {
        "name": "first",
        "kind": "Conv2d",
        "before": {"width": "3 -> 64", "parameters": 100, "macs": 2_000, "bytes": 400},
        "after": {"width": "3 -> 16", "parameters": 50, "macs": 1_000, "bytes": 200},
    }
    assert found["layers"][1]["after"] is None
    assert found["curve"][3] == {"macs": 5_000, "score": 0.79, "step": "prune"}


def test_what_is_no_number_in_json_is_null():
    worst = replace(step("prune", 9, 5), difference=float("inf"))
    found = json.loads(compaction_json(Compaction(steps=(worst,), layers=())))
    assert (found["difference"], found["steps"][0]["difference"], found["score"]) == (None, None, None)
    plain = json.loads(compaction_json(Compaction(steps=(), layers=(), score=Score(value=2.5))))
    assert plain["score"] == {"value": 2.5, "count": None, "low": None, "high": None}


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_needs_nothing_else():
    foreign = r"https?:|//[a-z]|<script|<link|<img|<iframe|@import|\bsrc=|\bhref=|\bon\w+=|url\(http"
    assert re.findall(foreign, text(report())) == []


def test_the_cards_say_what_was_gained():
    cards = [card.text for card in read(text(report())).all("div", class_="card")]
    assert cards == [
        "-50.0% MACs: 10,000 \u2192 5,000",
        "-50.0% parameters: 1,000 \u2192 500",
        "-50.0% bytes: 4,000 \u2192 2,000",
        "79.00% score [70.02%, 85.83%]; the original's is 80.00% [71.12%, 86.66%]",
    ]


def test_the_table_has_a_row_for_each_step():
    rows = [[cell.text for cell in row.all("td")] for row in section("steps").all("tr")[1:]]
    assert [row[:4] for row in rows] == [
        ["simplify", "1,000 \u2192 900", "10,000 \u2192 9,000", "4,000 \u2192 3,600"],
        ["prune", "900 \u2192 500", "9,000 \u2192 5,000", "3,600 \u2192 2,000"],
    ]
    assert [row[4:] for row in rows] == [
        ["80.00% [71.12%, 86.66%]", "2.5e-01", "1.5", "3,000"],
        ["79.00% [70.02%, 85.83%]", "2.5e-01", "1.5", "3,000"],
    ]


def test_the_curve_has_a_dot_for_each_network_further_left_where_it_is_cheaper_and_up_where_it_is_better():
    dots = [each for each in section("curve").all("circle") if "data-macs" in each.attributes]
    assert [(dot.number("data-macs"), dot.number("data-score")) for dot in dots] == [
        (10_000, 0.8), (9_000, 0.8), (4_000, 0.6), (5_000, 0.79),
    ]  # fmt: skip
    across = [dot.number("cx") for dot in dots]
    assert across[0] > across[1] > across[3] > across[2]
    assert (across[0] - across[3]) == pytest.approx(5 * (across[0] - across[1]), rel=1e-3)
    heights = [dot.number("cy") for dot in dots]
    assert heights[0] == heights[1] < heights[3] < heights[2]
    assert (heights[2] - heights[0]) == pytest.approx(20 * (heights[3] - heights[0]), rel=1e-2)
    ring = [each for each in section("curve").all("circle") if each.has_class("curve")]
    assert [(each.number("cx"), each.number("cy")) for each in ring] == [(across[3], heights[3])]
    assert [item.text.strip() for item in section("curve").all("li")] == ["original", "simplify", "prune"]


def test_without_data_there_is_no_curve_and_the_difference_is_told():
    given = replace(report(), score=None, curve=(), steps=(step("simplify", 1000, 900),))
    assert section("curve", given).all("svg") == []
    cards = [card.text for card in read(text(given)).all("div", class_="card")]
    assert cards[-1] == "2.5e-01 largest difference of the answer, of its largest value"


def test_the_bars_are_as_long_as_what_is_left_of_each_width():
    bars = section("widths").all("rect")
    before = [bar for bar in bars if "data-before" in bar.attributes]
    after = [bar for bar in bars if "data-after" in bar.attributes]
    assert [bar.number("data-before") for bar in before] == [64, 32, 10]
    assert [bar.number("data-after") for bar in after] == [16, 0, 10]
    shares = [a.number("width") / b.number("width") for a, b in zip(after, before, strict=True)]
    assert shares == [0.25, 0.0, 1.0]
    said = [each.text for each in section("widths").all("text") if each.has_class("number")]
    assert said == ["64 \u2192 16 (25%)", "32, gone", "10"]


def test_every_layer_left_alone_is_named_and_in_print_the_first_ones():
    given = report("it took long")
    (shown,) = section("steps", given).all("details")
    assert shown.all("summary")[0].text == "Layers whose channels prune left alone: 8"
    assert [item.text for item in shown.all("li")] == [f"layer{i} (too odd)" for i in range(8)]
    assert section("steps").all("details") == []
    first = ", ".join(f"layer{i} (too odd)" for i in range(5))
    assert str(given).splitlines()[-1] == f"prune: it took long; left alone: {first} and 3 more"


def test_layers_that_changed_are_listed():
    rows = [[cell.text for cell in row.all("td")] for row in section("layers").all("tr")[1:]]
    assert [row[:4] for row in rows] == [
        ["first", "Conv2d", "3 \u2192 64", "3 \u2192 16"], ["norm", "BatchNorm2d", "64", "gone"],
        ["second", "Conv2d", "64 \u2192 32", "gone"], ["head", "Linear", "32 \u2192 10", "8 \u2192 10"],
    ]  # fmt: skip
    assert rows[0][4:] == ["100 \u2192 50", "2,000 \u2192 1,000", "400 \u2192 200"]


def test_a_report_of_nothing_is_a_page_too():
    found = read(text(Compaction(steps=(), layers=())))
    assert [head.attributes["id"] for head in found.all("h2")] == ["steps", "curve", "widths", "layers"]


def test_names_and_notes_are_text_wherever_they_stand():
    given = replace(report(EVIL), layers=(layer(EVIL, "3 -> 64", "3 -> 16"),))
    given = replace(given, curve=(*given.curve, Point(macs=1, score=0.1, step=EVIL)))
    found = text(given, EVIL)
    assert "<script" not in found
    page = read(found)
    assert page.all("h1")[0].text == f"{EVIL}, compacted"
    assert page.all("ul", class_="caveats")[0].text == f"prune: {EVIL}"
    assert section("layers", given).all("td")[0].text == EVIL


def test_every_figure_has_a_title_and_the_json_is_at_the_end():
    page = read(text(report()))
    assert [figure.children[0].name for figure in page.all("svg", role="img")] == ["title", "title"]
    assert json.loads(page.all("details")[-1].all("pre")[0].text) == json.loads(compaction_json(report()))


def test_steps_without_training_have_no_column_for_it():
    def heads(given: Compaction) -> list[str]:
        return [each.text for each in section("steps", given).all("th")]

    trained = report()
    untrained = replace(trained, steps=tuple(replace(each, training_steps=0) for each in trained.steps))
    assert heads(trained) == [*heads(untrained), "training steps"]
    for given in (trained, untrained):
        rows = section("steps", given).all("tr")[1:]
        assert {len(row.all("td")) for row in rows} == {len(heads(given))}


def test_the_results_name_is_whole_where_its_score_is_the_best_there_is():
    """It stands above its dot, at the top of the figure then; what stands beyond its edge is cut off."""
    best = (Point(macs=10_000, score=1.0, step="original"), Point(macs=5_000, score=1.0, step="prune"))
    figure = section("curve", replace(report(), curve=best, score=Score(value=1.0, count=16))).all("svg")[-1]
    (label,) = [each for each in figure.all("text") if each.text == "result"]
    assert float(label.attributes["y"]) >= LETTERS_HIGH
