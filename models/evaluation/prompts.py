"""Prompts for a SAM, made from the annotation as a careful user would make them."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Final

import numpy as np

from models.data.samples import Sample
from models.sam.clicks import centre_of
from models.types import BinaryMask, Box, PixelClass, Point, Prompt, Size

JITTER: Final = 0.05
"""Standard deviation of each of a box's sides, as a share of the box's length across that side."""

FURTHEST: Final = 2.0
"""Most that a side moves, in standard deviations."""


@dataclass(frozen=True, slots=True, eq=False)
class Wanted:
    """A fruit to ask for.

    Attributes:
        mask: bool (height, width) of the image, without ignored pixels; not empty.
        by_box: the fruit's box with jitter.
        by_point: one click at its innermost pixel.
    """

    mask: BinaryMask
    by_box: Prompt
    by_point: Prompt


def wanted_fruits(sample: Sample, seed: int) -> list[Wanted]:
    """Every annotated fruit, with prompts for it.

    Args:
        sample: with an instance map, or no fruit is told.
        seed: of the jitter, which depends on it and on the image's name alone.

    Returns:
        In the order of the annotation, without fruits that lie in ignored pixels entirely.
    """
    rng = np.random.default_rng([seed, zlib.crc32(sample.name.encode())])
    counted = sample.semantic != PixelClass.IGNORE
    found = []
    for instance in sample.instances if sample.instance_map is not None else ():
        box = jittered_box(instance.box, sample.size, rng)
        mask = (sample.instance_map == instance.id) & counted
        if mask.any():
            found.append(Wanted(mask, Prompt(box=box, multimask=False), Prompt(points=(_centre(mask, instance.box),))))
    return found


def jittered_box(box: tuple[int, int, int, int], size: Size, rng: np.random.Generator) -> Box:
    """Move each side of a box by normal noise, as nobody draws boxes to the pixel.

    Args:
        box: half-open `[x0, y0, x1, y1)` in whole pixels, not empty.
        size: of the image.
        rng: draws the noise.

    Returns:
        A box within the image, at least a pixel wide and high; each side at most `JITTER * FURTHEST` of the box's
        length from where it was, so sides never swap.
    """
    x0, y0, x1, y1 = box
    lengths = np.array([x1 - x0, y1 - y0] * 2, np.float64)
    moved = np.asarray(box, np.float64) + JITTER * lengths * np.clip(rng.normal(size=4), -FURTHEST, FURTHEST)
    limits = np.array([size.width, size.height], np.float64)
    low = np.clip(moved[:2], 0, limits - 1)
    high = np.clip(moved[2:], low + 1, limits)
    return Box(float(low[0]), float(low[1]), float(high[0]), float(high[1]))


def _centre(mask: BinaryMask, box: tuple[int, int, int, int]) -> Point:
    x0, y0, x1, y1 = box
    x, y = centre_of(mask[y0:y1, x0:x1])
    return Point(x0 + x, y0 + y)
