"""Types that all of Pomona shares. This module imports no other module of the project.

Coordinates are pixels of the original image after EXIF orientation, x right, y down; boxes are half-open
`[x0, y0, x1, y1)`. Sizes are (height, width).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Pixels: TypeAlias = NDArray[np.uint8]
"""RGB image: uint8 (height, width, 3)."""

BinaryMask: TypeAlias = NDArray[np.bool_]
"""True where the object is: bool (height, width)."""

Logits: TypeAlias = NDArray[np.float32]
"""Mask logits, unbounded; a pixel belongs to the mask where its logit is above 0."""

SemanticMap: TypeAlias = NDArray[np.uint8]
"""Class of every pixel: uint8 (height, width) of `PixelClass`."""

FOREGROUND = 1
BACKGROUND = 0


class PixelClass(IntEnum):
    """Class of a pixel. A U-Net predicts the first three; the others occur in annotations only."""

    BACKGROUND = 0
    HEALTHY = 1
    INFECTED = 2
    FRUIT = 254
    """Fruit whose annotation does not say whether it is healthy or infected."""
    IGNORE = 255
    """Not annotated: excluded from training and from metrics."""


CLASSES: Final = (PixelClass.BACKGROUND, PixelClass.HEALTHY, PixelClass.INFECTED)
"""The predicted classes, in the order of a U-Net's output channels."""


@dataclass(frozen=True, slots=True)
class Size:
    """Height and width in pixels, both at least 1."""

    height: int
    width: int

    @property
    def pixels(self) -> int:
        """Number of pixels: height times width."""
        return self.height * self.width


@dataclass(frozen=True, slots=True)
class Image:
    """A decoded image.

    Attributes:
        id: content hash of the encoded bytes, in hex digits.
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
    """A click at (x, y) in pixels; `label` is 1 for foreground, 0 for background."""

    x: float
    y: float
    label: int = FOREGROUND


class EncodedMask(Protocol):
    """A binary mask that is not decoded yet, such as RLE."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels; of untrusted origin."""
        ...


@dataclass(frozen=True, slots=True)
class Prompt:
    """What to segment: points, a box, a mask, or points with a box or a mask.

    Attributes:
        points: clicks in the image.
        box: box around the object, or None.
        mask: mask to start from, or None: a binary mask of the image's size (bool (height, width)), also encoded, or
            the low-resolution logits (float32) of an earlier result for the same letterbox.
        multimask: return three masks, for an ambiguous prompt (whole, part, sub-part), instead of one.
    """

    points: tuple[Point, ...] = ()
    box: Box | None = None
    mask: BinaryMask | Logits | EncodedMask | None = None
    multimask: bool = True


@dataclass(frozen=True, slots=True)
class Mask:
    """One segmented mask.

    Attributes:
        pixels: bool (height, width) of the original image.
        logits: float32 low-resolution logits, one per 4 x 4 pixels of the model's input, padding included; (256, 256)
            for the padded square of 1024.
        score: predicted IoU, about 0 to 1; it may slightly exceed 1, as the model's head is not bounded.
        stability_score: 0 to 1, IoU of the masks at logit thresholds of 1 and -1 (SAM paper, appendix B).
        box: tight half-open box in whole pixels; (0, 0, 0, 0) for an empty mask.
        area: pixels in the mask.
    """

    pixels: BinaryMask
    logits: Logits
    score: float
    stability_score: float
    box: tuple[int, int, int, int]
    area: int
