"""Masks in the formats that callers may ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from models.masks import EncodedLogits, Rle, encode_logits, encode_png, encode_rle
from models.polygons import Polygon, encode_polygons
from models.types import Mask

MaskFormat = Literal["rle", "png", "polygons", "logits"]


@dataclass(frozen=True, slots=True)
class Png:
    """A PNG of one bit per pixel, white where the mask is."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Polygons:
    """Outlines with their holes kept."""

    polygons: list[Polygon]


EncodedMask: TypeAlias = Rle | Png | Polygons | EncodedLogits

_ENCODERS: Final[Mapping[MaskFormat, Callable[[Mask], EncodedMask]]] = {
    "rle": lambda mask: encode_rle(mask.pixels),
    "png": lambda mask: Png(encode_png(mask.pixels)),
    "polygons": lambda mask: Polygons(encode_polygons(mask.pixels)),
    "logits": lambda mask: encode_logits(mask.logits),
}


def encode_mask(mask: Mask, mask_format: MaskFormat) -> EncodedMask:
    """Encode a mask: COCO RLE, 1-bit PNG, polygons, or the low-resolution logits of the padded square."""
    return _ENCODERS[mask_format](mask)
