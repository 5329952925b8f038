"""Scales samples of 9 to 16 bits to 8 bits, by the number of bits that hold something.

Cameras' 10- and 12-bit pixels (Mono10, Mono12) are stored in 16 bits, most often as they are: white is then 1023 or
4095, not 65535. A file may say so: a PNG in sBIT, a TIFF in MaxSampleValue. Where none does, the samples decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import ImageFile

from models.errors import UnsupportedImageFormat
from models.headers.header import Header

DEPTHS: Final = (8, 10, 12, 14, 16)
"""Bits of a sample that cameras have (GenICam's Mono8 to Mono16)."""

_FULL: Final = 65535
_ROWS: Final = 64  # scaled at a time: they stay in the cache, and other threads get their turn
_HIGH_OF_14: Final = 64  # high bytes of samples of at most 14 bits are less
_SWAPPED: Final = {"B": "L", "L": "B", "N": "B" if np.little_endian else "L"}


def to_8_bits(image: PIL.Image.Image, header: Header) -> PIL.Image.Image:
    """Scale grey samples to 8 bits.

    Args:
        image: loaded, of mode I, I;16 or another kind of I;16.
        header: of the file it is from.

    Returns:
        The image in mode L: 255 where a sample has the value of white or more.

    Raises:
        UnsupportedImageFormat: a sample is negative or has more than 16 bits.
    """
    strips = [np.asarray(strip) for strip in _strips(image)]
    low, high = min(int(strip.min()) for strip in strips), max(int(strip.max()) for strip in strips)
    if low < 0 or high > _FULL:
        raise UnsupportedImageFormat(
            f"Integer pixels must lie in 0 to 65535 (16 bits), got {low} to {high}. Scale the image to 8 or 16 bits."
        )
    table = _table(white(high, lambda: _or(strips), header))
    scaled = PIL.Image.new("L", image.size)
    for number, strip in enumerate(strips):
        scaled.paste(PIL.Image.fromarray(table[strip]), (0, number * _ROWS))
    return scaled


def narrow_samples(
    image: PIL.Image.Image, reopen: Callable[[], ImageFile.ImageFile], header: Header, check: Callable[[], None]
) -> PIL.Image.Image | None:
    """Scale colours of at most 14 bits that are stored in 16, of which Pillow kept the high bytes only.

    Args:
        image: loaded, with the high bytes.
        reopen: opens the same file.
        header: of the file.
        check: called every few milliseconds; may raise.

    Returns:
        The image in mode RGB or L; None where its high bytes are what is needed.
    """
    if image.mode not in {"RGB", "RGBA"}:
        return None
    high = 0
    for strip in _strips(image):
        check()
        high = max(high, *(int(most) for _, most in strip.getextrema()[:3]))  # type: ignore[misc]
        if high >= _HIGH_OF_14:
            return None
    second = reopen()
    raw, *others = _arguments(second.tile[0])
    if not isinstance(raw, str) or raw[:-1] not in {"RGB;16", "RGBA;16", "LA;16", "RGBX;16"}:
        return None
    # Read with the bytes swapped, the low bytes are kept. Grey with alpha has the four bytes of 8-bit RGBA.
    grey = raw.startswith("LA")
    second.tile = [
        tile._replace(args=("RGBA" if grey else raw[:-1] + _SWAPPED[raw[-1]], *others)) for tile in second.tile
    ]
    second.load()

    def samples() -> Iterator[NDArray[np.uint16]]:
        for above, below in zip(_strips(image), _strips(second), strict=True):
            check()
            bands = (slice(0, 1), slice(1, 2)) if grey else (slice(0, 3), slice(0, 3))
            one, other = np.asarray(above)[..., bands[0]], np.asarray(below)[..., bands[1]]
            yield one.astype(np.uint16) << 8 | other

    # Which low bytes there are matters only where there are no high ones.
    table = _table(white(high << 8 | 255 if high else 0, lambda: _or(samples()), header))
    scaled = PIL.Image.new("L" if grey else "RGB", image.size)
    for number, wide in enumerate(samples()):
        rows = table[wide]
        scaled.paste(PIL.Image.fromarray(rows[..., 0] if grey else rows), (0, number * _ROWS))
    return scaled


def white(high: int, seen: Callable[[], int], header: Header) -> int:
    """Return the value of a white sample.

    Args:
        high: the largest sample, 0 to 65535.
        seen: computes the bitwise or of all samples.
        header: of the file.

    Returns:
        4095 for samples that a TIFF stores in 12 bits, a TIFF's MaxSampleValue rounded up to all ones, or all ones in
        a PNG's sBIT bits unless the samples were shifted up to 16 bits, as the PNG specification asks; where the file
        says nothing, or samples are larger than it says, all ones in the fewest bits of `DEPTHS` that hold the samples.
    """
    if header.sample_bits == 12:
        return 4095
    if header.full_scale is not None and high <= header.full_scale:
        return header.full_scale
    if (bits := header.significant_bits) is not None:
        shifted = high >> bits or not seen() & (1 << 16 - bits) - 1
        return _FULL if shifted else (1 << bits) - 1
    return next((1 << depth) - 1 for depth in DEPTHS if not high >> depth)


def _strips(image: PIL.Image.Image) -> Iterator[PIL.Image.Image]:
    width, height = image.size
    return (image.crop((0, top, width, min(top + _ROWS, height))) for top in range(0, height, _ROWS))


def _or(strips: Iterable[NDArray[Any]]) -> int:
    return int(np.bitwise_or.reduce([np.bitwise_or.reduce(strip, axis=None) for strip in strips]))


def _table(full: int) -> NDArray[np.uint8]:
    """Return what samples of 0 to 65535 become."""
    return ((np.minimum(np.arange(_FULL + 1), full) * 255 + full // 2) // full).astype(np.uint8)


def _arguments(tile: ImageFile._Tile) -> tuple[Any, ...]:
    """Return what the decoder of a tile takes: how samples are stored, and more."""
    return tile.args if isinstance(tile.args, tuple) else (tile.args,)
