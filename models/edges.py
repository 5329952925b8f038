"""Maps of edges: from the masks of everything in an image, and by classical filters to compare with.

The recipe is that of the Segment Anything paper (Kirillov et al. 2023, section 7.2 and appendix D.2): the gradient of
each mask's probabilities, kept along the outer boundary of the mask; of all masks the largest value; ridges thinned.
"""

from __future__ import annotations

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

_CANNY_LEVELS: Final = 32

_BLOCK: Final = 64
"""Rows that are encoded at a time, so that only the map itself is there at full size."""


class EdgeAccumulator:
    """The largest gradient of all masks, in the pixels of the model's input without its padding.

    Args:
        letterbox: of the image.
    """

    def __init__(self, letterbox: Letterbox) -> None:
        self._letterbox = letterbox
        size = letterbox.logits
        self._strength = np.zeros((size.height * LOGITS_STRIDE, size.width * LOGITS_STRIDE), np.float32)

    @staticmethod
    def bytes_for(letterbox: Letterbox) -> int:
        """Return the bytes that an accumulator takes, and what is made of it."""
        return 8 * 4 * letterbox.padded.pixels

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
        """Return the map of the image: its largest value is 1, or all are 0.

        Of an image that is larger than the model's input, ridges are thinned in the pixels of that input.
        """
        resized, original = self._letterbox.resized, self._letterbox.original
        found = self._strength[: resized.height, : resized.width].copy()
        for rim in (found[:_RIM], found[-_RIM:], found[:, :_RIM], found[:, -_RIM:]):
            rim[...] = 0
        if original.pixels < resized.pixels:
            found = _fit(found, original, cv2.INTER_AREA)
        if thin:
            found = thinned(found)
        if (found.shape[0], found.shape[1]) != (original.height, original.width):
            found = _fit(found, original, cv2.INTER_LINEAR)
        return _normalised(found)


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


def encode_edges(edges: EdgeMap, depth: Literal["8", "16"]) -> bytes:
    """Encode a map of edges as a grey PNG of 8 or 16 bits."""
    height, width = edges.shape
    blocks = (_levels(edges[top : top + _BLOCK], depth) for top in range(0, height, _BLOCK))
    return write_png(Size(height, width), blocks, "grey", bits=8 if depth == "8" else 16)


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
    if most > 0:
        edges /= np.float32(most)
    return edges


def _levels(edges: EdgeMap, depth: Literal["8", "16"]) -> NDArray[np.uint8]:
    """Return rows of a map as the bytes of a PNG's rows."""
    most = 255 if depth == "8" else 65535
    levels = np.rint(edges * most).astype(np.uint8 if depth == "8" else ">u2")
    return levels.view(np.uint8).reshape(len(edges), -1)
