"""Prompts for a SAM, made from the annotation as a careful user would make them."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Final

import numpy as np

from models.data.samples import Sample
from models.sam.clicks import CAREFUL_USER, centre_point, jittered_box
from models.types import BinaryMask, PixelClass, Prompt

JITTER: Final = CAREFUL_USER.deviation
"""Standard deviation of each of a box's sides, as a share of the box's length across that side."""

FURTHEST: Final = CAREFUL_USER.most_deviations
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
            found.append(Wanted(mask, Prompt(box=box, multimask=False), Prompt((centre_point(mask, instance.box),))))
    return found
