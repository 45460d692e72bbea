"""A page read back: its elements with their attributes and text, and whether every one of them is closed."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

_VOID = {"meta", "br", "hr", "link", "img", "input"}


@dataclass
class Element:
    name: str
    attributes: dict[str, str]
    children: list[Element] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    def all(self, name: str = "", **attributes: str) -> list[Element]:
        """Elements below of that name whose attributes are these; hyphens are written as underscores."""
        found = [self] if self._is(name, attributes) else []
        return found + [each for child in self.children for each in child.all(name, **attributes)]

    def _is(self, name: str, attributes: dict[str, str]) -> bool:
        same = all(self.attributes.get(key.strip("_").replace("_", "-")) == v for key, v in attributes.items())
        return (not name or self.name == name) and same

    def number(self, attribute: str) -> float:
        return float(self.attributes[attribute])

    @property
    def text(self) -> str:
        return " ".join([*self.words, *(child.text for child in self.children)])

    def has_class(self, name: str) -> bool:
        return name in self.attributes.get("class", "").split()


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("", {})
        self._open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        made = Element(tag, {key: value or "" for key, value in attrs})
        self._open[-1].children.append(made)
        if tag not in _VOID:
            self._open.append(made)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open[-1].children.append(Element(tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open[-1].name == tag, f"</{tag}> closes <{self._open[-1].name}>"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if data.strip():
            self._open[-1].words.append(data.strip())

    def end(self) -> Element:
        assert self._open == [self.root], f"<{self._open[-1].name}> is never closed"
        return self.root


def read(text: str) -> Element:
    """The page's elements; ``AssertionError`` where one is closed in another's place."""
    reader = _Reader()
    reader.feed(text)
    reader.close()
    return reader.end()
