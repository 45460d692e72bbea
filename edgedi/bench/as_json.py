"""A report as JSON: every number of the tables and all the seconds behind them, in SI units."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from edgedi.bench.demo import Demo
from edgedi.bench.numbers import Ratio, spread
from edgedi.bench.report import Report, Result, Single, Split, link_bytes

FORMAT = 2
"""Rises when a name or a meaning changes."""


def report_json(report: Report) -> str:
    """A comparison."""
    values = {
        "format": FORMAT,
        "machine": asdict(report.machine),
        "settings": asdict(report.settings),
        "emulation": report.emulation,
        "late_s": report.late_s,
        "workers": report.workers,
        "pinned": report.pinned,
        "num_rounds": report.num_rounds,
        "ended_early": report.ended,
        "disturbed_rounds": [asdict(disturbance) for disturbance in report.disturbed],
        "memory": [{**asdict(memory), "above_bytes": memory.above_bytes} for memory in report.memory],
        "same": report.same,
        "planners": [_split(split) for split in report.splits],
        "engines": [_single(single) for single in report.singles],
        "best_engine": report.best,
        "not_compared": dict(report.not_compared),
    }
    return json.dumps(values, indent=1)


def demo_json(demo: Demo) -> str:
    """The demo."""
    rows = [
        {
            "network": row.network,
            "one_worker": _result(row.one),
            "all_workers": _result(row.all),
            "predicted_s": row.predicted_s,
            "largest_difference": row.largest_difference,
        }
        for row in demo.rows
    ]
    values = {"format": FORMAT, "machine": asdict(demo.machine), "seconds": demo.seconds, "same": demo.same}
    return json.dumps({**values, "digits": asdict(demo.digits), "rows": rows}, indent=1)


def _result(result: Result) -> dict[str, Any]:
    return {**asdict(result), **asdict(spread(result.seconds))}


def _ratio(ratio: Ratio | None) -> dict[str, float] | None:
    return None if ratio is None else asdict(ratio)


def _split(split: Split) -> dict[str, Any]:
    return {
        **_result(split.result),
        "predicted_s": split.plan.predicted_s,
        "num_workers": split.num_workers,
        "bound_s": split.bound_s,
        "bound_is_measured": bool(split.layer_s),
        "predicted_bound_s": split.predicted_bound_s,
        "share_of_bound": asdict(split.share_of_bound),
        "efficiency": split.efficiency,
        "computed_by": split.computed_by,
        "home_bytes": split.traffic.home_bytes,
        "between_workers_bytes": split.traffic.between_workers_bytes,
        "bytes_per_link": {f"{source} -> {target}": count for source, target, count in link_bytes(split)},
        "times_as_fast_as_one_worker": _ratio(split.speedup),
        "times_as_fast_as_best_engine": _ratio(split.against_best),
        "times_as_fast_as_first_planner": _ratio(split.against_first),
        "plan": str(split.plan),
    }


def _single(single: Single) -> dict[str, Any]:
    return {
        **_result(single.result),
        "version": single.version,
        "precision": single.precision,
        "times_as_fast_as_one_worker": _ratio(single.speedup),
        "own_default": _single(single.own_default) if single.own_default else None,
    }
