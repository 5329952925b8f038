"""What an evaluation found, for people: a page to read, and tables for a README or a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from models.evaluation.report_catalogue import described
from models.evaluation.report_measures import interval_of, main_names
from models.evaluation.report_numbers import counted, interval, milliseconds
from models.evaluation.report_page import page
from models.evaluation.results import Group, ImageFile, Results

REPORT_FILE: Final = "report.html"


def write_report(results: Results, images: Sequence[ImageFile], folder: Path) -> Path:
    """Write the report.

    Args:
        results: what was found.
        images: best and worst of each subject in each group; made smaller where they would make the file larger than
            4 MB.
        folder: where `report.html` goes, an older one being replaced; made if it is not there.

    Returns:
        The file. It needs no other, and no network.

    Raises:
        DataError: an image is no JPEG.
        OSError: the file cannot be written.
    """
    text = page(results, images)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / REPORT_FILE
    part = file.with_suffix(".part")
    part.write_text(text, "utf-8")
    return part.replace(file)


def summary_markdown(results: Results) -> str:
    """The main table of each group.

    Args:
        results: what was found.

    Returns:
        Markdown: a heading and a table for each group, with 95 % intervals in brackets and the median of the total time
        of an image; a dash is not measured.
    """
    return "\n\n".join(_group_markdown(group) for group in results.groups) + "\n"


def _group_markdown(group: Group) -> str:
    names = main_names(group)
    heads = ["Subject", described(names[0]).title, "Time, ms", *(described(name).title for name in names[1:])]
    rows = [
        [
            each.subject.title + (" (oracle)" if each.subject.oracle else ""),
            interval(interval_of(each, names[0])),
            milliseconds(each.milliseconds.get("total", math.nan)),
            *(interval(interval_of(each, name)) for name in names[1:]),
        ]
        for each in group.measured
    ]
    fruits = f", {counted(group.fruits, 'fruit')}" if group.fruits else ""
    lines = [f"**{_plain(group.title)}** ({counted(group.images, 'image')}{fruits})", "", _row(heads)]
    return "\n".join([*lines, _row(["---", *("---:" for _ in heads[1:])]), *(_row(row) for row in rows)])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_plain(cell) for cell in cells)} |"


def _plain(text: str) -> str:
    """Text that cannot break a table, nor be taken for HTML or emphasis."""
    joined = " ".join(text.split())
    for character in "\\`*_[]<>|":
        joined = joined.replace(character, f"\\{character}")
    return joined
