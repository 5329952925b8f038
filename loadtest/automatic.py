"""Masks of everything in an image, beside segment-anything's own generator: `python -m loadtest automatic`.

Both have the same checkpoint, parameters and input, and take turns in one process: Pomona from JPEG to RLE through its
pipeline on OpenVINO, and `SamAutomaticMaskGenerator` on PyTorch. The preset `fast` is measured on an image that was
encoded before, as a line would ask for proposals on a frame that it has inspected.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from pycocotools import mask as coco
from segment_anything import SamAutomaticMaskGenerator

from loadtest.report import Effort, Report, table
from loadtest.server import MODEL
from loadtest.single_image import reference_sam
from models import images
from service.api.context import RequestContext
from service.api.proposals import AutomaticRequest, AutomaticResponse
from service.api.schema import EmbedRequest, RleMask
from service.lifecycle import load_pipelines
from service.pipelines import Pipelines
from service.pipelines.source import ImageInput, encoded
from service.settings import Settings

REFERENCE: Final = "SamAutomaticMaskGenerator"
POMONA: Final = "Pomona"
FAST: Final = "Pomona, fast, image known"
IMAGES: Final = ("oranges.jpg", "frame.jpg")
PER_SIDE: Final = 32
MATCHED: Final = 0.9
"""IoU from which two masks are the same."""

_DOCS: Final = Path(__file__).parent.parent / "docs"
_MAX_PIXELS: Final = 50_000_000
_LONGEST_S: Final = 3600.0


def main(effort: Effort, folder: Path) -> None:
    """Measure, and write `automatic`."""
    data = asyncio.run(measure(effort.rounds, PER_SIDE))
    Report("automatic", data, lines_of(data, effort)).write(folder)


async def measure(rounds: int, per_side: int) -> dict[str, Any]:
    """Return the seconds and the masks of both for every image.

    Args:
        rounds: in each, both take their turn on every image.
        per_side: points along each side of the grid.
    """
    settings = Settings(models=(MODEL,), backend="openvino", request_timeout_s=_LONGEST_S)
    pipelines = await load_pipelines(settings, device_index=0)
    generator = SamAutomaticMaskGenerator(
        reference_sam(settings.model_store), points_per_side=per_side, output_mode="coco_rle"
    )
    request = AutomaticRequest(points_per_side=per_side, input_size=1024, padding="square")
    measured: dict[str, Any] = {}
    for name in IMAGES:
        data = (_DOCS / name).read_bytes()
        seconds: dict[str, list[float]] = {REFERENCE: [], POMONA: [], FAST: []}
        for number in range(rounds):
            fresh = encoded(data + bytes([number]))  # a decoder ignores what follows the image; the cache does not
            theirs, took = await asyncio.to_thread(_timed, lambda: _generate(generator, data))  # noqa: B023
            seconds[REFERENCE].append(took)
            ours = await _ask(pipelines, request, fresh, seconds[POMONA])
            await pipelines.segment.embed(EmbedRequest(padding="none"), fresh, _context(pipelines))
            known = ImageInput(image_id=ours.image.id)
            await _ask(pipelines, AutomaticRequest(preset="fast", padding="none"), known, seconds[FAST])
        measured[name] = {
            "seconds": {method: round(statistics.median(values), 2) for method, values in seconds.items()},
            **_agreement(ours, theirs),
        }
    await pipelines.engine.close(1.0)
    return {"points": per_side**2, "images": measured}


def lines_of(data: Mapping[str, Any], effort: Effort) -> list[str]:
    """Return the report as Markdown."""
    rows = []
    for name, one in data["images"].items():
        seconds = one["seconds"]
        ratio = seconds[REFERENCE] / seconds[POMONA]
        rows.append(
            (
                name,
                *(f"{seconds[method]:g}" for method in (REFERENCE, POMONA)),
                f"{ratio:.1f}",
                f"{seconds[FAST]:g}",
                f"{one['matched']} of {one['reference']}",
                one["extra"],
            )
        )
    columns = ["image", f"{REFERENCE}, s", "Pomona, s", "times faster", "fast, image known, s", "matched", "extra"]
    return [
        "# Everything in an image",
        "",
        f"{data['points']} points, 1024 square, MobileSAM; medians of {effort.rounds} rounds, in which both take",
        "turns.",
        f"A mask is matched by one with an IoU of at least {MATCHED}. Fast: 256 points, without padding, the image",
        "encoded before.",
        "",
        *table(columns, rows),
    ]


async def _ask(
    pipelines: Pipelines, request: AutomaticRequest, image: ImageInput, seconds: list[float]
) -> AutomaticResponse:
    context = _context(pipelines)
    answer = await pipelines.automatic.run(request, image, context)
    seconds.append(pipelines.engine.clock() - context.arrived)
    return answer


def _context(pipelines: Pipelines) -> RequestContext:
    now = pipelines.engine.clock()
    return RequestContext(received=now, arrived=now)


def _generate(generator: SamAutomaticMaskGenerator, data: bytes) -> Sequence[Mapping[str, Any]]:
    with torch.inference_mode():
        found: Sequence[Mapping[str, Any]] = generator.generate(images.decode(data, max_pixels=_MAX_PIXELS).pixels)
    return found


def _timed(call: Callable[[], Sequence[Mapping[str, Any]]]) -> tuple[Sequence[Mapping[str, Any]], float]:
    started = time.perf_counter()
    return call(), time.perf_counter() - started


def _agreement(ours: AutomaticResponse, theirs: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    masks = [mask.mask for mask in ours.masks if isinstance(mask.mask, RleMask)]
    mine = [{"size": list(mask.size), "counts": mask.counts} for mask in masks]
    overlaps = coco.iou(mine, [one["segmentation"] for one in theirs], [0] * len(theirs))
    return {
        "reference": len(theirs),
        "pomona": len(masks),
        "matched": int((overlaps.max(axis=0) >= MATCHED).sum()),
        "extra": int((overlaps.max(axis=1) < MATCHED).sum()),
    }
