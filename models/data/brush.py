"""Label Studio's brush masks, packed and unpacked. Their run-length encoding is not COCO's.

A brush mask is an RGBA image, row by row, of which only alpha counts, packed as the library @thi.ng/rle-pack does
(https://github.com/thi-ng/umbrella/tree/develop/packages/rle-pack): a bit stream, highest bit first. A header gives
the number of words (32 bits), the bits of a word less 1 (5 bits) and four lengths less 1 of counts (4 bits each).
Chunks follow: one bit that distinguishes a repeated word from a list of words, two bits that choose the length of
the count, the count less 1, and the one word or the list of words.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.data.regions import RegionFault
from models.masks import MAX_PIXELS, CroppedMask
from models.types import Size

_CHANNELS: Final = 4
_WORD_BITS: Final = 8
_HEADER_BITS: Final = 32 + 5 + 4 * 4
_PADDING: Final = bytes(8)  # reading a few bytes at once never runs over the end
_COUNT_BITS: Final = (4, 8, 12, 16)
_LONGEST_RUN: Final = 1 << _COUNT_BITS[-1]


def decode_brush(data: bytes, size: Size) -> NDArray[np.uint8]:
    """Decode a brush mask.

    Args:
        data: the numbers of `value.rle` as bytes.
        size: size of the image when it was painted: `original_height`, `original_width`.

    Returns:
        uint8 (height, width): alpha, 0 for no paint to 255; strokes have smooth edges.

    Raises:
        RegionFault: the mask is too large or of another size, or the stream ends early or has too many words.
    """
    if size.pixels > MAX_PIXELS:
        raise RegionFault(f"the brush mask must have at most {MAX_PIXELS} pixels, has {size.pixels}")
    if len(data) * 8 < _HEADER_BITS:
        raise RegionFault(f"the brush mask's {len(data)} bytes are too few for its header")
    header = int.from_bytes(data[:7], "big") >> (56 - _HEADER_BITS)
    words, word_bits = header >> 21, (header >> 16 & 31) + 1
    if words != size.pixels * _CHANNELS or word_bits != _WORD_BITS:
        raise RegionFault(
            f"the brush mask must have {_CHANNELS} words of {_WORD_BITS} bits for each of {size.height} x {size.width} "
            f"pixels, has {words} words of {word_bits} bits"
        )
    count_bits = [(header >> shift & 15) + 1 for shift in (12, 8, 4, 0)]
    return _unpack(data, words, count_bits)[_CHANNELS - 1 :: _CHANNELS].reshape(size.height, size.width)


def _unpack(data: bytes, words: int, count_bits: list[int]) -> NDArray[np.uint8]:
    stream = data + _PADDING
    stored = np.frombuffer(stream, np.uint8).astype(np.uint16)
    unpacked = np.zeros(words, np.uint8)
    at, done, end = _HEADER_BITS, 0, len(data) * 8
    while done < words:
        # At most 1 + 2 + 16 + 8 bits, starting anywhere in a byte.
        window = int.from_bytes(stream[at >> 3 : (at >> 3) + 5], "big") << (at & 7) & 0xFFFFFFFFFF
        bits = count_bits[window >> 37 & 3]
        count = (window >> (37 - bits) & (1 << bits) - 1) + 1
        repeated = window >> 39
        first = at + 3 + bits
        at = first + (_WORD_BITS if repeated else count * _WORD_BITS)
        if at > end:
            raise RegionFault(f"the brush mask ends after {done} of {words} words")
        if done + count > words:
            raise RegionFault(f"the brush mask has more than its {words} words")
        if repeated:
            unpacked[done : done + count] = window >> (29 - bits) & 255
        else:
            byte, shift = first >> 3, first & 7
            pieces = stored[byte : byte + count + 1]
            unpacked[done : done + count] = (pieces[:-1] << shift | pieces[1:] >> (8 - shift)) & 255
        done += count
    return unpacked


def encode_brush(mask: CroppedMask) -> bytes:
    """Encode a mask as a brush mask of the whole image: opaque white inside, transparent black outside.

    Args:
        mask: in an image of at most `MAX_PIXELS` pixels.

    Returns:
        The numbers of `value.rle` as bytes.
    """
    packed = _Bits()
    packed.add(mask.size.pixels * _CHANNELS, 32)
    packed.add(_WORD_BITS - 1, 5)
    for length in _COUNT_BITS:
        packed.add(length - 1, 4)
    white = False
    for pixels in _runs(mask):
        left = pixels * _CHANNELS
        while left:
            count = min(left, _LONGEST_RUN)
            choice = next(number for number, length in enumerate(_COUNT_BITS) if count <= 1 << length)
            packed.add(4 + choice, 3)  # a repeated word
            packed.add(count - 1, _COUNT_BITS[choice])
            packed.add(255 if white else 0, _WORD_BITS)
            left -= count
        white = not white
    return packed.to_bytes()


def _runs(mask: CroppedMask) -> list[int]:
    """Return the lengths in pixels of runs along the rows of the image, the first outside the mask; it may be 0."""
    padded = np.pad(mask.pixels, ((0, 0), (1, 1))).view(np.int8)
    down, across = np.nonzero(np.diff(padded, axis=1))  # in memory order: begin, end, begin, end of each row
    changes = (down + mask.y0) * mask.size.width + across + mask.x0
    if changes.size and mask.pixels.shape[1] == mask.size.width:
        # Where a row ends in the mask and the next one begins in it, nothing changes between them.
        again = np.zeros(changes.size + 1, np.bool_)
        again[1:-1] = changes[1:] == changes[:-1]
        changes = changes[~(again[1:] | again[:-1])]
    runs: list[int] = np.diff(np.concatenate(([0], changes, [mask.size.pixels]))).tolist()
    return runs if runs[-1] else runs[:-1]


class _Bits:
    """A stream of bits, highest first; the last byte is filled up with zeros."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._rest, self._count = 0, 0

    def add(self, value: int, bits: int) -> None:
        self._rest = self._rest << bits | value
        self._count += bits
        whole = self._count // 8
        if whole:
            self._count -= whole * 8
            self._bytes += (self._rest >> self._count).to_bytes(whole, "big")
            self._rest &= (1 << self._count) - 1

    def to_bytes(self) -> bytes:
        if not self._count:
            return bytes(self._bytes)
        return bytes(self._bytes) + (self._rest << (8 - self._count)).to_bytes(1, "big")
