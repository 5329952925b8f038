"""Scales samples of 9 to 16 bits to 8 bits, by the number of bits that hold something.

Cameras' 10- and 12-bit pixels (Mono10, Mono12) are stored in 16 bits, most often as they are: white is then 1023 or
4095, not 65535. A file may say so: a PNG in sBIT, a TIFF in MaxSampleValue. Where none does, the samples decide.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import ImageFile

from models.errors import UnsupportedImageFormat
from models.image_header import Header

DEPTHS: Final = (8, 10, 12, 14, 16)
"""Bits of a sample that cameras have (GenICam's Mono8 to Mono16)."""

_FULL: Final = 65535
_ROWS: Final = 64  # scaled at a time, which leaves other threads their turn
_HIGH_OF_14: Final = 64  # high bytes of samples of at most 14 bits are less
_SWAPPED: Final = {"B": "L", "L": "B", "N": "B" if np.little_endian else "L"}


def to_8_bits(samples: NDArray[Any], header: Header) -> NDArray[np.uint8]:
    """Scale grey samples to 8 bits.

    Args:
        samples: integers (height, width), 0 to 65535.
        header: of the file they are from.

    Returns:
        uint8 of the same shape: 255 where a sample has the value of white or more.

    Raises:
        UnsupportedImageFormat: a sample is negative or has more than 16 bits.
    """
    low, high = int(samples.min()), int(samples.max())
    if low < 0 or high > _FULL:
        raise UnsupportedImageFormat(
            f"Integer pixels must lie in 0 to 65535 (16 bits), got {low} to {high}. Scale the image to 8 or 16 bits."
        )
    return _scale(samples, white(int(np.bitwise_or.reduce(samples, axis=None)), header))


def narrow_samples(
    image: PIL.Image.Image, reopen: Callable[[], ImageFile.ImageFile], header: Header
) -> PIL.Image.Image | None:
    """Scale colours of at most 14 bits that are stored in 16, of which Pillow kept the high bytes only.

    Args:
        image: loaded, with the high bytes.
        reopen: opens the same file.
        header: of the file.

    Returns:
        The image in 8 bits, RGB; None where its high bytes are what is needed.
    """
    if image.mode not in {"RGB", "RGBA"} or max(high for _, high in _extrema(image)) >= _HIGH_OF_14:
        return None
    second = reopen()
    (tile,) = second.tile if len(second.tile) == 1 else (None,)
    raw = None if tile is None else tile.args if isinstance(tile.args, str) else (tile.args or [None])[0]
    if tile is None or not isinstance(raw, str) or raw[:-1] not in {"RGB;16", "RGBA;16", "LA;16", "RGBX;16"}:
        return None
    # Read with the bytes swapped, the low bytes are kept. Grey with alpha has the four bytes of 8-bit RGBA.
    wanted = "RGBA" if raw.startswith("LA") else raw[:-1] + _SWAPPED[raw[-1]]
    second.tile = [tile._replace(args=wanted if isinstance(tile.args, str) else (wanted, *tile.args[1:]))]
    second.load()
    below = np.asarray(second)[..., :3].astype(np.uint16)
    above = np.asarray(image)[..., :3].astype(np.uint16)
    if wanted == "RGBA":
        below = below[..., 1:2]
        above = above[..., :1]
    samples = above << 8 | below
    scaled = _scale(samples, white(int(np.bitwise_or.reduce(samples, axis=None)), header))
    return PIL.Image.fromarray(scaled[..., 0] if wanted == "RGBA" else scaled)


def white(seen: int, header: Header) -> int:
    """Return the value of a white sample.

    Args:
        seen: bitwise or of all samples, 0 to 65535.
        header: of the file.

    Returns:
        4095 for samples that a TIFF stores in 12 bits, a TIFF's MaxSampleValue rounded up to all ones, or all ones in
        a PNG's sBIT bits unless the samples were shifted up to 16 bits, as the PNG specification asks; where the file
        says nothing, or samples are larger than it says, all ones in the fewest bits of `DEPTHS` that hold the samples.
    """
    if header.sample_bits == 12:
        return 4095
    if header.full_scale is not None and seen <= header.full_scale:
        return header.full_scale
    if (bits := header.significant_bits) is not None:
        shifted = seen >> bits or not seen & (1 << 16 - bits) - 1
        return _FULL if shifted else (1 << bits) - 1
    return next((1 << depth) - 1 for depth in DEPTHS if not seen >> depth)


def _scale(samples: NDArray[Any], full: int) -> NDArray[np.uint8]:
    table = (np.minimum(np.arange(_FULL + 1), full) * 255 + full // 2) // full
    table = table.astype(np.uint8)
    scaled = np.empty(samples.shape, np.uint8)
    for top in range(0, len(samples), _ROWS):
        scaled[top : top + _ROWS] = table[samples[top : top + _ROWS]]
    return scaled


def _extrema(image: PIL.Image.Image) -> list[tuple[int, int]]:
    """Return the least and the largest value of red, green and blue."""
    return [image.getchannel(band).getextrema() for band in "RGB"]  # type: ignore[misc]
