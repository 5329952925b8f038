"""Converts binary masks to polygons with holes and back, without loss.

A mask is a list of polygons; a polygon is a list of rings, first the exterior, then its holes; a ring is a list of
[x, y] that does not repeat its first vertex. Pixel (column i, row j) covers [i, i + 1) x [j, j + 1). Rings pass
half-way between the centres of a pixel of the mask and its neighbour outside, cutting corners, so a lone pixel is a
diamond; the pixels whose centres lie inside are exactly the mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias, cast

import contourpy
import numpy as np
from numpy.typing import NDArray

from models.errors import MaskError
from models.masks import CroppedMask, bounding_box
from models.types import BinaryMask, Size

Ring: TypeAlias = list[list[float]]
Polygon: TypeAlias = list[Ring]

_OuterOffset: TypeAlias = tuple[list[NDArray[np.float64]], list[NDArray[np.uint32]]]

_FARTHEST: Final = 1e7  # beyond this a vertex is a mistake, and products of coordinates lose precision
_SPARE_CROSSINGS: Final = 1 << 16


def encode_polygons(mask: BinaryMask) -> list[Polygon]:
    """Trace the outlines of a mask.

    Args:
        mask: bool (height, width).

    Returns:
        Polygons, each with its exterior and its holes; coordinates are multiples of 0.5.
    """
    x0, y0, x1, y1 = bounding_box(mask)
    if x1 == 0:
        return []
    # A border of zeros closes the rings of masks that touch the edge.
    heights = np.zeros((y1 - y0 + 2, x1 - x0 + 2))
    heights[1:-1, 1:-1] = mask[y0:y1, x0:x1]
    generator = contourpy.contour_generator(z=heights, name="serial", fill_type=contourpy.FillType.OuterOffset)
    # The stubs cover the results of all fill types.
    filled = cast("_OuterOffset", generator.filled(0.5, np.inf))
    points = np.concatenate(filled[0])
    points += (x0 - 0.5, y0 - 0.5)
    offsets = [np.asarray(each, np.int64) for each in filled[1]]
    rings_of = [each.size - 1 for each in offsets]
    starts = np.concatenate(([0], np.cumsum(np.concatenate([np.diff(each) for each in offsets]))))
    kept, ends = _corners(points, starts)
    vertices = points[kept].tolist()
    rings = [vertices[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    polygons = []
    first = 0
    for count in rings_of:
        polygons.append(rings[first : first + count])
        first += count
    return polygons


def polygons_of(mask: CroppedMask) -> list[Polygon]:
    """Trace the outlines of a cropped mask in pixels of the whole image, as `encode_polygons` does."""
    return [
        [[[x + mask.x0, y + mask.y0] for x, y in ring] for ring in polygon] for polygon in encode_polygons(mask.pixels)
    ]


def decode_polygons(polygons: Sequence[Sequence[Sequence[Sequence[float]]]], size: Size) -> BinaryMask:
    """Fill polygons: the mask is the pixels whose centres are inside, by the even-odd rule.

    Args:
        polygons: polygons of untrusted origin; parts beyond the mask are cut off, overlapping polygons are united.
        size: size of the mask, already checked against any limit.

    Returns:
        bool (height, width). A centre exactly on a left or upper edge is inside, on a right or
        lower one outside.

    Raises:
        MaskError: a ring is not a list of at least three finite [x, y], or there are more edges than a mask of that
            size can have.
    """
    tails, heads, owners = _edges(polygons)
    first = np.ceil(np.minimum(tails[:, 1], heads[:, 1]) - 0.5).clip(0, size.height).astype(np.int64)
    last = np.ceil(np.maximum(tails[:, 1], heads[:, 1]) - 0.5).clip(0, size.height).astype(np.int64)
    crossed = last - first
    total = int(crossed.sum())
    if total > 2 * size.pixels + _SPARE_CROSSINGS:
        raise MaskError(
            f"The polygons cross the rows of a {size.height} x {size.width} mask {total} times. "
            "Send simpler outlines, or RLE."
        )
    mask = np.zeros((size.height, size.width), np.bool_)
    if total == 0:
        return mask
    edges = np.repeat(np.arange(crossed.size), crossed)
    before = np.cumsum(crossed) - crossed
    rows = np.arange(total) - np.repeat(before - first, crossed)
    tail, step = tails[edges], (heads - tails)[edges]
    # Exact for the rings of `encode_polygons`: multiples of 0.5, slopes of 1 at most.
    x = tail[:, 0] + (rows + 0.5 - tail[:, 1]) * (step[:, 0] / step[:, 1])
    columns = np.ceil(x - 0.5).clip(0, size.width).astype(np.int64)
    # In order of polygon, row and column, crossings alternate between entering and leaving.
    stride = size.width + 1
    order = (owners[edges] * size.height + rows) * stride + columns
    order.sort()
    order %= size.height * stride
    top, bottom = int(rows.min()), int(rows.max()) + 1
    depth = np.zeros((bottom - top) * stride, np.int32)
    np.add.at(depth, order[::2] - top * stride, 1)
    np.add.at(depth, order[1::2] - top * stride, -1)
    inside = np.cumsum(depth.reshape(-1, stride), axis=1, dtype=np.int32) > 0
    mask[top:bottom] = inside[:, :-1]
    return mask


def _corners(points: NDArray[np.float64], starts: NDArray[np.int64]) -> tuple[NDArray[np.bool_], list[int]]:
    """Mark the vertices where closed rings turn, and return where each ring then ends."""
    index = np.arange(len(points))
    after, before = index + 1, index - 1
    closing = starts[1:] - 1  # repeats the ring's first vertex
    after[closing - 1] = starts[:-1]
    before[starts[:-1]] = closing - 1
    after[closing] = closing
    into, out = points - points[before], points[after] - points
    turns = into[:, 0] * out[:, 1] != into[:, 1] * out[:, 0]
    turns[closing] = False
    return turns, np.cumsum(turns)[closing].tolist()


def _edges(
    polygons: Sequence[Sequence[Sequence[Sequence[float]]]],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Check all rings and list their edges: tails, heads, and the polygon that each belongs to."""
    rings: list[NDArray[np.float64]] = []
    owners: list[int] = []
    try:
        for number, polygon in enumerate(polygons):
            for ring in polygon:
                rings.append(_checked_ring(ring))
                owners.append(number)
    except (TypeError, ValueError, OverflowError) as error:
        raise MaskError("Polygons must be a list of polygons, each a list of rings, each a list of [x, y].") from error
    if not rings:
        none = np.zeros((0, 2))
        return none, none, np.zeros(0, np.int64)
    heads = [np.concatenate((ring[1:], ring[:1])) for ring in rings]
    owner = np.repeat(np.array(owners), [len(ring) for ring in rings])
    return np.concatenate(rings), np.concatenate(heads), owner


def _checked_ring(ring: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    points = np.asarray(ring)
    if points.dtype.kind not in "iuf" or points.ndim != 2 or points.shape[1] != 2:
        raise ValueError("not a list of [x, y]")
    if len(points) < 3:
        raise MaskError(f"A ring must have at least 3 vertices, got {len(points)}.")
    if not (np.abs(points) <= _FARTHEST).all():
        raise MaskError(f"Coordinates of a ring must be finite and at most {_FARTHEST:.0f} from 0.")
    return points.astype(np.float64)
