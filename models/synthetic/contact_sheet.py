"""Many samples in one image: each as it is, and below it with the outlines of its masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np

from models.data.samples import Sample
from models.types import BinaryMask, PixelClass, Pixels

_COLUMNS: Final = 5
_WIDTH: Final = 280
_FRUIT: Final = (0, 235, 255)
_LESION: Final = (255, 0, 220)


def contact_sheet(samples: Sequence[Sample]) -> Pixels:
    """Put samples of one size side by side, five in a row.

    Args:
        samples: at least one.

    Returns:
        uint8 (height, 1400, 3), RGB. Every fruit's outline is cyan, lesions' outlines are magenta.
    """
    cells = [_cell(sample) for sample in samples]
    cells += [np.zeros_like(cells[0])] * (-len(cells) % _COLUMNS)
    rows = [np.hstack(cells[first : first + _COLUMNS]) for first in range(0, len(cells), _COLUMNS)]
    return np.vstack(rows)


def _cell(sample: Sample) -> Pixels:
    height = max(1, round(sample.size.height * _WIDTH / sample.size.width))
    plain = np.asarray(cv2.resize(sample.pixels, (_WIDTH, height), interpolation=cv2.INTER_AREA), np.uint8)
    outlined = plain.copy()
    for instance in sample.instances:
        _outline(outlined, np.asarray(sample.instance_map) == instance.id, _FRUIT)
    _outline(outlined, sample.semantic == PixelClass.INFECTED, _LESION)
    return np.vstack([plain, outlined])


def _outline(image: Pixels, mask: BinaryMask, colour: tuple[int, int, int]) -> None:
    size = (image.shape[1], image.shape[0])
    small = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(small, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(image, contours, -1, colour, 1, cv2.LINE_8)
