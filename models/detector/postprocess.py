"""From a detector's output to boxes: cells to pixels, scores, suppression of boxes that overlap, class by class."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.detector.letterbox import DetectorLetterbox
from models.types import Box, Size

STRIDES: Final = (8, 16, 32)
"""Pixels of the input per cell, of the three grids of the output, one after the other."""

BOX_VALUES: Final = 5
"""Of a cell before the scores of its classes: centre x and y, width, height, score of an object."""

MOST_CANDIDATES: Final = 1000
"""Boxes of an image, best first, that suppression looks at: it compares each with each of its class."""

_MAX_LOG_SIDE: Final = 10.0
"""Of a box's side in cells; e to this power is far beyond any image."""


@dataclass(frozen=True, slots=True)
class Detection:
    """One object.

    Attributes:
        box: within the image, in pixels.
        class_id: index of its class.
        score: 0 to 1: probability of an object times that of its class.
    """

    box: Box
    class_id: int
    score: float


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Which boxes are kept.

    Attributes:
        score: least score, 0 to 1.
        nms: IoU, 0 to 1, above which the worse of two boxes of one class is left out.
        most: largest number of boxes, the best.
        class_ids: of the classes that are wanted; None for all.
    """

    score: float = 0.3
    nms: float = 0.45
    most: int = 100
    class_ids: Collection[int] | None = None


def cell_count(padded: Size) -> int:
    """Return the number of cells of all grids for an input of this size."""
    return sum((padded.height // stride) * (padded.width // stride) for stride in STRIDES)


def detections(output: NDArray[np.float32], letterbox: DetectorLetterbox, thresholds: Thresholds) -> list[Detection]:
    """Return the objects in an output, best first.

    Args:
        output: float32 (cells, 5 + classes): for every cell the offset of the centre from the cell's corner in cells,
            logarithms of width and height in cells, probability of an object, probabilities of the classes.
        letterbox: of the image.
        thresholds: which boxes are kept.

    Raises:
        ValueError: the output has other cells than the letterbox.
    """
    corners, strides = _grid(letterbox.padded)
    if len(output) != len(corners):
        raise ValueError(f"the output must have {len(corners)} cells for {letterbox.padded}, got {len(output)}")
    classes = output[:, BOX_VALUES:]
    ids = classes.argmax(axis=1) if thresholds.class_ids is None else _best_of(classes, thresholds.class_ids)
    scores = output[:, 4] * classes[np.arange(len(classes)), ids]
    chosen = np.flatnonzero(scores >= thresholds.score)
    # A stable sort, so that of equal scores the first cell's is the better one.
    chosen = chosen[np.argsort(-scores[chosen], kind="stable")][:MOST_CANDIDATES]
    centres = (output[chosen, :2] + corners[chosen]) * strides[chosen, None]
    halves = np.exp(np.minimum(output[chosen, 2:4], _MAX_LOG_SIDE)) * strides[chosen, None] / 2
    boxes = np.hstack([centres - halves, centres + halves]).astype(np.float64) / letterbox.scale
    size = letterbox.original
    boxes = np.clip(boxes, 0, (size.width, size.height, size.width, size.height))
    visible = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    chosen, boxes = chosen[visible], boxes[visible]
    kept = suppress(boxes, ids[chosen], thresholds.nms)[: thresholds.most]
    return [
        Detection(Box(*boxes[row].tolist()), int(ids[chosen[row]]), min(1.0, float(scores[chosen[row]])))
        for row in kept
    ]


def suppress(boxes: NDArray[np.float64], class_ids: NDArray[np.integer], threshold: float) -> list[int]:
    """Return the rows of boxes that no better box of the same class overlaps by more than `threshold`.

    Args:
        boxes: float64 (boxes, 4), x0, y0, x1, y1, best first.
        class_ids: (boxes,).
        threshold: IoU, 0 to 1.
    """
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    left = np.ones(len(boxes), np.bool_)
    kept = []
    for row in range(len(boxes)):
        if not left[row]:
            continue
        kept.append(row)
        low, high = np.maximum(boxes[row, :2], boxes[:, :2]), np.minimum(boxes[row, 2:], boxes[:, 2:])
        shared = np.maximum(high - low, 0).prod(axis=1)
        ious = shared / (areas[row] + areas - shared)
        left &= (ious <= threshold) | (class_ids != class_ids[row])
    return kept


def _best_of(classes: NDArray[np.float32], wanted: Collection[int]) -> NDArray[np.int64]:
    """Return the best of the wanted classes in every cell."""
    ids = np.array(sorted(wanted), np.int64)
    best: NDArray[np.int64] = ids[classes[:, ids].argmax(axis=1)]
    return best


@lru_cache(maxsize=8)
def _grid(padded: Size) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the corner in cells and the stride of every cell."""
    corners, strides = [], []
    for stride in STRIDES:
        rows, columns = padded.height // stride, padded.width // stride
        ys, xs = np.mgrid[:rows, :columns]
        corners.append(np.stack([xs.ravel(), ys.ravel()], axis=1))
        strides.append(np.full(rows * columns, stride))
    return np.concatenate(corners).astype(np.float32), np.concatenate(strides).astype(np.float32)
