"""Maps of edges: from the masks of everything in an image, and by classical filters to compare with.

The recipe is that of the Segment Anything paper (Kirillov et al. 2023, section 7.2 and appendix D.2): the gradient of
each mask's probabilities, kept along the outer boundary of the mask; of all masks the largest value; ridges thinned.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from models.letterbox import LOGITS_STRIDE, Letterbox
from models.png import write_png
from models.types import Logits, Pixels, Size

EdgeMap: TypeAlias = NDArray[np.float32]
"""Strength of the edge at each pixel: float32 (height, width), 0 to 1."""

_RIM: Final = LOGITS_STRIDE
"""Pixels of the model's input at the image's border: a mask ends there because the image does."""

_KERNEL: Final = np.ones((3, 3), np.uint8)
_SMOOTHING: Final = 1.5
"""Standard deviation in pixels of the blur under which the direction of a ridge is measured."""

_TOLERANCE: Final = 1.01
"""How far a neighbour may exceed a pixel of a ridge, as in Dollar and Zitnick's edge detection toolbox."""

_STRIP: Final = 64
"""Rows of the image that are encoded at a time."""

_CANNY_LEVELS: Final = 32


class EdgeAccumulator:
    """The largest gradient of all masks, in the pixels of the model's input without its padding.

    Args:
        letterbox: of the image.
    """

    def __init__(self, letterbox: Letterbox) -> None:
        self._letterbox = letterbox
        size = letterbox.logits
        self._strength = np.zeros((size.height * LOGITS_STRIDE, size.width * LOGITS_STRIDE), np.float32)

    def add(self, logits: Logits, top: int, left: int) -> None:
        """Add the boundary of a mask.

        Args:
            logits: float32, the part of the mask's logits around what is not background.
            top: its first row in the whole logits.
            left: its first column in them.
        """
        height, width = (LOGITS_STRIDE * length for length in logits.shape)
        values = np.asarray(cv2.resize(logits, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)
        # exp of large numbers overflows; beyond 30 a probability is 0 or 1 in float32 anyway.
        shares = 1 / (1 + np.exp(-np.clip(values, -30, 30)))
        # A Sobel filter's weights add up to 8 per unit of gradient.
        across = cv2.Sobel(shares, cv2.CV_32F, 1, 0, borderType=cv2.BORDER_REPLICATE) / 8
        down = cv2.Sobel(shares, cv2.CV_32F, 0, 1, borderType=cv2.BORDER_REPLICATE) / 8
        mask = (values > 0).astype(np.uint8)
        outer = cv2.dilate(mask, _KERNEL) - mask
        strength = np.hypot(across, down) * cv2.dilate(outer, _KERNEL)
        region = self._strength[
            top * LOGITS_STRIDE : top * LOGITS_STRIDE + height, left * LOGITS_STRIDE : left * LOGITS_STRIDE + width
        ]
        np.maximum(region, strength, out=region)

    def finish(self, *, thin: bool) -> EdgeMap:
        """Return the map in the pixels of the model's input, or of the image where that is smaller.

        Its largest value is 1, or all are 0.
        """
        resized, original = self._letterbox.resized, self._letterbox.original
        found = self._strength[: resized.height, : resized.width].copy()
        for rim in (found[:_RIM], found[-_RIM:], found[:, :_RIM], found[:, -_RIM:]):
            rim[...] = 0
        if original.pixels < resized.pixels:
            found = _fit(found, original, cv2.INTER_AREA)
        return _normalised(thinned(found) if thin else found)


def thinned(edges: EdgeMap) -> EdgeMap:
    """Keep the ridges of a map of edges: what is not exceeded by its neighbours across the edge.

    The direction across is that in which the smoothed map curves down most.
    """
    smooth = cv2.GaussianBlur(edges, (0, 0), _SMOOTHING)
    xx = cv2.Sobel(smooth, cv2.CV_32F, 2, 0, ksize=5)
    yy = cv2.Sobel(smooth, cv2.CV_32F, 0, 2, ksize=5)
    xy = cv2.Sobel(smooth, cv2.CV_32F, 1, 1, ksize=5)
    # The axis of the Hessian's larger eigenvalue is along the ridge, the other one across.
    across = 0.5 * np.arctan2(2 * xy, xx - yy) + np.pi / 2
    rows, columns = np.indices(edges.shape, np.float32)
    step_x, step_y = np.cos(across).astype(np.float32), np.sin(across).astype(np.float32)
    keep = edges > 0
    for side in (1, -1):
        neighbour = cv2.remap(
            edges,
            columns + side * step_x,
            rows + side * step_y,
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=0,
        )
        keep &= edges * _TOLERANCE >= neighbour
    return np.where(keep, edges, np.float32(0))


def encode_edges(edges: EdgeMap, size: Size, depth: Literal["8", "16"]) -> bytes:
    """Encode a map of edges as a grey PNG of 8 or 16 bits.

    Args:
        edges: of the image, in any size.
        size: of the PNG; the map is interpolated strip by strip, so that it is never held in this size.
        depth: bits per pixel.
    """
    most, kind = (255, np.dtype(np.uint8)) if depth == "8" else (65535, np.dtype(">u2"))

    def strips() -> Iterator[NDArray[np.uint8]]:
        for top in range(0, size.height, _STRIP):
            rows = enlarged(edges, size, range(top, min(top + _STRIP, size.height)))
            yield np.rint(rows * most).astype(kind).view(np.uint8)

    return write_png(size, strips(), "grey", bits=8 if depth == "8" else 16)


def enlarged(edges: EdgeMap, size: Size, rows: range | None = None) -> EdgeMap:
    """Interpolate a map bilinearly to another size; only some rows of it where given."""
    rows = range(size.height) if rows is None else rows
    height, width = edges.shape
    if (height, width) == (size.height, size.width):
        return edges[rows.start : rows.stop]
    down = (np.arange(rows.start, rows.stop, dtype=np.float32) + 0.5) * height / size.height - 0.5
    across = (np.arange(size.width, dtype=np.float32) + 0.5) * width / size.width - 0.5
    # First along the rows of the map that are needed, then down: an image may be a single line.
    first = np.clip(np.floor(down).astype(np.intp), 0, height - 1)
    second = np.minimum(first + 1, height - 1)
    share = np.clip(down - first, 0, 1)[:, None]
    left = np.clip(np.floor(across).astype(np.intp), 0, width - 1)
    right = np.minimum(left + 1, width - 1)
    part = np.clip(across - left, 0, 1).astype(np.float32)
    used = edges[first[0] : second[-1] + 1]
    wide = used[:, left] * (1 - part) + used[:, right] * part
    at = first[0]
    found: EdgeMap = (wide[first - at] * (1 - share) + wide[second - at] * share).astype(np.float32)
    return found


def sobel_edges(pixels: Pixels) -> EdgeMap:
    """Return the magnitude of the brightness's gradient, thinned: a baseline."""
    grey = _grey(pixels)
    across, down = (cv2.Sobel(grey, cv2.CV_32F, *order) for order in ((1, 0), (0, 1)))
    return _normalised(thinned(np.hypot(across, down)))


def canny_edges(pixels: Pixels) -> EdgeMap:
    """Return at each pixel the highest of 32 thresholds at which Canny's detector finds an edge there: a baseline.

    The lower threshold of its hysteresis is 0.4 of the upper one.
    """
    grey = np.rint(_grey(pixels)).astype(np.uint8)
    found = np.zeros(grey.shape, np.float32)
    for level in range(1, _CANNY_LEVELS + 1):
        high = 1000 * level / _CANNY_LEVELS
        found[cv2.Canny(grey, 0.4 * high, high, L2gradient=True) > 0] = level / _CANNY_LEVELS
    return found


def _grey(pixels: Pixels) -> NDArray[np.float32]:
    smooth = cv2.GaussianBlur(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), (0, 0), 1.0)
    return np.asarray(smooth, np.float32)


def _fit(edges: EdgeMap, size: Size, interpolation: int) -> EdgeMap:
    return np.asarray(cv2.resize(edges, (size.width, size.height), interpolation=interpolation), np.float32)


def _normalised(edges: EdgeMap) -> EdgeMap:
    most = float(edges.max(initial=0))
    return edges / np.float32(most) if most > 0 else edges
