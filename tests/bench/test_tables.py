"""Tables and remarks from results that are known."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console
from rich.table import Table

from edgedi.bench.demo import Demo, Row, SamePredictions
from edgedi.bench.report import Result
from edgedi.bench.tables import demo_digits, demo_remarks, demo_table
from edgedi.bench.words import milliseconds
from tests.bench.reports import MACHINE

DIGITS = SamePredictions(
    num_images=360, num_equal=360, num_right=355, num_split=4, num_segments=5, largest_difference=3e-7
)


def result(name: str, seconds: float, difference: float = 1e-6) -> Result:
    return Result(name=name, seconds=(seconds,) * 4, difference=difference, within_tolerance=difference < 2e-5)


def demo(difference: float = 1e-6, others_share: float = 0.0) -> Demo:
    row = Row(
        network="VGG-16", one=result("one", 0.150), all=result("all", 0.100, difference), predicted_s=0.09,
        largest_difference=difference,
    )  # fmt: skip
    return Demo(
        digits=DIGITS, rows=(row,), seconds=60.0, pinned=True, machine=replace(MACHINE, others_share=others_share)
    )


def shown(table: Table) -> str:
    text = io.StringIO()
    Console(file=text, width=100).print(table)
    return text.getvalue()


def test_the_demo_table_fits_a_hundred_columns():
    line = next(line for line in shown(demo_table(demo())).splitlines() if "VGG-16" in line)
    assert line.split() == ["VGG-16", "150", "100", "1.50", "[1.50,", "1.50]", "75%", "90.0", "-10%", "1.0e-06"]


def test_a_demo_is_the_same_only_if_every_answer_is():
    assert demo().same
    assert not demo(difference=1e-3).same
    assert not replace(demo(), digits=replace(DIGITS, num_equal=359)).same


def test_digits_say_their_verdict():
    assert "360 of 360" in demo_digits(demo())
    assert "(ALL THE SAME)" in demo_digits(demo())
    assert "(NOT THE SAME)" in demo_digits(replace(demo(), digits=replace(DIGITS, num_equal=359)))


def test_a_busy_machine_and_missing_cores_are_said():
    assert not any("Other programs" in remark or "cores than" in remark for remark in demo_remarks(demo()))
    assert any("Other programs used 30% of this machine" in remark for remark in demo_remarks(demo(others_share=0.3)))
    assert any("fewer cores than workers" in remark for remark in demo_remarks(replace(demo(), pinned=False)))


@pytest.mark.parametrize(("seconds", "text"), [(0.1234, "123"), (0.01234, "12.3"), (0.001234, "1.23"), (2.0, "2000")])
def test_milliseconds_show_three_digits(seconds: float, text: str):
    assert milliseconds(seconds) == text
