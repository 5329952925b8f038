"""How far the infected fraction of a fruit may be from the predicted one, as calibrated on validation images.

Split conformal prediction (Lei et al., "Distribution-Free Predictive Inference for Regression", JASA 2018), apart for
ranges of the predicted fraction: where nothing infected is seen, errors are smaller than where half of a fruit is. It
promises the coverage for fruit like that of the validation images alone.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from pydantic import TypeAdapter, ValidationError

from models.catalog import CatalogueEntry, LocalFile
from models.errors import WeightsError

COVERAGE: Final = 0.9
"""Share of the fruits whose annotated fraction lies in the interval."""

FEWEST: Final = 19
"""Least number of fruits of a range: with fewer, no error is so rare that it could bound the other 95 %."""

_EDGES: Final = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Largest predicted fractions of the ranges, before those with too few fruits are joined to their neighbours."""

_LOG = logging.getLogger("pomona.weights")


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
    """

    sha256: str
    coverage: float
    covered: float | None
    ranges: tuple[FractionRange, ...]

    def of(self, fraction: float) -> tuple[float, float]:
        """Return the least and the largest infected fraction, 0 to 1, for a predicted one; it lies between them."""
        found = next((each for each in self.ranges if fraction <= each.most), self.ranges[-1])
        return max(0.0, fraction + found.below), min(1.0, fraction + found.above)


_JSON: Final = TypeAdapter(FractionIntervals)


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


def intervals_file(weights: Path) -> Path:
    """Return the path of the intervals of a checkpoint, beside it."""
    return weights.with_suffix(".calibration.json")


def write_intervals(intervals: FractionIntervals, weights: Path) -> None:
    """Write intervals beside the checkpoint that they belong to.

    Raises:
        OSError: the file cannot be written.
    """
    intervals_file(weights).write_bytes(_JSON.dump_json(intervals, indent=1) + b"\n")


def read_intervals(entry: CatalogueEntry) -> FractionIntervals | None:
    """Read the intervals of a model.

    Returns:
        The intervals; None if there are none beside its checkpoint, or if they belong to other weights.

    Raises:
        WeightsError: the file cannot be read.
    """
    for source in entry.sources:
        if not (isinstance(source, LocalFile) and intervals_file(source.path).is_file()):
            continue
        file = intervals_file(source.path)
        try:
            intervals = _JSON.validate_json(file.read_bytes())
        except (OSError, ValidationError) as error:
            raise WeightsError(
                f"{file} cannot be read; calibrate the model again or remove the file: {error}"
            ) from error
        if intervals.ranges and intervals.sha256 == entry.sha256:
            return intervals
        _LOG.warning("%s belongs to other weights and is not used", file)
    return None


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
