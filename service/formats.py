"""Masks in the formats that callers may ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from models.masks import CroppedMask, EncodedLogits, Rle, encode_logits, encode_png, encode_rle, rle_of
from models.polygons import Polygon, encode_polygons, polygons_of
from models.types import BinaryMask, Mask

MaskFormat = Literal["rle", "png", "polygons", "logits"]
SemanticFormat = Literal["rle", "png", "polygons"]


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


def encode_class(pixels: BinaryMask, mask_format: SemanticFormat) -> Rle | Polygons | None:
    """Encode where a class is; None for the format that tells of all classes at once."""
    if mask_format == "png":
        return None
    return encode_rle(pixels) if mask_format == "rle" else Polygons(encode_polygons(pixels))


def encode_cutout(cutout: CroppedMask, mask_format: SemanticFormat) -> Rle | Png | Polygons:
    """Encode a mask of the whole image that is held only where it lies."""
    if mask_format == "rle":
        return rle_of(cutout)
    return Png(encode_png(cutout.full())) if mask_format == "png" else Polygons(polygons_of(cutout))
