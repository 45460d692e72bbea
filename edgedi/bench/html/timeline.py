"""What every participant did during one request: a row each, time from left to right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from edgedi.bench.words import milliseconds
from edgedi.pages.drawing import Scale, colour, horizontal_axis, line, rectangle, svg, text, ticks
from edgedi.pages.markup import Markup, element, joined
from edgedi.partition.plan.plan import HOME
from edgedi.runtime.session.trace import KINDS, Span

_WIDTH, _LEFT, _RIGHT = 1060.0, 110.0, 30.0
_TOP, _ROW, _BAR = 26.0, 38.0, 26.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """Seconds that one participant computed, sent and waited, of a request's ``total_s``; the rest it was idle."""

    participant: int
    seconds: Mapping[str, float]
    total_s: float

    @property
    def idle_s(self) -> float:
        """Before its first piece came, after its last was sent, and between two instructions."""
        return max(0.0, self.total_s - sum(self.seconds.values()))


def shares(spans: Sequence[Span]) -> tuple[Shares, ...]:
    """One for each participant, the coordinator first."""
    total_s = max((span.stop_s for span in spans), default=0.0)
    return tuple(
        Shares(
            participant=participant,
            seconds={
                kind: sum(s.stop_s - s.start_s for s in spans if (s.participant, s.kind) == (participant, kind))
                for kind in KINDS
            },
            total_s=total_s,
        )
        for participant in sorted({span.participant for span in spans})
    )


def timeline(spans: Sequence[Span], names: Mapping[int, str]) -> Markup:
    """The figure. Every span is as wide as it lasted; whoever points at one is told what it was."""
    rows = [each.participant for each in shares(spans)]
    most_s = max(span.stop_s for span in spans)
    values = ticks(1000 * most_s, 10)
    scale = Scale(most=values[-1] / 1000, start=_LEFT, length=_WIDTH - _LEFT - _RIGHT)
    bottom = _TOP + _ROW * len(rows)
    axis = Scale(most=values[-1], start=_LEFT, length=scale.length)
    drawn = [horizontal_axis(axis, values, _TOP - 6, bottom, "ms"), *_segments(spans, scale, bottom)]
    for place, participant in enumerate(rows):
        y = _TOP + _ROW * place + (_ROW - _BAR) / 2
        own = [span for span in spans if span.participant == participant]
        label = text(_LEFT - 8, y + _BAR / 2 + 4, names.get(participant, str(participant)), "label", "end")
        drawn += [label, rectangle(_LEFT, y, scale.size(most_s), _BAR, "track"), *(_bar(s, scale, y) for s in own)]
    title = (
        f"Timeline of one request over {milliseconds(most_s)} ms: computing, sending and waiting of each participant"
    )
    return svg(_WIDTH, bottom + 24, title, *drawn, least=720)


def _bar(span: Span, scale: Scale, y: float) -> Markup:
    lasted = milliseconds(span.stop_s - span.start_s)
    said = element("title", f"{span.kind} {span.name}, segment {span.segment}: {lasted} ms")
    shade = f"{colour(span.participant)} {'odd' if span.segment % 2 else 'even'}"
    class_ = {"compute": f"compute {shade}", "send": "send", "wait": "wait"}[span.kind]
    return element(
        "rect", said, x=scale.at(span.start_s), y=y, width=_exact(scale.size(span.stop_s - span.start_s)), height=_BAR,
        class_=class_, data_kind=span.kind,
    )  # fmt: skip


def _exact(width: float) -> str:
    """Sends last a hundredth of a pixel at times; rounded like other numbers they would be gone."""
    return f"{width:.4f}"


def _segments(spans: Sequence[Span], scale: Scale, bottom: float) -> Iterator[Markup]:
    """Where each segment begins on the first worker that computes in it, its number above where there is room."""
    begins: dict[int, float] = {}
    for span in spans:
        if span.kind == "compute" and span.participant != HOME:
            begins[span.segment] = min(begins.get(span.segment, span.start_s), span.start_s)
    free_from = 0.0
    for number, start_s in sorted(begins.items()):
        x = scale.at(start_s)
        parts = [line(x, _TOP - 4, x, bottom, "boundary")]
        if x >= free_from:
            parts.append(text(x + 2, _TOP - 10, number, "tick"))
            free_from = x + 18
        yield joined(parts)
