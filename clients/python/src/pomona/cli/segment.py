"""`pomona segment`."""

from __future__ import annotations

import io
import sys
from collections import Counter
from pathlib import Path

import click
import PIL.Image

from pomona.asks import Segment
from pomona.cli.inputs import STDIN, Service, box, picture, pictures, point, prompts, seconds, service_options
from pomona.cli.outcome import Tally, as_json, run
from pomona.errors import PomonaError
from pomona.images import ImageSource
from pomona.masks import save_picture
from pomona.results import Segmentation
from pomona.shapes import Box, Point

_EXAMPLES = """\b
Examples:
  pomona segment orange.jpg --point 500,375 -o mask.png
  pomona segment orange.jpg --point 500,375 --point 20,20,0 --overlay -o drawn.png
  pomona segment orange.jpg --box 426,74,669,306 --box 763,17,1026,268 --json
  curl -s https://example.com/o.jpg | pomona segment - --point 500,375 -o - > mask.png
  pomona segment 'camera/*.jpg' --box 100,80,900,700 -o masks/
"""


@click.command(epilog=_EXAMPLES)
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option(
    "--point",
    "points",
    type=point,
    metavar="X,Y[,LABEL]",
    multiple=True,
    help="On what is wanted; with ,0 on what is not.",
)
@click.option(
    "--box",
    "boxes",
    type=box,
    metavar="X0,Y0,X1,Y1",
    multiple=True,
    help="Around what is wanted; several are a thing each.",
)
@click.option("--mask", help="A picture of an earlier guess, not black where it is.")
@click.option("--single", is_flag=True, help="One mask rather than the best of three.")
@click.option("-o", "--output", help="File or, for several pictures, folder for the best mask as PNG; - for the pipe.")
@click.option("--overlay", is_flag=True, help="Write the picture with the mask drawn in rather than the mask.")
@click.option("--model", help="Catalogue name of a SAM.")
@click.option("--deadline", type=seconds, metavar="SECONDS", help="After which an answer is too late.")
@click.option("-j", "--jobs", type=click.IntRange(1, 64), default=4, show_default=True, help="Requests at once.")
@click.option("--json", "as_lines", is_flag=True, help="A line of JSON for each picture, masks as COCO RLE.")
@service_options()
def segment(
    *,
    images: tuple[str, ...],
    points: tuple[Point, ...],
    boxes: tuple[Box, ...],
    mask: str | None,
    single: bool,
    output: str | None,
    overlay: bool,
    model: str | None,
    deadline: float | None,
    jobs: int,
    as_lines: bool,
    service: Service,
) -> None:
    """Masks for points, boxes and masks on pictures. IMAGE is a file, a pattern or - for the pipe."""
    if overlay and output is None:
        raise click.UsageError("--overlay needs -o: where to write the picture.")
    if as_lines and output == STDIN:
        raise click.UsageError("--json and -o - would both go to the pipe.")
    try:
        ask = Segment(prompts(points, boxes, mask, multimask=not single), model=model)
    except PomonaError as error:
        raise click.UsageError(error.detail) from error
    names = pictures(images)
    targets = _targets(names, output)
    tally = Tally(quiet=as_lines)
    with service.client() as client:

        def work(name: str) -> Segmentation:
            source = picture(name)
            result = client.ask(ask, source, deadline=deadline)
            if name in targets:
                _write(_drawn(result, source, overlay=overlay), targets[name])
            return result

        # Where the masks go to a folder a bar tells more than a line for each.
        into_folder = len(names) > 1 and output is not None
        for outcome in run(names, work, jobs=jobs, progress=into_folder and not as_lines):
            tally.add(outcome)
            if as_lines:
                click.echo(as_json(outcome, outcome.result.to_dict() if outcome.result else None))
            elif outcome.result is not None and not into_folder:
                _tell(outcome.name, outcome.result, err=output == STDIN)
    tally.finish()


def _targets(names: list[str], output: str | None) -> dict[str, str]:
    """Where each picture's mask goes."""
    if output is None:
        return {}
    folder = Path(output)
    if output == STDIN or not (len(names) > 1 or folder.is_dir() or output.endswith("/")):
        if len(names) > 1:
            raise click.UsageError("-o - is for one picture.")
        return {names[0]: output}
    stems = {name: "stdin" if name == STDIN else Path(name).stem for name in names}
    twice = [stem for stem, count in Counter(stems.values()).items() if count > 1]
    if twice:
        raise click.UsageError(f"Several pictures would be written to {folder / twice[0]}.png.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.UsageError(f"-o: {folder} is no folder and cannot be made: {error}.") from error
    return {name: str(folder / f"{stem}.png") for name, stem in stems.items()}


def _drawn(result: Segmentation, source: ImageSource, *, overlay: bool) -> PIL.Image.Image:
    if overlay:
        return result.overlay(source)
    if len(result.best) == 1:
        return result.best[0].mask.image()
    return PIL.Image.fromarray(result.index_map())


def _write(drawn: PIL.Image.Image, target: str) -> None:
    if target != STDIN:
        save_picture(drawn, target)
        return
    buffer = io.BytesIO()
    drawn.save(buffer, "PNG")
    sys.stdout.buffer.write(buffer.getvalue())


def _tell(name: str, result: Segmentation, *, err: bool) -> None:
    for best in result.best:
        sides = ",".join(map(str, best.box))
        click.echo(f"{name}: score {best.score:.3f}, {best.area} pixels, box {sides}", err=err)
