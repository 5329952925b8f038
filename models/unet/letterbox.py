"""Image letterbox <-> a U-Net's letterbox."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from models.types import Pixels, Size
from models.unet.constants import PADDING

STRIDE: Final = 32
"""The encoders halve five times."""

INPUT_SIZE: Final = Size(224, 448)
"""The study's 448 x 224; here the area that an image of any shape may cover, so that all take about the same time."""


@dataclass(frozen=True, slots=True)
class UNetLetterbox:
    """How one image lies in what a U-Net sees. Images can share a batch where `padded` is equal.

    Attributes:
        original: size of the image.
        resized: size of the image as the network sees it, aspect ratio kept, without the padding.
        padded: size of what the network sees: multiples of 32, the image in the top left corner.
    """

    original: Size
    resized: Size
    padded: Size


def unet_letterbox(size: Size, area: int = INPUT_SIZE.pixels) -> UNetLetterbox:
    """Fit an image into a U-Net's area.

    Args:
        size: of the image.
        area: most pixels that the network sees, padding included; at least 1024.

    Returns:
        The letterbox with the largest `resized` whose `padded` keeps to the area; an image of 2:1 gives 448 x 224.
    """
    best = UNetLetterbox(size, Size(1, 1), Size(STRIDE, STRIDE))
    for columns in range(1, area // STRIDE**2 + 1):
        rows = area // STRIDE**2 // columns
        scale = min(columns * STRIDE / size.width, rows * STRIDE / size.height)
        resized = Size(max(1, math.floor(size.height * scale + 1e-9)), max(1, math.floor(size.width * scale + 1e-9)))
        if resized.pixels > best.resized.pixels:
            best = UNetLetterbox(size, resized, Size(_up(resized.height), _up(resized.width)))
    return best


def pad(pixels: Pixels, letterbox: UNetLetterbox) -> Pixels:
    """Pad a resized image to what the network sees.

    Args:
        pixels: uint8 (height, width, 3) of size `letterbox.resized`, RGB.
        letterbox: how the image lies in what the network sees.

    Returns:
        uint8 (height, width, 3) of size `letterbox.padded`, C-contiguous; `PADDING` right of and below the image.

    Raises:
        ValueError: pixels of another size.
    """
    resized, padded = letterbox.resized, letterbox.padded
    if pixels.shape != (resized.height, resized.width, 3):
        raise ValueError(f"pixels of shape {pixels.shape} for a letterbox of {resized}")
    canvas = np.empty((padded.height, padded.width, 3), np.uint8)
    canvas[: resized.height, : resized.width] = pixels
    canvas[: resized.height, resized.width :] = PADDING
    canvas[resized.height :] = PADDING
    return canvas


def _up(length: int) -> int:
    return -(-length // STRIDE) * STRIDE
