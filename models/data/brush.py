"""Label Studio's brush masks -> coverage. Its run-length encoding is not COCO's.

A brush mask is an RGBA image, row by row, of which only alpha counts, packed as the library @thi.ng/rle-pack does
(https://github.com/thi-ng/umbrella/tree/develop/packages/rle-pack): a stream of bits, highest first. A header gives the
number of words (32 bits), the bits of a word less 1 (5 bits) and four lengths less 1 of counts (4 bits each). Chunks
follow: one bit that tells a repeated word from a list of words, two bits that choose the length of the count, the count
less 1, and the one word or as many as the count says.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.errors import DataError
from models.masks import MAX_PIXELS
from models.types import Size

_CHANNELS: Final = 4
_WORD_BITS: Final = 8
_HEADER_BITS: Final = 32 + 5 + 4 * 4
_PADDING: Final = bytes(8)  # so that reading a few bytes at once never runs over the end


def decode_brush(data: bytes, size: Size) -> NDArray[np.uint8]:
    """Decode a brush mask.

    Args:
        data: the numbers of `value.rle` as bytes.
        size: of the image when it was painted: `original_height`, `original_width`.

    Returns:
        uint8 (height, width): alpha, 0 for no paint to 255; strokes have smooth edges.

    Raises:
        DataError: too large, not of that size, or the stream ends early or goes on too long.
    """
    if size.pixels > MAX_PIXELS:
        raise DataError(f"the brush mask has {size.pixels} pixels; the limit is {MAX_PIXELS}")
    if len(data) * 8 < _HEADER_BITS:
        raise DataError(f"the brush mask's {len(data)} bytes are too few for its header")
    header = int.from_bytes(data[:7], "big") >> (56 - _HEADER_BITS)
    words, word_bits = header >> 21, (header >> 16 & 31) + 1
    if words != size.pixels * _CHANNELS or word_bits != _WORD_BITS:
        raise DataError(
            f"the brush mask has {words} words of {word_bits} bits; {_CHANNELS} of {_WORD_BITS} for each of "
            f"{size.height} x {size.width} pixels are right"
        )
    count_bits = [(header >> shift & 15) + 1 for shift in (12, 8, 4, 0)]
    return _unpack(data, words, count_bits)[_CHANNELS - 1 :: _CHANNELS].reshape(size.height, size.width)


def _unpack(data: bytes, words: int, count_bits: list[int]) -> NDArray[np.uint8]:
    stream = data + _PADDING
    stored = np.frombuffer(stream, np.uint8).astype(np.uint16)
    unpacked = np.zeros(words, np.uint8)
    at, done, end = _HEADER_BITS, 0, len(data) * 8
    while done < words:
        # 1 + 2 + 16 + 8 bits at most, from anywhere in a byte.
        window = int.from_bytes(stream[at >> 3 : (at >> 3) + 5], "big") << (at & 7) & 0xFFFFFFFFFF
        bits = count_bits[window >> 37 & 3]
        count = (window >> (37 - bits) & (1 << bits) - 1) + 1
        repeated = window >> 39
        first = at + 3 + bits
        at = first + (_WORD_BITS if repeated else count * _WORD_BITS)
        if at > end:
            raise DataError(f"the brush mask ends after {done} of {words} words")
        if done + count > words:
            raise DataError(f"the brush mask has more than its {words} words")
        if repeated:
            unpacked[done : done + count] = window >> (29 - bits) & 255
        else:
            byte, shift = first >> 3, first & 7
            pieces = stored[byte : byte + count + 1]
            unpacked[done : done + count] = (pieces[:-1] << shift | pieces[1:] >> (8 - shift)) & 255
        done += count
    return unpacked
