"""What the whole page agrees on: which plans are shown, how participants are called, who has which colour."""

from __future__ import annotations

from edgedi.bench.report import Report, Split
from edgedi.partition.plan.plan import HOME


def drawn(report: Report) -> list[Split]:
    """The splits whose plans are shown: of all workers, the fastest first; one worker alone where there is no other."""
    most = max(split.num_workers for split in report.splits)
    found = [split for split in report.splits if split.num_workers == most]
    return sorted(found, key=lambda split: split.result.spread.median_s)


def names_of(report: Report) -> dict[int, str]:
    """What to call each participant."""
    return {HOME: "coordinator", **dict(enumerate(report.workers))}


def colours_of(report: Report) -> dict[str, int]:
    """A colour for each contender: planners each their own, engines grey."""
    planners = list(dict.fromkeys(split.planner for split in report.splits))
    return {split.result.name: planners.index(split.planner) for split in report.splits}
