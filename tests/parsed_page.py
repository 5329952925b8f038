"""An HTML page, parsed strictly."""

from __future__ import annotations

import base64
from html.parser import HTMLParser
from xml.etree import ElementTree

VOID = {"meta", "img"}
SVG = "data:image/svg+xml;base64,"


class Page(HTMLParser):
    """Elements with attributes, and texts; fails on tags that do not pair."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data))

    def text(self) -> str:
        return " ".join(" ".join(text for tag, text in self.texts if tag != "style").split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def gallery(self) -> list[dict[str, str]]:
        return [each for each in self.all("img") if "data-kind" in each]

    def figures(self) -> list[str]:
        """Return the texts of each figure, whose SVG must be well-formed."""
        sources = [each["src"] for each in self.all("img") if "data-kind" not in each]
        trees = [ElementTree.fromstring(base64.b64decode(each.removeprefix(SVG))) for each in sources]  # noqa: S314
        return [" ".join(" ".join(tree.itertext()).split()) for tree in trees]
