"""A report of streams as a table, sentences and JSON: requests a second, never the time of one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from edgedi.bench.numbers import spread
from edgedi.bench.streams import THROUGHPUT, Row, StreamReport
from edgedi.bench.words import (
    SHARE_REMARK,
    computing_remarks,
    disturbed_remarks,
    emulation_remarks,
    ended_remark,
    not_compared_remarks,
    ratio_text,
)

FORMAT = 1
"""Rises when a name or a meaning changes."""


def streams_table(report: StreamReport) -> Table:
    """One row for each contender, the sessions first."""
    settings = report.settings
    title = f"{settings.model}, {len(report.workers)} workers; requests a second over {report.num_rounds} rounds"
    title += f"\n{report.emulation}" if report.emulation else ""
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left")
    table.add_column("contender", no_wrap=True)
    best = (f"times {report.best}",) if report.best else ()
    for head in ("devices", "median", "middle half", *best, "predicted", "difference"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in report.rows:
        table.add_row(*_cells(row))
    return table


def _cells(row: Row) -> list[str]:
    found = spread(row.result.seconds)
    return [
        row.result.name,
        str(row.num_devices),
        f"{1 / found.median_s:.2f}",
        f"{1 / found.high_s:.2f}-{1 / found.low_s:.2f}",
        *([ratio_text(row.against_best)] if row.against_best else []),
        f"{row.placement.rate_per_s:.2f}" if row.placement else "",
        f"{row.result.difference:.1e}",
    ]


def stream_remarks(report: StreamReport) -> Iterator[str]:
    """What a reader of the table has to know, a sentence each."""
    yield str(report.machine)
    yield (
        f"A turn is a stream of {report.settings.repeat} requests of the shape given, {report.in_flight} of them in "
        "flight on all workers; engines answer one after another. times: the median of ratios within each round and "
        f"its 95 % interval, against that engine on ONE device; at once: {_at_once(report)}; predicted: by the "
        "placement; difference: largest, as a share of the model's largest value."
    )
    for row in report.rows:
        if row.result.name == THROUGHPUT and row.placement is not None:
            replicas = "; ".join(_replica(r.workers, r.plan.planner) for r in row.placement.replicas)
            yield f"throughput chose: {replicas}."
    computed_by = {row.result.name: row.computed_by for row in report.rows if row.placement is not None}
    yield from computing_remarks(report.workers, computed_by)
    if report.ended:
        yield ended_remark(report.ended)
    if report.machine.busy:
        yield report.machine.busy
    yield from disturbed_remarks(report.disturbed, report.num_rounds, emulated=bool(report.emulation))
    if report.emulation:
        yield from emulation_remarks(report.emulation, report.late_s)
    elif not report.pinned:
        yield "Workers are not pinned by this command: it does not own them, or there are fewer cores than threads."
    if report.settings.share and not report.emulation:
        yield SHARE_REMARK
    yield from not_compared_remarks(report.not_compared)


def _at_once(report: StreamReport) -> str:
    if report.emulation:
        return "one process, whose rate counts for each device by that device's speed"
    return "as many processes as workers, on cores of their own"


def _replica(workers: tuple[int, ...], planner: str) -> str:
    names = "worker " + str(workers[0]) if len(workers) == 1 else "workers " + ", ".join(map(str, workers))
    return f"{names} by {planner}"


def streams_json(report: StreamReport) -> str:
    """Every number of the table and the seconds behind them."""
    values = {
        "format": FORMAT,
        "objective": THROUGHPUT,
        "machine": asdict(report.machine),
        "settings": asdict(report.settings),
        "workers": report.workers,
        "pinned": report.pinned,
        "in_flight": report.in_flight,
        "same": report.same,
        "rows": [_row(row) for row in report.rows],
        "best_engine": report.best,
        "not_compared": report.not_compared,
        "ended_early": report.ended,
        "emulation": report.emulation,
        "late_s": report.late_s,
        "disturbed_rounds": [asdict(disturbance) for disturbance in report.disturbed],
    }
    return json.dumps(values, indent=1)


def _row(row: Row) -> dict[str, Any]:
    return {
        **asdict(row.result),
        **asdict(spread(row.result.seconds)),
        "num_devices": row.num_devices,
        "computed_by": row.computed_by,
        "requests_per_s": 1 / spread(row.result.seconds).median_s,
        "predicted_requests_per_s": row.placement.rate_per_s if row.placement else None,
        "times_as_fast_as_best_engine": asdict(row.against_best) if row.against_best else None,
        "placement": str(row.placement) if row.placement else None,
    }
