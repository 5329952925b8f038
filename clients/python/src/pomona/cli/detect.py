"""`pomona detect`: boxes of a detector, with masks of a SAM, or of what a text names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import click

from pomona._requests import Detect, FindInstances, FindText, Request
from pomona.cli import common
from pomona.errors import PomonaError
from pomona.images import save_image
from pomona.results import Detections, Instances

_EXAMPLES = """\b
Examples:
  pomona detect oranges.jpg
  pomona detect 'tree/*.jpg' --class orange --class apple --score 0.4 --json
  pomona detect oranges.jpg --masks --overlay overlays/
  pomona detect oranges.jpg --text oranges --overlay overlays/
"""


@click.command(epilog=_EXAMPLES)
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option("--class", "classes", multiple=True, metavar="NAME", help="A class that is wanted; repeatable; else all.")
@click.option("--text", "words", metavar="NOUNS", help="Outline what these nouns name.")
@click.option("--masks", is_flag=True, help="Let a SAM outline what is found.")
@click.option("--score", type=click.FloatRange(0, 1), help="Least score of a box (0.3).")
@click.option("--most", type=click.IntRange(1, 300), help="Most objects of an image, the best.")
@common.json_option
@click.option("--overlay", type=click.Path(file_okay=False), help="Folder for the images with the objects drawn in.")
@click.option("--model", help="Name of a detector in the catalogue.")
@click.option("--sam-model", help="Name of a SAM in the catalogue.")
@common.deadline_option
@common.jobs_option
@common.service_options()
def detect(
    *,
    images: tuple[str, ...],
    classes: tuple[str, ...],
    words: str | None,
    masks: bool,
    score: float | None,
    most: int | None,
    json_lines: bool,
    overlay: str | None,
    model: str | None,
    sam_model: str | None,
    deadline: float | None,
    jobs: int,
    service: common.Service,
) -> None:
    """Find objects of known classes. IMAGE is a file, a pattern, or - for standard input."""
    if words is not None and classes:
        raise click.UsageError("--text names the classes: --class cannot be added to it.")
    if sam_model is not None and not (masks or words is not None):
        raise click.UsageError("--sam-model needs --masks or --text: boxes alone need no SAM.")
    drawn = bool(overlay)
    outlined: dict[str, Any] = {"model": model, "sam_model": sam_model, "score_threshold": score, "max_instances": most}
    request: Request[Detections] | Request[Instances]
    try:
        if words is not None:
            request = FindText(words, overlay=drawn, **outlined)
        elif masks:
            request = FindInstances(classes=classes or None, overlay=drawn, **outlined)
        else:
            request = Detect(
                classes=classes or None, model=model, score_threshold=score, max_detections=most, overlay=drawn
            )
    except PomonaError as error:
        raise click.UsageError(error.detail) from error
    names = common.expand(images)
    overlays = {} if overlay is None else common.output_files(names, overlay, "--overlay")
    summary = common.Summary(quiet=json_lines)
    with service.client() as client:

        def work(name: str, source: str | bytes) -> Detections | Instances:
            found: Any = client.send(request, source, deadline=deadline)
            result: Detections | Instances = found
            if name in overlays and result.overlay_png is not None:
                save_image(result.overlay(), overlays[name])
            return result

        for outcome in common.run(names, work, jobs=jobs, progress=False):
            summary.add(outcome)
            if json_lines:
                click.echo(outcome.to_json())
            elif outcome.result is not None:
                click.echo(f"{outcome.name}: {_line(outcome.result)}")
    summary.finish()


def _line(result: Detections | Instances) -> str:
    objects: Iterable[str] = (
        (each.class_name for each in result.instances)
        if isinstance(result, Instances)
        else (each.class_name for each in result.detections)
    )
    counts = Counter(objects)
    found = ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing"
    return f"{found} ({result.timings.total:.0f} ms)"
