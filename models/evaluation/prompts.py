"""Prompts for a SAM, made from the annotation the way a careful user would make them."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Final

import numpy as np

from models.data.samples import Sample
from models.sam.clicks import centre_of, moved_box
from models.types import BinaryMask, Box, PixelClass, Point, Prompt, Size

JITTER: Final = 0.05
"""Standard deviation of each side of a box, as a share of the box's length across that side."""

MAX_DEVIATIONS: Final = 2.0
"""Largest move of a side, in standard deviations; so sides never swap."""


@dataclass(frozen=True, slots=True, eq=False)
class PromptedFruit:
    """An annotated fruit, and prompts for it.

    Attributes:
        mask: bool (height, width) of the image, without ignored pixels; not empty.
        by_box: the fruit's box with jitter.
        by_point: one click at its innermost pixel.
    """

    mask: BinaryMask
    by_box: Prompt
    by_point: Prompt


def prompted_fruits(sample: Sample, seed: int) -> list[PromptedFruit]:
    """Return every annotated fruit with prompts for it.

    Args:
        sample: the image; without an instance map it has no fruits.
        seed: of the jitter, which depends on the seed and the image's name only.

    Returns:
        The fruits in the order of the annotation, without those that lie in ignored pixels entirely.
    """
    rng = np.random.default_rng([seed, zlib.crc32(sample.name.encode())])
    counted = sample.semantic != PixelClass.IGNORE
    found = []
    for instance in sample.instances if sample.instance_map is not None else ():
        box = jittered_box(instance.box, sample.size, rng)  # also where it is not used: other fruits keep their noise
        mask = (sample.instance_map == instance.id) & counted
        if mask.any():
            x0, y0, x1, y1 = instance.box
            x, y = centre_of(mask[y0:y1, x0:x1])
            by_point = Prompt(points=(Point(x0 + x, y0 + y),))
            found.append(PromptedFruit(mask, Prompt(box=box, multimask=False), by_point))
    return found


def jittered_box(box: tuple[int, int, int, int], size: Size, rng: np.random.Generator) -> Box:
    """Move each side of a box by normal noise, as people do not draw boxes to the pixel.

    Args:
        box: half-open `[x0, y0, x1, y1)` in whole pixels, not empty.
        size: of the image.
        rng: source of the noise.

    Returns:
        A box within the image, at least one pixel wide and high.
    """
    lengths = np.array([box[2] - box[0], box[3] - box[1]] * 2, np.float64)
    noise = np.clip(rng.normal(size=4), -MAX_DEVIATIONS, MAX_DEVIATIONS)
    return Box(*moved_box(box, size, JITTER * lengths * noise))
