"""Elements as text. Whatever is not ``Markup`` already is escaped: names of models and workers come from outside."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import TypeAlias

Value: TypeAlias = str | int | float | None


class Markup(str):
    """Text in which nothing has to be escaped any more."""

    __slots__ = ()


def markup(content: object) -> Markup:
    """``content`` escaped, or as it is where it was."""
    return content if isinstance(content, Markup) else Markup(html.escape(str(content)))


def element(name: str, /, *children: object, **attributes: Value) -> Markup:
    """``<name ...>children</name>``. Underscores become hyphens, one at the end goes; ``None`` is left out.

    Numbers are written with at most two decimals: a hundredth of a pixel is enough.
    """
    written = "".join(f' {_key(key)}="{_value(value)}"' for key, value in attributes.items() if value is not None)
    return Markup(f"<{name}{written}>{joined(children)}</{name}>")


def void(name: str, /, **attributes: Value) -> Markup:
    """An element that has no end tag, in HTML or, with its slash, in SVG."""
    written = "".join(f' {_key(key)}="{_value(value)}"' for key, value in attributes.items() if value is not None)
    return Markup(f"<{name}{written}/>")


def joined(children: Iterable[object]) -> Markup:
    """Children one after another."""
    return Markup("".join(map(markup, children)))


def _key(name: str) -> str:
    return name.rstrip("_").replace("_", "-")


def _value(value: Value) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return html.escape(str(value))
