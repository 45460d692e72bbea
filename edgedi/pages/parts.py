"""Pieces that sections are made of: a section with its sentence, a table, a legend."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from edgedi.pages.drawing import hatch, rectangle
from edgedi.pages.markup import Markup, element, joined


def section(name: str, title: str, see: str, *content: object) -> Markup:
    """A part of the page: its heading, what to see in it, and the thing itself."""
    return element("section", element("h2", title, id=name), element("p", see, class_="see"), *content)


def cards(pairs: Iterable[tuple[str, str]]) -> Markup:
    """The few numbers that matter, large, each with what it is."""
    made = (element("div", element("b", number), element("span", what), class_="card") for number, what in pairs)
    return element("div", *made, class_="cards")


def table(heads: Sequence[str], rows: Iterable[Sequence[object]], *, best: int | None = None, words: int = 1) -> Markup:
    """A table that scrolls by itself; the first ``words`` columns are text, row ``best`` is set off."""
    head = element("tr", *(element("th", name, scope="col", class_=_kind(i, words)) for i, name in enumerate(heads)))
    body = [
        element(
            "tr", *(element("td", cell, class_=_kind(i, words)) for i, cell in enumerate(row)),
            class_="best" if number == best else None,
        )
        for number, row in enumerate(rows)
    ]  # fmt: skip
    return element(
        "div", element("table", element("thead", head), element("tbody", *body)), class_="scroll", tabindex="0"
    )


def _kind(column: int, words: int) -> str | None:
    return "words" if column < words else None


def legend(entries: Iterable[tuple[Markup, str]]) -> Markup:
    """Swatches and what they stand for."""
    return element("ul", *(element("li", swatch, name) for swatch, name in entries), class_="legend")


def swatch(class_: str, fill: str | None = None) -> Markup:
    """A little rectangle of a class, or of a fill."""
    drawn = rectangle(0.5, 0.5, 25, 13, class_, fill=fill)
    return element("svg", drawn, viewBox="0 0 26 14", aria_hidden="true")


def hatched(index: int, kind: str) -> Markup:
    """A swatch of a halo."""
    return swatch("", hatch(index, kind))


def details(summary: str, *content: object) -> Markup:
    """Closed until somebody asks."""
    return element("details", element("summary", summary), *content)


def definitions(pairs: Iterable[tuple[str, object]]) -> Markup:
    """Names and what they are."""
    return element("dl", *(joined([element("dt", name), element("dd", what)]) for name, what in pairs))
