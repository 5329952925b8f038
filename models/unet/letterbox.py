"""Fits images into the input of a U-Net."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from models.types import Pixels, Size
from models.unet.constants import PADDING

STRIDE: Final = 32
"""Both sides of the input are multiples of this: the encoders halve the resolution five times."""

INPUT_SIZE: Final = Size(224, 448)
"""The study's input size. Inputs of other shapes have at most its area, so that all take about the same time, unless a
model has been trained for a larger area."""


def input_area(trained: int | None, *, fast: bool = False) -> int:
    """Return the area of a model's input.

    Args:
        trained: area that the model was trained for; None for that of `INPUT_SIZE`.
        fast: whether the model must be fast: then it is at most that of `INPUT_SIZE`.
    """
    area = INPUT_SIZE.pixels if trained is None else trained
    return min(area, INPUT_SIZE.pixels) if fast else area


@dataclass(frozen=True, slots=True)
class UNetLetterbox:
    """Placement of one image in a U-Net's input. Images can share a batch if `padded` is equal.

    Attributes:
        original: size of the image.
        resized: size of the image in the input, aspect ratio kept, without the padding.
        padded: size of the input: multiples of 32, the image in the top left corner.
    """

    original: Size
    resized: Size
    padded: Size


@lru_cache(maxsize=256)
def unet_letterbox(size: Size, area: int | None = None) -> UNetLetterbox:
    """Fit an image into a U-Net's input; smaller images are enlarged.

    Args:
        size: size of the image.
        area: most pixels of the input, padding included; at least 1024. None for that of `INPUT_SIZE`.

    Returns:
        The letterbox with the largest `resized` whose `padded` has at most that area; 448 x 224 for an image of 2:1.
    """
    cells = input_area(area) // STRIDE**2
    best = UNetLetterbox(size, Size(1, 1), Size(STRIDE, STRIDE))
    for columns in range(1, cells + 1):
        rows = cells // columns
        scale = min(columns * STRIDE / size.width, rows * STRIDE / size.height)
        resized = Size(max(1, math.floor(size.height * scale + 1e-9)), max(1, math.floor(size.width * scale + 1e-9)))
        if resized.pixels > best.resized.pixels:
            best = UNetLetterbox(size, resized, Size(_round_up(resized.height), _round_up(resized.width)))
    return best


def pad(pixels: Pixels, letterbox: UNetLetterbox) -> Pixels:
    """Pad a resized image to the network's input.

    Args:
        pixels: uint8 (height, width, 3) of size `letterbox.resized`, RGB.
        letterbox: letterbox of the image.

    Returns:
        uint8 (height, width, 3) of size `letterbox.padded`, C-contiguous; `PADDING` right of and below the image.

    Raises:
        ValueError: the pixels have another size.
    """
    resized, padded = letterbox.resized, letterbox.padded
    if pixels.shape != (resized.height, resized.width, 3):
        raise ValueError(f"the pixels must have the shape {(resized.height, resized.width, 3)}, got {pixels.shape}")
    canvas = np.empty((padded.height, padded.width, 3), np.uint8)
    canvas[: resized.height, : resized.width] = pixels
    canvas[: resized.height, resized.width :] = PADDING
    canvas[resized.height :] = PADDING
    return canvas


def _round_up(length: int) -> int:
    return -(-length // STRIDE) * STRIDE
