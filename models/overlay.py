"""Draws masks, prompts and inspected fruits over images, for people to look at.

Colours are those of Okabe and Ito, "Color Universal Design" (2008), which people with any common colour blindness can
tell apart; without orange, which is invisible on oranges, and black.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Final, TypeAlias

import cv2
import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from numpy.typing import NDArray

from models.inspection import Fruit, Grade, grade_of
from models.masks import PixelBox, bounding_box, intersection
from models.types import FOREGROUND, BinaryMask, Box, PixelClass, Pixels, Point, SemanticMap

Colour: TypeAlias = tuple[int, int, int]

PALETTE: Final[tuple[Colour, ...]] = (
    (0, 114, 178),  # blue
    (204, 121, 167),  # reddish purple
    (240, 228, 66),  # yellow
    (86, 180, 233),  # sky blue
    (213, 94, 0),  # vermillion
    (0, 158, 115),  # bluish green
)
"""RGB of the masks, in order, cyclic."""

CLASS_COLOURS: Final[tuple[Colour, ...]] = (
    (0, 0, 0),
    (0, 114, 178),  # blue
    (204, 121, 167),  # reddish purple
)
"""RGB of background, healthy and infected; yellow, tinted over an orange, would look like an orange."""

GRADE_COLOURS: Final[tuple[Colour, ...]] = (
    (0, 114, 178),  # blue
    (0, 158, 115),  # bluish green
    (240, 228, 66),  # yellow
    (86, 180, 233),  # sky blue
)
"""RGB of grades from the best on, cyclic."""

REJECT_COLOUR: Final[Colour] = (213, 94, 0)
"""Vermillion."""

_FOREGROUND_DOT: Final[Colour] = (0, 158, 115)  # bluish green
_BACKGROUND_DOT: Final[Colour] = (213, 94, 0)  # vermillion
_WHITE: Final[Colour] = (255, 255, 255)
_DARK: Final[Colour] = (40, 40, 40)
_PLATE: Final[Colour] = (25, 25, 25)
_OPACITY: Final = 0.45
_SUBPIXEL_BITS: Final = 4
"""OpenCV takes coordinates as fixed-point numbers with this many fractional bits."""

_SMALLEST_TEXT: Final = 12
"""Least height of text in pixels that is easy to read."""

_TEXT_PER_SIDE: Final = 1 / 55
"""Height of text as a share of the image's longest side."""


def draw_overlay(
    pixels: Pixels,
    masks: Sequence[BinaryMask],
    *,
    points: Sequence[Point] = (),
    boxes: Sequence[Box] = (),
    colours: Sequence[Colour] = PALETTE,
) -> Pixels:
    """Draw masks, boxes and points over a copy of the image.

    Masks are tinted and outlined, each in its own colour; outlines lie within the masks, also around holes. Foreground
    points are green dots with a plus, background points red dots with a minus, both in a white ring. Lines and dots
    grow with the image, so that they remain visible when it is shrunk: outlines are 2 pixels wide in a small image, 3
    at a longest side of 1000, 12 at 4000.

    Args:
        pixels: uint8 (height, width, 3), RGB.
        masks: bool (height, width) each.
        points: clicks in pixels of the image.
        boxes: boxes in pixels of the image.
        colours: RGB of the masks, in order, cyclic.

    Returns:
        uint8 (height, width, 3), RGB.
    """
    drawn = np.ascontiguousarray(pixels).copy()
    line = _line_width(pixels)
    of_masks = [colours[number % len(colours)] for number in range(len(masks))]
    for mask, colour in zip(masks, of_masks, strict=True):
        _tint(drawn, mask, colour)
    # After all tints, so that no mask hides the outline of another.
    for mask, colour in zip(masks, of_masks, strict=True):
        _outline(drawn, mask, colour, line)
    for box in boxes:
        _draw_box(drawn, box, max(1, line // 2))
    for point in points:
        _draw_point(drawn, point, max(5, 2 * line))
    return drawn


def draw_fruits(pixels: Pixels, fruits: Sequence[Fruit], grades: Sequence[Grade]) -> Pixels:
    """Draw fruits over a copy of the image.

    Outlines have the colour of the fruit's grade, with a dark line inside that sets them off from fruit of any colour;
    infected parts are tinted and thinly outlined. A label at each fruit shows its grade and infected percentage. Lines
    and letters grow with the image.

    Args:
        pixels: uint8 (height, width, 3), RGB.
        fruits: fruits of this image.
        grades: grades of the fruits, by rising threshold.

    Returns:
        uint8 (height, width, 3), RGB.
    """
    drawn = np.ascontiguousarray(pixels).copy()
    line = _line_width(pixels)
    thin = max(1, line // 2)
    colours = [_grade_colour(fruit, grades) for fruit in fruits]
    for fruit, colour in zip(fruits, colours, strict=True):
        x0, y0, x1, y1 = fruit.box
        region = drawn[y0:y1, x0:x1]
        _tint(region, fruit.infected.pixels, CLASS_COLOURS[PixelClass.INFECTED])
        _outline(region, fruit.infected.pixels, CLASS_COLOURS[PixelClass.INFECTED], thin)
        _outline(region, fruit.mask.pixels, _PLATE, line + thin)
        _outline(region, fruit.mask.pixels, colour, line)
    image = PIL.Image.fromarray(drawn)
    _draw_labels(image, fruits, [_label(fruit, grades) for fruit in fruits], colours)
    return np.array(image)


def encode_overlay(pixels: Pixels) -> bytes:
    """Encode a drawn image.

    Args:
        pixels: uint8 (height, width, 3), RGB.

    Returns:
        A PNG file.
    """
    return _png(PIL.Image.fromarray(pixels))


def encode_class_map(classes: SemanticMap) -> bytes:
    """Encode the class of every pixel.

    Args:
        classes: uint8 (height, width): 0 background, 1 healthy, 2 infected.

    Returns:
        A PNG file with these indices and the palette `CLASS_COLOURS`.
    """
    image = PIL.Image.fromarray(classes)
    image.putpalette([channel for colour in CLASS_COLOURS for channel in colour])
    return _png(image)


def _png(image: PIL.Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _line_width(pixels: Pixels) -> int:
    line: int = max(2, round(max(pixels.shape[:2]) / 333))
    return line


def _tint(drawn: Pixels, mask: BinaryMask, colour: Colour) -> None:
    """Mix a colour into the pixels of a mask, in place.

    Args:
        drawn: uint8 (height, width, 3), RGB; may be a view of a larger image.
        mask: bool (height, width).
        colour: RGB.
    """
    x0, y0, x1, y1 = bounding_box(mask)
    if x1 == 0:
        return
    region = drawn[y0:y1, x0:x1]
    flat = np.empty_like(region)
    flat[:] = colour
    mixed = cv2.addWeighted(region, 1 - _OPACITY, flat, _OPACITY, 0)
    np.copyto(region, mixed, where=mask[y0:y1, x0:x1, None])


def _outline(drawn: Pixels, mask: BinaryMask, colour: Colour, line: int) -> None:
    """Draw a mask's outline in place, within the mask, also around holes.

    Args:
        drawn: uint8 (height, width, 3), RGB; may be a view of a larger image.
        mask: bool (height, width).
        colour: RGB.
        line: width in pixels, at least 1.
    """
    x0, y0, x1, y1 = bounding_box(mask)
    if x1 == 0:
        return
    # The margin is outside the mask, so that the image's edge gets an outline too.
    padded = np.pad(mask[y0:y1, x0:x1].view(np.uint8), line)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * line + 1, 2 * line + 1))
    inner = cv2.erode(padded, kernel)
    rim: NDArray[np.bool_] = (padded != inner)[line:-line, line:-line]
    drawn[y0:y1, x0:x1][rim] = colour


def _draw_box(drawn: Pixels, box: Box, line: int) -> None:
    # A half-open box ends at the pixel before x1, y1.
    corner = (round(box.x0), round(box.y0))
    opposite = (round(box.x1) - 1, round(box.y1) - 1)
    # White on dark is visible on any image.
    for colour, thickness in ((_DARK, 3 * line), (_WHITE, line)):
        cv2.rectangle(drawn, corner, opposite, colour, thickness)


def _draw_point(drawn: Pixels, point: Point, radius: int) -> None:
    centre = _fixed(point.x, point.y)
    foreground = point.label == FOREGROUND
    ring = radius + max(2, radius // 2)
    for colour, size in (
        (_DARK, ring + 1),
        (_WHITE, ring),
        (_FOREGROUND_DOT if foreground else _BACKGROUND_DOT, radius),
    ):
        cv2.circle(drawn, centre, size << _SUBPIXEL_BITS, colour, cv2.FILLED, cv2.LINE_AA, _SUBPIXEL_BITS)
    arm = radius * 0.6
    strokes = [(arm, 0.0), (0.0, arm)] if foreground else [(arm, 0.0)]
    for dx, dy in strokes:
        cv2.line(
            drawn,
            _fixed(point.x - dx, point.y - dy),
            _fixed(point.x + dx, point.y + dy),
            _WHITE,
            max(1, radius // 4),
            cv2.LINE_AA,
            _SUBPIXEL_BITS,
        )


def _fixed(x: float, y: float) -> tuple[int, int]:
    """Convert image coordinates to OpenCV's, whose whole numbers are pixel centres."""
    scale = 1 << _SUBPIXEL_BITS
    return round((x - 0.5) * scale), round((y - 0.5) * scale)


def _grade_colour(fruit: Fruit, grades: Sequence[Grade]) -> Colour:
    names = [grade.name for grade in grades]
    name = grade_of(fruit.infected_fraction, grades)
    return GRADE_COLOURS[names.index(name) % len(GRADE_COLOURS)] if name in names else REJECT_COLOUR


def _label(fruit: Fruit, grades: Sequence[Grade]) -> str:
    percent = 100 * fruit.infected_fraction
    # Less than a tenth of a percent must not be shown as nothing.
    shown = f"{percent:.0f}" if percent >= 10 or percent == 0 else f"{max(percent, 0.1):.1f}"
    return f"{grade_of(fruit.infected_fraction, grades)} {shown}%"


def _draw_labels(
    image: PIL.Image.Image, fruits: Sequence[Fruit], labels: Sequence[str], colours: Sequence[Colour]
) -> None:
    """Write white letters on dark plates with a stripe of the grade's colour."""
    size = max(_SMALLEST_TEXT, round(max(image.size) * _TEXT_PER_SIDE))
    font = PIL.ImageFont.load_default(size)
    pen = PIL.ImageDraw.Draw(image)
    gap, stripe = max(2, size // 4), max(3, size // 3)
    placed: list[PixelBox] = []
    for fruit, label, colour in zip(fruits, labels, colours, strict=True):
        width, height = stripe + gap + round(pen.textlength(label, font)) + gap, size + gap
        plate = _free_place(fruit.box, (width, height), image.size, placed)
        placed.append(plate)
        x0, y0, x1, y1 = plate
        pen.rectangle((x0, y0, x1 - 1, y1 - 1), fill=_PLATE)
        pen.rectangle((x0, y0, x0 + stripe - 1, y1 - 1), fill=colour)
        pen.text((x0 + stripe + gap, (y0 + y1) / 2), label, font=font, fill=_WHITE, anchor="lm")


def _free_place(box: PixelBox, plate: tuple[int, int], image: tuple[int, int], placed: Sequence[PixelBox]) -> PixelBox:
    """Find a place where a plate covers no other: in the fruit at the top or the bottom, above or below it.

    If there is none, the place in the fruit at the top is returned.
    """
    (width, height), (x0, y0, x1, y1) = plate, box
    left = min(max(0, (x0 + x1 - width) // 2), max(0, image[0] - width))
    inset = height // 2
    places = []
    for top in (y0 + inset, y1 - inset - height, y0 - height, y1):
        kept = min(max(0, top), max(0, image[1] - height))
        places.append((left, kept, left + width, kept + height))
    free = (place for place in places if all(intersection(place, other) is None for other in placed))
    return next(free, places[0])
