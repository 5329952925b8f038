"""Warm-up with images of a camera's sizes before its first frame comes.

For the first image of a shape a backend allocates and compiles, and the times of decoding and of masks of that size
are not known yet: a first frame of 4160 x 1800 was late where the next took half of its deadline.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import PIL.Image

from models.types import Point, Prompt, Size
from service.api.context import RequestContext
from service.api.detection import DetectRequest
from service.api.schema import InputSize, InspectMode, InspectRequest, SegmentRequest, SemanticRequest
from service.pipelines import Pipelines
from service.pipelines.letterboxes import INPUT_SIZES
from service.pipelines.source import encoded
from service.runners.detector import DetectorRunner
from service.runners.embedding_cache import EmbeddingCache
from service.runners.sam import SamRunner
from service.runners.unet import UNetRunner

_ROUNDS: Final = 3
"""The first is slow, and predictions are medians."""

_GRAIN: Final = 8
"""Pixels: finer noise would take a decoder longer than photographs do."""


async def warm_up(pipelines: Pipelines, sizes: Sequence[Size]) -> None:
    """Answer images of noise with every model at every input size, and keep nothing of them.

    Args:
        pipelines: with warmed-up runners, not open to callers yet.
        sizes: of the images.

    Raises:
        PomonaError: an image cannot be answered.
    """
    segment = replace(pipelines.segment, cache=EmbeddingCache(max_bytes=0, max_age=0))
    inspect = pipelines.inspect.unwatched()
    has_sam = any(isinstance(runner, SamRunner) for runner in pipelines.engine.runners.values())
    modes: tuple[InspectMode, ...] = ("fast", "accurate") if has_sam else ("fast",)
    for size in sizes:
        for number in range(_ROUNDS):
            image = encoded(await asyncio.to_thread(_noise, size, number))
            centre = Prompt(points=(Point(size.width / 2, size.height / 2),))
            for name, runner in pipelines.engine.runners.items():
                if isinstance(runner, SamRunner):
                    for request in _requests(name, runner):
                        await segment.segment(request, (centre,), image, _context(pipelines))
                elif isinstance(runner, DetectorRunner):
                    await pipelines.detect.run(DetectRequest(model=name), image, _context(pipelines))
                elif isinstance(runner, UNetRunner):
                    await pipelines.semantic.run(SemanticRequest(model=name), image, _context(pipelines))
                    for mode in modes:
                        await inspect.run(InspectRequest(model=name, mode=mode), image, _context(pipelines))


def _context(pipelines: Pipelines) -> RequestContext:
    now = pipelines.engine.clock()
    return RequestContext(received=now, arrived=now, clock=pipelines.engine.clock)


def _requests(name: str, runner: SamRunner) -> list[SegmentRequest]:
    """Return a request for every input size that `auto` may choose."""
    sizes: tuple[InputSize | None, ...] = INPUT_SIZES if runner.backend.flexible else (None,)
    return [SegmentRequest(model=name, input_size=side, prompts=[]) for side in sizes]


def _noise(size: Size, seed: int) -> bytes:
    """Return a JPEG of smooth noise: flat images are decoded faster than photographs."""
    cells = (max(1, size.height // _GRAIN), max(1, size.width // _GRAIN), 3)
    grain = np.random.default_rng(seed).integers(0, 256, cells, np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(grain).resize((size.width, size.height), PIL.Image.Resampling.BILINEAR).save(buffer, "JPEG")
    return buffer.getvalue()
