"""Joins what the votes for centres divided: a single large fruit, such as one that fills the image.

Offsets from the rim of a fruit larger than any in training are too short, so that its cells vote for several centres.
Together its parts are round, which two fruits that touch or hide each other are not.
"""

from __future__ import annotations

from itertools import combinations
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from models.types import BinaryMask

_LEAST_SHARE: Final = 0.08
"""Smallest fruit to join, as a share of the image. Smaller fruit is not divided."""

_LEAST_PART: Final = 0.2
"""Smallest part to join to another one, as a share of both: less is a fruit behind."""

_LEAST_SOLIDITY: Final = 0.97
"""Least share of its convex hull that a round fruit fills. Two equal discs fill more only if they hide more than half
of each other."""

_MOST_EXTENT: Final = 0.88
"""Largest share of its box that a fruit fills; an ellipse fills 0.79. An image full of fruit fills all of it."""


def join_divided(labels: NDArray[np.int32], classes: NDArray[np.uint8]) -> None:
    """Give the parts of large round fruits one label: all that touch, or two of them.

    Args:
        labels: int32 (height, width), 0 for background and stray cells, else the fruit's number from 1 on; modified.
        classes: uint8 of the same shape, 0 for background.
    """
    least = _LEAST_SHARE * labels.size
    count, regions, stats, _ = cv2.connectedComponentsWithStats((classes > 0).view(np.uint8), connectivity=8)
    for region in range(1, count):
        x, y, width, height, area = stats[region].tolist()
        if area < least:
            continue
        part = labels[y : y + height, x : x + width]
        inside = regions[y : y + height, x : x + width] == region
        numbers = [number for number in np.unique(part[inside]).tolist() if number]
        if len(numbers) > 1 and _is_round(inside):
            part[inside] = numbers[0]
        elif len(numbers) > 1:
            _join_pairs(part, numbers, least)


def _join_pairs(labels: NDArray[np.int32], numbers: list[int], least: float) -> None:
    """Join two parts that are round together, in place."""
    areas = np.bincount(labels.ravel())
    large = [number for number in numbers if areas[number] >= _LEAST_PART * least]
    for one, other in combinations(large, 2):
        total, smaller = areas[one] + areas[other], min(areas[one], areas[other])
        if total < least or smaller < _LEAST_PART * total:
            continue
        both = (labels == one) | (labels == other)
        if _is_round(both):
            labels[both] = one
            areas[one], areas[other] = total, 0


def _is_round(shape: BinaryMask) -> bool:
    """Tell whether a shape nearly fills its convex hull, but not its box."""
    outlines, _ = cv2.findContours(shape.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    hull = cv2.convexHull(np.concatenate(outlines))
    filled = cv2.fillConvexPoly(np.zeros(shape.shape, np.uint8), hull, 1)
    area = np.count_nonzero(shape)
    _, _, width, height = cv2.boundingRect(hull)
    return bool(area >= _LEAST_SOLIDITY * np.count_nonzero(filled) and area <= _MOST_EXTENT * width * height)
