"""A subject's best and worst images, drawn: left the annotation's outlines, right the prediction's."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import cv2
import numpy as np
import PIL.Image
from numpy.typing import NDArray

from models.data.samples import Sample
from models.evaluation.answers import Answer
from models.evaluation.results import ImageFile
from models.metrics import is_fruit
from models.types import BinaryMask, PixelClass, Pixels

KEPT: Final = 3
"""Best and worst images of each subject."""

HEIGHT: Final = 360
WIDTH: Final = 480
"""Most pixels of each of the two sides: a report holds more than a hundred of them."""

QUALITY: Final = 80

_FRUIT: Final = (86, 180, 233)  # sky blue
_INFECTED: Final = (204, 121, 167)  # reddish purple
_DARK: Final = (20, 20, 20)
_GAP: Final = 4
_LINE: Final = np.ones((2, 2), np.uint8)
_AROUND: Final = np.ones((3, 3), np.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    iou: float
    name: str
    jpeg: bytes


@dataclass(slots=True)
class Gallery:
    """Images of one subject on one set; holds no more than are asked for in the end."""

    _best: list[_Kept] = field(default_factory=list, init=False)
    _worst: list[_Kept] = field(default_factory=list, init=False)

    def offer(self, sample: Sample, answer: Answer, fruit_iou: float) -> None:
        """Draw the image where it is among the best or worst so far; of equal ones the first stays."""
        if math.isnan(fruit_iou):
            return
        among_best = len(self._best) < KEPT or fruit_iou > self._best[-1].iou
        among_worst = len(self._worst) < KEPT or fruit_iou < self._worst[-1].iou
        if not (among_best or among_worst):
            return
        kept = _Kept(fruit_iou, sample.name, side_by_side(sample, answer))
        if among_best:
            self._best = sorted([*self._best, kept], key=lambda each: -each.iou)[:KEPT]
        if among_worst:
            self._worst = sorted([*self._worst, kept], key=lambda each: each.iou)[:KEPT]

    def files(self, group: str, subject: str) -> list[ImageFile]:
        """The best images, best first, then the worst, worst first; no image twice."""
        names = {each.name for each in self._best}
        # Few images: the better half are the best.
        both = sorted([*self._best, *(each for each in self._worst if each.name not in names)], key=lambda e: -e.iou)
        best = both[: min(KEPT, math.ceil(len(both) / 2))]
        worst = both[len(best) :][::-1][:KEPT]
        kinds: Sequence[tuple[Literal["best", "worst"], list[_Kept]]] = (("best", best), ("worst", worst))
        return [
            ImageFile(group, subject, each.name, each.iou, kind, each.jpeg) for kind, some in kinds for each in some
        ]


def side_by_side(sample: Sample, answer: Answer) -> bytes:
    """Draw the annotation's outlines, and beside it the prediction's: fruit in sky blue, infected pixels in purple.

    Args:
        sample: the annotated image.
        answer: for it.

    Returns:
        A JPEG file; both sides together at most `2 * WIDTH` plus a gap wide and `HEIGHT` high.
    """
    size = sample.size
    scale = min(1.0, HEIGHT / size.height, WIDTH / size.width)
    shape = (max(1, round(size.width * scale)), max(1, round(size.height * scale)))
    small = np.asarray(cv2.resize(sample.pixels, shape, interpolation=cv2.INTER_AREA), np.uint8)
    annotated = is_fruit(sample.semantic) if sample.instance_map is None else sample.instance_map
    predicted = np.zeros((size.height, size.width), np.uint16)
    for number, mask in enumerate(answer.fruits, start=1):
        predicted[mask] = number
    # Specks that are no fruit of their own are fruit all the same.
    predicted[(predicted == 0) & is_fruit(answer.classes)] = len(answer.fruits) + 1
    sides = [
        _outlined(small, _shrunk(labels, shape), _shrunk(classes == PixelClass.INFECTED, shape) > 0)
        for labels, classes in ((annotated, sample.semantic), (predicted, answer.classes))
    ]
    gap = np.full((shape[1], _GAP, 3), 255, np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.hstack([sides[0], gap, sides[1]])).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _shrunk(labels: NDArray[np.generic], shape: tuple[int, int]) -> NDArray[np.uint16]:
    return np.asarray(cv2.resize(labels.astype(np.uint16), shape, interpolation=cv2.INTER_NEAREST_EXACT), np.uint16)


def _outlined(pixels: Pixels, labels: NDArray[np.uint16], infected: BinaryMask) -> Pixels:
    drawn = pixels.copy()
    fruit = _edges(labels)
    # Dark beside the line: it is seen on any image. Not so around lesions, which it would hide.
    drawn[cv2.dilate(fruit.astype(np.uint8), _AROUND) > 0] = _DARK
    drawn[fruit] = _FRUIT
    drawn[_edges(infected.astype(np.uint16))] = _INFECTED
    return drawn


def _edges(labels: NDArray[np.uint16]) -> BinaryMask:
    """Lines of two pixels, as wide as a JPEG's colour is fine, between pixels of different labels."""
    edges = np.zeros(labels.shape, np.uint8)
    edges[:, :-1] |= labels[:, 1:] != labels[:, :-1]
    edges[:-1] |= labels[1:] != labels[:-1]
    return np.asarray(cv2.dilate(edges, _LINE) > 0)
