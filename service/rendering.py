"""From a model's output to what a caller asked for; for worker threads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.inspection import Fruit, Grade, crop_mask, grade_of
from models.letterbox import Letterbox
from models.masks import CroppedMask
from models.overlay import CLASS_COLOURS, draw_fruits, draw_overlay, encode_class_map, encode_overlay
from models.sam.postprocess import masks_of
from models.types import Image, PixelClass, Pixels, Prompt, SemanticMap
from models.unet.letterbox import UNetLetterbox
from models.unet.postprocess import class_map
from service.formats import MaskFormat, SemanticFormat, encode_class, encode_cutout, encode_mask
from service.messages import ClassResult, FruitResult, MaskResult
from service.runners.sam import Decoded

_FRUIT: Final = (PixelClass.HEALTHY, PixelClass.INFECTED)


@dataclass(frozen=True, slots=True)
class RenderedClasses:
    """What a U-Net saw, as a caller asked for it.

    Attributes:
        pixels: uint8 (height, width) of the original image.
        classes: healthy and infected.
        png: all classes in one indexed PNG, where that was asked for.
    """

    pixels: SemanticMap
    classes: list[ClassResult]
    png: bytes | None


def render_masks(
    decoded: Decoded, row: int, frame: Letterbox, prompt: Prompt, mask_format: MaskFormat | None
) -> list[MaskResult]:
    """The masks of the prompt in `row`, best first, upsampled, and encoded where a format was asked for."""
    masks = masks_of(decoded.logits[row], decoded.scores[row], frame, multimask=prompt.multimask)
    return [MaskResult(mask, None if mask_format is None else encode_mask(mask, mask_format)) for mask in masks]


def render_overlay(image: Image, prompts: Sequence[Prompt], results: Sequence[Sequence[MaskResult]]) -> bytes:
    """Each prompt's best mask in the image, with the points and boxes that asked for it; PNG."""
    return encode_overlay(
        draw_overlay(
            image.pixels,
            [masks[0].mask.pixels for masks in results],
            points=[point for prompt in prompts for point in prompt.points],
            boxes=[prompt.box for prompt in prompts if prompt.box is not None],
        )
    )


def render_classes(
    logits: NDArray[np.float32], frame: UNetLetterbox, mask_format: SemanticFormat | None
) -> RenderedClasses:
    """The class of every pixel from logits of size `frame.padded`, upsampled, and encoded where that was asked for."""
    pixels = class_map(logits, frame)
    classes = []
    for pixel_class in _FRUIT:
        where = pixels == pixel_class
        encoded = None if mask_format is None else encode_class(where, mask_format)
        classes.append(ClassResult(pixel_class, encoded, int(np.count_nonzero(where))))
    return RenderedClasses(pixels, classes, encode_class_map(pixels) if mask_format == "png" else None)


def render_class_overlay(pixels: Pixels, classes: SemanticMap) -> bytes:
    """The fruit's classes in the image; PNG."""
    masks = [classes == pixel_class for pixel_class in _FRUIT]
    colours = [CLASS_COLOURS[pixel_class] for pixel_class in _FRUIT]
    return encode_overlay(draw_overlay(pixels, masks, colours=colours))


def render_cutout(decoded: Decoded, row: int, frame: Letterbox) -> CroppedMask:
    """The one mask of the prompt in `row`, without the image around it."""
    (mask,) = masks_of(decoded.logits[row], decoded.scores[row], frame, multimask=False)
    return crop_mask(mask)


def render_fruits(fruits: Sequence[Fruit], grades: Sequence[Grade], mask_format: SemanticFormat) -> list[FruitResult]:
    """Fruits numbered, graded and encoded."""
    return [
        FruitResult(
            id=number,
            box=fruit.box,
            area=fruit.area,
            mask=encode_cutout(fruit.mask, mask_format),
            infected_mask=encode_cutout(fruit.infected, mask_format),
            infected_fraction=fruit.infected_fraction,
            pixel_class=fruit.pixel_class,
            confidence=fruit.confidence,
            grade=grade_of(fruit.infected_fraction, grades),
            truncated=fruit.truncated,
            refined=fruit.refined,
        )
        for number, fruit in enumerate(fruits, start=1)
    ]


def render_fruit_overlay(pixels: Pixels, fruits: Sequence[Fruit], grades: Sequence[Grade]) -> bytes:
    """Judged fruits in the image; PNG."""
    return encode_overlay(draw_fruits(pixels, fruits, grades))
