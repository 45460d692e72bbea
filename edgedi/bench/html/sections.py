"""The sections of the page that are words and tables: what was found, and how exact it is."""

from __future__ import annotations

from collections.abc import Iterator

from edgedi.bench.html.charts import rounds_chart
from edgedi.bench.html.choices import colours_of, drawn
from edgedi.bench.report import Report, Result, Single, Split
from edgedi.bench.words import caveats, milliseconds, percent, ratio_text
from edgedi.pages.markup import Markup, element
from edgedi.pages.parts import cards, section, table
from edgedi.partition.plan.plan import HOME

# --- the top ----------------------------------------------------------------------------------------------------------


def headline(report: Report) -> Markup:
    """What was run, the few numbers that matter, and what keeps them from saying more."""
    settings, best = report.settings, drawn(report)[0]
    shapes = ", ".join(" x ".join(map(str, shape)) for shape in settings.shapes)
    count = len(report.workers)
    sub = (
        f"Input {shapes}, float32, on {count} worker{'s' if count != 1 else ''} of {settings.threads} "
        f"thread{'s' if settings.threads != 1 else ''}; {report.num_rounds} interleaved rounds; {report.machine.date}"
    )
    said = list(caveats(report))
    notes = element("ul", *(element("li", sentence) for sentence in said), class_="caveats") if said else ""
    numbers = cards(_cards(report, best))
    return element("header", element("h1", settings.model), element("p", sub, class_="sub"), numbers, notes)


def _cards(report: Report, best: Split) -> Iterator[tuple[str, str]]:
    name = best.result.name
    yield f"{milliseconds(best.result.spread.median_s)} ms", f"a request, by planner {name} (median)"
    if best.against_best is not None:
        low, high = best.against_best.low, best.against_best.high
        yield (
            f"{best.against_best.median:.2f} times",
            f"as fast as {report.best} on one worker's cores [{low:.2f}, {high:.2f}]",
        )
    if best.speedup is not None:
        low, high = best.speedup.low, best.speedup.high
        yield f"{best.speedup.median:.2f} times", f"as fast as one worker [{low:.2f}, {high:.2f}]"
    yield f"{best.share_of_bound.median:.0%}", "of the bound: the same plan with no communication"
    yield (
        ("Same answers" if report.same else "NOT THE SAME"),
        f"largest difference {_largest(report):.1e} of the largest value",
    )


def _largest(report: Report) -> float:
    return max(result.difference for result in _results(report))


def _results(report: Report) -> list[Result]:
    return [split.result for split in report.splits] + [single.result for single in report.singles]


# --- contenders -------------------------------------------------------------------------------------------------------


def contenders(report: Report) -> Markup:
    """Everybody's seconds."""
    disturbed = {disturbance.round for disturbance in report.disturbed}
    colours = colours_of(report)
    everybody = _results(report)
    chart = rounds_chart(everybody, disturbed, [colours.get(result.name, HOME) for result in everybody])
    see = (
        "Further left is faster. Every dot is one round, in which all contenders had their turn one after another; the "
        "box holds the middle half, the line is the median. Dots with a red ring are rounds in which other programs or "
        "the hypervisor had the processors, or an emulated device was late: they are counted like all others."
    )
    ratio = (
        "Ratios are medians of the ratios within each round, in brackets their 95 % interval. Efficiency is the "
        "speedup for each worker, over the best engine if one ran. The bound is the same plan with no communication."
    )
    return section(
        "contenders", "How long a request took", see, chart, element("p", ratio, class_="see"), _contender_table(report)
    )


def _contender_table(report: Report) -> Markup:
    bases = [f"times {base}" for base in report.bases]
    heads = (
        "contender", "median ms", "middle half", *bases, "efficiency", "bound ms", "of the bound", "difference"
    )  # fmt: skip
    rows = [*map(_split_row, report.splits), *(row for single in report.singles for row in _single_rows(single))]
    fastest = min(range(len(report.splits)), key=lambda k: report.splits[k].result.spread.median_s)
    return table(heads, rows, best=fastest)


def _times(result: Result) -> list[str]:
    found = result.spread
    middle = f"{milliseconds(found.low_s)} - {milliseconds(found.high_s)}"
    return [milliseconds(found.median_s), middle]


def _split_row(split: Split) -> list[str]:
    tail = [percent(split.efficiency), milliseconds(split.bound_s), f"{split.share_of_bound.median:.0%}"]
    difference = f"{split.result.difference:.1e}"
    return [split.result.name, *_times(split.result), *map(ratio_text, split.ratios), *tail, difference]


def _single_rows(single: Single) -> Iterator[list[str]]:
    yield _single_row(f"{single.result.name} {single.version}", single)
    if single.own_default is not None:
        other = single.own_default
        yield _single_row(f"{single.result.name}, own default {other.precision}", other)


def _single_row(name: str, single: Single) -> list[str]:
    """Over one worker if there is one, but neither over the best engine nor with a bound."""
    over = [ratio_text(single.speedup)] if single.speedup else []
    return [name, *_times(single.result), *over, "", "", "", "", f"{single.result.difference:.1e}"]


def exactness(report: Report) -> Markup:
    """How near every answer is to the model's own."""
    verdict = "Every answer was the model's own" if report.same else "AN ANSWER WAS NOT THE MODEL'S OWN"
    see = (
        f"{verdict}: the largest difference of any value from the model's answer in this process, as a share of its "
        "largest value. Up to 2e-5 is rounding in float32, as sums are taken in another order."
    )
    rows = [
        [result.name, f"{result.difference:.1e}", "yes" if result.within_tolerance else "NO"]
        for result in _results(report)
    ]
    return section("exactness", "The answers", see, table(("contender", "difference", "within 2e-5"), rows))
