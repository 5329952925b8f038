"""Masks and prompts drawn over the image, for people to look at.

Colours are those of Okabe and Ito, "Color Universal Design" (2008), which people with any common
colour blindness tell apart; without orange, lost on oranges, and black, lost on everything.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import cv2
import numpy as np
import PIL.Image
from numpy.typing import NDArray

from models.masks import bounding_box
from models.types import FOREGROUND, BinaryMask, Box, Pixels, Point, SemanticMap

PALETTE: tuple[tuple[int, int, int], ...] = (
    (0, 114, 178),  # blue
    (204, 121, 167),  # reddish purple
    (240, 228, 66),  # yellow
    (86, 180, 233),  # sky blue
    (213, 94, 0),  # vermillion
    (0, 158, 115),  # bluish green
)
"""RGB of the masks, in order; the seventh mask has the first colour again."""

CLASS_COLOURS: tuple[tuple[int, int, int], ...] = (
    (0, 0, 0),
    (0, 114, 178),  # blue
    (204, 121, 167),  # reddish purple
)
"""RGB of background, healthy and infected; yellow, tinted over an orange, would look like an orange."""

_FOREGROUND_DOT = (0, 158, 115)  # bluish green
_BACKGROUND_DOT = (213, 94, 0)  # vermillion
_WHITE = (255, 255, 255)
_DARK = (40, 40, 40)
_OPACITY = 0.45
_SUBPIXEL_BITS = 4  # OpenCV takes coordinates as fixed-point numbers


def draw_overlay(
    pixels: Pixels,
    masks: Sequence[BinaryMask],
    *,
    points: Sequence[Point] = (),
    boxes: Sequence[Box] = (),
    colours: Sequence[tuple[int, int, int]] = PALETTE,
) -> Pixels:
    """Draw masks, boxes and points over a copy of the image.

    Masks are tinted and outlined, each in its own colour; outlines lie within the masks, around
    holes too. Foreground points are green dots with a plus, background points red dots with a
    minus, both in a white ring. Lines and dots grow with the image: outlines are 2 pixels wide in
    a small one, 3 at a longest side of 1000, 12 at 4000, so that they are seen when it is shrunk.

    Args:
        pixels: uint8 (height, width, 3), RGB.
        masks: bool (height, width) each.
        points: clicks in pixels of the image.
        boxes: boxes in pixels of the image.
        colours: RGB of the masks, in order; they begin anew where there are more masks.

    Returns:
        uint8 (height, width, 3), RGB.
    """
    drawn = np.ascontiguousarray(pixels).copy()
    line = max(2, round(max(pixels.shape[:2]) / 333))
    of_masks = [colours[number % len(colours)] for number in range(len(masks))]
    for mask, colour in zip(masks, of_masks, strict=True):
        tint(drawn, mask, colour)
    # After all tints, so that no mask hides the outline of another.
    for mask, colour in zip(masks, of_masks, strict=True):
        outline(drawn, mask, colour, line)
    for box in boxes:
        _draw_box(drawn, box, max(1, line // 2))
    for point in points:
        _draw_point(drawn, point, max(5, 2 * line))
    return drawn


def encode_overlay(pixels: Pixels) -> bytes:
    """Encode a drawn image.

    Args:
        pixels: uint8 (height, width, 3), RGB.

    Returns:
        A PNG file.
    """
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def encode_class_map(classes: SemanticMap) -> bytes:
    """Encode the class of every pixel.

    Args:
        classes: uint8 (height, width): 0 background, 1 healthy, 2 infected.

    Returns:
        A PNG file with these indices and the palette `CLASS_COLOURS`.
    """
    image = PIL.Image.fromarray(classes)
    image.putpalette([channel for colour in CLASS_COLOURS for channel in colour])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def tint(drawn: Pixels, mask: BinaryMask, colour: tuple[int, int, int]) -> None:
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


def outline(drawn: Pixels, mask: BinaryMask, colour: tuple[int, int, int], line: int) -> None:
    """Draw a mask's outline in place, within the mask, around holes too.

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
    # White on dark is seen on any image.
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
    """Turn image coordinates into OpenCV's, whose whole numbers are pixel centres."""
    scale = 1 << _SUBPIXEL_BITS
    return round((x - 0.5) * scale), round((y - 0.5) * scale)
