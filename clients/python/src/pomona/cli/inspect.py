"""`pomona inspect`."""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final, TextIO

import click

from pomona.asks import Inspect, Mode
from pomona.cli.inputs import STDIN, Service, picture, pictures, seconds, service_options
from pomona.cli.outcome import Outcome, Tally, as_json, code_of, run
from pomona.masks import save_picture
from pomona.results import Inspection

_EXAMPLES = """\b
Examples:
  pomona inspect frame.jpg
  pomona inspect 'frames/**/*.jpg' --csv out.csv -j 8
  pomona inspect frame.jpg --grade A=0.01 --grade B=0.05 --overlay drawn/
  pomona inspect frames/*.jpg --json | jq -r '.result.fruits[].grade'
"""

_COLUMNS: Final = (
    "image",
    "fruit",
    "grade",
    "infected_fraction",
    "class",
    "confidence",
    "x0",
    "y0",
    "x1",
    "y1",
    "area",
    "truncated",
    "refined",
    "mode",
    "degraded",
    "request_id",
    "error",
)


def _grade(value: str) -> tuple[str, float]:
    name, _, most = value.rpartition("=")
    try:
        share = float(most)
    except ValueError:
        share = math.nan
    if not name or not 0 <= share <= 1:
        raise click.BadParameter(f"{value!r} is no grade; A=0.01 would be one: up to 1 % infected.")
    return name, share


@click.command(epilog=_EXAMPLES)
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option("--csv", "table", help="File for a row per fruit; - for the pipe.")
@click.option("--json", "as_lines", is_flag=True, help="A line of JSON for each picture, masks as COCO RLE.")
@click.option("--overlay", type=click.Path(file_okay=False), help="Folder for the pictures with the fruits drawn in.")
@click.option("--mode", type=click.Choice(["auto", "fast", "accurate"]), default="auto", show_default=True)
@click.option(
    "--grade",
    "grades",
    type=_grade,
    metavar="NAME=MOST",
    multiple=True,
    help="Best first; what none takes is `reject`.",
)
@click.option("--model", help="Catalogue name of the U-Net.")
@click.option("--sam-model", help="Catalogue name of the SAM.")
@click.option("--deadline", type=seconds, metavar="SECONDS", help="After which an answer is too late.")
@click.option("-j", "--jobs", type=click.IntRange(1, 64), default=4, show_default=True, help="Requests at once.")
@service_options()
def inspect(
    *,
    images: tuple[str, ...],
    table: str | None,
    as_lines: bool,
    overlay: str | None,
    mode: Mode,
    grades: tuple[tuple[str, float], ...],
    model: str | None,
    sam_model: str | None,
    deadline: float | None,
    jobs: int,
    service: Service,
) -> None:
    """Fruits, how much of each is infected, and their grades. IMAGE is a file, a pattern or - for the pipe.

    A picture that fails does not stop the others; failures are counted at the end.
    """
    if as_lines and table == STDIN:
        raise click.UsageError("--json and --csv - would both go to the pipe.")
    names = pictures(images)
    drawings = _drawings(names, overlay)
    ask = Inspect(mode=mode, model=model, sam_model=sam_model, grades=dict(grades) or None, overlay=bool(overlay))
    tally = Tally(quiet=as_lines)
    with service.client() as client, _table(table) as rows:

        def work(name: str) -> Inspection:
            result = client.ask(ask, picture(name), deadline=deadline)
            if name in drawings:
                save_picture(result.overlay(), drawings[name])
            return result

        for outcome in run(names, work, jobs=jobs, progress=bool(table) and len(names) > 1):
            tally.add(outcome)
            if rows is not None:
                rows.writerows(_rows(outcome))
            if as_lines:
                click.echo(as_json(outcome, outcome.result.to_dict() if outcome.result else None))
            elif outcome.result is not None and rows is None:
                click.echo(_told(outcome.name, outcome.result))
    tally.finish()


def _drawings(names: list[str], folder: str | None) -> dict[str, Path]:
    if folder is None:
        return {}
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.UsageError(f"--overlay: {folder} cannot be made: {error}.") from error
    stems = {name: "stdin" if name == STDIN else Path(name).stem for name in names}
    if len(set(stems.values())) < len(stems):
        raise click.UsageError("--overlay: several pictures have the same name.")
    return {name: Path(folder) / f"{stem}.png" for name, stem in stems.items()}


@contextmanager
def _table(name: str | None) -> Iterator[Any]:
    if name is None:
        yield None
        return
    try:
        file: AbstractContextManager[TextIO] = (
            nullcontext(sys.stdout) if name == STDIN else Path(name).open("w", newline="", encoding="utf-8")  # noqa: SIM115 (entered below)
        )
    except OSError as error:
        raise click.UsageError(f"--csv: {name} cannot be written: {error}.") from error
    with file as opened:
        rows = csv.DictWriter(opened, _COLUMNS, lineterminator="\n")
        rows.writeheader()
        yield rows


def _rows(outcome: Outcome[Inspection]) -> Iterator[dict[str, Any]]:
    """A row per fruit; one without a fruit for a picture that has none, or failed."""
    result = outcome.result
    if result is None:
        error = outcome.error
        if error is not None:
            yield {"image": outcome.name, "request_id": error.request_id, "error": code_of(error)}
        return
    of_picture = {
        "image": outcome.name,
        "mode": result.mode,
        "degraded": result.degraded,
        "request_id": result.request_id,
    }
    if not result.fruits:
        yield of_picture
    for fruit in result.fruits:
        yield of_picture | {
            "fruit": fruit.id,
            "grade": fruit.grade,
            "infected_fraction": round(fruit.infected_fraction, 6),
            "class": fruit.fruit_class,
            "confidence": round(fruit.confidence, 4),
            **fruit.box._asdict(),
            "area": fruit.area,
            "truncated": fruit.truncated,
            "refined": fruit.refined,
        }


def _told(name: str, result: Inspection) -> str:
    fruits = ", ".join(f"{fruit.grade} {fruit.infected_fraction:.0%}" for fruit in result.fruits)
    degraded = ", degraded" if result.degraded else ""
    count = f"{len(result.fruits)} fruit" + ("" if len(result.fruits) == 1 else "s")
    return f"{name}: {count}{': ' if fruits else ''}{fruits} ({result.mode}{degraded}, {result.timings.total:.0f} ms)"
