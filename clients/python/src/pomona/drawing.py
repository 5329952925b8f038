"""Masks drawn over the picture, for people to look at.

Colours are those of Okabe and Ito, "Color Universal Design" (2008), which people with any common colour blindness tell
apart; without orange, lost on oranges, and black, lost on everything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import ImageDraw, ImageFont

from pomona.errors import InvalidArgument
from pomona.facts import Labelled

PALETTE: Final = (
    (0, 114, 178),  # blue
    (204, 121, 167),  # reddish purple
    (240, 228, 66),  # yellow
    (86, 180, 233),  # sky blue
    (213, 94, 0),  # vermillion
    (0, 158, 115),  # bluish green
)
"""RGB of the masks, in order; the seventh mask has the first colour again."""

_OF_CLASS: Final[Mapping[str, tuple[int, int, int]]] = {"healthy": (0, 114, 178), "infected": (204, 121, 167)}
_TINT: Final = 115  # of 255: how opaque a mask is within its outline


def draw(picture: PIL.Image.Image, found: Sequence[Labelled]) -> PIL.Image.Image:
    """Outline each mask and tint it, or what of it is infected; write a fruit's grade at its upper left corner.

    Args:
        picture: RGB, of the masks' size.
        found: healthy and infected in their own colours, anything else by the palette in order.

    Raises:
        InvalidArgument: masks of another size.
    """
    drawn = picture.convert("RGB").copy()
    line = max(2, round(max(picture.size) / 333))
    for number, each in enumerate(found):
        height, width = each.mask.size
        if (width, height) != picture.size:
            raise InvalidArgument(
                f"The masks are of a picture of {width} x {height} pixels; this one has {picture.width} x "
                f"{picture.height}."
            )
        if not each.area:
            continue
        x0, y0, x1, y1 = each.box
        colour = _OF_CLASS.get(each.label, PALETTE[number % len(PALETTE)])
        inside = each.mask.array[y0:y1, x0:x1]
        tinted = inside if each.spots is None else each.spots.array[y0:y1, x0:x1]
        opacity = np.where(inside & ~_eroded(inside, line), 255, tinted * _TINT)
        drawn.paste(colour, (x0, y0), PIL.Image.fromarray(opacity.astype(np.uint8)))
    _write(drawn, found)
    return drawn


def _eroded(mask: NDArray[np.bool_], by: int) -> NDArray[np.bool_]:
    """Without the pixels that are within `by` of one outside, along rows or columns."""
    eroded = mask
    for _ in range(by):
        inner = np.zeros_like(eroded)
        inner[1:-1, 1:-1] = (
            eroded[1:-1, 1:-1] & eroded[:-2, 1:-1] & eroded[2:, 1:-1] & eroded[1:-1, :-2] & eroded[1:-1, 2:]
        )
        eroded = inner
    return eroded


def _write(drawn: PIL.Image.Image, found: Sequence[Labelled]) -> None:
    height = max(12, max(drawn.size) // 55)
    font = ImageFont.load_default(height)
    pen = ImageDraw.Draw(drawn)
    for each in found:
        if "grade" not in each.facts:
            continue
        text = f"{each.facts['grade']} {each.facts['infected_fraction']:.0%}"
        left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
        x = min(max(0, each.box.x0), drawn.width - (right - left) - 4)
        y = min(max(0, each.box.y0), drawn.height - (bottom - top) - 4)
        pen.rectangle((x, y, x + (right - left) + 4, y + (bottom - top) + 4), fill=(40, 40, 40))
        pen.text((x + 2 - left, y + 2 - top), text, font=font, fill=(255, 255, 255))
