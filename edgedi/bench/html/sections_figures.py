"""The sections that compare: speedup by workers, predicted and measured, bytes on the wire, memory."""

from __future__ import annotations

from dataclasses import replace

from edgedi.bench.html.charts import Curve, Pair, Point, curves_chart, memory_chart, pairs_chart
from edgedi.bench.html.choices import colours_of, drawn, names_of
from edgedi.bench.numbers import Ratio
from edgedi.bench.report import ONE_WORKER, Report, Split, link_bytes
from edgedi.bench.words import megabytes
from edgedi.pages.markup import Markup, element
from edgedi.pages.parts import section, table
from edgedi.partition.plan.program import participant_name

# --- speedups and predictions -----------------------------------------------------------------------------------------


def speedups(report: Report) -> Markup:
    """Speedup and efficiency by number of workers."""
    if report.splits[0].over_one_device is None:
        return section("speedup", "Speedup by number of workers", "Nothing on one device could be compared with.")
    base = f"{report.best} on one worker's cores" if report.best else "one worker"
    curves = _curves(report)
    if not curves:
        return section("speedup", "Speedup by number of workers", "Only one worker was measured.")
    see = (
        f"How many times as fast as {base}, by number of workers. Solid is measured, dashed the same plan with no "
        "communication, dotted the ideal; the nearer solid is to dashed, the less is lost on the way. "
        "Measure more numbers of workers with --counts."
    )
    efficiency = [replace(curve, points=tuple(map(_per_worker, curve.points))) for curve in curves]
    pair = element(
        "div",
        curves_chart(curves, "Speedup", lambda workers: workers, percent=False),
        curves_chart(efficiency, "Efficiency", lambda workers: 1.0, percent=True),
        class_="pair",
    )
    return section("speedup", "Speedup by number of workers", see, pair)


def _per_worker(point: Point) -> Point:
    count = point.num_workers
    return replace(
        point, value=point.value / count, low=point.low / count, high=point.high / count, bound=point.bound / count
    )


def _curves(report: Report) -> list[Curve]:
    """A curve for each planner; all begin with the one worker alone."""
    one = [split for split in report.splits if split.planner == ONE_WORKER]  # none where no plan for one fits
    found, colours = [], colours_of(report)
    for planner in dict.fromkeys(split.planner for split in report.splits if split.planner != ONE_WORKER):
        own = [split for split in report.splits if split.planner == planner]
        start = [] if any(split.num_workers == 1 for split in own) else one
        points = sorted(
            (_point(split, ratio) for split in (*start, *own) if (ratio := split.over_one_device)),
            key=lambda point: point.num_workers,
        )
        found.append(Curve(name=planner, colour=colours[planner], points=tuple(points)))
    return found


def _point(split: Split, ratio: Ratio) -> Point:
    bound = ratio.median / max(1e-9, split.share_of_bound.median)
    return Point(num_workers=split.num_workers, value=ratio.median, low=ratio.low, high=ratio.high, bound=bound)


def predictions(report: Report) -> Markup:
    """The plans' own predictions against what was measured."""
    colours = colours_of(report)
    pairs = [
        Pair(
            name=split.result.name, predicted_s=split.plan.predicted_s, measured_s=split.result.spread.median_s,
            low_s=split.result.spread.low_s, high_s=split.result.spread.high_s,
        )
        for split in report.splits
    ]  # fmt: skip
    see = (
        "The pale bar is what the plan predicted before it ran, the full one what was measured (with the middle half "
        "of the rounds). Equal lengths mean that planners chose by true prices; the number is how far off they were."
    )
    return section(
        "predicted", "Predicted against measured", see, pairs_chart(pairs, [colours[pair.name] for pair in pairs])
    )


# --- wire and memory --------------------------------------------------------------------------------------------------


def wire(report: Report) -> Markup:
    """Bytes on every link."""
    best = drawn(report)[0]
    names, links = names_of(report), link_bytes(best)
    most = max((count for _, _, count in links), default=1)
    named = {participant_name(participant): name for participant, name in names.items()}
    rows = [
        [f"{named.get(source, source)} \u2192 {named.get(target, target)}", megabytes(count), _bar(count / most, count)]
        for source, target, count in links
    ]
    total = megabytes(sum(count for _, _, count in links))
    see = (
        f"What one request of {best.result.name} sends over each link, payload only: {total} in all. Longer bars are "
        "links that a slower network would make you wait for first. Counted from the programs; the workers themselves "
        f"counted {megabytes(best.traffic.total_bytes)} of a request of this run."
    )
    return section("wire", "Bytes on the wire", see, table(("link", "bytes", "share of the largest"), rows))


def _bar(share: float, count: int) -> Markup:
    drawn = element("rect", x=0, y=2, width=200 * share, height=10, class_="home", data_bytes=count)
    return element(
        "svg", drawn, viewBox="0 0 200 14", width=200, height=14, aria_hidden="true", style="width:200px;display:inline"
    )


def workers_memory(report: Report) -> Markup:
    """Peak memory of every worker."""
    if not report.memory:
        return section("memory", "Peak memory of the workers", "The workers did not tell.")
    see = (
        "Grey is what a worker had right after its imports, before it served anybody; colour is what serving added at "
        "its peak. Told by each worker of itself (resident size), with the plans of all planners of this run and, "
        "where layers had to be measured first, the measuring. "
        "A memory limit bounds the weights and maps of one plan: here at most "
        f"{megabytes(report.largest_plan_bytes)} on a worker."
    )
    return section("memory", "Peak memory of the workers", see, memory_chart(report.memory))
