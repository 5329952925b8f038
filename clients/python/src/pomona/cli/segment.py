"""`pomona segment`."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import PIL.Image

from pomona._requests import Segment
from pomona.cli import common
from pomona.errors import PomonaError
from pomona.images import ImageSource, save_image
from pomona.masks import Mask
from pomona.prompts import Box, Point, Prompt
from pomona.results import Segmentation

_EXAMPLES = """\b
Examples:
  pomona segment orange.jpg --point 500,375 -o mask.png
  pomona segment orange.jpg --point 500,375 --point 20,20,0 --overlay -o overlay.png
  pomona segment orange.jpg --box 426,74,669,306 --box 763,17,1026,268 --json
  curl -s https://example.com/o.jpg | pomona segment - --point 500,375 -o - > mask.png
  pomona segment 'camera/*.jpg' --box 100,80,900,700 -o masks/
"""


@click.command(epilog=_EXAMPLES)
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@common.point_option("On the object; with ,0 on the background.")
@common.box_option("Around the object; several are an object each.")
@click.option("--mask", help="Image file of an earlier guess, not black inside.")
@click.option("--single", is_flag=True, help="One mask rather than the best of three.")
@click.option("-o", "--output", help="File, or folder for several images, for the best mask as PNG; - for stdout.")
@click.option("--overlay", is_flag=True, help="Write the image with the mask drawn in rather than the mask.")
@click.option("--model", help="Name of a SAM in the catalogue.")
@common.deadline_option
@common.jobs_option
@common.json_option
@common.service_options()
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
    json_lines: bool,
    service: common.Service,
) -> None:
    """Segment what points, boxes or a mask show. IMAGE is a file, a pattern, or - for standard input."""
    if overlay and output is None:
        raise click.UsageError("--overlay needs -o: where to write the image.")
    if json_lines and output == common.STDIN:
        raise click.UsageError("--json and -o - would both write to standard output.")
    try:
        request = Segment(_prompts(points, boxes, mask, multimask=not single), model=model)
    except PomonaError as error:
        raise click.UsageError(error.detail) from error
    names = common.expand(images)
    targets = _targets(names, output, inputs=names if mask is None else [*names, mask])
    summary = common.Summary(quiet=json_lines)
    with service.client() as client:

        def work(name: str, source: str | bytes) -> Segmentation:
            result = client.send(request, source, deadline=deadline)
            if name in targets:
                _write(_output_image(result, source, overlay=overlay), targets[name])
            return result

        # With masks that go to a folder, a progress bar says more than a line each.
        into_folder = len(names) > 1 and output is not None
        for outcome in common.run(names, work, jobs=jobs, progress=into_folder and not json_lines):
            summary.add(outcome)
            if json_lines:
                click.echo(outcome.to_json())
            elif outcome.result is not None and not into_folder:
                for best in outcome.result.best:
                    line = f"score {best.score:.3f}, {best.area} pixels, box {','.join(map(str, best.box))}"
                    click.echo(f"{outcome.name}: {line}", err=output == common.STDIN)
    summary.finish()


def _prompts(points: Sequence[Point], boxes: Sequence[Box], mask: str | None, *, multimask: bool) -> list[Prompt]:
    guess = [] if mask is None else [Mask.open(mask)]
    if not (points or boxes or guess):
        raise click.UsageError("A prompt is needed: --point 500,375 or --box 426,74,669,306.")
    if len(boxes) > 1 and (points or guess):
        raise click.UsageError("Several boxes are an object each, so points and a mask cannot be added to them.")
    if len(boxes) > 1:
        return [Prompt.of(each, multimask=multimask) for each in boxes]
    return [Prompt.of(*points, *boxes, *guess, multimask=multimask)]


def _targets(names: list[str], output: str | None, *, inputs: list[str]) -> dict[str, str | Path]:
    """Return where each image's mask is written."""
    if output is None:
        return {}
    if output == common.STDIN or not (len(names) > 1 or Path(output).is_dir() or output.endswith("/")):
        if len(names) > 1:
            raise click.UsageError("-o - needs exactly one image.")
        common.check_output(output, "-o", inputs)
        return {names[0]: output}
    return {**common.output_files(names, output, "-o")}


def _output_image(result: Segmentation, source: ImageSource, *, overlay: bool) -> PIL.Image.Image:
    if overlay:
        return result.overlay(source)
    if len(result.best) == 1:
        return result.best[0].mask.image()
    return result.index_image()


def _write(image: PIL.Image.Image, target: str | Path) -> None:
    if target != common.STDIN:
        save_image(image, target)
        return
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    sys.stdout.buffer.write(buffer.getvalue())
