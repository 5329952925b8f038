"""Computes masks of the original image from the decoder's low-resolution logits.

The reference upsamples the logits to the padded image, crops the padding and resizes to the original image, both
bilinearly. Both steps are linear and separable, so together they are a product with four weights per row and per column
of the image. SAM 2's reference takes the second step alone. It is computed only where the logits come near a threshold,
one stripe of the image at a time: no float array of the image's size is ever made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.letterbox import LOGITS_STRIDE, Letterbox
from models.masks import CroppedMask, PixelBox, bounding_box
from models.types import Logits, Mask

_STABILITY_OFFSET: Final = 1.0
"""segment-anything's `stability_score_offset`."""

_ROUNDING: Final = 1e-3
"""More than float32 rounding can lift an interpolated value above the logits it is interpolated from."""

_BLOCK: Final = 8192
"""Most rows or columns of the image whose weights are held at a time; matters for an image that is one long line."""

_PRODUCT: Final = 1 << 18
"""Most multiplications of one matrix product: above, OpenBLAS starts threads, which compete with the model's, and a
stripe's logits no longer fit the cache."""


@dataclass(frozen=True, slots=True, eq=False)
class MaskCrop:
    """A mask as `models.types.Mask`, of which only the part where it may lie is stored."""

    crop: CroppedMask
    logits: Logits
    score: float
    stability_score: float
    box: PixelBox
    area: int


def masks_of(logits: Logits, scores: NDArray[np.float32], letterbox: Letterbox, *, multimask: bool) -> tuple[Mask, ...]:
    """Compute one prompt's masks: three, best predicted IoU first, or the one for unambiguous prompts.

    Args:
        logits: float32 (4, height, width) of size `letterbox.logits`, the decoder's output for this prompt.
        scores: float32 (4,), its predicted IoUs.
        letterbox: letterbox of the prompt's image.
        multimask: use tokens 1 to 3 instead of token 0, as the reference does.
    """
    crops = (
        crop_of(logits[token], float(scores[token]), letterbox) for token in chosen_tokens(scores, multimask=multimask)
    )
    return tuple(
        Mask(crop.crop.full(), crop.logits, crop.score, crop.stability_score, crop.box, crop.area) for crop in crops
    )


def chosen_tokens(scores: NDArray[np.float32], *, multimask: bool) -> list[int]:
    """Return the decoder's tokens whose masks are answered, in their order: see `masks_of`."""
    return sorted((1, 2, 3), key=lambda token: -scores[token]) if multimask else [0]


def crop_of(logits: Logits, score: float, letterbox: Letterbox) -> MaskCrop:
    """Compute one mask: of a large image one takes as much memory as a thousand logits of it.

    Its stability score is 0 if the masks at both thresholds are empty.

    Args:
        logits: float32 (height, width) of size `letterbox.logits`, of one token.
        score: its predicted IoU.
        letterbox: letterbox of the image.
    """
    left, top, right, bottom = bounding_box(logits > -_STABILITY_OFFSET - _ROUNDING)
    down = _axis(letterbox.logits.height, letterbox.resized.height, letterbox.original.height, letterbox)
    across = _axis(letterbox.logits.width, letterbox.resized.width, letterbox.original.width, letterbox)
    rows, columns = down.reach(top, bottom), across.reach(left, right)
    if not (rows and columns and bottom):
        rows = columns = range(1)
    inside = np.zeros((len(rows), len(columns)), np.bool_)
    area = inner = outer = 0
    if bottom:
        cells = down.cells_of(rows)
        wide = np.empty((cells.stop - cells.start, len(columns)), np.float32)
        for start, stop, values in across.stripes(columns, logits[cells].T):
            wide[:, start:stop] = values.T
        for start, stop, values in down.stripes(rows, wide, cells.start):
            area += int(np.count_nonzero(np.greater(values, 0, out=inside[start:stop])))
            inner += int(np.count_nonzero(values > _STABILITY_OFFSET))
            outer += int(np.count_nonzero(values > -_STABILITY_OFFSET))
    x0, y0, x1, y1 = bounding_box(inside)
    dx, dy = (columns.start, rows.start) if area else (0, 0)
    return MaskCrop(
        crop=CroppedMask(inside, columns.start, rows.start, letterbox.original),
        logits=logits,
        score=score,
        stability_score=inner / outer if outer else 0.0,
        box=(x0 + dx, y0 + dy, x1 + dx, y1 + dy),
        area=area,
    )


@dataclass(frozen=True, slots=True)
class _Axis:
    """Rows or columns, from the low-resolution logits to the image.

    Attributes:
        cells: cells of the logits, padding included.
        resized: pixels of the image in the model's input, without the padding.
        original: pixels of the image.
        stride: pixels of the model's input per cell.
    """

    cells: int
    resized: int
    original: int
    stride: int

    def reach(self, first: int, last: int) -> range:
        """Return the pixels of the image that may depend on the cells from `first` to before `last`."""
        scale = self.original / self.resized
        # Half a cell and, in the second step, one pixel further each way; then outwards to whole pixels.
        start = (self.stride * (first - 0.5) - 1) * scale - 1
        stop = (self.stride * (last + 0.5) + 1) * scale + 1
        return range(max(0, math.floor(start)), min(self.original, math.ceil(stop)))

    def cells_of(self, pixels: range) -> slice:
        """Return the cells that a range of at least one pixel of the image depends on."""
        cells, _ = self._taps(pixels.start, pixels.start + 1)
        ends, _ = self._taps(pixels.stop - 1, pixels.stop)
        return slice(int(cells[0, 0]), int(ends[-1, 0]) + 1)

    def stripes(
        self, pixels: range, logits: NDArray[np.float32], offset: int = 0
    ) -> Iterator[tuple[int, int, NDArray[np.float32]]]:
        """Interpolate along the first axis, stripe by stripe.

        Args:
            pixels: pixels of the image to compute.
            logits: float32 (cells, others).
            offset: the first cell in `logits`.

        Yields:
            Start and stop of a stripe, counted from the first of `pixels`, and its values, float32 (n, others).
        """
        step = self._step(len(pixels), logits.shape[1])
        for begin in range(pixels.start, pixels.stop, _BLOCK):
            end = min(begin + _BLOCK, pixels.stop)
            cells, shares = self._taps(begin, end)
            base = int(cells[0, 0])
            weights = np.zeros((end - begin, int(cells[-1, -1]) + 1 - base), np.float32)
            row = np.arange(end - begin)
            for cell, share in zip(cells, shares, strict=True):
                weights[row, cell - base] += share
            for start in range(0, end - begin, step):
                stop = min(start + step, end - begin)
                first, last = int(cells[0, start]), int(cells[-1, stop - 1]) + 1
                values = weights[start:stop, first - base : last - base] @ logits[first - offset : last - offset]
                yield begin + start - pixels.start, begin + stop - pixels.start, values

    def _step(self, pixels: int, others: int) -> int:
        """Return the number of pixels of a stripe."""
        cells_per_pixel = self.resized / self.original / self.stride
        step = min(pixels, _BLOCK)
        while step > 1 and step * (step * cells_per_pixel + 3) * others > _PRODUCT:
            step //= 2
        return step

    def _taps(self, start: int, stop: int) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Return the cells (4, n), rising, and their weights (4, n) for the pixels from `start` to before `stop`."""
        low, high, share = _bilinear(np.arange(start, stop), self.resized, self.resized / self.original)
        cells, shares = [], []
        for pixels, weight in ((low, 1 - share), (high, share)):
            first, second, part = _bilinear(pixels, self.cells, 1 / self.stride)
            cells += [first, second]
            shares += [weight * (1 - part), weight * part]
        return np.stack(cells), np.stack(shares)


def _axis(cells: int, resized: int, original: int, letterbox: Letterbox) -> _Axis:
    """Return one axis of a letterbox; of a stretched one without the step to the model's input."""
    return _Axis(cells, cells, original, 1) if letterbox.stretched else _Axis(cells, resized, original, LOGITS_STRIDE)


def _bilinear(
    at: NDArray[np.intp], inputs: int, scale: float
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """Return the two inputs that OpenCV's bilinear resize mixes for the outputs `at`, and the second's weight."""
    centre = np.clip((at + 0.5) * scale - 0.5, 0, inputs - 1)
    low = centre.astype(np.intp)
    return low, np.minimum(low + 1, inputs - 1), centre - low
