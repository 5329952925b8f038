"""Rows or columns of an image between those of a U-Net's cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Axis:
    """Rows or columns: which two cells each pixel of the image lies between, and the share of the second.

    Half-pixel centres, as PyTorch's `interpolate(align_corners=False)` and OpenCV's `INTER_LINEAR` have them.

    Attributes:
        low: intp (pixels,).
        high: intp (pixels,), `low` or the next.
        share: float32 (pixels,), 0 to 1.
    """

    low: NDArray[np.intp]
    high: NDArray[np.intp]
    share: NDArray[np.float32]

    @classmethod
    def of(cls, cells: int, pixels: int) -> Axis:
        """Of a whole image."""
        centre = np.clip((np.arange(pixels) + 0.5) * (cells / pixels) - 0.5, 0, cells - 1)
        low = centre.astype(np.intp)
        return cls(low, np.minimum(low + 1, cells - 1), (centre - low).astype(np.float32))

    def pixels_of(self, first: int, last: int) -> range:
        """The pixels that lie next to any of the cells from `first` to before `last`."""
        start = np.searchsorted(self.high, first, "left")
        return range(int(start), int(np.searchsorted(self.low, last - 1, "right")))

    def part(self, pixels: range, first: int) -> Axis:
        """Of some pixels alone, to cells that are counted from `first`."""
        chosen = slice(pixels.start, pixels.stop)
        return Axis(self.low[chosen] - first, self.high[chosen] - first, self.share[chosen])

    def weights(self, pixels: slice) -> NDArray[np.float32]:
        """What turns cells into pixels: float32 (pixels, cells), cells from the first `low` to the last `high`."""
        base = int(self.low[pixels.start])
        weights = np.zeros((pixels.stop - pixels.start, int(self.high[pixels.stop - 1]) + 1 - base), np.float32)
        row = np.arange(len(weights))
        weights[row, self.low[pixels] - base] = 1 - self.share[pixels]
        weights[row, self.high[pixels] - base] += self.share[pixels]
        return weights
