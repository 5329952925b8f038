"""How many fruits were found.

A prediction finds a fruit when their intersection over union is at least a threshold of 0.5 or more. Annotated fruits
do not overlap, so above 0.5 a prediction can find one fruit only (Kirillov et al., "Panoptic Segmentation", CVPR 2019,
section 4.1), and matching best pairs first finds as many as any other matching.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.data.samples import InstanceMap
from models.errors import DataError
from models.metrics import check_same_size
from models.types import BinaryMask


@dataclass(frozen=True, slots=True)
class ObjectCounts:
    """What was found in an image.

    Attributes:
        found: fruits that a prediction matches.
        false: predictions that match no fruit.
        missed: fruits that no prediction matches.
        ious: intersection over union of each pair, as many as `found`.
    """

    found: int
    false: int
    missed: int
    ious: tuple[float, ...]

    @property
    def precision(self) -> float:
        """Share of the predictions that match, 0 to 1; NaN without predictions."""
        total = self.found + self.false
        return self.found / total if total else float("nan")

    @property
    def recall(self) -> float:
        """Share of the fruits that are found, 0 to 1; NaN without fruits."""
        total = self.found + self.missed
        return self.found / total if total else float("nan")


def count_objects(
    predicted: Sequence[BinaryMask],
    truth: InstanceMap,
    *,
    ignored: BinaryMask | None = None,
    threshold: float = 0.5,
) -> ObjectCounts:
    """Match predictions with fruits.

    Args:
        predicted: bool (height, width) each; they may overlap.
        truth: uint16 (height, width): the fruit's number, 0 for none.
        ignored: bool (height, width) or None. Its pixels do not count; a prediction that lies in it by more than half
            is left out, as is a fruit that lies in it entirely.
        threshold: least intersection over union of a match, 0.5 to 1.

    Returns:
        The counts.

    Raises:
        DataError: masks of different sizes, or a threshold out of range.
    """
    kept = list(predicted)
    if ignored is not None:
        check_same_size(ignored, truth)
        kept = [mask & ~ignored for mask in kept if 2 * np.count_nonzero(mask & ignored) <= np.count_nonzero(mask)]
        truth = np.where(ignored, np.uint16(0), truth)
    ious = object_ious(kept, truth)
    pairs = match_objects(ious, threshold=threshold)
    found = len(pairs)
    return ObjectCounts(
        found, len(kept) - found, ious.shape[1] - found, tuple(float(ious[guess, fruit]) for guess, fruit in pairs)
    )


def object_ious(predicted: Sequence[BinaryMask], truth: InstanceMap) -> NDArray[np.float64]:
    """Intersection over union of every prediction with every fruit.

    Args:
        predicted: bool (height, width) each.
        truth: uint16 (height, width): the fruit's number, 0 for none.

    Returns:
        float64 (predictions, fruits), fruits by number.

    Raises:
        DataError: masks of different sizes.
    """
    areas = np.bincount(truth.ravel(), minlength=1)
    areas[0] = 0
    numbers = np.flatnonzero(areas)
    ious = np.zeros((len(predicted), numbers.size))
    for row, mask in zip(ious, predicted, strict=True):
        check_same_size(mask, truth)
        shared = np.bincount(truth[mask], minlength=areas.size)[numbers]
        row[:] = shared / (np.count_nonzero(mask) + areas[numbers] - shared)
    return ious


def match_objects(ious: NDArray[np.float64], *, threshold: float = 0.5) -> list[tuple[int, int]]:
    """Pair predictions with fruits, best pairs first.

    Args:
        ious: float64 (predictions, fruits), fruits that do not overlap.
        threshold: least intersection over union of a pair, 0.5 to 1.

    Returns:
        Indices of predictions and fruits, each at most once; of equal pairs the first prediction's.

    Raises:
        DataError: a threshold out of range.
    """
    if not 0.5 <= threshold <= 1:
        raise DataError(f"A threshold of {threshold} does not decide which fruit is found; 0.5 to 1 does.")
    guesses, fruits = np.nonzero(ious >= threshold)
    pairs: list[tuple[int, int]] = []
    free_guesses, free_fruits = set(guesses.tolist()), set(fruits.tolist())
    for best in np.argsort(-ious[guesses, fruits], kind="stable"):
        guess, fruit = int(guesses[best]), int(fruits[best])
        if guess in free_guesses and fruit in free_fruits:
            free_guesses.remove(guess)
            free_fruits.remove(fruit)
            pairs.append((guess, fruit))
    return pairs
