"""From the output of a model of an open vocabulary to boxes of what nouns name."""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from models.detector.postprocess import MOST_CANDIDATES, Detection, Thresholds, suppress
from models.types import Box, Size

BOX_VALUES: Final = 4
"""Of a row of Grounding DINO's output before the scores of the nouns: centre x and y, width, height, as shares."""

_SMALLEST: Final = 9
"""Cells of a heat map that a region must have: fewer are noise."""


def boxes_of_queries(output: NDArray[np.float32], size: Size, thresholds: Thresholds) -> list[Detection]:
    """Return the objects that Grounding DINO found, best first; a box is of the noun that fits it best.

    Args:
        output: float32 (queries, 4 + nouns): boxes, then the probability of each noun.
        size: of the image.
        thresholds: which boxes are kept; their classes are the nouns.
    """
    probabilities = output[:, BOX_VALUES:]
    ids = probabilities.argmax(axis=1)
    scores = probabilities.max(axis=1)
    # In float64, and stable: of equal scores the first query's box is the better one.
    centres, sides = output[:, :2].astype(np.float64), output[:, 2:BOX_VALUES].astype(np.float64)
    scale = (size.width, size.height, size.width, size.height)
    boxes = np.hstack([centres - sides / 2, centres + sides / 2]) * scale
    return _kept(np.clip(boxes, 0, scale), ids, scores, thresholds)


def boxes_of_heat(output: NDArray[np.float32], size: Size, thresholds: Thresholds) -> list[Detection]:
    """Return the regions that CLIPSeg is sure enough of, best first; the score is the largest probability in each.

    Args:
        output: float32 (nouns, height, width), probability of each noun in each cell of the stretched image.
        size: of the image.
        thresholds: a region's cells reach the least score; boxes of one noun may overlap as for a detector.
    """
    boxes, ids, scores = [], [], []
    for number, heat in enumerate(output):
        count, labels, stats, _ = cv2.connectedComponentsWithStats((heat >= thresholds.score).astype(np.uint8))
        for region in range(1, count):
            left, top, width, height, area = stats[region].tolist()
            if area < _SMALLEST:
                continue
            inside = labels[top : top + height, left : left + width] == region
            boxes.append((left, top, left + width, top + height))
            ids.append(number)
            scores.append(float(heat[top : top + height, left : left + width][inside].max()))
    scale = np.array([size.width / output.shape[2], size.height / output.shape[1]] * 2)
    found = np.array(boxes, np.float64).reshape(-1, 4) * scale
    return _kept(found, np.array(ids, np.int64), np.array(scores, np.float32), thresholds)


def _kept(
    boxes: NDArray[np.float64], ids: NDArray[np.int64], scores: NDArray[np.float32], thresholds: Thresholds
) -> list[Detection]:
    visible = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    chosen = np.flatnonzero(visible & (scores >= thresholds.score))
    chosen = chosen[np.argsort(-scores[chosen], kind="stable")][:MOST_CANDIDATES]
    kept = suppress(boxes[chosen], ids[chosen], thresholds.nms)[: thresholds.most]
    return [Detection(Box(*boxes[row].tolist()), int(ids[row]), min(1.0, float(scores[row]))) for row in chosen[kept]]
