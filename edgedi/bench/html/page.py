"""The page."""

from __future__ import annotations

from edgedi.bench.report import Report


def report_page(report: Report, json_text: str) -> str:
    """The page."""
    return json_text
