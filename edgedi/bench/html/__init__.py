"""The report of a comparison as one HTML page that needs nothing else. Pure: values in, text out."""

from edgedi.bench.html.page import report_page

__all__ = ["report_page"]
