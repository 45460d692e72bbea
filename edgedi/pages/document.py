"""One HTML document that needs nothing else: no script, no file, no address."""

from __future__ import annotations

from edgedi.pages.markup import Markup, element, joined, void
from edgedi.pages.style import style


def document(title: str, *content: object) -> str:
    """The whole text; ``content`` is what its body holds."""
    head = element(
        "head",
        void("meta", charset="utf-8"),
        void("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", f"edgedi: {title}"),
        element("style", Markup(style())),
    )
    return joined([Markup("<!DOCTYPE html>\n"), element("html", head, element("body", *content), lang="en")])
