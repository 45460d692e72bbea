"""The page: sections in the order in which a reader asks, each figure with a sentence that says what to see."""

from __future__ import annotations

from edgedi.bench.html.sections import contenders, exactness, headline
from edgedi.bench.html.sections_figures import predictions, speedups, wire, workers_memory
from edgedi.bench.html.sections_plan import plans, timelines
from edgedi.bench.html.sections_redo import redo
from edgedi.bench.report import Report
from edgedi.pages.document import document
from edgedi.pages.drawing import hatches
from edgedi.pages.markup import element


def report_page(report: Report, json_text: str) -> str:
    """One HTML document that needs nothing else; ``json_text`` are the numbers behind it, for who wants them all."""
    sections = (
        headline, contenders, plans, timelines, speedups, predictions, wire, workers_memory, exactness,
    )  # fmt: skip
    main = element("main", *(section(report) for section in sections), redo(report, json_text))
    return document(f"{report.settings.model} on {len(report.workers)} workers", hatches(), main)
