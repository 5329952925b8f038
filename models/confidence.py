"""How far the infected fraction of a fruit may be from the predicted one, as calibrated on validation images.

Split conformal prediction (Lei et al., "Distribution-Free Predictive Inference for Regression", JASA 2018), apart for
ranges of the predicted fraction: where nothing infected is seen, errors are smaller than where half of a fruit is. It
promises the coverage for fruit like that of the validation images alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from models.sidecar import Sidecar

COVERAGE: Final = 0.9
"""Share of the fruits whose annotated fraction lies in the interval."""

FEWEST: Final = 19
"""Least number of fruits of a range: with fewer, no error is so rare that it could bound the other 95 %."""

_EDGES: Final = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Largest predicted fractions of the ranges, before those with too few fruits are joined to their neighbours."""


@dataclass(frozen=True, slots=True)
class FractionRange:
    """Errors of fruits with a predicted infected fraction above the range before, up to `most`.

    Attributes:
        most: largest predicted fraction, 0 to 1, inclusive.
        below: least error, -1 to 0: annotated minus predicted fraction.
        above: largest error, 0 to 1.
        fruits: number of fruits that they were measured on.
    """

    most: float
    below: float
    above: float
    fruits: int


@dataclass(frozen=True, slots=True)
class FractionIntervals:
    """Intervals of the infected fraction.

    Attributes:
        sha256: hash of the weights that they were measured with.
        coverage: share of the validation fruits in their intervals, by design.
        covered: the same, measured: each half of the fruits in the intervals of the other half; None of few fruits.
        ranges: by rising `most`; the last one's is 1.

    Raises:
        ValueError: there is no range.
    """

    sha256: str
    coverage: float
    covered: float | None
    ranges: tuple[FractionRange, ...]

    def __post_init__(self) -> None:
        if not self.ranges:
            raise ValueError("at least one range is needed")

    def of(self, fraction: float) -> tuple[float, float]:
        """Return the least and the largest infected fraction, 0 to 1, for a predicted one; it lies between them."""
        found = next((each for each in self.ranges if fraction <= each.most), self.ranges[-1])
        return max(0.0, fraction + found.below), min(1.0, fraction + found.above)


INTERVALS: Final = Sidecar(FractionIntervals, ".calibration.json")
"""The intervals of a checkpoint, beside it."""


def fit_intervals(fractions: Sequence[tuple[float, float]], sha256: str) -> FractionIntervals | None:
    """Measure intervals on validation fruits.

    Args:
        fractions: predicted and annotated infected fraction of each fruit, 0 to 1, in random order.
        sha256: hash of the weights that predicted.

    Returns:
        The intervals; None for fewer than `FEWEST` fruits.
    """
    ranges = _ranges(fractions)
    if not ranges:
        return None
    halves = fractions[::2], fractions[1::2]
    covered: list[bool] = []
    for some, others in (halves, halves[::-1]):
        fitted = _ranges(some)
        if fitted:
            intervals = FractionIntervals(sha256, COVERAGE, None, fitted)
            bounds = [(intervals.of(predicted), annotated) for predicted, annotated in others]
            covered += [low <= annotated <= high for (low, high), annotated in bounds]
    return FractionIntervals(sha256, COVERAGE, float(np.mean(covered)) if covered else None, ranges)


def _ranges(fractions: Sequence[tuple[float, float]]) -> tuple[FractionRange, ...]:
    """Return ranges of at least `FEWEST` fruits each; none if there are fewer in all."""
    predicted, annotated = np.array(fractions, np.float64).reshape(-1, 2).T
    groups: list[tuple[float, list[float]]] = []
    waiting: list[float] = []
    least = -1.0
    for most in _EDGES:
        waiting += (annotated - predicted)[(predicted > least) & (predicted <= most)].tolist()
        least = most
        if len(waiting) >= FEWEST:
            groups.append((most, waiting))
            waiting = []
    if waiting and groups:
        groups[-1] = (1.0, groups[-1][1] + waiting)
    elif groups:
        groups[-1] = (1.0, groups[-1][1])
    return tuple(_range(most, sorted(errors)) for most, errors in groups)


def _range(most: float, errors: Sequence[float]) -> FractionRange:
    """Return the range of sorted errors: as many lie outside on each side as leave `COVERAGE` for a further fruit."""
    outside = int((len(errors) + 1) * (1 - COVERAGE) / 2 + 1e-9)
    return FractionRange(most, min(0.0, errors[outside - 1]), max(0.0, errors[-outside]), len(errors))
