"""A run's numbers by epoch: a CSV file, and an image of it."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator


def write_curves(file: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Write all epochs; the file is replaced at once, never left half written.

    Args:
        file: CSV; the columns are those of the first row.
        rows: one for each epoch, all with the same names.

    Raises:
        OSError: the file cannot be written.
    """
    part = file.with_suffix(".part")
    with part.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, fieldnames=list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in rows)
    part.replace(file)


def read_curves(file: Path) -> list[dict[str, float]]:
    """Read what `write_curves` wrote.

    Raises:
        OSError: the file cannot be read.
        ValueError: something in it is no number.
    """
    with file.open(newline="", encoding="utf-8") as content:
        return [{name: float(text) for name, text in row.items()} for row in csv.DictReader(content)]


def plot_curves(file: Path, rows: Sequence[Mapping[str, float]], panels: Mapping[str, Sequence[str]]) -> None:
    """Draw curves over the epochs.

    Args:
        file: PNG to write.
        rows: one for each epoch, with "epoch" among the names.
        panels: names of the curves of each panel, by the panel's title; panels without any number are left out.

    Raises:
        OSError: the file cannot be written.
    """
    shown = {title: [name for name in names if _any_number(rows, name)] for title, names in panels.items()}
    shown = {title: names for title, names in shown.items() if names}
    figure = Figure(figsize=(9, 3.2 * max(1, len(shown))), layout="constrained")
    epochs = [row["epoch"] for row in rows]
    for place, (title, names) in enumerate(shown.items(), start=1):
        axes = figure.add_subplot(len(shown), 1, place)
        for name in names:
            axes.plot(epochs, [row.get(name, math.nan) for row in rows], marker=".", label=name)
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(visible=True, alpha=0.3)
        axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(file, dpi=110)


def _any_number(rows: Sequence[Mapping[str, float]], name: str) -> bool:
    return any(not math.isnan(row.get(name, math.nan)) for row in rows)
