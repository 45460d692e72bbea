"""The figures of compaction's page: the score against MACs, and what is left of each layer's width. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from edgedi.pages.drawing import Scale, colour, line, rectangle, svg, text, ticks
from edgedi.pages.markup import Markup, element, joined, void
from edgedi.transforms.report import LayerChange
from edgedi.transforms.score import Score
from edgedi.transforms.task import Point

_WIDTH = 1060.0
_LEAST = 820.0
_UNITS = ((1e9, "billion "), (1e6, "million "), (1e3, "thousand "), (1.0, ""))
_LONGEST_NAME = 36


def score_text(value: float, score: Score) -> str:
    """As a share where ``score`` is one."""
    return f"{value:.4g}" if score.count is None else f"{value:.2%}"


def _tick(value: float, score: Score) -> str:
    return f"{value:.6g}" if score.count is None else f"{100 * value:.6g}%"


# --- score against MACs -----------------------------------------------------------------------------------------------


def curve_chart(points: Sequence[Point], score: Score) -> Markup:
    """A dot for each network that was judged, in its step's colour, the original's larger; the result has a ring.

    The dotted line is the original's score, the band around it its 95 % interval.
    """
    most = max(point.macs for point in points)
    divisor, unit = next((each for each in _UNITS if most >= each[0]), _UNITS[-1])
    across_ticks = ticks(most / divisor, 8)
    left, top, bottom, right = 90.0, 30.0, 330.0, _WIDTH - 30  # the result's name stands above its dot
    across = Scale(most=across_ticks[-1], start=left, length=right - left)
    low, high = score.interval or (score.value, score.value)
    up_ticks = _round_range([low, high, *(point.score for point in points)])
    up = Scale(most=up_ticks[-1] - up_ticks[0], start=bottom, length=top - bottom)

    def height(value: float) -> float:
        return up.at(value - up_ticks[0])

    drawn = [rectangle(left, height(high), right - left, height(low) - height(high), "box home")]
    for value in up_ticks:
        label = text(left - 8, height(value) + 4, _tick(value, score), "tick", "end")
        drawn += [line(left, height(value), right, height(value), "grid"), label]
    drawn += [text(across.at(value), bottom + 18, f"{value:g}", "tick", "middle") for value in across_ticks]
    drawn.append(text((left + right) / 2, bottom + 38, f"{unit}MACs of one run on the example", "tick", "middle"))
    drawn.append(line(left, height(score.value), right, height(score.value), "boundary"))
    steps = step_names(points)
    for number, point in enumerate(points):
        x, y = across.at(point.macs / divisor), height(point.score)
        radius = 5 if number else 8
        drawn.append(_dot(point, (x, y, radius), _colour(steps, point.step), score))
    drawn.append(_ring(x, y, _colour(steps, points[-1].step)))
    return svg(_WIDTH, bottom + 48, "Score against MACs of every network that was judged", *drawn, least=_LEAST)


def step_names(points: Sequence[Point]) -> list[str]:
    """The steps that have points, in order."""
    return list(dict.fromkeys(point.step for point in points))


def _colour(steps: Sequence[str], step: str) -> str:
    return colour(steps.index(step) - 1)


def step_colours(points: Sequence[Point]) -> Iterator[tuple[str, str]]:
    """The class that paints each step's dots; the original is grey."""
    steps = step_names(points)
    return ((step, _colour(steps, step)) for step in steps)


def _dot(point: Point, place: tuple[float, float, float], class_: str, score: Score) -> Markup:
    x, y, radius = place
    said = element("title", f"{point.step}: {score_text(point.score, score)} at {point.macs:,} MACs")
    return element(
        "circle", said, cx=x, cy=y, r=radius, class_=class_, data_macs=point.macs, data_score=repr(point.score)
    )


def _ring(x: float, y: float, class_: str) -> Markup:
    ring = void("circle", cx=x, cy=y, r=10, class_=f"curve stroke-{class_}")
    return joined([ring, text(x + 15, y - 8, "result", "label")])


def _round_range(values: Sequence[float]) -> list[float]:
    """Round values from below the least to above the greatest."""
    low, high = min(values), max(values)
    step = ticks(max(high - low, 1e-3 * max(abs(high), 1e-6)), 5)[1]
    first, last = math.floor(low / step), math.ceil(high / step)
    return [step * number for number in range(first, max(last, first + 1) + 1)]


# --- widths -----------------------------------------------------------------------------------------------------------


def widths_chart(layers: Sequence[LayerChange]) -> Markup:
    """A row for each layer with outputs: pale what it had, full what is left of it."""
    left, length, row = 270.0, 470.0, 22.0
    scale = Scale(most=1.0, start=left, length=length)
    rows = [_width_row(layer, 4 + row * place, scale) for place, layer in enumerate(layers)]
    return svg(_WIDTH, 10 + row * len(layers), "Outputs of every layer before and after", *rows, least=_LEAST)


def _width_row(layer: LayerChange, top: float, scale: Scale) -> Markup:
    before, after = outputs(layer.before.width), outputs(layer.after.width) if layer.after else 0
    share = after / before
    name = layer.before.name or layer.before.kind
    shown = name if len(name) <= _LONGEST_NAME else f"\u2026{name[1 - _LONGEST_NAME :]}"
    said = f"{before:,} \u2192 {after:,} ({share:.0%})" if layer.after else f"{before:,}, gone"
    return joined(
        [
            text(scale.start - 10, top + 13, joined([element("title", name), shown]), "label", "end"),
            rectangle(scale.start, top + 2, scale.length, 14, f"predicted {colour(-1)}", data_before=before),
            rectangle(scale.start, top + 2, scale.size(min(share, 1.0)), 14, colour(0), data_after=after),
            text(scale.start + scale.length + 10, top + 14, f"{before:,}" if share == 1 else said, "number"),
        ]
    )


def has_outputs(layer: LayerChange) -> bool:
    """Whether its width says how many outputs it had."""
    return " -> " in layer.before.width and outputs(layer.before.width) > 0


def outputs(width: str) -> int:
    """Of "64 -> 128" the 128."""
    return int(width.rpartition(" -> ")[2])
