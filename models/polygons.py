"""Converts binary masks to polygons with holes and back, without loss.

A mask is a list of polygons; a polygon is a list of rings, first the exterior, then its holes; a ring is a list of
[x, y] that does not repeat its first vertex. Pixel (column i, row j) covers [i, i + 1) x [j, j + 1). Rings pass
half-way between the centres of a pixel of the mask and its neighbour outside, cutting corners, so a lone pixel is a
diamond; the pixels whose centres lie inside are exactly the mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from models.errors import MaskError
from models.masks import CroppedMask, whole
from models.types import BinaryMask, Size

Ring: TypeAlias = list[list[float]]
Polygon: TypeAlias = list[Ring]

Outline: TypeAlias = NDArray[np.float64]
"""A ring as an array (n, 2)."""

_FARTHEST: Final = 1e7  # beyond this a vertex is a mistake, and products of coordinates lose precision
_SPARE_CROSSINGS: Final = 1 << 16

_DIRECTIONS: Final = 8
_STEPS: Final = np.array([(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)])
"""The neighbours of a pixel, clockwise (y is down) from the right: those at even places share an edge with it."""

_PLACES: Final = np.array([(5, 6, 7), (4, -1, 0), (3, 2, 1)])
"""Places in `_STEPS` of the steps (dx, dy), at [dy + 1, dx + 1]."""

_PARENT: Final = 3  # of OpenCV's hierarchy


def encode_polygons(mask: BinaryMask) -> list[Polygon]:
    """Trace the outlines of a mask.

    Args:
        mask: bool (height, width).

    Returns:
        Polygons, each with its exterior and its holes; coordinates are multiples of 0.5.
    """
    return [[ring.tolist() for ring in rings] for rings in outlines_of(whole(mask))]


def outlines_of(mask: CroppedMask) -> list[list[Outline]]:
    """Trace the outlines of a cropped mask in pixels of the whole image, as arrays: see `encode_polygons`.

    As lists a vertex takes 150 bytes, here 16.

    Returns:
        Of every polygon its rings, float64 (n, 2).
    """
    inside = mask.tight()
    # OpenCV follows the pixels along each border, diagonal neighbours too.
    chains, tree = cv2.findContours(inside.pixels.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if not chains:
        return []
    rings: list[list[Outline]] = []
    place: dict[int, int] = {}
    parents = np.asarray(tree).reshape(-1, 4)[:, _PARENT].tolist()
    corner = (inside.x0 + 0.5, inside.y0 + 0.5)
    for number, parent in sorted(enumerate(parents), key=lambda each: each[1] >= 0):
        ring = _around(np.asarray(chains[number], np.int64).reshape(-1, 2)) + corner
        if parent < 0:
            place[number] = len(rings)
            rings.append([ring])
        else:
            rings[place[parent]].append(ring)
    return rings


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


def _around(chain: NDArray[np.int64]) -> Outline:
    """Return the ring around a chain of border pixels, without vertices on straight lines.

    From each pixel the chain leaves for the first pixel of the mask that it finds when it turns anticlockwise from
    where it came. The neighbours that it passed over lie outside, and the ring passes half-way to those that share an
    edge.

    Args:
        chain: (n, 2), x and y of neighbouring pixels, closed.

    Returns:
        float64 (m, 2), relative to the centres of the pixels.
    """
    ahead = _direction(np.roll(chain, -1, axis=0) - chain)
    behind = (np.roll(ahead, 1) + 4) % _DIRECTIONS
    if len(chain) == 1:
        passed = np.arange(0, _DIRECTIONS, 2)[None]
        outside = np.ones(passed.shape, np.bool_)
    else:
        turns = np.arange(1, _DIRECTIONS)
        passed = (behind[:, None] - turns) % _DIRECTIONS
        outside = (turns < ((behind - ahead - 1) % _DIRECTIONS + 1)[:, None]) & (passed % 2 == 0)
    at, turn = np.nonzero(outside)
    points: Outline = chain[at] + _STEPS[passed[at, turn]] / 2
    into, out = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    corners: Outline = points[into[:, 0] * out[:, 1] != into[:, 1] * out[:, 0]]
    return corners


def _direction(steps: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the places in `_STEPS` of steps (n, 2)."""
    return _PLACES[steps[:, 1] + 1, steps[:, 0] + 1]


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
