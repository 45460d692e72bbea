"""The sections about one plan: drawn on the feature maps, and one of its requests on a timeline."""

from __future__ import annotations

from collections.abc import Iterable

from edgedi.bench.html.choices import drawn, names_of
from edgedi.bench.html.picture import feature_maps
from edgedi.bench.html.plan_figure import plan_figure
from edgedi.bench.html.timeline import shares, timeline
from edgedi.bench.report import Report, Split
from edgedi.bench.words import milliseconds
from edgedi.pages.drawing import colour
from edgedi.pages.markup import Markup
from edgedi.pages.parts import details, hatched, legend, section, swatch, table
from edgedi.partition.plan.plan import HOME, Segment
from edgedi.partition.plan.program import participant_name

# --- plans ------------------------------------------------------------------------------------------------------------


def plans(report: Report) -> Markup:
    """Every plan of all workers, the fastest open."""
    best, *others = drawn(report)
    see = (
        "The network from left to right, a column for each feature map, the higher the more rows (or "
        "channels) it has; its colours say which worker owns which part. Hatched parts are halos: what a worker needs "
        "and does not own, computed twice or received. Between two segments workers exchange; within one they do not."
    )
    shown = [details(f"Plan of {split.result.name}", *_plan(split, report)) for split in others]
    return section("plan", f"The plan of {best.result.name}", see, _plan_legend(report), *_plan(best, report), *shown)


def _plan_legend(report: Report) -> Markup:
    owners = [(swatch(colour(index)), f"{index}: {name}") for index, name in enumerate(report.workers)]
    return legend(
        [
            *owners,
            (swatch("home"), "coordinator"),
            (swatch("w0 whole"), "whole on one worker"),
            (hatched(0, "computed"), "halo, computed here too"),
            (hatched(0, "received"), "halo, received"),
        ]
    )


def _plan(split: Split, report: Report) -> tuple[Markup, Markup]:
    figure = plan_figure(split.plan, feature_maps(split.plan, split.programs))
    heads = (
        "segment",
        "layers",
        "split along",
        "shares",
        "compute ms, predicted",
        "measured",
        "exchange ms, predicted",
    )
    rows = [_segment_row(number, segment, split) for number, segment in enumerate(split.plan.segments)]
    numbers = details(
        f"The {len(rows)} segments in numbers (measured: its slowest worker with no communication)",
        table(heads, rows, words=4),
    )
    return figure, numbers


def _segment_row(number: int, segment: Segment, split: Split) -> list[str]:
    layers = split.programs.graph.layers[segment.layers.start : segment.layers.stop]
    first, last = layers[0].name, layers[-1].name
    along = segment.axis if segment.on is None else f"whole on {participant_name(segment.on)}"
    measured = milliseconds(split.segment_s(number)) if split.layer_s and segment.on != HOME else ""
    return [
        str(number), first if first == last else f"{first} ... {last} ({len(layers)})", along,
        "  ".join(map(str, segment.shares)), milliseconds(segment.cost.compute_s), measured,
        milliseconds(segment.cost.exchange_s),
    ]  # fmt: skip


# --- one request ------------------------------------------------------------------------------------------------------


def timelines(report: Report) -> Markup:
    """One request of the fastest planner."""
    best = drawn(report)[0]
    see = (
        f"One request of {best.result.name}, traced after the rounds. Colour is computing, its shade changes from "
        "segment to segment; thin strong bars are sending, hatched is waiting for a piece. "
        "Where all rows are full of colour no time is lost. Dashed lines are where segments begin, by their numbers."
    )
    if not best.spans:
        return section("timeline", "Timeline of one request", "No request of this run was traced.")
    names = names_of(report)
    marks = [
        (swatch(f"compute {colour(0)}"), "compute"),
        (swatch("send"), "send"),
        (swatch("", "url(#waiting)"), "wait"),
    ]
    rows = [
        [names.get(each.participant, str(each.participant)), *_spent(each.seconds.values(), each.total_s, each.idle_s)]
        for each in shares(best.spans)
    ]
    heads = ("participant", "compute ms", "send ms", "wait ms", "idle ms", "computing")
    return section(
        "timeline", "Timeline of one request", see, legend(marks), timeline(best.spans, names), table(heads, rows)
    )


def _spent(seconds: Iterable[float], total_s: float, idle_s: float) -> list[str]:
    compute_s, send_s, wait_s = seconds
    return [*map(milliseconds, (compute_s, send_s, wait_s, idle_s)), f"{compute_s / total_s:.0%}" if total_s else ""]
