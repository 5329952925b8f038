"""From a U-Net's logits to a class map of the original image and to regions of fruit.

Between the centres of four cells of the logits, bilinear interpolation mixes just those four. Where all four favour
the same class, so does every mixture of them: only pixels between cells that disagree have to be computed. That is done
a strip of rows at a time: no float array of the image's size is ever made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from models.types import CLASSES, PixelClass, SemanticMap
from models.unet.axes import Axis
from models.unet.cells import against_background, favoured, unpadded
from models.unet.instances import fruit_labels
from models.unet.letterbox import UNetLetterbox

INFECTED_SHARE: Final = 0.02
"""A fruit is infected from this share of its pixels on; a few stray pixels do not condemn it."""

_STRIP: Final = 64
"""Rows of the image that are computed at a time."""

_GAP: Final = 128
"""Columns that agree are computed too where fewer of them lie between two runs that do not: a call costs more."""

_PRODUCT: Final = 1 << 18
"""Multiplications of one matrix product. Above, OpenBLAS starts its own threads, which compete with the model's."""


@dataclass(frozen=True, slots=True)
class Region:
    """A fruit, healthy or infected, also where it touches others.

    Box and area are counted in cells of the logits, `original` / `resized` pixels each way.

    Attributes:
        pixel_class: INFECTED from `INFECTED_SHARE` infected pixels on, else HEALTHY.
        box: half-open box in whole pixels of the original image.
        area: pixels of the original image.
        score: 0 to 1, mean probability of fruit, healthy or infected, in the region.
    """

    pixel_class: PixelClass
    box: tuple[int, int, int, int]
    area: int
    score: float


def class_map(logits: NDArray[np.float32], letterbox: UNetLetterbox) -> SemanticMap:
    """The class of every pixel: the largest of the bilinearly enlarged logits, the first of equal ones.

    Args:
        logits: float32 (5, height, width) of size `letterbox.padded`, as `UNetBackend.infer` gives them.
        letterbox: of the image.

    Returns:
        uint8 (height, width) of size `letterbox.original`: BACKGROUND, HEALTHY or INFECTED.

    Raises:
        ValueError: logits of another size.
    """
    fruit = against_background(unpadded(logits, letterbox))
    cells = favoured(*fruit)
    down = Axis.of(letterbox.resized.height, letterbox.original.height)
    across = Axis.of(letterbox.resized.width, letterbox.original.width)
    classes = cells.take(across.low, axis=1).take(down.low, axis=0)
    disagree = _disagreeing(cells)
    for start in range(0, letterbox.original.height, _STRIP):
        rows = slice(start, min(start + _STRIP, letterbox.original.height))
        first, last = int(down.low[rows.start]), int(down.low[rows.stop - 1])
        uncertain = disagree[first : last + 1].any(axis=0).take(across.low)
        if not uncertain.any():
            continue
        weights = down.weights(rows)
        wide = [_widened(one[first : first + weights.shape[1]], letterbox.original.width) for one in fruit]
        for columns in _runs(uncertain, max(1, _PRODUCT // weights.size)):
            healthy, infected = (weights @ one[:, columns] for one in wide)
            classes[rows, columns] = favoured(healthy, infected)
    return classes


def probabilities(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Softmax over the classes.

    Args:
        logits: float32 (3, height, width).

    Returns:
        float32 of the same shape, 0 to 1; the classes of a cell sum to 1.
    """
    powers = np.exp(logits - logits.max(axis=0))
    powers /= powers.sum(axis=0)
    return np.asarray(powers, np.float32)


def objects(logits: NDArray[np.float32], letterbox: UNetLetterbox) -> list[Region]:
    """The fruits that `models.unet.instances` tells apart.

    Args:
        logits: float32 (5, height, width) of size `letterbox.padded`.
        letterbox: of the image.

    Returns:
        The fruits, largest first.

    Raises:
        ValueError: logits of another size.
    """
    cells = unpadded(logits, letterbox)
    labels = fruit_labels(logits, letterbox)
    rows, columns = np.nonzero(labels)
    label_of = labels[rows, columns]
    chances = probabilities(cells[: len(CLASSES), rows, columns])[PixelClass.BACKGROUND]
    sick = favoured(*against_background(cells[:, rows, columns])) == PixelClass.INFECTED
    areas = np.bincount(label_of)
    fruit = np.bincount(label_of, weights=1 - chances, minlength=len(areas))
    infected = np.bincount(label_of, weights=sick, minlength=len(areas))
    return [
        Region(
            pixel_class=_verdict(infected[label] / areas[label]),
            box=_box(labels == label, letterbox),
            area=round(int(areas[label]) * letterbox.original.pixels / letterbox.resized.pixels),
            score=min(1.0, float(fruit[label] / areas[label])),
        )
        for label in range(1, len(areas))
    ]


def _widened(cells: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """Interpolate along the rows: float32 (height, width)."""
    return np.asarray(cv2.resize(cells, (width, len(cells)), interpolation=cv2.INTER_LINEAR), np.float32)


def _verdict(infected_share: float) -> PixelClass:
    return PixelClass.INFECTED if infected_share >= INFECTED_SHARE else PixelClass.HEALTHY


def _box(inside: NDArray[np.bool_], letterbox: UNetLetterbox) -> tuple[int, int, int, int]:
    """From cells to pixels, outwards."""
    left, top, width, height = cv2.boundingRect(inside.view(np.uint8))
    original, resized = letterbox.original, letterbox.resized
    return (
        left * original.width // resized.width,
        top * original.height // resized.height,
        -(-(left + width) * original.width // resized.width),
        -(-(top + height) * original.height // resized.height),
    )


def _disagreeing(favoured: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether a cell and its neighbours to the right, below, and below to the right favour different classes.

    Args:
        favoured: uint8 (height, width).

    Returns:
        bool (height, width); beyond the last row and column the last is repeated.
    """
    grown = np.pad(favoured, ((0, 1), (0, 1)), mode="edge")
    below = grown[1:] != grown[:-1]
    beside = grown[:, 1:] != grown[:, :-1]
    return np.asarray(below[:, :-1] | below[:, 1:] | beside[:-1])


def _runs(uncertain: NDArray[np.bool_], widest: int) -> Iterator[slice]:
    """Runs of columns that hold every uncertain one, of which there is at least one; each run at most `widest`."""
    at = np.flatnonzero(uncertain)
    breaks = np.flatnonzero(np.diff(at) > _GAP)
    starts = at[np.concatenate(([0], breaks + 1))]
    stops = at[np.concatenate((breaks, [-1]))] + 1
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        for begin in range(start, stop, widest):
            yield slice(begin, min(begin + widest, stop))
