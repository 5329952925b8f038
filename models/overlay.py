"""Draws masks, prompts and inspected fruits over images, for people to look at.

Colours are those of Okabe and Ito, "Color Universal Design" (2008), which people with any common colour blindness can
tell apart; without orange, which is invisible on oranges, and black.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import cv2
import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from numpy.typing import NDArray

from models.inspection import Fruit, Grade, grade_of
from models.masks import CroppedMask, PixelBox, bounding_box, intersection
from models.png import write_png
from models.types import FOREGROUND, BinaryMask, Box, PixelClass, Pixels, Point, SemanticMap, Size

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

_STRIP: Final = 256
"""Rows that are drawn and encoded at a time: no copy of the whole image is made."""

_SMALLEST_TEXT: Final = 12
"""Least height of text in pixels that is easy to read."""

_TEXT_PER_SIDE: Final = 1 / 55
"""Height of text as a share of the image's longest side."""


def draw_overlay(
    pixels: Pixels,
    masks: Sequence[Callable[[], CroppedMask]],
    *,
    points: Sequence[Point] = (),
    boxes: Sequence[Box] = (),
    colours: Sequence[Colour] = PALETTE,
) -> Pixels:
    """Draw masks, boxes and points into an image.

    Masks are tinted and outlined, each in its own colour; outlines lie within the masks, also around holes. Foreground
    points are green dots with a plus, background points red dots with a minus, both in a white ring. Lines and dots
    grow with the image, so that they remain visible when it is shrunk: outlines are 2 pixels wide in a small image, 3
    at a longest side of 1000, 12 at 4000.

    Args:
        pixels: uint8 (height, width, 3), RGB, writable; it is drawn into.
        masks: what returns each mask, called twice: all masks of a large image do not fit into memory together.
        points: clicks in pixels of the image.
        boxes: boxes in pixels of the image.
        colours: RGB of the masks, in order, cyclic.

    Returns:
        `pixels`.
    """
    line = _line_width(pixels)
    of_masks = [colours[number % len(colours)] for number in range(len(masks))]
    for make, colour in zip(masks, of_masks, strict=True):
        mask = make()
        _tint(_region(pixels, mask), mask.pixels, colour)
    # After all tints, so that no mask hides the outline of another.
    for make, colour in zip(masks, of_masks, strict=True):
        mask = make()
        _outline(_region(pixels, mask), mask.pixels, colour, line)
    for box in boxes:
        _draw_box(pixels, box, max(1, line // 2))
    for point in points:
        _draw_point(pixels, point, max(5, 2 * line))
    return pixels


def draw_fruits(pixels: Pixels, fruits: Sequence[Fruit], grades: Sequence[Grade]) -> Pixels:
    """Draw fruits into an image.

    Outlines have the colour of the fruit's grade, with a dark line inside that sets them off from fruit of any colour;
    infected parts are tinted and thinly outlined. A label at each fruit shows its grade and infected percentage. Lines
    and letters grow with the image.

    Args:
        pixels: uint8 (height, width, 3), RGB, writable; it is drawn into.
        fruits: fruits of this image.
        grades: grades of the fruits, by rising threshold.

    Returns:
        `pixels`.
    """
    line = _line_width(pixels)
    thin = max(1, line // 2)
    colours = [_grade_colour(fruit, grades) for fruit in fruits]
    for fruit, colour in zip(fruits, colours, strict=True):
        x0, y0, x1, y1 = fruit.box
        region = pixels[y0:y1, x0:x1]
        _tint(region, fruit.infected.pixels, CLASS_COLOURS[PixelClass.INFECTED])
        _outline(region, fruit.infected.pixels, CLASS_COLOURS[PixelClass.INFECTED], thin)
        _outline(region, fruit.mask.pixels, _PLATE, line + thin)
        _outline(region, fruit.mask.pixels, colour, line)
    _draw_labels(pixels, [fruit.box for fruit in fruits], [_label(fruit, grades) for fruit in fruits], colours)
    return pixels


def draw_detections(pixels: Pixels, boxes: Sequence[Box], labels: Sequence[str], kinds: Sequence[int]) -> Pixels:
    """Draw labelled boxes into an image.

    Args:
        pixels: uint8 (height, width, 3), RGB, writable; it is drawn into.
        boxes: boxes in pixels of the image.
        labels: a text for each.
        kinds: a number for each; those of one kind have one colour.

    Returns:
        `pixels`.
    """
    line = _line_width(pixels)
    colours = [PALETTE[kind % len(PALETTE)] for kind in kinds]
    places: list[PixelBox] = []
    for box, colour in zip(boxes, colours, strict=True):
        x0, y0, x1, y1 = round(box.x0), round(box.y0), round(box.x1), round(box.y1)
        places.append((x0, y0, x1, y1))
        for drawn, thickness in ((_PLATE, 2 * line), (colour, line)):
            cv2.rectangle(pixels, (x0, y0), (x1 - 1, y1 - 1), drawn, thickness)
    _draw_labels(pixels, places, labels, colours)
    return pixels


def encode_overlay(pixels: Pixels) -> bytes:
    """Encode a drawn image.

    Args:
        pixels: uint8 (height, width, 3), RGB.

    Returns:
        A PNG file.
    """
    height, width = pixels.shape[:2]
    strips = (pixels[top : top + _STRIP].reshape(-1, 3 * width) for top in range(0, height, _STRIP))
    return write_png(Size(height, width), strips, "rgb")


def encode_class_map(classes: SemanticMap) -> bytes:
    """Encode the class of every pixel.

    Args:
        classes: uint8 (height, width): 0 background, 1 healthy, 2 infected.

    Returns:
        A PNG file with these indices and the palette `CLASS_COLOURS`.
    """
    strips = (classes[top : top + _STRIP] for top in range(0, len(classes), _STRIP))
    return write_png(Size(*classes.shape), strips, "indexed", palette=bytes(np.array(CLASS_COLOURS, np.uint8)))


def _region(pixels: Pixels, mask: CroppedMask) -> Pixels:
    """Return the part of an image where a mask lies, as a view."""
    x0, y0, x1, y1 = mask.box
    return pixels[y0:y1, x0:x1]


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
    for top in range(y0, y1, _STRIP):
        bottom = min(top + _STRIP, y1)
        region = drawn[top:bottom, x0:x1]
        flat = np.empty_like(region)
        flat[:] = colour
        mixed = cv2.addWeighted(region, 1 - _OPACITY, flat, _OPACITY, 0)
        np.copyto(region, mixed, where=mask[top:bottom, x0:x1, None])


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
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * line + 1, 2 * line + 1))
    for top in range(y0, y1, _STRIP):
        bottom = min(top + _STRIP, y1)
        above, below = max(y0, top - line), min(y1, bottom + line)
        # The margin is outside the mask, so that the image's edge gets an outline too.
        padded = np.zeros((bottom - top + 2 * line, x1 - x0 + 2 * line), np.uint8)
        first = above - top + line
        padded[first : first + below - above, line:-line] = mask[above:below, x0:x1]
        inner = cv2.erode(padded, kernel)
        rim: NDArray[np.bool_] = (padded != inner)[line:-line, line:-line]
        drawn[top:bottom, x0:x1][rim] = colour


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


def _draw_labels(pixels: Pixels, boxes: Sequence[PixelBox], labels: Sequence[str], colours: Sequence[Colour]) -> None:
    """Write white letters on dark plates with a stripe of a colour, each at its box."""
    height_of_all, width_of_all = pixels.shape[:2]
    size = max(_SMALLEST_TEXT, round(max(width_of_all, height_of_all) * _TEXT_PER_SIDE))
    font = PIL.ImageFont.load_default(size)
    gap, stripe = max(2, size // 4), max(3, size // 3)
    placed: list[PixelBox] = []
    for box, label, colour in zip(boxes, labels, colours, strict=True):
        width, height = stripe + gap + round(font.getlength(label)) + gap, size + gap
        plate = _free_place(box, (width, height), (width_of_all, height_of_all), placed)
        placed.append(plate)
        x0, y0, x1, y1 = plate
        image = PIL.Image.new("RGB", (width, height), _PLATE)
        pen = PIL.ImageDraw.Draw(image)
        pen.rectangle((0, 0, stripe - 1, height - 1), fill=colour)
        pen.text((stripe + gap, height / 2), label, font=font, fill=_WHITE, anchor="lm")
        pixels[y0:y1, x0:x1] = np.asarray(image)[: height_of_all - y0, : width_of_all - x0]


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
