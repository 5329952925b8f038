"""How well predicted pixels fit annotated ones.

What counts: IGNORE pixels never do. FRUIT pixels, of which nobody said whether they are healthy, count as fruit against
background only. A class that is absent from both prediction and annotation is not counted: its measure is NaN and takes
no part in any mean; a class that is present in one of them only measures 0.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from models.errors import DataError
from models.types import CLASSES, BinaryMask, PixelClass, SemanticMap

Confusion: TypeAlias = NDArray[np.int64]
"""Pixels by what they are (rows) and what was predicted (columns): int64 (..., classes, classes)."""

_FRUIT_CLASSES = (PixelClass.HEALTHY, PixelClass.INFECTED, PixelClass.FRUIT)


def is_fruit(semantic: SemanticMap) -> BinaryMask:
    """The fruit of an image, healthy, infected or unsaid: bool (height, width)."""
    return np.isin(semantic, _FRUIT_CLASSES)


def class_confusion(predicted: SemanticMap, truth: SemanticMap) -> Confusion:
    """Count pixels by class.

    Args:
        predicted: uint8 (height, width) of BACKGROUND, HEALTHY and INFECTED.
        truth: uint8 (height, width) of `PixelClass`; FRUIT and IGNORE pixels are left out.

    Returns:
        int64 (3, 3), in the order of `CLASSES`.

    Raises:
        DataError: maps of different sizes, or a prediction of another class where the truth counts.
    """
    check_same_size(predicted, truth)
    counted = np.isin(truth, CLASSES)
    guesses, facts = predicted[counted], truth[counted]
    if not np.isin(guesses, CLASSES).all():
        raise DataError("A prediction of classes holds background, healthy and infected only.")
    size = len(CLASSES)
    pairs = facts.astype(np.int64) * size + guesses
    return np.bincount(pairs, minlength=size * size).reshape(size, size)


def fruit_confusion(predicted: SemanticMap, truth: SemanticMap) -> Confusion:
    """Count pixels as background or fruit.

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
    """Intersection over union of each class (Jaccard index).

    Args:
        confusion: (..., classes, classes).

    Returns:
        float64 (..., classes), 0 to 1; NaN where the class is absent.
    """
    hits, facts, guesses = _sums(confusion)
    return ratio(hits, facts + guesses - hits)


def dice(confusion: NDArray[np.int64] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Dice coefficient of each class, the F-measure of its pixels.

    Args:
        confusion: (..., classes, classes).

    Returns:
        float64 (..., classes), 0 to 1; NaN where the class is absent.
    """
    hits, facts, guesses = _sums(confusion)
    return ratio(2 * hits, facts + guesses)


def mean_counted(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the last axis of what is not NaN; NaN where nothing is."""
    counted = ~np.isnan(values)
    return ratio(np.where(counted, values, 0).sum(axis=-1), counted.sum(axis=-1))


def mask_iou(predicted: BinaryMask, truth: BinaryMask, *, ignored: BinaryMask | None = None) -> float:
    """Intersection over union of two masks.

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
    """Infected pixels as a share of the fruit's.

    Args:
        semantic: uint8 (height, width) of `PixelClass`, of an image or of the pixels of one fruit.

    Returns:
        0 to 1; NaN when there is no fruit, or fruit of which nobody said whether it is healthy.
    """
    if (semantic == PixelClass.FRUIT).any():
        return float("nan")
    infected = np.count_nonzero(semantic == PixelClass.INFECTED)
    fruit = infected + np.count_nonzero(semantic == PixelClass.HEALTHY)
    return infected / fruit if fruit else float("nan")


def infected_fraction_error(predicted: SemanticMap, truth: SemanticMap) -> float:
    """How far the predicted infected fraction is off.

    Args:
        predicted: uint8 (height, width) of BACKGROUND, HEALTHY and INFECTED; no fruit counts as a fraction of 0.
        truth: uint8 (height, width) of `PixelClass`.

    Returns:
        Predicted less true fraction, -1 to 1; NaN when the true one is not known.

    Raises:
        DataError: maps of different sizes.
    """
    check_same_size(predicted, truth)
    fraction = infected_fraction(truth)
    guess = infected_fraction(predicted[truth != PixelClass.IGNORE])
    return (0.0 if np.isnan(guess) else guess) - fraction


def check_same_size(predicted: NDArray[np.generic], truth: NDArray[np.generic]) -> None:
    """Refuse maps that are not of the same image.

    Raises:
        DataError: their sizes differ.
    """
    if predicted.shape != truth.shape:
        raise DataError(f"The prediction has the shape {predicted.shape}, the annotation {truth.shape}.")


def ratio(
    above: NDArray[np.int64] | NDArray[np.float64], below: NDArray[np.int64] | NDArray[np.float64]
) -> NDArray[np.float64]:
    """Quotients, NaN where nothing is counted."""
    unknown = np.full(np.shape(below), np.nan)
    return np.divide(above, below, out=unknown, where=np.asarray(below) != 0)


def _sums(confusion: NDArray[np.int64] | NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    counts = confusion.astype(np.float64)
    return np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(axis=-1), counts.sum(axis=-2)
