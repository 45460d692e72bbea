"""What every figure is drawn with: an SVG with a title, text, rectangles, and scales with round ticks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgedi.pages.markup import Markup, Value, element, joined, void

NUM_COLOURS = 8
"""Workers beyond these take the colours from the start again; their names are beside them everywhere."""


def svg(width: float, height: float, title: str, *children: object, least: float | None = None) -> Markup:
    """A figure as wide as the page, not narrower than ``least`` pixels: then it scrolls. ``title`` is read aloud."""
    drawn = element(
        "svg", element("title", title), *children,
        viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=title,
        style=f"min-width:{least:g}px" if least else None,
    )  # fmt: skip
    return element("div", drawn, class_="figure", tabindex="0" if least else None)


def rectangle(x: float, y: float, width: float, height: float, class_: str, *inside: object, **more: Value) -> Markup:
    """A rectangle; ``inside`` may be its ``<title>``."""
    return element("rect", *inside, x=x, y=y, width=width, height=height, class_=class_, **more)


def text(x: float, y: float, content: object, class_: str = "", anchor: str = "start", **more: Value) -> Markup:
    """A line of text on its baseline."""
    return element("text", content, x=x, y=y, class_=class_ or None, text_anchor=anchor, **more)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return void("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def polyline(places: Sequence[tuple[float, float]], class_: str) -> Markup:
    """Straight lines from place to place."""
    return void("polyline", points=" ".join(f"{x:.2f},{y:.2f}" for x, y in places), class_=class_)


def colour(index: int) -> str:
    """The class that paints like worker ``index``; the coordinator is grey."""
    return "home" if index < 0 else f"w{index % NUM_COLOURS}"


def hatches() -> Markup:
    """The patterns of halos, one pair for each colour, for all figures of the page."""
    patterns = [_hatch(index, kind) for index in range(NUM_COLOURS) for kind in ("computed", "received")]
    waiting = element(
        "pattern", void("rect", width=5, height=5, class_="track"),
        void("line", x1=0, y1=0, x2=0, y2=5, stroke_width=1.6, stroke="var(--soft)"),
        id="waiting", width=5, height=5, patternUnits="userSpaceOnUse", patternTransform="rotate(45)",
    )  # fmt: skip
    return element(
        "svg", element("defs", *patterns, waiting), width=0, height=0, aria_hidden="true", style="position:absolute"
    )


def _hatch(index: int, kind: str) -> Markup:
    tile = 4
    ground = void("rect", width=tile, height=tile, class_="ground")
    tint = void("rect", width=tile, height=tile, class_=f"tint {colour(index)}")
    stripe = void("line", x1=0, y1=0, x2=0, y2=tile, stroke_width=2.4, class_=f"stroke-{colour(index)}")
    return element(
        "pattern", ground, tint, stripe, id=f"{kind}-{index}", width=tile, height=tile, patternUnits="userSpaceOnUse",
        patternTransform=f"rotate({45 if kind == 'computed' else -45})",
    )  # fmt: skip


def hatch(index: int, kind: str) -> str:
    """The fill of a halo of worker ``index``."""
    return f"url(#{kind}-{index % NUM_COLOURS})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Values from 0 to ``most`` onto pixels from ``start`` on, ``length`` of them (negative: upwards)."""

    most: float
    start: float
    length: float

    def at(self, value: float) -> float:
        """The pixel of a value."""
        return self.start + self.size(value)

    def size(self, value: float) -> float:
        """How many pixels a value is long."""
        return value / self.most * self.length


def ticks(most: float, count: int = 6) -> list[float]:
    """Round values from 0 to at least ``most``: steps of 1, 2 or 5 times a power of ten, ``count`` of them or fewer."""
    if most <= 0:
        return [0.0, 1.0]
    raw = most / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))
    return [step * number for number in range(math.ceil(most / step - 1e-9) + 1)]


def horizontal_axis(scale: Scale, values: list[float], top: float, bottom: float, unit: str) -> Markup:
    """Lines down through the figure, their values below; the unit stands with the last one."""
    parts = []
    for value in values:
        x = scale.at(value)
        label = f"{value:g} {unit}" if value == values[-1] else f"{value:g}"
        parts += [line(x, top, x, bottom, "grid"), text(x, bottom + 16, label, "tick", "middle")]
    return joined(parts)
