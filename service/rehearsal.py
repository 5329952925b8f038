"""Images of a camera's sizes sent through the pipeline before its first frame comes.

At the first image of a shape a backend allocates and compiles, and nothing is known yet of how long decoding and
masks of that size take: a first frame of 4160 x 1800 was late where the next took half of its deadline.
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
from service.embedding_cache import EmbeddingCache
from service.frames import SIZES
from service.messages import InputChoice, InspectRequest, SegmentRequest, SemanticRequest
from service.pipeline import Pipeline
from service.runners.sam import SamRunner
from service.runners.unet import UNetRunner

_ROUNDS: Final = 3
"""The first is slow, and predictions are medians."""

_GRAIN: Final = 8
"""Pixels: finer noise would take a decoder longer than photographs do."""


async def rehearse(pipeline: Pipeline, sizes: Sequence[Size]) -> None:
    """Answer images of noise in every way that a model and its dials offer, and keep nothing of them.

    Args:
        pipeline: with warmed up runners, not open to callers yet.
        sizes: of the images.

    Raises:
        PomonaError: an image cannot be answered.
    """
    prompted = replace(pipeline.prompted, cache=EmbeddingCache(max_bytes=0, max_age=0))
    for size in sizes:
        for number in range(_ROUNDS):
            data = await asyncio.to_thread(_image, size, number)
            middle = Prompt(points=(Point(size.width / 2, size.height / 2),))
            for name, runner in pipeline.runners.items():
                if isinstance(runner, SamRunner):
                    for choice in _choices(runner):
                        await prompted.segment(SegmentRequest((middle,), data, model=name, input=choice))
                elif isinstance(runner, UNetRunner):
                    await pipeline.semantic(SemanticRequest(data, model=name))
                    await pipeline.inspect(InspectRequest(data, model=name, mode="fast"))


def _choices(runner: SamRunner) -> list[InputChoice]:
    """Every input size that `auto` may take."""
    return [InputChoice(side) for side in SIZES] if runner.backend.flexible else [InputChoice()]


def _image(size: Size, seed: int) -> bytes:
    """A JPEG of smooth noise: flat images are decoded faster than photographs."""
    cells = (max(1, size.height // _GRAIN), max(1, size.width // _GRAIN), 3)
    grain = np.random.default_rng(seed).integers(0, 256, cells, np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(grain).resize((size.width, size.height), PIL.Image.Resampling.BILINEAR).save(buffer, "JPEG")
    return buffer.getvalue()
