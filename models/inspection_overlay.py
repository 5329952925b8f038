"""Inspected fruits drawn into their image, for people to look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from models.cropped_masks import PixelBox, common
from models.inspection import Fruit, Grade, grade_of
from models.overlay import CLASS_COLOURS, outline, tint
from models.types import PixelClass, Pixels

Colour = tuple[int, int, int]

GRADE_COLOURS: Final[tuple[Colour, ...]] = (
    (0, 114, 178),  # blue
    (0, 158, 115),  # bluish green
    (240, 228, 66),  # yellow
    (86, 180, 233),  # sky blue
)
"""RGB of grades from the best on, of Okabe and Ito as all colours here; the fifth has the first again."""

REJECT_COLOUR: Final[Colour] = (213, 94, 0)
"""Vermillion."""

_DARK: Final[Colour] = (25, 25, 25)
_WHITE: Final[Colour] = (255, 255, 255)
_SMALLEST_TEXT: Final = 12
"""Pixels; the least that is read without effort."""

_TEXT_PER_SIDE: Final = 1 / 55
"""Height of the text in shares of the image's longest side."""


def draw_fruits(pixels: Pixels, fruits: Sequence[Fruit], grades: Sequence[Grade]) -> Pixels:
    """Draw fruits over a copy of the image.

    Outlines have their grades' colours, with a dark line inside that sets them off from fruit of any colour; infected
    parts are tinted and thinly outlined. A label at each fruit says its grade and how much of it is infected. Lines
    and letters grow with the image.

    Args:
        pixels: uint8 (height, width, 3), RGB.
        fruits: of this image.
        grades: rising, by which the fruits are graded.

    Returns:
        uint8 (height, width, 3), RGB.
    """
    drawn = np.ascontiguousarray(pixels).copy()
    line = max(2, round(max(pixels.shape[:2]) / 333))
    colours = [_colour(fruit, grades) for fruit in fruits]
    for fruit, colour in zip(fruits, colours, strict=True):
        x0, y0, x1, y1 = fruit.box
        region = drawn[y0:y1, x0:x1]
        tint(region, fruit.infected.pixels, CLASS_COLOURS[PixelClass.INFECTED])
        outline(region, fruit.infected.pixels, CLASS_COLOURS[PixelClass.INFECTED], max(1, line // 2))
        outline(region, fruit.mask.pixels, _DARK, line + max(1, line // 2))
        outline(region, fruit.mask.pixels, colour, line)
    image = PIL.Image.fromarray(drawn)
    _write(image, fruits, [_text(fruit, grades) for fruit in fruits], colours)
    return np.array(image)


def _colour(fruit: Fruit, grades: Sequence[Grade]) -> Colour:
    names = [grade.name for grade in grades]
    name = grade_of(fruit.infected_fraction, grades)
    return GRADE_COLOURS[names.index(name) % len(GRADE_COLOURS)] if name in names else REJECT_COLOUR


def _text(fruit: Fruit, grades: Sequence[Grade]) -> str:
    percent = 100 * fruit.infected_fraction
    # Less than a tenth is not nothing.
    shown = f"{percent:.0f}" if percent >= 10 or percent == 0 else f"{max(percent, 0.1):.1f}"
    return f"{grade_of(fruit.infected_fraction, grades)} {shown}%"


def _write(image: PIL.Image.Image, fruits: Sequence[Fruit], texts: Sequence[str], colours: Sequence[Colour]) -> None:
    """White letters on dark plates with a stripe of the grade's colour."""
    size = max(_SMALLEST_TEXT, round(max(image.size) * _TEXT_PER_SIDE))
    font = PIL.ImageFont.load_default(size)
    pen = PIL.ImageDraw.Draw(image)
    gap, stripe = max(2, size // 4), max(3, size // 3)
    placed: list[PixelBox] = []
    for fruit, text, colour in zip(fruits, texts, colours, strict=True):
        width = stripe + gap + round(pen.textlength(text, font)) + gap
        height = size + gap
        plate = _free_place(fruit.box, (width, height), image.size, placed)
        placed.append(plate)
        x0, y0, x1, y1 = plate
        pen.rectangle((x0, y0, x1 - 1, y1 - 1), fill=_DARK)
        pen.rectangle((x0, y0, x0 + stripe - 1, y1 - 1), fill=colour)
        pen.text((x0 + stripe + gap, (y0 + y1) / 2), text, font=font, fill=_WHITE, anchor="lm")


def _free_place(box: PixelBox, plate: tuple[int, int], image: tuple[int, int], placed: Sequence[PixelBox]) -> PixelBox:
    """Where a plate covers no other: in the fruit at the top, at the bottom, above it, below it; else at the top."""
    (width, height), (x0, y0, x1, y1) = plate, box
    left = min(max(0, (x0 + x1 - width) // 2), max(0, image[0] - width))
    inset = height // 2
    places = []
    for top in (y0 + inset, y1 - inset - height, y0 - height, y1):
        kept = min(max(0, top), max(0, image[1] - height))
        places.append((left, kept, left + width, kept + height))
    return next((place for place in places if all(common(place, other) is None for other in placed)), places[0])
