"""How well the scores that a model gives its masks predict their IoU."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.errors import DataError
from models.evaluation.results import Calibration, ScoreBin


def calibrate(scores: NDArray[np.float64], ious: NDArray[np.float64], *, bins: int = 10) -> Calibration:
    """Compare predicted with actual IoUs.

    The expected calibration error is that of Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, with
    the IoU in place of accuracy.

    Args:
        scores: (masks,), predicted IoUs, near 0 to 1; values outside count in the first or the last bin.
        ious: (masks,), actual IoUs, 0 to 1.
        bins: number of bins of equal width from 0 to 1, at least 1; a score on an edge belongs to the upper bin.

    Raises:
        DataError: no masks, scores and IoUs that do not pair or are not finite, or no bins.
    """
    if scores.ndim != 1 or scores.shape != ious.shape or scores.size == 0 or bins < 1:
        raise DataError(
            "calibration needs as many IoUs as scores and at least one bin, "
            f"got {scores.size} scores, {ious.size} IoUs and {bins} bins"
        )
    if not (np.isfinite(scores).all() and np.isfinite(ious).all()):
        raise DataError("scores and IoUs must be finite")
    places = np.floor(np.clip(scores, 0, 1) * bins).clip(max=bins - 1).astype(np.int64)
    counts = np.bincount(places, minlength=bins)
    filled = np.flatnonzero(counts)
    mean_scores = np.bincount(places, scores, bins)[filled] / counts[filled]
    mean_ious = np.bincount(places, ious, bins)[filled] / counts[filled]
    return Calibration(
        count=scores.size,
        mean_absolute_error=float(np.abs(scores - ious).mean()),
        bias=float((scores - ious).mean()),
        expected_calibration_error=float(np.average(np.abs(mean_scores - mean_ious), weights=counts[filled])),
        correlation=_correlation(scores, ious),
        bins=tuple(
            ScoreBin(int(place) / bins, (int(place) + 1) / bins, int(counts[place]), float(score), float(iou))
            for place, score, iou in zip(filled, mean_scores, mean_ious, strict=True)
        ),
    )


def _correlation(scores: NDArray[np.float64], ious: NDArray[np.float64]) -> float:
    if np.ptp(scores) == 0 or np.ptp(ious) == 0:
        return float("nan")
    # Scaled first, as the squares of very small deviations would underflow.
    one, other = (each / np.abs(each).max() for each in (scores - scores.mean(), ious - ious.mean()))
    return float(np.clip((one @ other) / np.sqrt((one @ one) * (other @ other)), -1, 1))
