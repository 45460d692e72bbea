"""The plan drawn on the feature maps: depth from left to right, each map a column cut among its owners."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from edgedi.bench.html.picture import NO_SEGMENT, FeatureMap, Halo, lanes
from edgedi.pages.drawing import colour, hatch, rectangle, svg, text
from edgedi.pages.markup import Markup, element, joined
from edgedi.partition.plan.plan import HOME, Plan
from edgedi.partition.plan.program import participant_name

_WIDTH = 1060.0
_TOP, _TALL, _BOTTOM = 44.0, 250.0, 30.0
_GAP, _LEAST_COLUMN, _MOST_COLUMN = 7.0, 9.0, 34.0
_LEAST_HEIGHT = 14.0
_FLATTER = 0.4
"""The power of the length that heights follow: maps shrink by 32 in most networks, and the last ones are to be seen."""
_LETTER = 6.4
"""About the width of a letter of the small print."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Column:
    """One map and where it is drawn."""

    map: FeatureMap
    x: float
    width: float
    height: float

    @property
    def y(self) -> float:
        return _TOP + (_TALL - self.height) / 2

    def span(self, start: int, stop: int) -> tuple[float, float]:
        """Top and height of a part of the map."""
        return self.y + self.height * start / self.map.length, self.height * (stop - start) / self.map.length


def plan_figure(plan: Plan, maps: Sequence[FeatureMap]) -> Markup:
    """The figure. Longer maps are higher, though not in proportion; within a map everything is."""
    columns, heads, width = _placed(plan, maps)
    drawn = [*heads, *(_draw(column) for column in columns), *_lengths(columns, width)]
    title = f"Plan of {len(plan.segments)} segments for {plan.num_workers} workers, drawn on {len(maps)} feature maps"
    return svg(width, _TOP + _TALL + _BOTTOM, title, *drawn, least=min(width, 760 + 2.0 * len(maps)))


def _placed(plan: Plan, maps: Sequence[FeatureMap]) -> tuple[list[_Column], list[Markup], float]:
    groups = [(number, list(group)) for number, group in groupby(maps, key=lambda each: each.segment)]
    free = _WIDTH - _GAP * len(groups)
    wide = min(_MOST_COLUMN, max(_LEAST_COLUMN, free / max(1, len(maps))))
    longest = {axis: max(m.length for m in maps if m.axis == axis) for axis in {m.axis for m in maps}}
    x, columns, heads = 0.0, [], []
    for number, group in groups:
        label = _label(plan, number)
        width = max(wide * len(group), _LETTER * len(label) + 2)
        heads.append(_head(label, number, x, width))
        inset = x + (width - wide * len(group)) / 2
        for place, feature_map in enumerate(group):
            columns.append(
                _Column(map=feature_map, x=inset + place * wide, width=wide - 1.5, height=_height(feature_map, longest))
            )
        x += width + _GAP
    return columns, heads, max(x - _GAP, 1.0)


def _height(feature_map: FeatureMap, longest: dict[str, int]) -> float:
    if feature_map.everyone or feature_map.axis == "whole":
        return _LEAST_HEIGHT
    return max(_LEAST_HEIGHT, _TALL * (feature_map.length / longest[feature_map.axis]) ** _FLATTER)


def _label(plan: Plan, number: int) -> str:
    if number == NO_SEGMENT:
        return "input"
    segment = plan.segments[number]
    return segment.axis if segment.on is None else f"on {participant_name(segment.on)}"


def _head(label: str, number: int, x: float, width: float) -> Markup:
    above = "" if number == NO_SEGMENT else str(number)
    band = rectangle(x, 36.0, width, 2.0, "band")
    middle = x + width / 2
    return joined([text(middle, 14, above, "tick", "middle"), text(middle, 30, label, "small", "middle"), band])


def _draw(column: _Column) -> Markup:
    feature_map = column.map
    parts = [*_shares(column), *_everyone(column), *_halos(column)]
    return element("g", element("title", describe(feature_map)), *parts, data_tensor=feature_map.tensor)


def _shares(column: _Column) -> Iterator[Markup]:
    for share in column.map.shares:
        y, height = column.span(share.interval.start, share.interval.stop)
        whole = len(column.map.shares) == 1 and share.worker != HOME
        yield rectangle(
            column.x, y, column.width, height, f"{colour(share.worker)}{' whole' if whole else ''}",
            data_worker=participant_name(share.worker), data_start=share.interval.start, data_stop=share.interval.stop,
        )  # fmt: skip


def _everyone(column: _Column) -> Iterator[Markup]:
    workers = column.map.everyone
    for place, worker in enumerate(workers):
        width = column.width / len(workers)
        yield rectangle(
            column.x + place * width, column.y, width, column.height, colour(worker),
            data_everyone=participant_name(worker),
        )  # fmt: skip


def _halos(column: _Column) -> Iterator[Markup]:
    """In the right part of the column, side by side where several workers have the same rows."""
    halos = column.map.halos
    numbers = lanes(halos)
    wide = 0.62 * column.width / (max(numbers, default=0) + 1)
    for halo, number in zip(halos, numbers, strict=True):
        yield _halo(column, halo, column.x + column.width - wide * (number + 1), wide)


def _halo(column: _Column, halo: Halo, x: float, width: float) -> Markup:
    y, height = column.span(halo.interval.start, halo.interval.stop)
    return rectangle(
        x, y, width, height, "halo", fill=hatch(halo.worker, halo.kind),
        data_halo=halo.kind, data_worker=participant_name(halo.worker),
        data_start=halo.interval.start, data_stop=halo.interval.stop,
    )  # fmt: skip


def _lengths(columns: Sequence[_Column], width: float) -> Iterator[Markup]:
    """How long the maps are, under the first of each run of equals that there is room for; all within the figure."""
    shown, free_from = ("", 0), -1.0
    for column in columns:
        here, label = (column.map.axis, column.map.length), str(column.map.length)
        x = min(column.x, width - _LETTER * len(label))
        if here != shown and column.map.length > 1 and x >= free_from:
            yield text(x, _TOP + _TALL + 20, label, "tick")
            shown, free_from = here, x + _LETTER * len(label) + 4


def describe(feature_map: FeatureMap) -> str:
    """A map in words: for whoever points at it or has it read aloud."""
    head = f"{feature_map.tensor} ({feature_map.op}), {' x '.join(map(str, feature_map.shape))}"
    if feature_map.everyone:
        return f"{head}: made whole by each of {', '.join(map(participant_name, feature_map.everyone))}"
    said = [
        f"{participant_name(share.worker)} owns {feature_map.axis} {share.interval}" for share in feature_map.shares
    ]
    said += [f"{participant_name(halo.worker)} also {halo.kind} {halo.interval}" for halo in feature_map.halos]
    return f"{head}: {'; '.join(said)}"
