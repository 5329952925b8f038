"""How well predicted masks match annotated fruits: which fruits were found, and how well outlines fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from models.data.samples import InstanceMap
from models.errors import DataError
from models.masks import bounding_box
from models.metrics import check_same_size
from models.types import BinaryMask

TOLERANCE: Final = 0.0075
"""Of outlines, as a share of the image's diagonal, from Csurka et al.: 34 pixels for 4160 x 1800, 3.8 for 448 x 224."""

_CROSS: Final = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)


@dataclass(frozen=True, slots=True)
class ObjectCounts:
    """Matched and unmatched fruits of an image.

    Attributes:
        found: number of fruits with a matching prediction.
        false: number of predictions without a matching fruit.
        missed: number of fruits without a matching prediction.
        ious: IoU of each matched pair.
    """

    found: int
    false: int
    missed: int
    ious: tuple[float, ...]

    @property
    def precision(self) -> float:
        """Matched share of the predictions, 0 to 1; NaN without predictions."""
        total = self.found + self.false
        return self.found / total if total else float("nan")

    @property
    def recall(self) -> float:
        """Matched share of the fruits, 0 to 1; NaN without fruits."""
        total = self.found + self.missed
        return self.found / total if total else float("nan")


def count_objects(
    predicted: Sequence[BinaryMask],
    truth: InstanceMap,
    *,
    ignored: BinaryMask | None = None,
    threshold: float = 0.5,
) -> ObjectCounts:
    """Match predictions with fruits.

    A prediction and a fruit match at an IoU of `threshold` or more. Annotated fruits do not overlap, so above 0.5 a
    prediction can match only one of them (Kirillov et al., "Panoptic Segmentation", CVPR 2019, section 4.1).

    Args:
        predicted: bool (height, width) each; they may overlap.
        truth: uint16 (height, width), the id of the fruit, 0 for none.
        ignored: bool (height, width) or None; its pixels do not count. A prediction with more than half of its pixels
            in it is left out, and so is a fruit that lies in it entirely.
        threshold: lowest IoU of a match, 0.5 to 1.

    Raises:
        DataError: masks of different sizes, or a threshold out of range.
    """
    kept = [predicted[number] for number in kept_predictions(predicted, ignored)]
    if ignored is not None:
        check_same_size(ignored, truth)
        kept = [mask & ~ignored for mask in kept]
        truth = np.where(ignored, np.uint16(0), truth)
    ious = object_ious(kept, truth)
    pairs = match_objects(ious, threshold=threshold)
    return ObjectCounts(
        found=len(pairs),
        false=len(kept) - len(pairs),
        missed=ious.shape[1] - len(pairs),
        ious=tuple(float(ious[pair]) for pair in pairs),
    )


def kept_predictions(predicted: Sequence[BinaryMask], ignored: BinaryMask | None) -> list[int]:
    """Return the numbers of the predictions that count: at most half of their pixels are `ignored`."""
    if ignored is None:
        return list(range(len(predicted)))
    return [
        number
        for number, mask in enumerate(predicted)
        if 2 * np.count_nonzero(mask & ignored) <= np.count_nonzero(mask)
    ]


def object_ious(predicted: Sequence[BinaryMask], truth: InstanceMap) -> NDArray[np.float64]:
    """Return the IoU of every prediction with every fruit.

    Args:
        predicted: bool (height, width) each.
        truth: uint16 (height, width), the id of the fruit, 0 for none.

    Returns:
        float64 (predictions, fruits), fruits in the order of their ids.

    Raises:
        DataError: masks of different sizes.
    """
    areas = np.bincount(truth.ravel(), minlength=1)
    areas[0] = 0
    ids = np.flatnonzero(areas)
    ious = np.zeros((len(predicted), ids.size))
    for row, mask in zip(ious, predicted, strict=True):
        check_same_size(mask, truth)
        shared = np.bincount(truth[mask], minlength=areas.size)[ids]
        row[:] = shared / (np.count_nonzero(mask) + areas[ids] - shared)
    return ious


def match_objects(ious: NDArray[np.float64], *, threshold: float = 0.5) -> list[tuple[int, int]]:
    """Pair predictions with fruits greedily, best pairs first, which finds as many as any other matching.

    Args:
        ious: float64 (predictions, fruits), of fruits that do not overlap.
        threshold: lowest IoU of a pair, 0.5 to 1.

    Returns:
        Indices of predictions and fruits, each at most once; of equal pairs, that of the first prediction.

    Raises:
        DataError: a threshold out of range.
    """
    if not 0.5 <= threshold <= 1:
        raise DataError(f"threshold must be between 0.5 and 1, got {threshold}")
    rows, columns = np.nonzero(ious >= threshold)
    pairs: list[tuple[int, int]] = []
    used_rows: set[int] = set()
    used_columns: set[int] = set()
    for best in np.argsort(-ious[rows, columns], kind="stable"):
        row, column = int(rows[best]), int(columns[best])
        if row not in used_rows and column not in used_columns:
            used_rows.add(row)
            used_columns.add(column)
            pairs.append((row, column))
    return pairs


def fruits_touch(instances: InstanceMap) -> bool:
    """Return whether two fruits share a side of a pixel.

    Args:
        instances: uint16 (height, width), the id of the fruit, 0 for none.
    """
    pairs = ((instances[:, 1:], instances[:, :-1]), (instances[1:], instances[:-1]))
    return any(bool(((one != other) & (one > 0) & (other > 0)).any()) for one, other in pairs)


@dataclass(frozen=True, slots=True)
class BoundaryFit:
    """How well two outlines fit.

    Attributes:
        precision: share of the predicted outline near the annotated one; NaN without a predicted outline.
        recall: share of the annotated outline near the predicted one; NaN without an annotated outline.
    """

    precision: float
    recall: float

    @property
    def f(self) -> float:
        """Harmonic mean of precision and recall; 0 where one outline is missing, NaN where both are."""
        known = [each for each in (self.precision, self.recall) if not np.isnan(each)]
        if len(known) < 2:
            return known[0] if known else float("nan")
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


def boundary_fit(
    predicted: BinaryMask, truth: BinaryMask, *, tolerance: float = TOLERANCE, ignored: BinaryMask | None = None
) -> BoundaryFit:
    """Compare the outlines of two masks, as measures of area are dominated by the inside of large fruit.

    The boundary F-measure of Csurka, Larlus and Perronnin, "What is a good evaluation measure for semantic
    segmentation?" (BMVC 2013), with distances as in the DAVIS benchmark (Perazzi et al., CVPR 2016).

    Args:
        predicted: bool (height, width).
        truth: bool (height, width).
        tolerance: largest distance of outlines that fit, as a share of the image's diagonal, at least 0.
        ignored: bool (height, width) or None; outlines in it or along it do not count.

    Raises:
        DataError: masks of different sizes.
    """
    check_same_size(predicted, truth)
    reach = tolerance * float(np.hypot(*truth.shape))
    if ignored is not None:
        predicted, truth = predicted & ~ignored, truth & ~ignored
    x0, y0, x1, y1 = bounding_box(predicted | truth)
    # One pixel more on each side, so that only the edge of the image counts as one.
    window = (slice(max(y0 - 1, 0), y1 + 1), slice(max(x0 - 1, 0), x1 + 1))
    predicted_line, true_line = outline(predicted[window]), outline(truth[window])
    near_predicted, near_true = _near(predicted_line, reach), _near(true_line, reach)
    if ignored is not None:
        # Left out only where they are scored: the other outline may still pass near them.
        counted = cv2.dilate(ignored[window].astype(np.uint8), _CROSS) == 0
        predicted_line, true_line = predicted_line & counted, true_line & counted
    return BoundaryFit(_share(predicted_line, near_true), _share(true_line, near_predicted))


def outline(mask: BinaryMask) -> BinaryMask:
    """Return the pixels of a mask with a neighbour (above, below, left or right) outside it; the image's edge is none.

    Args:
        mask: bool (height, width).
    """
    # OpenCV's default border never erodes, so the edge of the image is not part of the outline.
    inner = cv2.erode(mask.astype(np.uint8), _CROSS)
    edge: BinaryMask = mask & (inner == 0)
    return edge


def _near(line: BinaryMask, reach: float) -> BinaryMask:
    if not line.any():
        return np.zeros(line.shape, np.bool_)
    distance = cv2.distanceTransform((~line).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    near: BinaryMask = np.asarray(distance) <= reach + 1e-4  # distances are float32
    return near


def _share(line: BinaryMask, near: BinaryMask) -> float:
    total = np.count_nonzero(line)
    return np.count_nonzero(line & near) / total if total else float("nan")
