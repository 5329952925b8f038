"""Whether the scores that a model gives its masks are true."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.errors import DataError


@dataclass(frozen=True, slots=True)
class ScoreBin:
    """Masks of similar score.

    Attributes:
        count: masks.
        score: their mean score.
        iou: their mean intersection over union with the truth.
    """

    count: int
    score: float
    iou: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """How far scores are from the truth that they predict.

    Attributes:
        count: masks.
        mean_absolute_error: of the scores.
        bias: mean score less mean IoU; above 0 for a model that thinks too well of itself.
        expected_calibration_error: mean distance of score and IoU in bins of scores, weighted by their masks (Guo et
            al., "On Calibration of Modern Neural Networks", ICML 2017, with the IoU in place of accuracy).
        correlation: Pearson's, -1 to 1; NaN when all scores or all IoUs are equal.
        bins: those that hold masks, by score.
    """

    count: int
    mean_absolute_error: float
    bias: float
    expected_calibration_error: float
    correlation: float
    bins: tuple[ScoreBin, ...]


def calibrate(scores: NDArray[np.float64], ious: NDArray[np.float64], *, bins: int = 10) -> Calibration:
    """Compare predicted with actual intersection over union.

    Args:
        scores: (masks,): what the model said, near 0 to 1; scores beyond count in the first or last bin.
        ious: (masks,): what is true, 0 to 1.
        bins: of equal width from 0 to 1, at least 1; a score on a border belongs to the upper one.

    Returns:
        The measures.

    Raises:
        DataError: no masks, scores and IoUs that do not pair or are not finite, or no bins.
    """
    if scores.ndim != 1 or scores.shape != ious.shape or scores.size == 0 or bins < 1:
        raise DataError(f"{scores.size} scores, {ious.size} IoUs and {bins} bins; as many IoUs as scores are right.")
    if not (np.isfinite(scores).all() and np.isfinite(ious).all()):
        raise DataError("Scores or IoUs are not finite.")
    places = np.floor(np.clip(scores, 0, 1) * bins).clip(max=bins - 1).astype(np.int64)
    counts = np.bincount(places, minlength=bins)
    held = np.flatnonzero(counts)
    mean_scores = np.bincount(places, scores, bins)[held] / counts[held]
    mean_ious = np.bincount(places, ious, bins)[held] / counts[held]
    return Calibration(
        count=scores.size,
        mean_absolute_error=float(np.abs(scores - ious).mean()),
        bias=float((scores - ious).mean()),
        expected_calibration_error=float(np.average(np.abs(mean_scores - mean_ious), weights=counts[held])),
        correlation=_correlation(scores, ious),
        bins=tuple(
            ScoreBin(int(count), float(score), float(iou))
            for count, score, iou in zip(counts[held], mean_scores, mean_ious, strict=True)
        ),
    )


def _correlation(scores: NDArray[np.float64], ious: NDArray[np.float64]) -> float:
    if np.ptp(scores) == 0 or np.ptp(ious) == 0:
        return float("nan")
    # Scaled first: the squares of very small deviations would vanish.
    one, other = (each / np.abs(each).max() for each in (scores - scores.mean(), ious - ious.mean()))
    return float(np.clip((one @ other) / np.sqrt((one @ one) * (other @ other)), -1, 1))
