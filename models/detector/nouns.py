"""Which classes of a detector a text names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Final

_SEPARATORS: Final = re.compile(r"[,.;\n]|\band\b", re.IGNORECASE)
_ARTICLE: Final = re.compile(r"^(?:a|an|the|all|every|each)\s+")
_IRREGULAR: Final = {"people": "person", "mice": "mouse", "knives": "knife"}


def nouns_of(text: str) -> list[str]:
    """Return the nouns of a text, lower-case, without articles: those between commas, full stops, lines and "and"."""
    words = (" ".join(part.split()).casefold() for part in _SEPARATORS.split(text))
    return [noun for part in words if (noun := _ARTICLE.sub("", part))]


def find_class(noun: str, classes: Sequence[str]) -> int | None:
    """Return the index of the class that a noun names, in the singular or the plural; None where there is none."""
    by_name = {name.casefold(): number for number, name in enumerate(classes)}
    return next((by_name[form] for form in _singulars(noun.casefold()) if form in by_name), None)


def similar_classes(noun: str, classes: Sequence[str]) -> list[str]:
    """Return the names of classes that are spelt like a noun, at most three."""
    return difflib.get_close_matches(noun.casefold(), classes, n=3)


def _singulars(noun: str) -> list[str]:
    """Return what a noun may be in the singular, itself first."""
    first, _, last = noun.rpartition(" ")
    before = f"{first} " if first else ""
    forms = [noun]
    if last in _IRREGULAR:
        forms.append(before + _IRREGULAR[last])
    if last.endswith("ies"):
        forms.append(f"{before}{last[:-3]}y")
    if last.endswith("es"):
        forms.append(before + last[:-2])
    if last.endswith("s"):
        forms.append(before + last[:-1])
    return forms
