"""Computes the class map of the original image and the regions of fruit from a U-Net's output.

Between the centres of four cells of the logits, bilinear interpolation mixes just those four. If all four predict the
same class, so does every mixture of them: only pixels between cells that disagree have to be computed. They are
computed in strips of rows, so that no float array of the image's size is ever made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from models.masks import PixelBox
from models.types import PixelClass, SemanticMap
from models.unet.instances import Cells, fruit_labels, label_boxes, label_scores, predicted_class
from models.unet.letterbox import UNetLetterbox

INFECTED_SHARE: Final = 0.02
"""Least share of infected pixels of a fruit of class INFECTED; a few stray pixels do not count."""

_STRIP: Final = 64
"""Rows of the image per strip."""

_GAP: Final = 128
"""Runs of columns closer than this are computed together: a call costs more than the columns between."""

_PRODUCT: Final = 1 << 18
"""Most multiplications of one matrix product. Above, OpenBLAS starts threads, which compete with the model's."""


@dataclass(frozen=True, slots=True)
class Axis:
    """Positions of an image's rows or columns among cells: two neighbouring cells and the weight of the second.

    Pixel centres are at half coordinates, as in PyTorch's `interpolate(align_corners=False)` and OpenCV's
    `INTER_LINEAR`.

    Attributes:
        low: intp (pixels,).
        high: intp (pixels,), `low` or the next.
        share: float32 (pixels,), 0 to 1.
    """

    low: NDArray[np.intp]
    high: NDArray[np.intp]
    share: NDArray[np.float32]

    @classmethod
    def of(cls, cells: int, pixels: int) -> Axis:
        """Make the axis of a whole image."""
        centre = np.clip((np.arange(pixels) + 0.5) * (cells / pixels) - 0.5, 0, cells - 1)
        low = centre.astype(np.intp)
        return cls(low, np.minimum(low + 1, cells - 1), (centre - low).astype(np.float32))

    def pixels_of(self, first: int, last: int) -> range:
        """Return the pixels next to any of the cells from `first` to before `last`."""
        start = np.searchsorted(self.high, first, "left")
        return range(int(start), int(np.searchsorted(self.low, last - 1, "right")))

    def part(self, pixels: range, first: int) -> Axis:
        """Return the axis of some pixels alone, with cells counted from `first`."""
        chosen = slice(pixels.start, pixels.stop)
        return Axis(self.low[chosen] - first, self.high[chosen] - first, self.share[chosen])

    def weights(self, pixels: slice) -> NDArray[np.float32]:
        """Return the interpolation matrix float32 (pixels, cells), cells from the first `low` to the last `high`."""
        base = int(self.low[pixels.start])
        weights = np.zeros((pixels.stop - pixels.start, int(self.high[pixels.stop - 1]) + 1 - base), np.float32)
        row = np.arange(len(weights))
        weights[row, self.low[pixels] - base] = 1 - self.share[pixels]
        weights[row, self.high[pixels] - base] += self.share[pixels]
        return weights


@dataclass(frozen=True, slots=True)
class Region:
    """One fruit, healthy or infected, separated from those that it touches.

    Box and area are measured in cells of the logits, each of `original` / `resized` pixels.

    Attributes:
        pixel_class: INFECTED if the share of infected cells is at least `INFECTED_SHARE`, else HEALTHY.
        box: half-open box in whole pixels of the original image.
        area: pixels of the original image.
        score: 0 to 1, mean probability of fruit, healthy or infected, in the region.
    """

    pixel_class: PixelClass
    box: tuple[int, int, int, int]
    area: int
    score: float


def class_map(cells: Cells) -> SemanticMap:
    """Compute the class of every pixel: the largest of the bilinearly resized logits, the first of equal ones.

    Args:
        cells: output of the network.

    Returns:
        uint8 (height, width) of size `letterbox.original`: BACKGROUND, HEALTHY or INFECTED.
    """
    letterbox = cells.letterbox
    down = Axis.of(letterbox.resized.height, letterbox.original.height)
    across = Axis.of(letterbox.resized.width, letterbox.original.width)
    classes = cells.classes.take(across.low, axis=1).take(down.low, axis=0)
    disagree = _disagreeing(cells.classes)
    for start in range(0, letterbox.original.height, _STRIP):
        rows = slice(start, min(start + _STRIP, letterbox.original.height))
        first, last = int(down.low[rows.start]), int(down.low[rows.stop - 1])
        uncertain = disagree[first : last + 1].any(axis=0).take(across.low)
        if not uncertain.any():
            continue
        weights = down.weights(rows)
        wide = [_widen(one[first : first + weights.shape[1]], letterbox.original.width) for one in cells.margins]
        for columns in _runs(uncertain, max(1, _PRODUCT // weights.size)):
            healthy, infected = (weights @ one[:, columns] for one in wide)
            classes[rows, columns] = predicted_class(healthy, infected)
    return classes


def objects(cells: Cells) -> list[Region]:
    """Find the fruits, by `models.unet.instances`.

    Args:
        cells: output of the network.

    Returns:
        The fruits, largest first.
    """
    labels, letterbox = fruit_labels(cells), cells.letterbox
    areas, scores = label_scores(cells, labels)
    infected = np.bincount(labels[cells.classes == PixelClass.INFECTED], minlength=len(areas))
    boxes = label_boxes(labels)
    return [
        Region(
            pixel_class=PixelClass.INFECTED if infected[label] / areas[label] >= INFECTED_SHARE else PixelClass.HEALTHY,
            box=_box(boxes[label], letterbox),
            area=round(int(areas[label]) * letterbox.original.pixels / letterbox.resized.pixels),
            score=float(scores[label]),
        )
        for label in range(1, len(areas))
    ]


def _widen(cells: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """Interpolate along the rows: float32 (height, width)."""
    return np.asarray(cv2.resize(cells, (width, len(cells)), interpolation=cv2.INTER_LINEAR), np.float32)


def _box(cells: PixelBox, letterbox: UNetLetterbox) -> tuple[int, int, int, int]:
    """Return a box of cells in pixels, rounded outwards."""
    x0, y0, x1, y1 = cells
    original, resized = letterbox.original, letterbox.resized
    return (
        x0 * original.width // resized.width,
        y0 * original.height // resized.height,
        -(-x1 * original.width // resized.width),
        -(-y1 * original.height // resized.height),
    )


def _disagreeing(classes: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Mark the cells that differ in class from a neighbour to the right, below, or below to the right.

    Args:
        classes: uint8 (height, width).

    Returns:
        bool (height, width).
    """
    grown = np.pad(classes, ((0, 1), (0, 1)), mode="edge")
    below = grown[1:] != grown[:-1]
    beside = grown[:, 1:] != grown[:, :-1]
    return np.asarray(below[:, :-1] | below[:, 1:] | beside[:-1])


def _runs(uncertain: NDArray[np.bool_], widest: int) -> Iterator[slice]:
    """Yield runs of columns, at most `widest` each, that cover all uncertain ones; there is at least one."""
    at = np.flatnonzero(uncertain)
    breaks = np.flatnonzero(np.diff(at) > _GAP)
    starts = at[np.concatenate(([0], breaks + 1))]
    stops = at[np.concatenate((breaks, [-1]))] + 1
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        for begin in range(start, stop, widest):
            yield slice(begin, min(begin + widest, stop))
