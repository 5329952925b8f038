"""The report on the service's operations: one HTML page with figures, and tables of Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from models.evaluation.figures import EmbeddedFigure, clicks_figure, single_point_figure
from models.evaluation.operations import PROTOCOLS, Description, OperationsResults, Protocol, Row, tables
from models.evaluation.report import counted, markdown_row, page_environment, share, write_page
from models.evaluation.results import Interval
from models.evaluation.rounds import MOST_CLICKS, iou_after

REPORT_FILE: Final = "operations.html"
TABLES_FILE: Final = "operations.md"

_TEMPLATE: Final = "operations.html.j2"
_SHOWN_CLICKS: Final = (1, 2, 3, 4, 5, 7, 10, 15, 20)
"""Clicks whose mean IoU stands in tables; the figure and the JSON have all."""


@dataclass(frozen=True, slots=True)
class _Section:
    """A protocol as the template shows it."""

    protocol: Protocol
    about: Description
    columns: tuple[str, ...]
    rows: list[Row]
    figures: list[EmbeddedFigure]


def write_operations_report(results: OperationsResults, folder: Path) -> Path:
    """Write `operations.html`, which needs no other file and no network, and `operations.md`; return the page.

    Raises:
        OSError: a file cannot be written.
    """
    page = write_page(render_page(results), folder / REPORT_FILE)
    (folder / TABLES_FILE).write_text(operations_markdown(results), "utf-8")
    return page


def render_page(results: OperationsResults) -> str:
    """Return the report as HTML."""
    environment = page_environment()
    environment.globals |= {"cell": _cell, "nothing": Interval(math.nan, math.nan, math.nan)}
    return environment.get_template(_TEMPLATE).render(results=results, sections=list(_sections(results.rows)))


def operations_markdown(results: OperationsResults) -> str:
    """Return a table for each protocol, with what it measures."""
    parts = []
    for section in _sections(results.rows):
        header = ["images", "n", section.about.objects, "method", *section.columns]
        lines = [markdown_row(header), markdown_row(["---", "---:", "---:", "---", *("---:" for _ in section.columns)])]
        for row in section.rows:
            measures = (row.measures.get(name) for name in section.columns)
            values = ["" if each is None else share(each.value) for each in measures]
            lines.append(markdown_row([row.images, f"{row.count}", f"{row.objects}", row.method, *values]))
        parts.append(f"## {section.about.title}\n\n{section.about.text}\n\n" + "\n".join(lines))
    made = ", ".join(f"{name} {value}" for name, value in results.options.items())
    parts.append(f"Measured {results.created_at} at commit {results.commit}: {made}.")
    return "\n\n".join(parts) + "\n"


def _sections(rows: Sequence[Row]) -> Iterator[_Section]:
    for protocol, names, own in tables(rows):
        hidden = {iou_after(clicks) for clicks in range(1, MOST_CLICKS + 1) if clicks not in _SHOWN_CLICKS}
        columns = tuple(name for name in names if name not in hidden)
        figures: list[EmbeddedFigure] = []
        if protocol == "rounds":
            draw: tuple[Callable[[Sequence[Row]], EmbeddedFigure], ...] = (clicks_figure, single_point_figure)
            figures = [each(own) for each in draw]
        yield _Section(protocol, PROTOCOLS[protocol], columns, own, figures)


def _cell(row: Row) -> str:
    """Return what a row is of, in a few words."""
    return f"{counted(row.count, 'belt' if row.protocol == 'tracking' else 'image')}, {row.objects:,} annotated"
