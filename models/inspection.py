"""Finds the fruits in a U-Net's output, grades them, and refines their masks with a SAM.

A fruit's mask is what the class map shows as fruit, healthy or infected, divided between fruits that touch. The network
separates fruits only cell by cell; to make the borders smooth, the presence of each fruit around a cell is interpolated
like the class map's logits, and every pixel goes to the fruit that is most present there. So fruits never share a
pixel, and only pixels between cells that disagree have to be computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from models.masks import CroppedMask, PixelBox, intersection
from models.sam.postprocess import MaskCrop
from models.types import BinaryMask, Box, PixelClass, Prompt, SemanticMap, Size
from models.unet.instances import MIN_REGION, Cells, fruit_labels, label_boxes, label_scores
from models.unet.letterbox import UNetLetterbox
from models.unet.postprocess import INFECTED_SHARE, Axis, class_map
from models.unet.scales import mean_of_scales

_STRAY: Final = -1
"""Label of cells that are fruit, but belong to no detected fruit."""

_KERNEL: Final = 5
"""Side in cells, odd, of the Gaussian that spreads a fruit's presence around a cell. It smooths the border between
fruits that touch and removes single cells that voted for the neighbour; outlines against the background stay those of
the class map."""

_REACH: Final = _KERNEL // 2

_GROWN: Final = 0.02
"""Share of the box's sides added on each side. With MobileSAM and boxes of outlines that are off by about a cell, 0 to
0.05 gave the same mean IoU (0.971) on 109 rendered fruits; of 70 on photographs 0 to 0.02 lost one, 0.03 to 0.05 two,
and 0.08 three."""

_AGREEMENT: Final = 0.7
"""Least IoU with the U-Net's mask for a SAM's mask to be used; below, it shows something else or a part. It raised the
mean IoU from 0.971 to 0.973 on those rendered fruits, from 0.950 to 0.964 on the photographs; 0.5 gains the same on
photographs and nothing on rendered fruits."""

_SEEN: Final = 0.5
"""Least IoU with the U-Net's mask at which a SAM sees a fruit in its box at all."""

_SURE: Final = 0.85
"""Confidence from which a fruit is one, whatever a SAM sees: the box of a fruit that fills the image says little.
Where the U-Net is less sure, no detector found the fruit and the SAM does not see it either, there is none: of the
fruits on validation images MobileSAM kept all 419 true ones, and 37 of 54 false ones (`docs/accuracy.md`)."""


@dataclass(frozen=True, slots=True)
class Grade:
    """A grade and its threshold.

    Attributes:
        name: name in responses.
        most: largest infected fraction of this grade, 0 to 1, inclusive.
    """

    name: str
    most: float

    def __str__(self) -> str:
        return f"{self.name}:{self.most:g}"


REJECT: Final = "reject"
"""The grade of fruits above the threshold of every grade."""

GRADES: Final = (Grade("A", 0.01), Grade("B", 0.05), Grade("C", 0.25))
"""The default grades. The first is below `INFECTED_SHARE`, so that no fruit of the best grade has the class
INFECTED."""


@dataclass(frozen=True, slots=True, eq=False)
class Fruit:
    """One fruit.

    Attributes:
        mask: its pixels, in their tight box; at least one.
        infected: its infected pixels, in the same box.
        area: pixels of `mask`.
        infected_area: pixels of `infected`.
        confidence: 0 to 1, mean probability of fruit, healthy or infected, over the fruit's cells in the U-Net's
            output; also if the mask is a SAM's.
        refined: whether the mask is a SAM's instead of the U-Net's.
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
        """Infected pixels divided by pixels of the fruit, 0 to 1."""
        return self.infected_area / self.area

    @property
    def pixel_class(self) -> PixelClass:
        """INFECTED if the infected fraction is at least `INFECTED_SHARE`, else HEALTHY."""
        return PixelClass.INFECTED if self.infected_fraction >= INFECTED_SHARE else PixelClass.HEALTHY

    @property
    def truncated(self) -> bool:
        """Whether the fruit touches the image's edge, so that part of it may lie outside."""
        x0, y0, x1, y1 = self.box
        return x0 == 0 or y0 == 0 or x1 == self.mask.size.width or y1 == self.mask.size.height


@dataclass(frozen=True, slots=True, eq=False)
class Inspection:
    """Everything found in an image.

    Attributes:
        classes: uint8 (height, width) of the original image: BACKGROUND, HEALTHY or INFECTED.
        fruits: from left to right by the centres of their boxes, ties from top to bottom, as the outlets of a line
            are numbered.
        dismissed: number of fruits of which the U-Net was unsure and that a SAM did not see.
    """

    classes: SemanticMap
    fruits: tuple[Fruit, ...]
    dismissed: int = 0


def inspect_scales(outputs: Sequence[NDArray[np.float32]], letterboxes: Sequence[UNetLetterbox]) -> Inspection:
    """Find the fruits of an image that the U-Net saw at one scale, or at those of `unet_scales`; see `inspect`.

    Args:
        outputs: one for each letterbox.
        letterboxes: of the image; pixels and fruits are found in the cells of the first.

    Raises:
        ValueError: there are not as many outputs as letterboxes, or one has another size.
    """
    output = outputs[0] if len(outputs) == 1 else mean_of_scales(outputs, letterboxes)
    return inspect(output, letterboxes[0])


def inspect(output: NDArray[np.float32], letterbox: UNetLetterbox) -> Inspection:
    """Find the fruits of an image and their infected parts.

    Args:
        output: float32 (5, height, width) of size `letterbox.padded`, from `UNetBackend.infer`.
        letterbox: letterbox of the image.

    Raises:
        ValueError: the output has another size.
    """
    cells = Cells.of(output, letterbox)
    labels = _clean_labels(fruit_labels(cells), cells.classes > 0)
    classes = class_map(cells)
    areas, confidences = label_scores(cells, labels)
    boxes = label_boxes(labels)
    down, across = (
        Axis.of(labels.shape[0], letterbox.original.height),
        Axis.of(labels.shape[1], letterbox.original.width),
    )
    fruits = []
    for label in np.flatnonzero(areas).tolist():
        mask = _mask(label, labels, boxes[label], classes, (down, across))
        if mask is not None:
            fruits.append(measure_fruit(mask, classes, float(confidences[label])))
    return Inspection(classes, tuple(sorted(fruits, key=_twice_centre)))


def measure_fruit(mask: CroppedMask, classes: SemanticMap, confidence: float, *, refined: bool = False) -> Fruit:
    """Make a fruit of a mask of at least one pixel; `classes` says which of its pixels are infected."""
    mask = mask.tight()
    x0, y0, x1, y1 = mask.box
    infected = replace(mask, pixels=(classes[y0:y1, x0:x1] == PixelClass.INFECTED) & mask.pixels)
    return Fruit(mask, infected, mask.area, infected.area, confidence, refined)


def grade_of(fraction: float, grades: Sequence[Grade]) -> str:
    """Return the name of the first of `grades`, by rising threshold, whose threshold holds, else `REJECT`."""
    return next((grade.name for grade in grades if fraction <= grade.most), REJECT)


def prompt_for(fruit: Fruit) -> Prompt:
    """Make a SAM prompt for one mask of the fruit: its box, slightly grown within the image."""
    x0, y0, x1, y1 = fruit.box
    dx, dy = _GROWN * (x1 - x0), _GROWN * (y1 - y0)
    size = fruit.mask.size
    box = Box(max(0.0, x0 - dx), max(0.0, y0 - dy), min(float(size.width), x1 + dx), min(float(size.height), y1 + dy))
    return Prompt(box=box, multimask=False)


def agreeing(fruit: Fruit, mask: MaskCrop) -> CroppedMask | None:
    """Return a SAM's mask in its tight box, or None where it is so large or small that it shows no such fruit.

    The masks that are kept together take little more than the image.
    """
    least, most = sorted((fruit.area, mask.area))
    if least < _SEEN * most:
        return None
    tight = mask.crop.tight()
    # Copied: a view would keep the whole mask in memory.
    return replace(tight, pixels=tight.pixels.copy())


def refine(inspection: Inspection, masks: Mapping[int, CroppedMask | None], *, confirmed: bool = False) -> Inspection:
    """Replace the U-Net's masks by a SAM's where they agree, and dismiss unsure fruits that the SAM does not see.

    Infected pixels are those that the U-Net finds within the new mask. Pixels in two masks go to the one of the two
    fruits that has them in the U-Net's masks, else to the left fruit.

    Args:
        inspection: result of the U-Net.
        masks: masks of the SAM by the fruit's index, None for one that shows no such fruit; fruits without an entry are
            not changed.
        confirmed: a detector has seen all fruits, and none is dismissed.
    """
    fruits: list[Fruit] = []
    accepted: dict[int, CroppedMask] = {}
    for number, fruit in enumerate(inspection.fruits):
        if number in masks:
            mask = masks[number]
            iou = 0.0 if mask is None else _iou(fruit.mask, mask)
            if iou < _SEEN and fruit.confidence < _SURE and not confirmed:
                continue
            if mask is not None and iou >= _AGREEMENT:
                accepted[len(fruits)] = mask
        fruits.append(fruit)
    redrawn = [accepted.get(number, fruit.mask) for number, fruit in enumerate(fruits)]
    _separate(redrawn, fruits)
    for number in accepted:
        confidence = fruits[number].confidence
        fruits[number] = measure_fruit(redrawn[number], inspection.classes, confidence, refined=True)
    return replace(inspection, fruits=tuple(fruits), dismissed=len(inspection.fruits) - len(fruits))


def _twice_centre(fruit: Fruit) -> tuple[int, int]:
    x0, y0, x1, y1 = fruit.box
    return (x0 + x1, y0 + y1)


def _clean_labels(labels: NDArray[np.int32], fruit: BinaryMask) -> NDArray[np.int32]:
    """Label parts of fruits that are smaller than specks, and fruit without a label, as `_STRAY`.

    Args:
        labels: from `fruit_labels`; modified.
        fruit: bool of the same shape, True for fruit.
    """
    for label, (x0, y0, x1, y1) in enumerate(label_boxes(labels)):
        part = labels[y0:y1, x0:x1]
        if not part.size:
            continue
        count, parts, stats, _ = cv2.connectedComponentsWithStats((part == label).view(np.uint8), connectivity=8)
        areas = stats[:, cv2.CC_STAT_AREA]
        small = [number for number in range(1, count) if areas[number] < min(MIN_REGION, areas[1:].max())]
        if small:
            part[np.isin(parts, small)] = 0
    labels[fruit & (labels == 0)] = _STRAY
    return labels


def _mask(
    label: int, labels: NDArray[np.int32], box: PixelBox, classes: SemanticMap, axes: tuple[Axis, Axis]
) -> CroppedMask | None:
    """Return the pixels of a fruit, or None if it has none: cells may be finer than pixels.

    Args:
        label: number of the fruit.
        labels: int32 (height, width) of cells.
        box: box of the fruit in cells.
        classes: uint8 (height, width) of the image.
        axes: positions of the image's rows and columns among the cells.
    """
    down, across = axes
    x0, y0, x1, y1 = box
    rows, columns = down.pixels_of(y0, y1), across.pixels_of(x0, x1)
    if not (rows and columns):
        return None
    fruit = classes[rows.start : rows.stop, columns.start : columns.stop] > 0
    top, left = max(0, y0 - 1 - _REACH), max(0, x0 - 1 - _REACH)
    nearby = labels[top : y1 + 1 + _REACH, left : x1 + 1 + _REACH]
    # `_STRAY`, the smallest label, is counted at index 0.
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
    """Find the pixels where the fruit `label` is more present than its neighbours.

    Args:
        nearby: int32 (cells, cells), labels around the fruit.
        kinds: all labels in `nearby` but 0, rising, so that all fruits around a pixel break ties alike.
        label: label of the fruit.
        axes: positions of the pixels' rows and columns among the cells.
        fruit: bool (rows, columns), True for pixels that are fruit.
    """
    down, across = axes
    mine = kinds.index(label)
    # Integers, so that results do not depend on where the crop begins.
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


def _iou(one: CroppedMask, other: CroppedMask) -> float:
    shared = intersection(one.box, other.box)
    if shared is None:
        return 0.0
    both = int(np.count_nonzero(one.within(shared) & other.within(shared)))
    return both / (one.area + other.area - both)


def _separate(masks: list[CroppedMask], fruits: Sequence[Fruit]) -> None:
    """Remove overlaps between masks in place. No fruit loses pixels that the U-Net gave to it as well."""
    for left, right in combinations(range(len(masks)), 2):
        shared = intersection(masks[left].box, masks[right].box)
        if shared is None:
            continue
        both = masks[left].within(shared) & masks[right].within(shared)
        if both.any():
            of_right = both & fruits[right].mask.within(shared)
            masks[left] = _without(masks[left], of_right, shared)
            masks[right] = _without(masks[right], both & ~of_right, shared)


def _without(mask: CroppedMask, lost: BinaryMask, box: PixelBox) -> CroppedMask:
    """Return the mask without the pixels `lost` in `box`, which lies within the mask's own."""
    x0, y0, x1, y1 = box
    pixels = mask.pixels.copy()
    pixels[y0 - mask.y0 : y1 - mask.y0, x0 - mask.x0 : x1 - mask.x0] &= ~lost
    return replace(mask, pixels=pixels)
