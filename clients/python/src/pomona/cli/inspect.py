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
import PIL.Image

from pomona._requests import FruitFinder, Inspect, Mode
from pomona.cli import common
from pomona.images import save_image
from pomona.results import Inspection

_EXAMPLES = """\b
Examples:
  pomona inspect frame.jpg
  pomona inspect 'frames/**/*.jpg' --csv out.csv -j 8
  pomona inspect frame.jpg --grade A=0.01 --grade B=0.05 --overlay overlays/
  pomona inspect frames/*.jpg --json | jq -r '.result.fruits[].grade'
"""

_COLUMNS: Final = (
    "image",
    "fruit",
    "grade",
    "infected_fraction",
    "infected_fraction_low",
    "infected_fraction_high",
    "grade_certain",
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
    name, _, limit = value.rpartition("=")
    try:
        fraction = float(limit)
    except ValueError:
        fraction = math.nan
    if not name or not 0 <= fraction <= 1:
        raise click.BadParameter(f"a grade must be NAME=FRACTION, as A=0.01 for at most 1 % infected, got {value!r}.")
    return name, fraction


@click.command(epilog=_EXAMPLES)
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option("--csv", "table", help="File for a row per fruit; - for stdout.")
@common.json_option
@click.option("--overlay", type=click.Path(file_okay=False), help="Folder for the images with the fruit drawn in.")
@click.option("--mode", type=click.Choice(["auto", "fast", "accurate"]), default="auto", show_default=True)
@click.option(
    "--grade",
    "grades",
    type=_grade,
    metavar="NAME=FRACTION",
    multiple=True,
    help="Largest infected fraction, best grade first; fruit beyond the last is `reject`.",
)
@click.option("--model", help="Name of the U-Net in the catalogue.")
@click.option("--sam-model", help="Name of the SAM in the catalogue.")
@click.option("--finder", type=click.Choice(["unet", "detector", "both"]), help="What finds the fruit.")
@common.deadline_option
@common.jobs_option
@common.service_options()
def inspect(
    *,
    images: tuple[str, ...],
    table: str | None,
    json_lines: bool,
    overlay: str | None,
    mode: Mode,
    grades: tuple[tuple[str, float], ...],
    model: str | None,
    sam_model: str | None,
    finder: FruitFinder | None,
    deadline: float | None,
    jobs: int,
    service: common.Service,
) -> None:
    """Find fruit, its infected fraction and its grade. IMAGE is a file, a pattern, or - for standard input.

    An image that fails does not stop the others; failures are counted at the end.
    """
    if json_lines and table == common.STDIN:
        raise click.UsageError("--json and --csv - would both write to standard output.")
    names = common.expand(images)
    overlays = {} if overlay is None else common.output_files(names, overlay, "--overlay")
    if table is not None:
        _check_table(table, names)
    request = Inspect(
        mode=mode,
        model=model,
        sam_model=sam_model,
        grades=dict(grades) or None,
        overlay=bool(overlay),
        finder=finder,
    )
    summary = common.Summary(quiet=json_lines)
    with service.client() as client, _table(table) as rows:

        def work(name: str, source: str | bytes) -> Inspection:
            result = client.send(request, source, deadline=deadline)
            if name in overlays:
                save_image(result.overlay(), overlays[name])
            return result

        for outcome in common.run(names, work, jobs=jobs, progress=bool(table) and len(names) > 1):
            summary.add(outcome)
            if rows is not None:
                rows.writerows(_rows(outcome))
            if json_lines:
                click.echo(outcome.to_json())
            elif outcome.result is not None and rows is None:
                click.echo(_line(outcome.name, outcome.result))
    summary.finish()


def _check_table(table: str, names: list[str]) -> None:
    common.check_output(table, "--csv", names)
    if Path(table).suffix.lower() in PIL.Image.registered_extensions():
        raise click.UsageError(f"--csv must name a table, as out.csv, got the image {table}.")


@contextmanager
def _table(name: str | None) -> Iterator[Any]:
    if name is None:
        yield None
        return
    try:
        file: AbstractContextManager[TextIO] = (
            nullcontext(sys.stdout) if name == common.STDIN else Path(name).open("w", newline="", encoding="utf-8")  # noqa: SIM115 (entered below)
        )
    except OSError as error:
        raise click.UsageError(f"--csv: {name} cannot be written: {error}.") from error
    with file as opened:
        rows = csv.DictWriter(opened, _COLUMNS, lineterminator="\n")
        rows.writeheader()
        yield rows


def _rows(outcome: common.Outcome[Inspection]) -> Iterator[dict[str, Any]]:
    """Yield a row per fruit; one row for an image without fruit, and for one that failed."""
    result = outcome.result
    if result is None:
        error = outcome.error
        if error is not None:
            yield {"image": outcome.name, "request_id": error.request_id, "error": common.code_of(error)}
        return
    of_image = {
        "image": outcome.name,
        "mode": result.mode,
        "degraded": result.degraded,
        "request_id": result.request_id,
    }
    if not result.fruits:
        yield of_image
    for fruit in result.fruits:
        low, high = fruit.infected_fraction_interval or (None, None)
        yield of_image | {
            "fruit": fruit.id,
            "grade": fruit.grade,
            "infected_fraction": round(fruit.infected_fraction, 6),
            "infected_fraction_low": low if low is None else round(low, 6),
            "infected_fraction_high": high if high is None else round(high, 6),
            "grade_certain": fruit.grade_certain,
            "class": fruit.fruit_class,
            "confidence": round(fruit.confidence, 4),
            **fruit.box._asdict(),
            "area": fruit.area,
            "truncated": fruit.truncated,
            "refined": fruit.refined,
        }


def _line(name: str, result: Inspection) -> str:
    fruits = ", ".join(f"{fruit.grade} {fruit.infected_fraction:.0%}" for fruit in result.fruits)
    degraded = ", degraded" if result.degraded else ""
    count = f"{len(result.fruits)} fruit" + ("" if len(result.fruits) == 1 else "s")
    return f"{name}: {count}{': ' if fruits else ''}{fruits} ({result.mode}{degraded}, {result.timings.total:.0f} ms)"
