"""Prompts for a SAM, made from the annotation the way a careful user would make them."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from models.data.samples import Sample
from models.sam.clicks import CAREFUL_USER, centre_point, jittered_box
from models.types import BinaryMask, PixelClass, Prompt


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
        box = jittered_box(instance.box, sample.size, rng, CAREFUL_USER)  # for each, so that others keep their noise
        mask = (sample.instance_map == instance.id) & counted
        if mask.any():
            by_point = Prompt(points=(centre_point(mask, instance.box),))
            found.append(PromptedFruit(mask, Prompt(box=box, multimask=False), by_point))
    return found
