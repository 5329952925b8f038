"""How far a measure would vary with other images.

Percentile bootstrap over images (Efron, "Bootstrap methods: another look at the jackknife", 1979; Efron and
Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13): images are drawn anew, with replacement, as many as
there are. Images are taken to be independent; frames of one scene are not, and make intervals too narrow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from models.errors import DataError

Statistic: TypeAlias = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""How often each image counts, float64 (resamples, images), to the measure of each resample, (resamples,)."""

_AT_ONCE = 1 << 22  # weights held in memory


@dataclass(frozen=True, slots=True)
class Estimate:
    """A measure and how sure it is.

    Attributes:
        value: over all images.
        low: lower end of the confidence interval.
        high: upper end.
        images: how many the measure is of.
    """

    value: float
    low: float
    high: float
    images: int


def estimate(
    statistic: Statistic,
    *,
    images: int,
    counted: int | None = None,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Measure, and tell the interval.

    Args:
        statistic: the measure; NaN for a resample without an image that counts, which is then left out.
        images: how many there are, at least 1.
        counted: how many of them the measure is of; all if None.
        resamples: how often they are drawn anew, at least 1.
        confidence: of the interval, 0 to 1.
        seed: of the drawing; the same seed draws the same images, so measures can be compared.

    Returns:
        The estimate; all NaN when nothing is measured.

    Raises:
        DataError: no images, no resamples, or a confidence out of range.
    """
    if images < 1 or resamples < 1 or not 0 < confidence < 1:
        raise DataError(f"{images} images, {resamples} resamples, confidence {confidence}: nothing to estimate.")
    value = float(statistic(np.ones((1, images)))[0])
    rng = np.random.default_rng(seed)
    share = np.full(images, 1 / images)
    step = max(1, _AT_ONCE // images)
    values = np.concatenate(
        [
            statistic(rng.multinomial(images, share, min(step, resamples - done)).astype(np.float64))
            for done in range(0, resamples, step)
        ]
    )
    values = values[~np.isnan(values)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, (tail, 1 - tail)) if values.size else (np.nan, np.nan)
    return Estimate(value, float(low), float(high), images if counted is None else counted)
