"""The smaller figures: seconds of every round, speedup by workers, predicted against measured, memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass

from edgedi.bench.report import Memory, Result
from edgedi.bench.words import megabytes, milliseconds
from edgedi.pages.drawing import Scale, colour, horizontal_axis, line, polyline, rectangle, svg, text, ticks
from edgedi.pages.markup import Markup, element, joined, void

_WIDTH, _LEFT, _RIGHT = 1060.0, 190.0, 90.0
_ROW = 34.0
_LETTERS = 14.0
"""Between the lines of two labels."""


# --- seconds of every round -------------------------------------------------------------------------------------------


def rounds_chart(results: Sequence[Result], disturbed: Set[int], colours: Sequence[int]) -> Markup:
    """A dot for each round of each contender, a box for the middle half, a line at the median."""
    values = ticks(1000 * max(max(result.seconds) for result in results), 10)
    scale = Scale(most=values[-1], start=_LEFT, length=_WIDTH - _LEFT - _RIGHT)
    bottom = 8 + _ROW * len(results)
    drawn = [horizontal_axis(scale, values, 4, bottom, "ms")]
    for place, (result, index) in enumerate(zip(results, colours, strict=True)):
        drawn.append(_rounds(result, disturbed, scale, 8 + _ROW * place, colour(index)))
    return svg(_WIDTH, bottom + 24, "Milliseconds of every round, by contender", *drawn, least=640)


def _rounds(result: Result, disturbed: Set[int], scale: Scale, top: float, class_: str) -> Markup:
    found, middle = result.spread, top + _ROW / 2
    low, high = scale.at(1000 * found.low_s), scale.at(1000 * found.high_s)
    median = scale.at(1000 * found.median_s)
    dots = [
        void(
            "circle", cx=scale.at(1000 * seconds), cy=middle + 5.0 * (number % 5 - 2), r=3,
            class_=f"disturbed {class_}" if number in disturbed else f"dot {class_}", data_ms=1000 * seconds,
        )
        for number, seconds in enumerate(result.seconds)
    ]  # fmt: skip
    return joined(
        [
            text(_LEFT - 10, middle + 4, result.name, "label", "end"),
            rectangle(low, middle - 12, high - low, 24, f"box {class_}"),
            *dots,
            line(median, middle - 14, median, middle + 14, "median"),
            text(_WIDTH - _RIGHT + 10, middle + 4, f"{milliseconds(found.median_s)} ms", "number"),
        ]
    )


# --- curves -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A value at a number of workers, with its interval, and what the value would be with no communication."""

    num_workers: int
    value: float
    low: float
    high: float
    bound: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """The points of one planner, by number of workers."""

    name: str
    colour: int
    points: tuple[Point, ...]


def curves_chart(curves: Sequence[Curve], title: str, ideal: Callable[[float], float], *, percent: bool) -> Markup:
    """Values against number of workers: a line for each planner, dashed its bound, dotted the ideal."""
    most_workers = max(point.num_workers for curve in curves for point in curve.points)
    tops = [max(point.high, point.bound) for curve in curves for point in curve.points]
    values = ticks(max(*tops, ideal(most_workers)), 5)
    across = Scale(most=max(1.0, most_workers - 0.5), start=46, length=330)
    up = Scale(most=values[-1], start=250, length=-226)
    drawn = [text(46, 14, title, "label"), *_grid(values, up, percent=percent)]
    drawn += [text(_at(across, k), 270, k, "tick", "middle") for k in range(1, most_workers + 1)]
    drawn.append(text(211, 290, "workers", "tick", "middle"))
    ideals = [(_at(across, k), up.at(ideal(k))) for k in range(1, most_workers + 1)]
    drawn.append(polyline(ideals, "ideal"))
    ends = [up.at(curve.points[-1].value) for curve in curves]
    for curve, beside in zip(curves, spread(ends, _LETTERS, 280), strict=True):
        drawn.append(_curve(curve, beside, across, up))
    return svg(500, 298, f"{title} against number of workers", *drawn, least=340)


def spread(places: Sequence[float], apart: float, most: float) -> list[float]:
    """``places`` in the same order, ``apart`` from each other and at ``most`` at most: where labels beside them go."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    found = list(places)
    for before, index in itertools.pairwise(order):
        found[index] = max(found[index], found[before] + apart)
    for number, index in enumerate(reversed(order)):
        found[index] = min(found[index], most - apart * number)
    return found


def _at(across: Scale, num_workers: float) -> float:
    return across.at(num_workers - 0.75)


def _grid(values: Sequence[float], up: Scale, *, percent: bool) -> Iterator[Markup]:
    for value in values:
        label = f"{value:.0%}" if percent else f"{value:g}"
        yield joined(
            [line(40, up.at(value), 384, up.at(value), "grid"), text(36, up.at(value) + 4, label, "tick", "end")]
        )


def _curve(curve: Curve, beside: float, across: Scale, up: Scale) -> Markup:
    """Its name stands at its end, at the height ``beside``, so that names of curves that meet do not."""
    places = [(_at(across, point.num_workers), point) for point in curve.points]
    name = colour(curve.colour)
    parts = [
        polyline([(x, up.at(point.bound)) for x, point in places], f"bound stroke-{name}"),
        polyline([(x, up.at(point.value)) for x, point in places], f"curve stroke-{name}"),
    ]
    for x, point in places:
        parts.append(line(x, up.at(point.low), x, up.at(point.high), f"whisker stroke-{name}"))
        said = element("title", f"{curve.name} on {point.num_workers}: {point.value:.2f}, bound {point.bound:.2f}")
        parts.append(
            element("circle", said, cx=x, cy=up.at(point.value), r=4, class_=name, data_workers=point.num_workers,
                    data_value=f"{point.value:.4f}", data_bound=f"{point.bound:.4f}")
        )  # fmt: skip
    x, last = places[-1]
    parts.append(line(x + 4, up.at(last.value), x + 20, beside, "leader"))
    parts.append(text(x + 23, beside + 4, curve.name, f"label ink-{name}"))
    return joined(parts)


# --- pairs and bars ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A predicted time beside the measured one; ``low_s`` and ``high_s`` are the middle half of the measured."""

    name: str
    predicted_s: float
    measured_s: float
    low_s: float
    high_s: float


def pairs_chart(pairs: Sequence[Pair], colours: Sequence[int]) -> Markup:
    """For each planner the predicted bar above the measured one."""
    values = ticks(1000 * max(max(pair.predicted_s, pair.measured_s, pair.high_s) for pair in pairs), 10)
    scale = Scale(most=values[-1], start=_LEFT, length=_WIDTH - _LEFT - _RIGHT)
    tall = 44.0
    drawn = [horizontal_axis(scale, values, 4, 8 + tall * len(pairs), "ms")]
    for place, (pair, index) in enumerate(zip(pairs, colours, strict=True)):
        drawn.append(_pair(pair, scale, 8 + tall * place, colour(index)))
    return svg(_WIDTH, 32 + tall * len(pairs), "Predicted and measured milliseconds, by planner", *drawn, least=640)


def _pair(pair: Pair, scale: Scale, top: float, class_: str) -> Markup:
    middle = top + 27
    return joined(
        [
            text(_LEFT - 10, top + 25, pair.name, "label", "end"),
            rectangle(_LEFT, top + 5, scale.size(1000 * pair.predicted_s), 13, f"predicted {class_}"),
            rectangle(_LEFT, top + 20, scale.size(1000 * pair.measured_s), 13, class_),
            line(scale.at(1000 * pair.low_s), middle, scale.at(1000 * pair.high_s), middle, "median"),
            text(_WIDTH - _RIGHT + 10, top + 25, f"{pair.predicted_s / pair.measured_s - 1:+.0%}", "number"),
        ]
    )


def memory_chart(memory: Sequence[Memory]) -> Markup:
    """For each worker what it had after its imports, and what serving came to above that."""
    most = max(each.peak_bytes for each in memory)
    scale = Scale(most=float(most), start=_LEFT, length=_WIDTH - _LEFT - 230)
    drawn = []
    for index, each in enumerate(memory):
        top, base, above = 6 + _ROW * index, min(each.baseline_bytes, each.peak_bytes), each.above_bytes
        said = f"{megabytes(each.peak_bytes)}, {megabytes(above)} above"
        drawn += [
            text(_LEFT - 10, top + 17, each.worker, "label", "end"),
            rectangle(_LEFT, top + 3, scale.size(base), 20, "home", data_bytes=base),
            rectangle(scale.at(base), top + 3, scale.size(above), 20, colour(index), data_bytes=above),
            text(scale.at(each.peak_bytes) + 10, top + 18, said, "number"),
        ]  # fmt: skip
    return svg(_WIDTH, 12 + _ROW * len(memory), "Peak memory of every worker", *drawn, least=640)
