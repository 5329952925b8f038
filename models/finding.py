"""Fruit that a detector finds, and fruit that a detector and a U-Net find together.

A U-Net sees which pixels are fruit, but divides large fruit, and finds fruit where there is none; a detector counts
well, but misses small and hidden fruit. Together: the detector's sure boxes, and of the U-Net's fruits those that even
a faint box of the detector's confirms. Measured by `models.evaluation.detection`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import cv2
import numpy as np

from models.detector.postprocess import Detection, Thresholds
from models.inspection import Fruit, Inspection, measure_fruit
from models.masks import CroppedMask
from models.types import BinaryMask, Box, SemanticMap, Size

FINDING: Final = Thresholds(score=0.02, nms=0.65, most=300)
"""Of the detector's boxes: the least of these confirm fruit that the U-Net found."""

_SURE: Final = 0.3
"""Least score of a box that is a fruit without the U-Net."""

_ALONE: Final = 0.15
"""The same where the detector alone finds fruit: the most right of 0.1 to 0.4 on validation images."""

_SAME: Final = 0.5
"""IoU of boxes from which they show the same fruit."""

_PART: Final = 0.6
"""Share of a fruit's box in a detector's box, from which it is a part of that."""

_FILLED: Final = 0.5
"""Least share of a box's ellipse that the U-Net must see as fruit for its pixels to be the mask; else all of it is."""


def found_by_detector(inspection: Inspection, boxes: Sequence[Detection]) -> Inspection:
    """Return the fruit of a detector's boxes; see `found_by_both`."""
    return _with(inspection, _whole([each for each in boxes if each.score >= _ALONE]), ())


def found_by_both(inspection: Inspection, boxes: Sequence[Detection]) -> Inspection:
    """Return the fruit that a U-Net and a detector find together.

    Args:
        inspection: result of the U-Net.
        boxes: of fruit, by `FINDING`, best first.
    """
    return _with(inspection, _whole([each for each in boxes if each.score >= _SURE]), boxes)


def _whole(boxes: Sequence[Detection]) -> list[Detection]:
    """Return the boxes that are not the same as a better one, nor a part of it."""
    kept: list[Detection] = []
    for each in boxes:
        if all(_shared(each.box, other.box) < max(_PART * _area(each.box), 1e-9) for other in kept):
            kept.append(each)
    return kept


def _with(inspection: Inspection, sure: Sequence[Detection], faint: Sequence[Detection]) -> Inspection:
    known = [(fruit, Box(*map(float, fruit.box))) for fruit in inspection.fruits]
    fruits: list[Fruit] = []
    missing: list[Detection] = []
    used: set[int] = set()
    for each in sure:
        inside = [n for n, (_, box) in enumerate(known) if _shared(box, each.box) >= _PART * _area(box)]
        same = [n for n, (_, box) in enumerate(known) if n not in used and _iou(box, each.box) >= _SAME]
        if len(same) == 1 and set(inside) <= set(same):
            fruits.append(known[same[0]][0])
        else:
            missing.append(each)
        used.update(inside, same)
    for number, (fruit, box) in enumerate(known):
        confirmed = any(_iou(box, each.box) >= _SAME for each in faint)
        if number not in used and confirmed:
            fruits.append(fruit)
    taken = np.zeros(inspection.classes.shape, np.bool_)
    for fruit in fruits:
        x0, y0, x1, y1 = fruit.box
        taken[y0:y1, x0:x1] |= fruit.mask.pixels
    for each in missing:
        made = _fruit_of(each, inspection.classes, taken)
        if made is not None:
            fruits.append(made)
    return replace(inspection, fruits=tuple(sorted(fruits, key=_centre)))


def _fruit_of(each: Detection, classes: SemanticMap, taken: BinaryMask) -> Fruit | None:
    """Make a fruit of a box, of pixels that no other has, which it then has; None without any."""
    size = Size(*classes.shape)
    x0, y0 = max(0, round(each.box.x0)), max(0, round(each.box.y0))
    x1, y1 = min(size.width, round(each.box.x1)), min(size.height, round(each.box.y1))
    if x1 <= x0 or y1 <= y0:
        return None
    ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (x1 - x0, y1 - y0)).astype(np.bool_)
    mask = classes[y0:y1, x0:x1] > 0
    if np.count_nonzero(mask & ellipse) < _FILLED * np.count_nonzero(ellipse):
        mask = ellipse
    mask = mask & ~taken[y0:y1, x0:x1]
    if not mask.any():
        return None
    taken[y0:y1, x0:x1] |= mask
    return measure_fruit(CroppedMask(mask, x0, y0, size), classes, each.score)


def _centre(fruit: Fruit) -> tuple[int, int]:
    x0, y0, x1, y1 = fruit.box
    return x0 + x1, y0 + y1


def _area(box: Box) -> float:
    return (box.x1 - box.x0) * (box.y1 - box.y0)


def _shared(one: Box, other: Box) -> float:
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return max(0.0, width) * max(0.0, height)


def _iou(one: Box, other: Box) -> float:
    shared = _shared(one, other)
    return shared / max(_area(one) + _area(other) - shared, 1e-9)
