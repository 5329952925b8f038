"""Prompts drawn by lot from annotated fruit, as SAM was trained (Kirillov et al., "Segment Anything", appendix A).

Coordinates are pixels of the image as the model sees it, `frame.resized`; a pixel is named by its left upper corner.
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from models.sam.constants import INPUT_SIDE
from models.types import BinaryMask, Size

_JITTER: Final = 0.1
"""Standard deviation of a box's edge, as a share of the box's length across that edge."""

_FURTHEST: Final = 20 / INPUT_SIDE
"""Most that an edge is off, as a share of the model's square: 20 pixels of 1024."""


def jittered_box(
    box: tuple[int, int, int, int], size: Size, side: int, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """Move each edge of a box by normal noise.

    Args:
        box: half-open `[x0, y0, x1, y1)`, not empty.
        size: of the image; the result stays in it.
        side: of the model's square.
        rng: draws the noise.

    Returns:
        x0, y0, x1, y1, at least one pixel wide and high.
    """
    extent = np.array([box[2] - box[0], box[3] - box[1]] * 2, np.float64)
    noise = rng.normal(0, _JITTER * extent)
    return moved_box(box, size, np.clip(noise, -_FURTHEST * side, _FURTHEST * side))


def moved_box(
    box: tuple[int, int, int, int], size: Size, offsets: NDArray[np.float64]
) -> tuple[float, float, float, float]:
    """Move each edge of a box by its offset.

    Args:
        box: half-open `[x0, y0, x1, y1)`, not empty.
        size: of the image; the result stays in it.
        offsets: float64 (4,), in pixels.

    Returns:
        x0, y0, x1, y1, at least one pixel wide and high.
    """
    moved = np.asarray(box, np.float64) + offsets
    limits = np.array([size.width, size.height], np.float64)
    low = np.clip(np.minimum(moved[:2], moved[2:]), 0, limits - 1)
    high = np.clip(np.maximum(moved[:2], moved[2:]), low + 1, limits)
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def point_within(mask: BinaryMask, rng: np.random.Generator) -> tuple[int, int]:
    """A pixel of the mask, each as likely as any other.

    Args:
        mask: not empty.
        rng: draws.

    Returns:
        x, y.
    """
    pixels = np.flatnonzero(mask)
    y, x = divmod(int(pixels[rng.integers(len(pixels))]), mask.shape[1])
    return x, y


def centre_of(mask: BinaryMask) -> tuple[int, int]:
    """The mask's innermost pixel, the farthest from its edge; the first of several.

    The centroid, in contrast, may lie outside, as of fruit behind a leaf.

    Args:
        mask: not empty; its border counts as an edge.

    Returns:
        x, y.
    """
    framed = np.pad(mask.astype(np.uint8), 1)
    depth = cv2.distanceTransform(framed, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    y, x = divmod(int(depth.argmax()), mask.shape[1])
    return x, y


def click_on_error(
    predicted: BinaryMask, truth: BinaryMask, counted: BinaryMask, rng: np.random.Generator
) -> tuple[int, int, bool] | None:
    """Where an annotator might click next: a pixel where prediction and truth differ, each as likely as any other.

    Args:
        predicted: bool (height, width).
        truth: likewise.
        counted: pixels that count.
        rng: draws.

    Returns:
        x, y, and whether it is part of the object (missed) or not (too much); None where nothing differs.
    """
    wrong = (predicted ^ truth) & counted
    if not wrong.any():
        return None
    x, y = point_within(wrong, rng)
    return x, y, bool(truth[y, x])
