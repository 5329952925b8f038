"""How well predicted pixels match annotated ones.

IGNORE pixels never count. FRUIT pixels, annotated as neither healthy nor infected, count as fruit against background
only. The measure of a class that is absent from both prediction and annotation is NaN and left out of every mean; that
of a class present in only one of them is 0.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from models.errors import DataError
from models.types import CLASSES, BinaryMask, PixelClass, SemanticMap

Confusion: TypeAlias = NDArray[np.int64]
"""Number of pixels by annotated class (rows) and predicted class (columns): int64 (..., classes, classes)."""

_FRUIT_CLASSES = (PixelClass.HEALTHY, PixelClass.INFECTED, PixelClass.FRUIT)


def is_fruit(semantic: SemanticMap) -> BinaryMask:
    """Return where fruit is, healthy, infected or unspecified: bool (height, width)."""
    return np.isin(semantic, _FRUIT_CLASSES)


def class_confusion(predicted: SemanticMap, truth: SemanticMap) -> Confusion:
    """Count pixels by class.

    Args:
        predicted: uint8 (height, width) of BACKGROUND, HEALTHY and INFECTED.
        truth: uint8 (height, width) of `PixelClass`; FRUIT and IGNORE pixels are left out.

    Returns:
        int64 (3, 3), in the order of `CLASSES`.

    Raises:
        DataError: maps of different sizes, or another predicted class where the truth counts.
    """
    check_same_size(predicted, truth)
    counted = np.isin(truth, CLASSES)
    guesses, targets = predicted[counted], truth[counted]
    if not np.isin(guesses, CLASSES).all():
        raise DataError("predicted classes must be background, healthy or infected")
    size = len(CLASSES)
    pairs = targets.astype(np.int64) * size + guesses
    return np.bincount(pairs, minlength=size * size).reshape(size, size)


def fruit_confusion(predicted: SemanticMap, truth: SemanticMap) -> Confusion:
    """Count pixels by background and fruit.

    Args:
        predicted: uint8 (height, width) of `PixelClass` without IGNORE.
        truth: uint8 (height, width) of `PixelClass`; IGNORE pixels are left out.

    Returns:
        int64 (2, 2): background, fruit.

    Raises:
        DataError: maps of different sizes.
    """
    check_same_size(predicted, truth)
    counted = truth != PixelClass.IGNORE
    pairs = is_fruit(truth)[counted] * np.int64(2) + is_fruit(predicted)[counted]
    return np.bincount(pairs, minlength=4).reshape(2, 2)


def iou(confusion: NDArray[np.int64] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the intersection over union of each class (Jaccard index).

    Args:
        confusion: (..., classes, classes).

    Returns:
        float64 (..., classes), 0 to 1; NaN where the class is absent.
    """
    hits, annotated, predicted = _sums(confusion)
    return ratio(hits, annotated + predicted - hits)


def dice(confusion: NDArray[np.int64] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the Dice coefficient of each class, the F-measure of its pixels.

    Args:
        confusion: (..., classes, classes).

    Returns:
        float64 (..., classes), 0 to 1; NaN where the class is absent.
    """
    hits, annotated, predicted = _sums(confusion)
    return ratio(2 * hits, annotated + predicted)


def mean_counted(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over the last axis without NaN values; NaN where all are."""
    counted = ~np.isnan(values)
    return ratio(np.where(counted, values, 0).sum(axis=-1), counted.sum(axis=-1))


def mask_iou(predicted: BinaryMask, truth: BinaryMask, *, ignored: BinaryMask | None = None) -> float:
    """Return the intersection over union of two masks.

    Args:
        predicted: bool (height, width).
        truth: bool (height, width).
        ignored: pixels that do not count, or None.

    Returns:
        0 to 1; NaN when both are empty.

    Raises:
        DataError: masks of different sizes.
    """
    check_same_size(predicted, truth)
    if ignored is not None:
        predicted, truth = predicted & ~ignored, truth & ~ignored
    union = np.count_nonzero(predicted | truth)
    return np.count_nonzero(predicted & truth) / union if union else float("nan")


def infected_fraction(semantic: SemanticMap) -> float:
    """Return the infected share of the fruit pixels.

    Args:
        semantic: uint8 (height, width) of `PixelClass`, of an image or of the pixels of one fruit.

    Returns:
        0 to 1, of the pixels that are annotated as healthy or infected; NaN if there are none.
    """
    infected = np.count_nonzero(semantic == PixelClass.INFECTED)
    fruit = infected + np.count_nonzero(semantic == PixelClass.HEALTHY)
    return infected / fruit if fruit else float("nan")


def infected_fraction_error(predicted: SemanticMap, truth: SemanticMap) -> float:
    """Return the error of the predicted infected fraction.

    Args:
        predicted: uint8 (height, width) of BACKGROUND, HEALTHY and INFECTED; no fruit counts as a fraction of 0.
        truth: uint8 (height, width) of `PixelClass`.

    Returns:
        Predicted minus true fraction, -1 to 1; NaN where the true one is undefined.

    Raises:
        DataError: maps of different sizes.
    """
    check_same_size(predicted, truth)
    fraction = infected_fraction(truth)
    guess = infected_fraction(predicted[(truth != PixelClass.IGNORE) & (truth != PixelClass.FRUIT)])
    return (0.0 if np.isnan(guess) else guess) - fraction


def check_same_size(predicted: NDArray[np.generic], truth: NDArray[np.generic]) -> None:
    """Check that a prediction and its annotation have the same shape.

    Raises:
        DataError: they differ.
    """
    if predicted.shape != truth.shape:
        raise DataError(f"prediction and annotation must have the same shape, got {predicted.shape} and {truth.shape}")


def ratio(
    numerators: NDArray[np.int64] | NDArray[np.float64], denominators: NDArray[np.int64] | NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return quotients, NaN where the denominator is 0."""
    unknown = np.full(np.shape(denominators), np.nan)
    return np.divide(numerators, denominators, out=unknown, where=np.asarray(denominators) != 0)


def _sums(confusion: NDArray[np.int64] | NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    counts = confusion.astype(np.float64)
    return np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(axis=-1), counts.sum(axis=-2)
