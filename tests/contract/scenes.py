"""Images whose masks and fruit can be worked out by hand, as the fake models see them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Final

import numpy as np
import PIL.Image

from models.types import BinaryMask, Pixels, Size
from tests.fakes import HEALTHY_BOX, INFECTED_BOX, PEEL_SIZE, encode_image, image_bytes, peel_image, rectangle

Corners = tuple[int, int, int, int]

IMAGE: Final = image_bytes()
BOX_MASK: Final = rectangle(32, 16, 64, 48)

PEEL: Final = peel_image()
BLACK: Final = image_bytes(size=PEEL_SIZE)
HEALTHY: Final = rectangle(*HEALTHY_BOX, PEEL_SIZE)
INFECTED: Final = rectangle(*INFECTED_BOX, PEEL_SIZE)

FRUIT_SIZE: Final = Size(224, 448)
"""One pixel of an image of this size is one cell of the U-Net's input."""

CLEAN: Final[Corners] = (40, 40, 140, 140)
SICK: Final[Corners] = (240, 60, 340, 160)
SPOT: Final[Corners] = (250, 70, 290, 90)
"""8 hundredths of the fruit around it."""


def fruit_image(*fruits: Corners, spots: Sequence[Corners] = (), mark: int = 0) -> bytes:
    """Healthy fruits, infected in spots; another `mark` is another image."""
    pixels = np.zeros((FRUIT_SIZE.height, FRUIT_SIZE.width, 3), np.uint8)
    for boxes, channel in ((fruits, 1), (spots, 0)):
        for x0, y0, x1, y1 in boxes:
            pixels[y0:y1, x0:x1, :2] = 0
            pixels[y0:y1, x0:x1, channel] = 255
    pixels[..., 2] = mark
    return encode_image(pixels)


TWO: Final = fruit_image(CLEAN, SICK, spots=[SPOT])
NO_FRUIT: Final = fruit_image()


def fruit_mask(box: Corners) -> BinaryMask:
    return rectangle(*box, FRUIT_SIZE)


def turned(pixels: Pixels) -> bytes:
    """A file whose EXIF orientation turns its pixels clockwise by a quarter."""
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    return encode_image(pixels, exif=exif.tobytes())


def gif() -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("P", (4, 4)).save(buffer, "GIF")
    return buffer.getvalue()
