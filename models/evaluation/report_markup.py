"""HTML and SVG as trees: text is escaped where it is written out, so no part of the page can forget to."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, TypeAlias
from xml.etree.ElementTree import Element, tostring

Node: TypeAlias = "Element | str"

# What HTML allows nowhere, and halves of characters, which file names can hold but UTF-8 cannot.
_UNWRITABLE: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


def element(tag: str, *children: Node | Iterable[Node], **attributes: str | float) -> Element:
    """Make an element.

    Args:
        tag: its name.
        children: text and elements, or sequences of them, in order.
        attributes: by name: `class_` is `class`, and other underscores are hyphens (`aria_label`); numbers are written
            with at most two decimals.

    Returns:
        The element.
    """
    made = Element(tag, {_attribute(name): _written(value) for name, value in attributes.items()})
    last: Element | None = None
    for node in _flat(children):
        if isinstance(node, Element):
            made.append(node)
            last = node
        elif last is None:
            made.text = (made.text or "") + _written(node)
        else:
            last.tail = (last.tail or "") + _written(node)
    return made


def document(root: Element) -> str:
    """Write a page out.

    Args:
        root: its `html` element.

    Returns:
        HTML 5.
    """
    return "<!DOCTYPE html>\n" + tostring(root, encoding="unicode", method="html") + "\n"


def _flat(children: Iterable[Node | Iterable[Node]]) -> Iterable[Node]:
    for child in children:
        # An element is a sequence too, of what is in it.
        if isinstance(child, (str, Element)):
            yield child
        else:
            yield from child


def _attribute(name: str) -> str:
    return name.rstrip("_").replace("_", "-")


def _written(value: str | float) -> str:
    if isinstance(value, str):
        return _UNWRITABLE.sub("\N{REPLACEMENT CHARACTER}", value)
    return f"{value:.2f}".rstrip("0").rstrip(".")
