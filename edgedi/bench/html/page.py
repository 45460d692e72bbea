"""The page: sections in the order in which a reader asks, each figure with a sentence that says what to see."""

from __future__ import annotations

from edgedi.bench.html.drawing import hatches
from edgedi.bench.html.markup import Markup, element, joined, void
from edgedi.bench.html.sections import contenders, exactness, headline
from edgedi.bench.html.sections_figures import predictions, speedups, wire, workers_memory
from edgedi.bench.html.sections_plan import plans, timelines
from edgedi.bench.html.sections_redo import redo
from edgedi.bench.html.style import style
from edgedi.bench.report import Report


def report_page(report: Report, json_text: str) -> str:
    """One HTML document that needs nothing else; ``json_text`` are the numbers behind it, for who wants them all."""
    title = f"{report.settings.model} on {len(report.workers)} workers"
    head = element(
        "head",
        void("meta", charset="utf-8"),
        void("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", f"edgedi: {title}"),
        element("style", Markup(style())),
    )
    sections = (
        headline, contenders, plans, timelines, speedups, predictions, wire, workers_memory, exactness,
    )  # fmt: skip
    body = element(
        "body", hatches(), element("main", *(section(report) for section in sections), redo(report, json_text))
    )
    return joined([Markup("<!DOCTYPE html>\n"), element("html", head, body, lang="en")])
