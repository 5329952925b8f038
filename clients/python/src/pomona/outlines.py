"""Polygons with holes -> mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pomona.errors import BadAnswer

Ring: TypeAlias = Sequence[Sequence[float]]
Polygon: TypeAlias = Sequence[Ring]

_FARTHEST: Final = 1e7


def fill(polygons: Sequence[Polygon], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Fill polygons: the pixels whose centres are inside, by the even-odd rule within each polygon.

    Args:
        polygons: each a list of rings, first the outline, then its holes; a ring is a list of [x, y] that does not
            repeat its first vertex. Pixel (column i, row j) covers [i, i + 1) x [j, j + 1).
        size: height and width of the mask.

    Returns:
        bool (height, width); polygons that overlap are united.

    Raises:
        BadAnswer: rings that are not lists of at least three finite [x, y].
    """
    mask = np.zeros(size, np.bool_)
    for polygon in polygons:
        _fill_one(mask, polygon)
    return mask


def _fill_one(mask: NDArray[np.bool_], polygon: Polygon) -> None:
    rings = [_vertices(ring) for ring in polygon]
    if not rings:
        return
    tails = np.concatenate(rings)
    heads = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
    left, top = np.clip(np.floor(tails.min(axis=0)), 0, mask.shape[::-1]).astype(int)
    right, bottom = np.clip(np.ceil(tails.max(axis=0)), 0, mask.shape[::-1]).astype(int)
    if left >= right or top >= bottom:
        return
    # Rows whose centres each edge crosses, and where.
    first = np.ceil(np.minimum(tails[:, 1], heads[:, 1]) - 0.5).clip(top, bottom).astype(int)
    last = np.ceil(np.maximum(tails[:, 1], heads[:, 1]) - 0.5).clip(top, bottom).astype(int)
    crossed = last - first
    edges = np.repeat(np.arange(crossed.size), crossed)
    rows = np.arange(edges.size) - np.repeat(np.cumsum(crossed) - crossed - first, crossed)
    step = (heads - tails)[edges]
    x = tails[edges, 0] + (rows + 0.5 - tails[edges, 1]) * (step[:, 0] / step[:, 1])
    columns = np.ceil(x - 0.5).clip(left, right).astype(int)
    # A pixel is inside where an odd number of crossings lies to its left or on it.
    crossings = np.zeros((bottom - top, right - left + 1), np.int32)
    np.add.at(crossings, (rows - top, columns - left), 1)
    mask[top:bottom, left:right] |= (np.cumsum(crossings, axis=1)[:, :-1] & 1).astype(np.bool_)


def _vertices(ring: Ring) -> NDArray[np.float64]:
    try:
        vertices = np.asarray(ring, np.float64)
    except (TypeError, ValueError) as error:
        raise BadAnswer(f"A polygon's ring is no list of [x, y]: {error}.") from error
    if vertices.ndim != 2 or vertices.shape[1] != 2 or len(vertices) < 3 or not (np.abs(vertices) < _FARTHEST).all():
        raise BadAnswer("A polygon's ring is not a list of at least three finite [x, y].")
    return vertices
