"""Fits images into the input of a detector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.types import Pixels, Size

PADDING: Final = 114
"""Grey right of and below an image, as in YOLOX's training."""


@dataclass(frozen=True, slots=True)
class DetectorLetterbox:
    """Placement of one image in a detector's input.

    Attributes:
        original: size of the image.
        resized: size of the image in the input, aspect ratio kept, without the padding.
        padded: size of the input; the image is in its top left corner.
    """

    original: Size
    resized: Size
    padded: Size

    @property
    def scale(self) -> float:
        """Pixels of the input per pixel of the image."""
        return min(self.padded.height / self.original.height, self.padded.width / self.original.width)


def detector_letterbox(size: Size, padded: Size) -> DetectorLetterbox:
    """Fit an image of `size` into an input of `padded`, as YOLOX's own preprocessing does."""
    scale = min(padded.height / size.height, padded.width / size.width)
    resized = Size(max(1, int(size.height * scale)), max(1, int(size.width * scale)))
    return DetectorLetterbox(size, resized, padded)


def to_input(pixels: Pixels, letterbox: DetectorLetterbox) -> NDArray[np.float32]:
    """Return a detector's input from a resized image.

    Args:
        pixels: uint8 (height, width, 3) of size `letterbox.resized`, RGB.
        letterbox: letterbox of the image.

    Returns:
        float32 (3, height, width) of size `letterbox.padded`: blue, green, red, 0 to 255, `PADDING` beside the image.

    Raises:
        ValueError: the pixels have another size.
    """
    resized, padded = letterbox.resized, letterbox.padded
    if pixels.shape != (resized.height, resized.width, 3):
        raise ValueError(f"the pixels must have the shape {(resized.height, resized.width, 3)}, got {pixels.shape}")
    canvas = np.full((3, padded.height, padded.width), PADDING, np.float32)
    canvas[:, : resized.height, : resized.width] = pixels[..., ::-1].transpose(2, 0, 1)
    return canvas
