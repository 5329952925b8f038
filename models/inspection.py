"""From a U-Net's output to fruits: where each is, how much of it is infected, which grade that makes.

A fruit's mask is what the class map shows as fruit, healthy or infected, parted between fruits that touch: smoothly,
though the network tells them apart only cell by cell. How strongly a fruit is present around each cell is interpolated
like the class map's logits, and every pixel goes to the fruit that is most present there. So fruits never share a
pixel, and only pixels between cells that disagree have to be computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from models.cropped_masks import CroppedMask, PixelBox
from models.types import BinaryMask, PixelClass, SemanticMap, Size
from models.unet.axes import Axis
from models.unet.cells import against_background, favoured, unpadded
from models.unet.instances import MIN_REGION, fruit_labels
from models.unet.letterbox import UNetLetterbox
from models.unet.postprocess import INFECTED_SHARE, class_map

_STRAY: Final = -1
"""Label of cells that are fruit, but of none that is told."""

_KERNEL: Final = 5
"""Cells, odd: side of the Gaussian over which a fruit is present around a cell. Smooths the border between fruits that
touch, and takes in single cells that voted for the neighbour; the outlines against the background stay the class
map's."""

_CERTAIN: Final = 80.0
"""Logits above leave no doubt, and their powers would be beyond float32."""

_REACH: Final = _KERNEL // 2


@dataclass(frozen=True, slots=True)
class Grade:
    """A grade and the most of a fruit that may be infected for it.

    Attributes:
        name: as it stands in answers.
        most: largest infected fraction, 0 to 1, itself included.
    """

    name: str
    most: float

    def __str__(self) -> str:
        return f"{self.name}:{self.most:g}"


REJECT: Final = "reject"
"""The grade of what no grade takes."""

GRADES: Final = (Grade("A", 0.01), Grade("B", 0.05), Grade("C", 0.25))
"""The first stays below `INFECTED_SHARE`, so that no fruit of the best grade is one that is told as infected."""


@dataclass(frozen=True, slots=True, eq=False)
class Fruit:
    """One fruit.

    Attributes:
        mask: its pixels, in their tight box; at least one.
        infected: those of them that are infected, in the same box.
        area: pixels of `mask`.
        infected_area: pixels of `infected`.
        confidence: 0 to 1, mean probability of fruit, healthy or infected, over the cells of the U-Net that are this
            fruit's; also where another model drew the mask.
        refined: another model than the U-Net drew the mask.
    """

    mask: CroppedMask
    infected: CroppedMask
    area: int
    infected_area: int
    confidence: float
    refined: bool = False

    @property
    def box(self) -> PixelBox:
        """Tight half-open box in whole pixels of the original image."""
        return self.mask.box

    @property
    def infected_fraction(self) -> float:
        """Infected pixels / pixels of the fruit, 0 to 1."""
        return self.infected_area / self.area

    @property
    def pixel_class(self) -> PixelClass:
        """INFECTED from `INFECTED_SHARE` infected pixels on, else HEALTHY."""
        return PixelClass.INFECTED if self.infected_fraction >= INFECTED_SHARE else PixelClass.HEALTHY

    @property
    def truncated(self) -> bool:
        """The image's edge cuts it, or touches it: some of it may be beyond."""
        x0, y0, x1, y1 = self.box
        return x0 == 0 or y0 == 0 or x1 == self.mask.size.width or y1 == self.mask.size.height


@dataclass(frozen=True, slots=True, eq=False)
class Inspection:
    """What a U-Net sees in an image.

    Attributes:
        classes: uint8 (height, width) of the original image: BACKGROUND, HEALTHY or INFECTED.
        fruits: from left to right by the middle of their boxes, of equal ones the upper first, as a line's outlets
            are numbered.
    """

    classes: SemanticMap
    fruits: tuple[Fruit, ...]


def inspect(output: NDArray[np.float32], letterbox: UNetLetterbox) -> Inspection:
    """Find the fruits of an image and what of them is infected.

    Args:
        output: float32 (5, height, width) of size `letterbox.padded`, as `UNetBackend.infer` gives it.
        letterbox: of the image.

    Raises:
        ValueError: an output of another size.
    """
    against = against_background(unpadded(output, letterbox))
    labels = _labels(fruit_labels(output, letterbox), favoured(*against) > 0)
    classes = class_map(output, letterbox)
    at = np.flatnonzero(labels > 0)
    label_of = labels.ravel()[at]
    areas = np.bincount(label_of)
    # Softmax of the classes without the background's, from their logits less the background's.
    odds = np.exp(np.minimum(against.reshape(2, -1)[:, at], _CERTAIN)).sum(axis=0)
    chances = np.bincount(label_of, weights=odds / (1 + odds))
    down, across = (
        Axis.of(labels.shape[0], letterbox.original.height),
        Axis.of(labels.shape[1], letterbox.original.width),
    )
    fruits = []
    for label in np.flatnonzero(areas).tolist():
        mask = _mask(label, labels, classes, down, across)
        if mask is not None:
            fruits.append(measured(mask, classes, min(1.0, float(chances[label] / areas[label]))))
    return Inspection(classes, tuple(sorted(fruits, key=_place)))


def measured(mask: CroppedMask, classes: SemanticMap, confidence: float, *, refined: bool = False) -> Fruit:
    """A fruit with the mask `mask`, which holds at least one pixel; what of it is infected say `classes`."""
    mask = mask.tight()
    x0, y0, x1, y1 = mask.box
    infected = replace(mask, pixels=(classes[y0:y1, x0:x1] == PixelClass.INFECTED) & mask.pixels)
    return Fruit(mask, infected, mask.area, infected.area, confidence, refined)


def grade_of(fraction: float, grades: Sequence[Grade]) -> str:
    """The name of the first of `grades`, rising, that an infected fraction keeps to; `REJECT` where none is left."""
    return next((grade.name for grade in grades if fraction <= grade.most), REJECT)


def _place(fruit: Fruit) -> tuple[int, int]:
    x0, y0, x1, y1 = fruit.box
    return (x0 + x1, y0 + y1)


def _labels(labels: NDArray[np.int32], fruit: BinaryMask) -> NDArray[np.int32]:
    """Which fruit each cell belongs to: 0 for background, `_STRAY` for parts of fruits that are smaller than specks.

    Args:
        labels: of `fruit_labels`; changed.
        fruit: bool of the same shape, where there is any.
    """
    for label in range(1, int(labels.max(initial=0)) + 1):
        x, y, width, height = cv2.boundingRect((labels == label).view(np.uint8))
        part = labels[y : y + height, x : x + width]
        mine = part == label
        count, parts, stats, _ = cv2.connectedComponentsWithStats(mine.view(np.uint8), connectivity=8)
        areas = stats[:, cv2.CC_STAT_AREA]
        small = [number for number in range(1, count) if areas[number] < min(MIN_REGION, areas[1:].max())]
        if small:
            part[np.isin(parts, small)] = 0
    labels[fruit & (labels == 0)] = _STRAY
    return labels


def _mask(label: int, labels: NDArray[np.int32], classes: SemanticMap, down: Axis, across: Axis) -> CroppedMask | None:
    """The pixels of the fruit `label`, or None where it has none: cells may be finer than pixels."""
    x, y, width, height = cv2.boundingRect((labels == label).view(np.uint8))
    rows, columns = down.pixels_of(y, y + height), across.pixels_of(x, x + width)
    if not (rows and columns):
        return None
    fruit = classes[rows.start : rows.stop, columns.start : columns.stop] > 0
    top, left = max(0, y - 1 - _REACH), max(0, x - 1 - _REACH)
    nearby = labels[top : y + height + 1 + _REACH, left : x + width + 1 + _REACH]
    # Counted from the smallest label on, which is below 0.
    kinds = [kind for kind in (np.flatnonzero(np.bincount(nearby.ravel() - _STRAY)) + _STRAY).tolist() if kind]
    if len(kinds) > 1:
        fruit &= _owned(nearby, kinds, label, (down.part(rows, top), across.part(columns, left)), fruit)
    if not fruit.any():
        return None
    size = Size(*classes.shape)
    return CroppedMask(fruit, columns.start, rows.start, size)


def _owned(
    nearby: NDArray[np.int32], kinds: Sequence[int], label: int, axes: tuple[Axis, Axis], fruit: BinaryMask
) -> BinaryMask:
    """Where the fruit `label` is more present than what else is near, of pixels that are fruit.

    Args:
        nearby: int32 (cells, cells), labels around the fruit.
        kinds: all labels there but 0, rising, so that all fruits around a pixel break ties alike.
        label: of the fruit.
        axes: from rows and from columns of pixels to those of cells.
        fruit: bool (rows, columns) of pixels.
    """
    down, across = axes
    mine = kinds.index(label)
    # Whole numbers, which come out the same wherever the crop begins.
    present = np.stack(
        [cv2.GaussianBlur((nearby == kind).astype(np.uint8) * 255, (_KERNEL, _KERNEL), 0) for kind in kinds]
    )
    most = present.argmax(axis=0)
    grown = np.pad(most, ((0, 1), (0, 1)), mode="edge")
    mixed = (most != grown[1:, :-1]) | (most != grown[:-1, 1:]) | (most != grown[1:, 1:])
    owned: BinaryMask = (most == mine).take(across.low, axis=1).take(down.low, axis=0)
    unsure = np.flatnonzero(mixed.take(across.low, axis=1).take(down.low, axis=0) & fruit)
    rows, columns = np.divmod(unsure, fruit.shape[1])
    low, high, left, right = down.low[rows], down.high[rows], across.low[columns], across.high[columns]
    below, beside = down.share[rows], across.share[columns]
    upper = present[:, low, left] * (1 - beside) + present[:, low, right] * beside
    lower = present[:, high, left] * (1 - beside) + present[:, high, right] * beside
    owned.ravel()[unsure] = (upper * (1 - below) + lower * below).argmax(axis=0) == mine
    return owned
