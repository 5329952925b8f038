"""One report for every benchmark: NAME.json, NAME.md and, where there is a plot, NAME.png, with their provenance."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from matplotlib.figure import Figure

from models.provenance import commit, processor, versions

REPORTS: Final = Path(__file__).parent / "reports"

_PACKAGES: Final = ("bentoml", "openvino", "torch", "timm", "pillow", "numpy")


@dataclass(frozen=True, slots=True)
class Effort:
    """How long a benchmark runs.

    Attributes:
        rounds: repetitions; in each, everything that is compared takes its turn. 0 where there are none.
        seconds: length of one measurement in a round, where it is bounded by time.
    """

    rounds: int
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Report:
    """Result of a benchmark.

    Attributes:
        name: of its files.
        data: for the JSON file.
        lines: Markdown.
        figure: a plot, if there is one.
        packages: whose versions matter too.
    """

    name: str
    data: Mapping[str, Any]
    lines: Sequence[str]
    figure: Figure | None = None
    packages: tuple[str, ...] = ()

    def write(self, folder: Path) -> None:
        """Write the files into `folder`, and print the Markdown."""
        where = machine(*self.packages)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.name}.json").write_text(json.dumps({"machine": where, **self.data}, indent=2) + "\n")
        text = "\n".join([*self.lines, "", footer(where), ""])
        (folder / f"{self.name}.md").write_text(text)
        if self.figure is not None:
            self.figure.savefig(folder / f"{self.name}.png", dpi=120)
        print(text)


def machine(*packages: str) -> dict[str, Any]:
    """Describe the machine, the commit, and the versions of Python and of the packages that matter to all reports."""
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "commit": commit(),
        "versions": versions((*_PACKAGES, *packages)),
    }


def footer(where: Mapping[str, Any]) -> str:
    """Return what `machine` described as a line of Markdown."""
    listed = ", ".join(f"{name} {number}" for name, number in where["versions"].items())
    return f"{where['cpu']}, {where['cores']} cores; {listed}; commit {where['commit']}."


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, left: int = 1) -> list[str]:
    """Return a Markdown table; all but the first `left` columns are aligned to the right."""
    aligned = ["---"] * left + ["---:"] * (len(columns) - left)
    return [
        f"| {' | '.join(columns)} |",
        f"|{'|'.join(aligned)}|",
        *(f"| {' | '.join(str(cell) for cell in row)} |" for row in rows),
    ]
