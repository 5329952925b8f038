"""How well outlines fit, where measures of area are dominated by the inside of large fruit.

The boundary F-measure of Csurka, Larlus and Perronnin, "What is a good evaluation measure for semantic segmentation?"
(BMVC 2013), with distances as in the DAVIS benchmark (Perazzi et al., CVPR 2016): an outline's pixel is right when the
other outline passes within a tolerance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np

from models.masks import bounding_box
from models.metrics import check_same_size
from models.types import BinaryMask

TOLERANCE: Final = 0.0075
"""Share of the image's diagonal, from Csurka et al.; 34 pixels for 4160 x 1800, 3.8 for 448 x 224."""

_CROSS: Final = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)


@dataclass(frozen=True, slots=True)
class BoundaryFit:
    """How well outlines fit.

    Attributes:
        precision: share of the predicted outline that is near the true one; NaN when there is none.
        recall: share of the true outline that is near the predicted one; NaN when there is none.
    """

    precision: float
    recall: float

    @property
    def f(self) -> float:
        """Harmonic mean of both; 0 when only one has an outline, NaN when neither has."""
        known = [each for each in (self.precision, self.recall) if not np.isnan(each)]
        if len(known) < 2:
            return known[0] if known else float("nan")
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


def boundary_fit(
    predicted: BinaryMask, truth: BinaryMask, *, tolerance: float = TOLERANCE, ignored: BinaryMask | None = None
) -> BoundaryFit:
    """Compare the outlines of two masks.

    An outline are the pixels of the mask that have a neighbour (above, below, left, right) outside of it; the image's
    edge is no outline.

    Args:
        predicted: bool (height, width).
        truth: bool (height, width).
        tolerance: how far apart outlines may pass, as a share of the image's diagonal, at least 0.
        ignored: bool (height, width) or None; outlines in it or along it do not count.

    Returns:
        The fit.

    Raises:
        DataError: masks of different sizes.
    """
    check_same_size(predicted, truth)
    reach = tolerance * float(np.hypot(*truth.shape))
    if ignored is not None:
        predicted, truth = predicted & ~ignored, truth & ~ignored
    x0, y0, x1, y1 = bounding_box(predicted | truth)
    # A pixel more on each side, so that only the image's own edge is taken for its edge.
    window = (slice(max(y0 - 1, 0), y1 + 1), slice(max(x0 - 1, 0), x1 + 1))
    guessed, true = outline(predicted[window]), outline(truth[window])
    near_guessed, near_true = _near(guessed, reach), _near(true, reach)
    if ignored is not None:
        # Dropped only where they are judged: the other outline may still pass near them.
        counted = cv2.dilate(ignored[window].astype(np.uint8), _CROSS) == 0
        guessed, true = guessed & counted, true & counted
    return BoundaryFit(_share(guessed, near_true), _share(true, near_guessed))


def outline(mask: BinaryMask) -> BinaryMask:
    """The pixels of a mask with a neighbour in the image that is not in it.

    Args:
        mask: bool (height, width).

    Returns:
        bool (height, width).
    """
    # OpenCV's default border never erodes: the image's edge is no outline.
    inner = cv2.erode(mask.astype(np.uint8), _CROSS)
    edge: BinaryMask = mask & (inner == 0)
    return edge


def _near(edge: BinaryMask, reach: float) -> BinaryMask:
    if not edge.any():
        return np.zeros(edge.shape, np.bool_)
    distance = cv2.distanceTransform((~edge).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    near: BinaryMask = np.asarray(distance) <= reach + 1e-4  # distances are float32
    return near


def _share(edge: BinaryMask, near: BinaryMask) -> float:
    total = np.count_nonzero(edge)
    return np.count_nonzero(edge & near) / total if total else float("nan")
