"""`pomona edges`."""

from __future__ import annotations

import click

from pomona._requests import EdgeDepth, Edges
from pomona.cli import common
from pomona.errors import PomonaError
from pomona.proposals import EdgeMap

_EXAMPLES = """\b
Examples:
  pomona edges orange.jpg -o edges.png
  pomona edges 'camera/*.jpg' --depth 16 -o edges/
"""


@click.command(epilog=_EXAMPLES)
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option("-o", "--output", required=True, help="PNG of the edges, or folder for several images.")
@click.option("--points-per-side", type=int, metavar="N", help="Ask at N x N points; 16 by default.")
@click.option("--thick", is_flag=True, help="Edges as wide as they are found, instead of their ridges.")
@click.option("--depth", type=click.Choice(["8", "16"]), default="8", show_default=True, help="Bits per pixel.")
@click.option("--model", help="Name of a SAM in the catalogue.")
@common.deadline_option
@common.jobs_option
@common.json_option
@common.service_options()
def edges(
    *,
    images: tuple[str, ...],
    output: str,
    points_per_side: int | None,
    thick: bool,
    depth: EdgeDepth,
    model: str | None,
    deadline: float | None,
    jobs: int,
    json_lines: bool,
    service: common.Service,
) -> None:
    """Draw the edges of everything in images. IMAGE is a file, a pattern, or - for standard input."""
    try:
        request = Edges(points_per_side=points_per_side, thick=thick, depth=depth, model=model)
    except PomonaError as error:
        raise click.UsageError(error.detail) from error
    names = common.expand(images)
    targets = common.targets_of(names, output, "-o")
    summary = common.Summary(quiet=json_lines)
    with service.client() as client:

        def work(name: str, source: str | bytes) -> EdgeMap:
            result = client.send(request, source, deadline=deadline)
            result.save(targets[name])
            return result

        for outcome in common.run(names, work, jobs=jobs, progress=len(names) > 1 and not json_lines):
            summary.add(outcome)
            if json_lines:
                click.echo(outcome.to_json())
            elif outcome.result is not None:
                click.echo(f"{outcome.name}: edges of {outcome.result.masks} masks")
    summary.finish()
