"""Average recall of masks, as COCO measures object proposals: AR@10, @100 and @1000, and by size.

Classes do not count. An annotated object is found at a threshold of IoU if a proposal is matched with it, the proposals
in the order of their scores, each with the object that it overlaps most among those that are left. The average is over
the thresholds 0.5, 0.55, …, 0.95 (Lin et al. 2014; `tests/unit/test_evaluation_proposals.py` checks the numbers against
pycocotools).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

IOU_THRESHOLDS: Final = np.round(np.arange(0.5, 1.0, 0.05), 2)
MOST: Final = (10, 100, 1000)
"""Proposals of an image that count, the best."""

AREAS: Final[Mapping[str, tuple[float, float]]] = {
    "all": (0, 1e10),
    "small": (0, 32**2),
    "medium": (32**2, 96**2),
    "large": (96**2, 1e10),
}
"""COCO's ranges of the area of an annotated object, in pixels."""


@dataclass(frozen=True, slots=True, eq=False)
class ProposedImage:
    """What was proposed for one image.

    Attributes:
        ious: float (proposals, objects), the proposals by falling score.
        areas: float (objects,), pixels of the annotated objects.
    """

    ious: NDArray[np.float64]
    areas: NDArray[np.float64]


def average_recalls(images: Iterable[ProposedImage]) -> dict[str, float]:
    """Return the average recalls of a set, by name.

    Returns:
        `AR@10`, `AR@100`, `AR@1000`, `AR@1000 small`, `medium` and `large`, 0 to 1; NaN without such objects.
    """
    listed = list(images)
    recalls = {f"AR@{most}": average_recall(listed, most) for most in MOST}
    sizes = [name for name in AREAS if name != "all"]
    return recalls | {f"AR@{MOST[-1]} {name}": average_recall(listed, MOST[-1], AREAS[name]) for name in sizes}


def average_recall(images: Sequence[ProposedImage], most: int, areas: tuple[float, float] = AREAS["all"]) -> float:
    """Return the average recall of a set, 0 to 1; NaN without objects of these areas.

    Args:
        images: of the set.
        most: proposals of an image that count.
        areas: least and largest area of the objects that count, both inclusive, as in COCO.
    """
    objects = 0
    found = np.zeros(len(IOU_THRESHOLDS), np.int64)
    for image in images:
        counted = (image.areas >= areas[0]) & (image.areas <= areas[1])
        objects += int(counted.sum())
        ious = image.ious[:most, counted]
        found += [_found(ious, threshold) for threshold in IOU_THRESHOLDS]
    return float((found / objects).mean()) if objects else float("nan")


def _found(ious: NDArray[np.float64], threshold: float) -> int:
    """Return how many objects are found at one threshold."""
    left = np.ones(ious.shape[1], np.bool_)
    for row in ious:
        candidates = np.where(left, row, -1.0)
        if candidates.size and candidates.max() >= threshold:
            left[int(candidates.argmax())] = False
    return int((~left).sum())
