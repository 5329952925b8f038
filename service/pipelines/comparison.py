"""Compares what two revisions of a U-Net see in a frame, at the resolution of their input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.inspection import Fruit, Grade, grade_of, inspect
from models.masks import PixelBox, intersection
from models.types import BinaryMask
from models.unet.letterbox import UNetLetterbox

_SAME_FRUIT: Final = 0.5
"""Least IoU of the masks of one fruit in the two answers: no two others can have it."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How two answers for one frame differ.

    Attributes:
        iou: 0 to 1, of the pixels that each takes for fruit; None where neither finds any.
        fraction_differences: 0 to 1, of the infected fractions of each fruit that both find.
        fruits: that either finds.
        grade_changes: fruits with another grade, or that one alone finds.
    """

    iou: float | None
    fraction_differences: tuple[float, ...]
    fruits: int
    grade_changes: int

    @property
    def largest_difference(self) -> float:
        """Of the infected fractions; 0 without a fruit that both find."""
        return max(self.fraction_differences, default=0.0)

    @property
    def disagreement(self) -> float:
        """How much the answers differ, for an order of frames: 0 where they are the same."""
        return self.grade_changes + (0.0 if self.iou is None else 1.0 - self.iou) + self.largest_difference


def compare(
    ours: NDArray[np.float32], theirs: NDArray[np.float32], letterbox: UNetLetterbox, grades: Sequence[Grade]
) -> Comparison:
    """Compare two outputs of `UNetBackend.infer` for one frame, each float32 (5, height, width); for worker threads.

    Both are read at the size of the network's input: an image of 8 megapixels then takes as long as a small one, and
    the difference between the two is the same.
    """
    small = UNetLetterbox(letterbox.resized, letterbox.resized, letterbox.padded)
    one, other = inspect(ours, small), inspect(theirs, small)
    first, second = one.classes > 0, other.classes > 0
    union = int(np.count_nonzero(first | second))
    pairs = _pairs(one.fruits, other.fruits)
    unpaired = len(one.fruits) + len(other.fruits) - 2 * len(pairs)
    changed = sum(grade_of(a.infected_fraction, grades) != grade_of(b.infected_fraction, grades) for a, b in pairs)
    return Comparison(
        iou=None if union == 0 else int(np.count_nonzero(first & second)) / union,
        fraction_differences=tuple(abs(a.infected_fraction - b.infected_fraction) for a, b in pairs),
        fruits=len(pairs) + unpaired,
        grade_changes=changed + unpaired,
    )


def _pairs(some: Sequence[Fruit], others: Sequence[Fruit]) -> list[tuple[Fruit, Fruit]]:
    """Return the fruits of two answers that are the same: within one answer no pixel belongs to two fruits."""
    pairs = []
    for one in some:
        for other in others:
            shared = _shared(one, other)
            if shared >= _SAME_FRUIT * (one.area + other.area - shared) and shared > 0:
                pairs.append((one, other))
                break
    return pairs


def _shared(one: Fruit, other: Fruit) -> int:
    """Return the pixels that two fruits share."""
    box = intersection(one.box, other.box)
    if box is None:
        return 0
    return int(np.count_nonzero(_part(one, box) & _part(other, box)))


def _part(fruit: Fruit, box: PixelBox) -> BinaryMask:
    x0, y0, x1, y1 = box
    left, top, _, _ = fruit.box
    return fruit.mask.pixels[y0 - top : y1 - top, x0 - left : x1 - left]
