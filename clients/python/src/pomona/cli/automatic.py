"""`pomona automatic`."""

from __future__ import annotations

import click

from pomona._requests import Automatic, Preset
from pomona.cli import common
from pomona.errors import PomonaError
from pomona.images import save_image
from pomona.proposals import Proposals

_EXAMPLES = """\b
Examples:
  pomona automatic orange.jpg -o masks.png
  pomona automatic orange.jpg --preset fast --overlay -o overlay.png
  pomona automatic 'camera/*.jpg' --min-area 400 --coco annotations/
  pomona automatic orange.jpg --deadline 5 --json
"""


@click.command(epilog=_EXAMPLES)
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option(
    "--preset",
    type=click.Choice(["full", "fast"]),
    default="full",
    show_default=True,
    help="32 x 32 or 16 x 16 points.",
)
@click.option("--points-per-side", type=int, metavar="N", help="Ask at N x N points instead.")
@click.option("--crop-layers", type=int, default=0, metavar="N", help="Also look at crops: 1 for 4, 2 for 20.")
@click.option("--min-area", type=int, default=0, metavar="PIXELS", help="Leave out smaller masks, fill smaller holes.")
@click.option("--max-area", type=int, metavar="PIXELS", help="Leave out larger masks.")
@click.option("--max-masks", type=int, metavar="N", help="Only the best N.")
@click.option("-o", "--output", help="PNG whose pixels are the masks' numbers, or folder for several images.")
@click.option("--overlay", is_flag=True, help="Write the image with the masks drawn in rather than their numbers.")
@click.option("--coco", help="Folder for COCO's JSON, a file per image.")
@click.option("--model", help="Name of a SAM in the catalogue.")
@common.deadline_option
@common.jobs_option
@common.json_option
@common.service_options()
def automatic(
    *,
    images: tuple[str, ...],
    preset: Preset,
    points_per_side: int | None,
    crop_layers: int,
    min_area: int,
    max_area: int | None,
    max_masks: int | None,
    output: str | None,
    overlay: bool,
    coco: str | None,
    model: str | None,
    deadline: float | None,
    jobs: int,
    json_lines: bool,
    service: common.Service,
) -> None:
    """Mask everything in images. IMAGE is a file, a pattern, or - for standard input."""
    if overlay and output is None:
        raise click.UsageError("--overlay needs -o: where to write the image.")
    try:
        request = Automatic(
            preset=preset,
            points_per_side=points_per_side,
            crop_layers=crop_layers,
            min_area=min_area,
            max_area=max_area,
            max_masks=max_masks,
            model=model,
        )
    except PomonaError as error:
        raise click.UsageError(error.detail) from error
    names = common.expand(images)
    targets = common.targets_of(names, output, "-o")
    annotations = {} if coco is None else common.output_files(names, coco, "--coco")
    summary = common.Summary(quiet=json_lines)
    with service.client() as client:

        def work(name: str, source: str | bytes) -> Proposals:
            result = client.send(request, source, deadline=deadline)
            if name in targets:
                save_image(result.overlay(source) if overlay else result.index_image(), targets[name])
            if name in annotations:
                result.save(annotations[name].with_suffix(".json"))
            return result

        for outcome in common.run(names, work, jobs=jobs, progress=len(names) > 1 and not json_lines):
            summary.add(outcome)
            if json_lines:
                click.echo(outcome.to_json())
            elif outcome.result is not None:
                click.echo(f"{outcome.name}: {_line(outcome.result)}")
    summary.finish()


def _line(result: Proposals) -> str:
    line = f"{len(result.masks)} masks"
    if result.degraded:
        return f"{line}, after {result.points_done} of {result.points_total} points"
    return line
