"""The vocabulary as frozen dataclasses; imports nothing of ours.

Coordinates are pixels of the original image after EXIF orientation, x right, y down; boxes are half-open
`[x0, y0, x1, y1)`. Sizes are (height, width).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

Pixels: TypeAlias = NDArray[np.uint8]
"""RGB image: uint8 (height, width, 3)."""

BinaryMask: TypeAlias = NDArray[np.bool_]
"""True where the object is: bool (height, width)."""

Logits: TypeAlias = NDArray[np.float32]
"""Mask logits, unbounded; a pixel belongs to the mask where its logit is above 0."""

SemanticMap: TypeAlias = NDArray[np.uint8]
"""What every pixel shows: uint8 (height, width) of `PixelClass`."""

FOREGROUND = 1
BACKGROUND = 0


class PixelClass(IntEnum):
    """What a pixel shows. The first three are what a U-Net tells apart."""

    BACKGROUND = 0
    HEALTHY = 1
    INFECTED = 2
    FRUIT = 254
    """Fruit, but nobody said whether healthy or infected."""
    IGNORE = 255
    """Nobody said anything: neither trained on nor counted."""


CLASSES: Final = (PixelClass.BACKGROUND, PixelClass.HEALTHY, PixelClass.INFECTED)
"""In the order of a U-Net's channels."""


@dataclass(frozen=True, slots=True)
class Size:
    """Height and width in pixels, both at least 1."""

    height: int
    width: int

    @property
    def pixels(self) -> int:
        """Height times width."""
        return self.height * self.width


@dataclass(frozen=True, slots=True)
class Image:
    """A decoded image.

    Attributes:
        id: hex digits of the content hash of the encoded bytes.
        pixels: uint8 (height, width, 3), RGB, EXIF orientation applied.
    """

    id: str
    pixels: Pixels

    @property
    def size(self) -> Size:
        """Size after EXIF orientation."""
        return Size(self.pixels.shape[0], self.pixels.shape[1])


@dataclass(frozen=True, slots=True)
class Box:
    """A half-open box `[x0, y0, x1, y1)` in pixels."""

    x0: float
    y0: float
    x1: float
    y1: float


@dataclass(frozen=True, slots=True)
class Point:
    """A click: x right, y down, label 1 for foreground or 0 for background."""

    x: float
    y: float
    label: int = FOREGROUND


@dataclass(frozen=True, slots=True)
class Prompt:
    """What to segment: points, a box, a mask, or points with a box or a mask.

    Attributes:
        points: clicks in the image.
        box: box around the object, or None.
        mask: an earlier guess, or None: a binary mask of the image's size (bool (height, width)), or the
            low-resolution logits that an earlier answer for the same frame returned (float32).
        multimask: three masks for an ambiguous prompt (whole, part, sub-part); else one.
    """

    points: tuple[Point, ...] = ()
    box: Box | None = None
    mask: BinaryMask | Logits | None = None
    multimask: bool = True


@dataclass(frozen=True, slots=True)
class Mask:
    """One segmented mask.

    Attributes:
        pixels: bool (height, width) of the original image.
        logits: float32, the model's low-resolution logits, one per 4 x 4 pixels of what it saw, padding included;
            (256, 256) for the padded square of 1024.
        score: predicted IoU; near 0 to 1, and a little above 1 at times, as the model's head is not bounded.
        stability_score: 0 to 1, IoU of the mask at a threshold 1 above and 1 below (SAM paper, appendix B).
        box: tight half-open box in whole pixels; (0, 0, 0, 0) for an empty mask.
        area: pixels in the mask.
    """

    pixels: BinaryMask
    logits: Logits
    score: float
    stability_score: float
    box: tuple[int, int, int, int]
    area: int
