"""Results as tables and sentences for a terminal. The numbers come from elsewhere; here they get columns and units."""

from __future__ import annotations

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.table import Table

from edgedi.bench.demo import Demo, Row
from edgedi.bench.numbers import spread, times_as_fast
from edgedi.bench.report import Report, Single, Split
from edgedi.bench.words import caveats, computing_remarks, memory_remarks, milliseconds, percent, ratio_text


def _table(title: str, first: str, heads: tuple[str, ...]) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left")
    table.add_column(first, no_wrap=True)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    return table


# --- the demo ---------------------------------------------------------------------------------------------------------


def demo_digits(demo: Demo) -> str:
    """What the digits showed, in words."""
    digits = demo.digits
    verdict = "ALL THE SAME" if digits.num_equal == digits.num_images else "NOT THE SAME"
    return (
        f"Digits: {digits.num_equal} of {digits.num_images} test predictions are what the network alone says "
        f"({verdict}); {digits.num_right} are right. Largest difference: {digits.largest_difference:.1e} of the "
        f"largest score. {digits.num_split} of {digits.num_segments} segments ran split."
    )


def demo_table(demo: Demo) -> Table:
    """One worker, two workers, and what the second was worth."""
    title = "Batch 1 at 224 x 224, workers of one thread; milliseconds, medians of interleaved rounds"
    heads = ("1 worker", "2 workers", "speedup", "efficiency", "predicted", "off by", "difference")
    table = _table(title, "network", heads)
    for row in demo.rows:
        table.add_row(*_demo_cells(row))
    return table


def _demo_cells(row: Row) -> list[str]:
    one, both = spread(row.one.seconds), spread(row.all.seconds)
    speedup = times_as_fast(row.all.seconds, row.one.seconds)
    return [
        row.network,
        milliseconds(one.median_s),
        milliseconds(both.median_s),
        ratio_text(speedup),
        f"{speedup.median / 2:.0%}",
        milliseconds(row.predicted_s),
        f"{row.predicted_s / both.median_s - 1:+.0%}",
        f"{row.largest_difference:.1e}",
    ]


def demo_remarks(demo: Demo) -> Iterator[str]:
    """What a reader of the table has to know, a sentence each."""
    yield (
        "speedup: the median of ratios within each round, and its 95 % interval; predicted: by the plan, for two "
        "workers; difference: the largest of any answer, as a share of the network's largest value."
    )
    yield f"{demo.machine}; {demo.seconds:.0f} s in all"
    if demo.machine.busy:
        yield demo.machine.busy
    if not demo.pinned:
        yield "There are fewer cores than workers here: the speedup says nothing."


# --- a comparison -----------------------------------------------------------------------------------------------------


def planners_table(report: Report) -> Table:
    """One row for each planner; the first is one worker alone, wherever it could be compared."""
    settings = report.settings
    title = f"{settings.model}, {len(report.workers)} workers; milliseconds over {report.num_rounds} interleaved rounds"
    title += f"\n{report.emulation}" if report.emulation else ""
    heads = (
        "median", "min", "middle half", *(f"times {base}" for base in report.bases), "efficiency", "bound",
        "of the bound", "predicted", "off by", "kB", "difference",
    )  # fmt: skip
    table = _table(title, "planner", heads)
    for split in report.splits:
        table.add_row(*_split_cells(split))
    return table


def _split_cells(split: Split) -> list[str]:
    return [
        split.result.name,
        *_times(split.result.seconds),
        *map(ratio_text, split.ratios),
        percent(split.efficiency),
        milliseconds(split.bound_s),
        f"{split.share_of_bound.median:.0%}",
        milliseconds(split.plan.predicted_s),
        f"{split.off_by:+.0%}",
        f"{split.traffic.total_bytes / 1000:.0f}",
        f"{split.result.difference:.1e}",
    ]


def engines_table(report: Report) -> Table:
    """One row for each engine on one worker's cores, and what it would do by its own default."""
    title = "Engines on one worker's share of cores, in float32; beside them the precision that they pick by themselves"
    title += f"\n{report.emulation}" if report.emulation else ""
    heads = ("version", "median", "min", "middle half", "times 1 worker", "difference", "own default", "its difference")
    table = _table(title, "engine", heads)
    for single in report.singles:
        table.add_row(*_single_cells(single))
    return table


def _single_cells(single: Single) -> list[str]:
    default = single.own_default
    own = ["", ""]
    if default is not None:
        own = [f"{milliseconds(spread(default.result.seconds).median_s)} ({default.precision})"]
        own.append(f"{default.result.difference:.1e}")
    return [
        single.result.name,
        single.version,
        *_times(single.result.seconds),
        ratio_text(single.speedup),
        f"{single.result.difference:.1e}",
        *own,
    ]


def _times(seconds: tuple[float, ...]) -> list[str]:
    found = spread(seconds)
    middle = f"{milliseconds(found.low_s)}-{milliseconds(found.high_s)}"
    return [milliseconds(found.median_s), milliseconds(found.min_s), middle]


def remarks(report: Report) -> Iterator[str]:
    """What a reader of the tables has to know, a sentence each."""
    yield str(report.machine)
    yield (
        "times: how many times as fast, the median of ratios within each round and its 95 % interval; middle half: "
        "the quartiles; efficiency: the speedup for each worker, over the best engine if one ran; bound: the same "
        "plan with no communication, what every worker's layers take, measured before the rounds; kB: sent for one "
        "request, all links together; difference: largest, as a share of the model's largest value."
    )
    yield from computing_remarks(report.workers, report.computed_by)
    yield from memory_remarks(report)
    yield from caveats(report)
