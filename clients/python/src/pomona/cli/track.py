"""`pomona track`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

import click

from pomona.cli import common
from pomona.errors import PomonaError
from pomona.images import save_image
from pomona.prompts import Box, Point, Prompt
from pomona.video import TrackedFrame, TrackFrame

_EXAMPLES = """\b
Examples:
  pomona track 'frames/*.jpg' --box 426,74,669,306 -o masks/
  pomona track 'frames/*.jpg' --box 426,74,669,306 --box 763,17,1026,268 --overlay -o overlays/
  pomona track 'frames/*.jpg' --point 500,375 --point 20,20,0 --json
"""


@click.command(epilog=_EXAMPLES)
@click.argument("frames", nargs=-1, required=True, metavar="FRAME...")
@common.point_option("On the object in the first frame; with ,0 on the background.")
@common.box_option("Around the object in the first frame; several are an object each, numbered from 1.")
@click.option("-o", "--output", help="Folder for a PNG per frame whose pixels are the objects' numbers.")
@click.option("--overlay", is_flag=True, help="Write the frames with the masks drawn in rather than the numbers.")
@click.option("--model", help="Name of a SAM 2 in the catalogue.")
@common.deadline_option
@common.json_option
@common.service_options()
def track(
    *,
    frames: tuple[str, ...],
    points: tuple[Point, ...],
    boxes: tuple[Box, ...],
    output: str | None,
    overlay: bool,
    model: str | None,
    deadline: float | None,
    json_lines: bool,
    service: common.Service,
) -> None:
    """Follow objects over the frames of a video, in the order given. FRAME is a file or a pattern; needs a SAM 2.

    A frame that fails is left out, and the objects are looked for in the next one; without the first there is nothing
    to follow.
    """
    if overlay and output is None:
        raise click.UsageError("--overlay needs -o: where to write the frames.")
    try:
        first = TrackFrame(prompts=_prompts(points, boxes), model=model)
    except PomonaError as error:
        raise click.UsageError(error.detail) from error
    names = common.expand(frames)
    targets = {} if output is None else common.output_files(names, output, "-o")
    summary = common.Summary(quiet=json_lines)
    session: str | None = None
    with service.client() as client:

        def work(name: str, source: str | bytes) -> TrackedFrame:
            nonlocal session
            result = client.send(first if session is None else TrackFrame(session=session), source, deadline=deadline)
            session = result.session
            if name in targets:
                save_image(result.overlay(source) if overlay else result.index_image(), targets[name])
            return result

        for outcome in common.run(names, work, jobs=1, progress=not json_lines):
            summary.add(outcome)
            if json_lines:
                click.echo(outcome.to_json())
            elif outcome.result is not None:
                click.echo(f"{outcome.name}: {_line(outcome.result)}")
            if session is None:
                break
        if session is not None:  # after an interrupt it expires by itself
            with contextlib.suppress(PomonaError):
                client.end_tracking(session)
    summary.finish()


def _prompts(points: Sequence[Point], boxes: Sequence[Box]) -> Mapping[int, Prompt]:
    if not points and not boxes:
        raise click.UsageError("A prompt is needed: --point 500,375 or --box 426,74,669,306.")
    if len(boxes) > 1 and points:
        raise click.UsageError("Several boxes are an object each, so points cannot be added to them.")
    if len(boxes) > 1:
        return {number: Prompt.of(each) for number, each in enumerate(boxes, start=1)}
    return {1: Prompt.of(*points, *boxes)}


def _line(result: TrackedFrame) -> str:
    shown = (
        f"{each.object_id} in {','.join(map(str, each.box))}" if each.visible else f"{each.object_id} out of view"
        for each in result.objects
    )
    return "; ".join(shown)
