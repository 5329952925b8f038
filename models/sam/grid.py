"""Places where everything in an image is asked for: a grid of points, and crops of the image with grids of their own.

Grids and crops are those of segment-anything's `SamAutomaticMaskGenerator` (Kirillov et al. 2023, appendix B).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.masks import PixelBox
from models.types import Size

OVERLAP: Final = 512 / 1500
"""Of crops of the first layer, as a share of the image's short side; halved with each further layer."""


@dataclass(frozen=True, slots=True)
class Crop:
    """A part of an image that is encoded for itself.

    Attributes:
        box: in pixels of the image.
        layer: 0 for the whole image, 1 for 2 x 2 crops, 2 for 4 x 4.
        image: size of the whole image.
    """

    box: PixelBox
    layer: int
    image: Size

    @property
    def size(self) -> Size:
        """Size of the crop."""
        x0, y0, x1, y1 = self.box
        return Size(y1 - y0, x1 - x0)


def point_grid(per_side: int, size: Size) -> NDArray[np.float64]:
    """Return the centres of per_side x per_side equal parts of an image.

    Args:
        per_side: points along each side, at least 1.
        size: of the image.

    Returns:
        float64 (per_side * per_side, 2), x and y in pixels, row by row.
    """
    at = (np.arange(per_side) + 0.5) / per_side
    return np.stack(np.meshgrid(at * size.width, at * size.height), axis=-1).reshape(-1, 2)


def spread(per_side: int) -> NDArray[np.intp]:
    """Return an order of a grid's points in which every beginning covers the whole image about evenly.

    Rows and columns are interleaved by reversed bits (Morton's curve, bit-reversed): the first four points lie in the
    four quarters of the image, the first sixteen in its sixteen parts.

    Returns:
        intp (per_side * per_side,): indices into `point_grid`.
    """
    bits = max(1, (per_side - 1).bit_length())
    reversed_bits = np.zeros(per_side, np.int64)
    for bit in range(bits):
        # A bit of a row's or column's number goes to twice the mirrored place, so that those of both interleave.
        reversed_bits |= ((np.arange(per_side) >> bit) & 1) << 2 * (bits - 1 - bit)
    keys = (2 * reversed_bits[:, None] + reversed_bits[None, :]).ravel()
    return np.argsort(keys, kind="stable")


def crops_of(size: Size, layers: int) -> Iterator[Crop]:
    """Yield the whole image, then the crops of each layer: 4 of the first, 16 of the second.

    Args:
        size: of the image.
        layers: number of layers beyond the whole image.
    """
    yield Crop((0, 0, size.width, size.height), 0, size)
    for layer in range(1, layers + 1):
        count = 2**layer
        overlap = int(OVERLAP * min(size.height, size.width) * 2 / count)
        width, height = (math.ceil((overlap * (count - 1) + side) / count) for side in (size.width, size.height))
        for column in range(count):
            for row in range(count):
                x0, y0 = (width - overlap) * column, (height - overlap) * row
                box = (x0, y0, min(x0 + width, size.width), min(y0 + height, size.height))
                if box[0] < box[2] and box[1] < box[3]:  # else the image is smaller than its number of crops
                    yield Crop(box, layer, size)


def points_in(per_side: int, layers: int) -> int:
    """Return how many points all grids together have."""
    return per_side**2 * sum(1 << 2 * layer for layer in range(layers + 1))
