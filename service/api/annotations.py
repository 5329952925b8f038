"""Reads answers back as fruit to be annotated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from models.data.exports import FoundFruit
from models.errors import MaskError
from models.masks import CroppedMask, Rle, decode_rle, whole
from service.api import schema


def found_fruits(fruits: Sequence[schema.Fruit]) -> list[FoundFruit]:
    """Decode the fruit of an answer with masks as RLE.

    Raises:
        MaskError: a mask is not RLE, or does not decode.
    """
    return [
        FoundFruit(decoded_mask(fruit.mask), decoded_mask(fruit.infected_mask), fruit.confidence) for fruit in fruits
    ]


def decoded_mask(mask: schema.EncodedMask) -> CroppedMask:
    """Decode RLE of an answer into its tight box.

    Raises:
        MaskError: the mask is not RLE, or does not decode.
    """
    if not isinstance(mask, schema.RleMask):
        raise MaskError("The masks must be RLE.")
    tight = whole(decode_rle(Rle(mask.size, mask.counts))).tight()
    # Copied: a view would keep the whole mask in memory.
    return replace(tight, pixels=tight.pixels.copy())
