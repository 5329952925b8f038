"""A mask that is held only where it lies in its image.

A fruit covers a small part of a large image: what is done in its box alone takes a fraction of the time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from models.masks import Rle, bounding_box, write_runs
from models.polygons import Polygon, encode_polygons
from models.types import BinaryMask, Size

PixelBox: TypeAlias = tuple[int, int, int, int]
"""A half-open box x0, y0, x1, y1 in whole pixels."""


@dataclass(frozen=True, slots=True, eq=False)
class CroppedMask:
    """A mask that is empty outside a box.

    Attributes:
        pixels: bool (height, width) of the box, at least one pixel.
        x0: the box's left column in the image.
        y0: the box's top row in the image.
        size: of the image; the box lies within.
    """

    pixels: BinaryMask
    x0: int
    y0: int
    size: Size

    @property
    def box(self) -> PixelBox:
        """Where the pixels lie in the image; the mask's own box where it is tight."""
        height, width = self.pixels.shape
        return (self.x0, self.y0, self.x0 + width, self.y0 + height)

    @property
    def area(self) -> int:
        """Pixels in the mask."""
        return int(np.count_nonzero(self.pixels))

    def tight(self) -> CroppedMask:
        """The same mask in the smallest box, or in one pixel of its box where it is empty."""
        left, top, right, bottom = bounding_box(self.pixels)
        right, bottom = max(right, left + 1), max(bottom, top + 1)
        return CroppedMask(self.pixels[top:bottom, left:right], self.x0 + left, self.y0 + top, self.size)

    def within(self, box: PixelBox) -> BinaryMask:
        """What of the mask lies in a box of the image: bool (height, width) of that box."""
        x0, y0, x1, y1 = box
        seen = np.zeros((y1 - y0, x1 - x0), np.bool_)
        if (shared := common(self.box, box)) is not None:
            left, top, right, bottom = shared
            mine = self.pixels[top - self.y0 : bottom - self.y0, left - self.x0 : right - self.x0]
            seen[top - y0 : bottom - y0, left - x0 : right - x0] = mine
        return seen

    def full(self) -> BinaryMask:
        """The mask of the whole image: bool (height, width)."""
        return self.within((0, 0, self.size.width, self.size.height))


def common(one: PixelBox, other: PixelBox) -> PixelBox | None:
    """What two boxes share, or None where they share nothing."""
    x0, y0 = max(one[0], other[0]), max(one[1], other[1])
    x1, y1 = min(one[2], other[2]), min(one[3], other[3])
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def rle_of(cutout: CroppedMask) -> Rle:
    """Encode as COCO RLE of the whole image, byte for byte as `models.masks.encode_rle` does."""
    height, width = cutout.size.height, cutout.size.width
    inside = cutout.pixels
    rows, columns = inside.shape
    changed = np.empty((rows + 1, columns), np.bool_)
    changed[0], changed[-1] = inside[0], inside[-1]
    np.not_equal(inside[1:], inside[:-1], out=changed[1:-1])
    down, across = np.divmod(np.flatnonzero(changed), columns)
    changes = (across + cutout.x0) * height + down + cutout.y0
    changes.sort()
    if rows == height:
        # Where a column ends in the mask and the next begins in it, nothing changes.
        again = np.zeros(changes.size + 1, np.bool_)
        again[1:-1] = changes[1:] == changes[:-1]
        changes = changes[~(again[1:] | again[:-1])]
    if changes.size and changes[-1] == height * width:
        changes = changes[:-1]
    return Rle((height, width), write_runs(_runs(changes, height * width)))


def polygons_of(cutout: CroppedMask) -> list[Polygon]:
    """Trace the outlines in pixels of the whole image, as `models.polygons.encode_polygons` does."""
    return [
        [[[x + cutout.x0, y + cutout.y0] for x, y in ring] for ring in polygon]
        for polygon in encode_polygons(cutout.pixels)
    ]


def _runs(changes: NDArray[np.int64], pixels: int) -> NDArray[np.int64]:
    return np.diff(np.concatenate(([0], changes, [pixels])))
