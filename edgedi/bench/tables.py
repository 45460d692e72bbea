"""Results as tables for a terminal. The numbers come from elsewhere; here they only get their columns and units."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table

from edgedi.bench.demo import Demo, Row
from edgedi.bench.numbers import spread, times_as_fast


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds, three digits that mean something."""
    value = 1000 * seconds
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def demo_table(demo: Demo) -> Table:
    """One worker, two workers, and what the second was worth."""
    title = "Batch 1 at 224 x 224, workers of one thread; milliseconds, medians of interleaved rounds"
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left")
    table.add_column("network", no_wrap=True)
    for head in ("1 worker", "2 workers", "speedup", "efficiency", "predicted", "off by", "difference"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in demo.rows:
        table.add_row(*_demo_cells(row))
    return table


def _demo_cells(row: Row) -> list[str]:
    one, both = spread(row.one.seconds), spread(row.all.seconds)
    speedup = times_as_fast(row.all.seconds, row.one.seconds).median
    return [
        row.network,
        milliseconds(one.median_s),
        milliseconds(both.median_s),
        f"{speedup:.2f}",
        f"{speedup / 2:.0%}",
        milliseconds(row.predicted_s),
        f"{row.predicted_s / both.median_s - 1:+.0%}",
        f"{row.largest_difference:.1e}",
    ]


def demo_digits(demo: Demo) -> str:
    """What the digits showed, in words."""
    digits = demo.digits
    verdict = "ALL THE SAME" if digits.num_equal == digits.num_images else "NOT THE SAME"
    return (
        f"Digits: {digits.num_equal} of {digits.num_images} test predictions as the network alone gives them "
        f"({verdict}); {digits.num_right} are right. Largest difference {digits.largest_difference:.1e} of the largest "
        f"score. {digits.num_split} of {digits.num_segments} segments ran split."
    )
