"""Simulated prompts from annotated fruit: boxes with jitter, points, and clicks on errors.

A pixel is named by its upper left corner.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from models.masks import bounding_box
from models.sam.constants import INPUT_SIDE
from models.types import BACKGROUND, FOREGROUND, BinaryMask, Box, Point, Size


@dataclass(frozen=True, slots=True)
class BoxJitter:
    """Normal noise of each side of a box.

    Attributes:
        deviation: standard deviation as a share of the length of the box across that side.
        most_deviations: largest move in standard deviations.
        most_pixels: largest move in pixels.
    """

    deviation: float
    most_deviations: float = math.inf
    most_pixels: float = math.inf


CAREFUL_USER: Final = BoxJitter(deviation=0.05, most_deviations=2.0)
"""Boxes as a careful user draws them: sides never swap."""


def training_jitter(side: int) -> BoxJitter:
    """Return the jitter that SAM was trained with (Kirillov et al., "Segment Anything", appendix A).

    Args:
        side: side of the model's square in the pixels that boxes are given in.
    """
    return BoxJitter(deviation=0.1, most_pixels=20 / INPUT_SIDE * side)


def jittered_box(
    box: tuple[int, int, int, int], size: Size, rng: np.random.Generator, jitter: BoxJitter = CAREFUL_USER
) -> Box:
    """Move each side of a box by normal noise.

    Args:
        box: half-open `[x0, y0, x1, y1)` in whole pixels, not empty.
        size: size of the image; the result stays inside it.
        rng: random generator.
        jitter: how far sides move.

    Returns:
        A box at least one pixel wide and high.
    """
    deviations = jitter.deviation * np.array([box[2] - box[0], box[3] - box[1]] * 2, np.float64)
    most = np.minimum(jitter.most_deviations * deviations, jitter.most_pixels)
    moved = np.asarray(box, np.float64) + np.clip(deviations * rng.normal(size=4), -most, most)
    limits = np.array([size.width, size.height], np.float64)
    low = np.clip(np.minimum(moved[:2], moved[2:]), 0, limits - 1)
    high = np.clip(np.maximum(moved[:2], moved[2:]), low + 1, limits)
    return Box(float(low[0]), float(low[1]), float(high[0]), float(high[1]))


def point_within(mask: BinaryMask, rng: np.random.Generator) -> tuple[int, int]:
    """Choose a pixel of a mask, each with the same probability.

    Args:
        mask: bool (height, width), not empty.
        rng: random generator.

    Returns:
        x, y.
    """
    pixels = np.flatnonzero(mask)
    y, x = divmod(int(pixels[rng.integers(len(pixels))]), mask.shape[1])
    return x, y


def centre_of(mask: BinaryMask) -> tuple[int, int]:
    """Find the innermost pixel of a mask, the farthest from its edge; the first of several.

    The centroid, in contrast, may lie outside, for example of fruit behind a leaf.

    Args:
        mask: bool (height, width), not empty; its border counts as an edge.

    Returns:
        x, y.
    """
    depth = _depth(mask)
    y, x = divmod(int(depth.argmax()), mask.shape[1])
    return x, y


def centre_point(mask: BinaryMask, box: tuple[int, int, int, int]) -> Point:
    """Make a click at the innermost pixel of the part of a mask in a box.

    Args:
        mask: bool (height, width) of the image.
        box: half-open box in whole pixels that contains a part of the mask.
    """
    x0, y0, x1, y1 = box
    x, y = centre_of(mask[y0:y1, x0:x1])
    return Point(x0 + x, y0 + y)


def click_on_error(
    predicted: BinaryMask, truth: BinaryMask, counted: BinaryMask, rng: np.random.Generator
) -> tuple[int, int, bool] | None:
    """Choose where an annotator might click next: any pixel where prediction and truth differ.

    Args:
        predicted: bool (height, width).
        truth: bool (height, width).
        counted: bool (height, width), pixels that count.
        rng: random generator.

    Returns:
        x, y, and whether the pixel belongs to the object (was missed); None if nothing differs.
    """
    wrong = (predicted ^ truth) & counted
    if not wrong.any():
        return None
    x, y = point_within(wrong, rng)
    return x, y, bool(truth[y, x])


def centre_of_error(
    predicted: BinaryMask, truth: BinaryMask, counted: BinaryMask, clicked: Sequence[Point] = ()
) -> Point | None:
    """Choose the next click of a simulated user: the centre of the largest error region, positive where it was missed.

    As in the code of RITM (Sofiiuk et al., "Reviving Iterative Training with Mask Guidance for Interactive
    Segmentation", ICIP 2022), the largest region is the deepest one: the click is the pixel farthest from the border of
    the missed pixels or of those that are too many, whichever is farther; at equal distances the latter. The border of
    the image counts as a border, and no pixel is clicked twice.

    Args:
        predicted: bool (height, width).
        truth: bool (height, width).
        counted: bool (height, width), pixels that count.
        clicked: earlier clicks.

    Returns:
        The click, or None if nothing is left to click on.
    """
    wrong = (predicted ^ truth) & counted
    x0, y0, x1, y1 = bounding_box(wrong)
    if x1 == 0:
        return None
    wrong, missed = wrong[y0:y1, x0:x1], truth[y0:y1, x0:x1]
    depths = [_depth(wrong & missed), _depth(wrong & ~missed)]
    for point in clicked:
        x, y = int(point.x) - x0, int(point.y) - y0
        if 0 <= x < x1 - x0 and 0 <= y < y1 - y0:
            for depth in depths:
                depth[y, x] = 0
    deepest = [float(depth.max()) for depth in depths]
    if not any(deepest):
        return None
    label = FOREGROUND if deepest[0] > deepest[1] else BACKGROUND
    y, x = divmod(int(depths[0 if label == FOREGROUND else 1].argmax()), x1 - x0)
    return Point(x0 + x, y0 + y, label)


def _depth(mask: BinaryMask) -> NDArray[np.float32]:
    """Return the distance of each pixel of a mask to the nearest one outside, also beyond the border of the array."""
    framed = np.pad(mask.astype(np.uint8), 1)
    return np.asarray(cv2.distanceTransform(framed, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1], np.float32)
