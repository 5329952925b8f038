"""Confidence intervals of measures by the percentile bootstrap over images.

Efron, "Bootstrap methods: another look at the jackknife", 1979; Efron and Tibshirani, "An Introduction to the
Bootstrap", 1993, chapter 13. Each resample takes as many images as there are, with replacement. Images are taken to be
independent; frames of one scene are not, which makes the intervals too narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from models.errors import DataError
from models.evaluation.results import Interval
from models.metrics import ratio

Statistic: TypeAlias = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Return the measure of each resample, (resamples,), from the weight of each image, float64 (resamples, images)."""

RESAMPLES: Final = 2000
_MAX_WEIGHTS: Final = 1 << 22  # in memory at a time


def intervals(
    statistics: Mapping[str, Statistic],
    *,
    images: int,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Return the value and the confidence interval of each measure.

    Args:
        statistics: by name; NaN for a resample without an image that counts, which is then left out.
        images: number of images, at least 1.
        resamples: number of resamples, at least 1.
        confidence: of the intervals, 0 to 1.
        seed: the same seed takes the same images, so that measures can be compared.

    Returns:
        The intervals by name, without the measures that are NaN over all images.

    Raises:
        DataError: no images, no resamples, or a confidence out of range.
    """
    if images < 1 or resamples < 1 or not 0 < confidence < 1:
        raise DataError(
            "images and resamples must be at least 1 and confidence between 0 and 1, "
            f"got {images}, {resamples} and {confidence}"
        )
    rng = np.random.default_rng(seed)
    share = np.full(images, 1 / images)
    step = max(1, _MAX_WEIGHTS // images)
    values: dict[str, list[NDArray[np.float64]]] = {name: [] for name in statistics}
    for done in range(0, resamples, step):
        weights = rng.multinomial(images, share, min(step, resamples - done)).astype(np.float64)
        for name, statistic in statistics.items():
            values[name].append(statistic(weights))
    everything = np.ones((1, images))
    found = {name: float(statistic(everything)[0]) for name, statistic in statistics.items()}
    return {
        name: _interval(value, np.concatenate(values[name]), confidence)
        for name, value in found.items()
        if not np.isnan(value)
    }


def mean_of(values: NDArray[np.float64]) -> Statistic:
    """Return the statistic "mean of one value per image"; NaN values are left out."""
    counted = ~np.isnan(values)
    return ratio_of(np.where(counted, values, 0), counted.astype(np.float64))


def ratio_of(numerators: NDArray[np.float64], denominators: NDArray[np.float64]) -> Statistic:
    """Return the statistic "sum of numerators over sum of denominators", each with one value per image."""
    return lambda weights: ratio(weights @ numerators, weights @ denominators)


def _interval(value: float, resampled: NDArray[np.float64], confidence: float) -> Interval:
    known = resampled[~np.isnan(resampled)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(known, (tail, 1 - tail)) if known.size else (np.nan, np.nan)
    return Interval(value, float(low), float(high))
