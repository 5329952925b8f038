"""From masks to the schema: RLE, PNG, polygons, logits. For worker threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from models.confidence import FractionIntervals
from models.inspection import Fruit, Grade, grade_of
from models.letterbox import Letterbox
from models.masks import CroppedMask, Rle, encode_logits, png_of, rle_of, whole
from models.polygons import outlines_of
from models.sam.postprocess import MaskCrop
from models.types import Logits, PixelClass, SemanticMap, Size
from models.unet.letterbox import UNetLetterbox
from service.api import schema
from service.runners.base import Runner

FRUIT_CLASSES: Final = (PixelClass.HEALTHY, PixelClass.INFECTED)


def _rle(rle: Rle) -> schema.RleMask:
    return schema.RleMask.model_construct(size=rle.size, counts=rle.counts)


def encode_outline(mask: CroppedMask, mask_format: schema.SemanticFormat) -> schema.Outline:
    """Encode a mask of the whole image that is stored only where it lies."""
    if mask_format == "rle":
        return _rle(rle_of(mask))
    if mask_format == "png":
        return schema.PngMask.model_construct(png=png_of(mask))
    # Arrays until they are written as JSON or into a message: lists take ten times their memory.
    polygons: Any = outlines_of(mask)
    return schema.PolygonsMask.model_construct(polygons=polygons)


def _logits(logits: Logits) -> schema.LogitsMask:
    encoded = encode_logits(logits)
    return schema.LogitsMask.model_construct(shape=encoded.shape, dtype="float16", data=encoded.data)


def encode_mask(mask: MaskCrop, mask_format: schema.MaskFormat) -> schema.ScoredMask:
    """Encode a mask with its measures."""
    return schema.ScoredMask.model_construct(
        mask=_logits(mask.logits) if mask_format == "logits" else encode_outline(mask.crop, mask_format),
        score=mask.score,
        stability_score=mask.stability_score,
        box=mask.box,
        area=mask.area,
    )


def encode_class(classes: SemanticMap, pixel_class: PixelClass, mask_format: schema.SemanticFormat) -> schema.ClassMask:
    """Encode the pixels of one class; without a mask where one PNG holds all classes."""
    pixels = classes == pixel_class
    mask: Any = None if mask_format == "png" else encode_outline(whole(pixels), mask_format)
    return schema.ClassMask.model_construct(
        pixel_class=schema.CLASS_NAMES[pixel_class], mask=mask, area=int(np.count_nonzero(pixels))
    )


def encode_fruits(
    fruits: Sequence[Fruit],
    grades: Sequence[Grade],
    intervals: FractionIntervals | None,
    mask_format: schema.SemanticFormat,
) -> list[schema.Fruit]:
    """Number, grade and encode fruits, with the intervals of their infected fractions where the model has any."""
    bounds = [None if intervals is None else intervals.of(fruit.infected_fraction) for fruit in fruits]
    return [
        schema.Fruit.model_construct(
            id=number,
            box=fruit.box,
            area=fruit.area,
            mask=encode_outline(fruit.mask, mask_format),
            infected_mask=encode_outline(fruit.infected, mask_format),
            infected_fraction=fruit.infected_fraction,
            infected_fraction_interval=bound,
            pixel_class=schema.CLASS_NAMES[fruit.pixel_class],
            confidence=fruit.confidence,
            grade=grade_of(fruit.infected_fraction, grades),
            grade_certain=bound is not None and len({grade_of(end, grades) for end in bound}) == 1,
            truncated=fruit.truncated,
            refined=fruit.refined,
        )
        for number, (fruit, bound) in enumerate(zip(fruits, bounds, strict=True), start=1)
    ]


def describe_image(image_id: str, size: Size) -> schema.Image:
    """Describe an image in an answer."""
    return schema.Image.model_construct(id=image_id, width=size.width, height=size.height)


def describe_sam(runner: Runner, letterbox: Letterbox) -> schema.SamModel:
    """Describe the SAM that answered."""
    return schema.SamModel.model_construct(
        name=runner.entry.name,
        revision=runner.entry.revision,
        input_size=letterbox.side,
        padding=letterbox.padding,
    )


def describe_unet(runner: Runner, letterbox: UNetLetterbox) -> schema.UnetModel:
    """Describe the U-Net that answered."""
    return schema.UnetModel.model_construct(
        name=runner.entry.name,
        revision=runner.entry.revision,
        input_width=letterbox.resized.width,
        input_height=letterbox.resized.height,
    )
