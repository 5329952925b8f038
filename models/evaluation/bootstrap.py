"""How far a measure would vary with other pictures.

Percentile bootstrap over pictures (Efron, "Bootstrap methods: another look at the jackknife", 1979; Efron and
Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13): pictures are drawn anew, with replacement, as many as
there are. Pictures are taken to be independent; frames of one scene are not, and make intervals too narrow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from models.errors import DataError

Statistic: TypeAlias = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""How often each picture counts, float64 (resamples, pictures), to the measure of each resample, (resamples,)."""

_AT_ONCE = 1 << 22  # weights held in memory


@dataclass(frozen=True, slots=True)
class Estimate:
    """A measure and how sure it is.

    Attributes:
        value: over all pictures.
        low: lower end of the confidence interval.
        high: upper end.
        pictures: how many the measure is of.
    """

    value: float
    low: float
    high: float
    pictures: int


def estimate(
    statistic: Statistic,
    *,
    pictures: int,
    counted: int | None = None,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Measure, and tell the interval.

    Args:
        statistic: the measure; NaN for a resample without a picture that counts, which is then left out.
        pictures: how many there are, at least 1.
        counted: how many of them the measure is of; all if None.
        resamples: how often they are drawn anew, at least 1.
        confidence: of the interval, 0 to 1.
        seed: of the drawing; the same seed draws the same pictures, so measures can be compared.

    Returns:
        The estimate; all NaN when nothing is measured.

    Raises:
        DataError: no pictures, no resamples, or a confidence out of range.
    """
    if pictures < 1 or resamples < 1 or not 0 < confidence < 1:
        raise DataError(f"{pictures} pictures, {resamples} resamples, confidence {confidence}: nothing to estimate.")
    value = float(statistic(np.ones((1, pictures)))[0])
    rng = np.random.default_rng(seed)
    share = np.full(pictures, 1 / pictures)
    step = max(1, _AT_ONCE // pictures)
    values = np.concatenate(
        [
            statistic(rng.multinomial(pictures, share, min(step, resamples - done)).astype(np.float64))
            for done in range(0, resamples, step)
        ]
    )
    values = values[~np.isnan(values)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, (tail, 1 - tail)) if values.size else (np.nan, np.nan)
    return Estimate(value, float(low), float(high), pictures if counted is None else counted)
