"""Label Studio's brush masks. Its run-length encoding is not COCO's.

A brush mask is an RGBA picture, row by row, packed as the library @thi.ng/rle-pack does
(https://github.com/thi-ng/umbrella/tree/develop/packages/rle-pack): a stream of bits, highest first. A header gives the
number of words (32 bits), the bits of a word less 1 (5 bits) and four lengths less 1 of counts (4 bits each). Chunks
follow: one bit that tells a repeated word from a list of words, two bits that choose the length of the count, the count
less 1, and the word or words.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

_CHANNELS: Final = 4
_COUNT_BITS: Final = (4, 8, 12, 16)
_LONGEST: Final = 1 << _COUNT_BITS[-1]


def encode_brush(mask: NDArray[np.bool_]) -> list[int]:
    """Pack a mask for `value.rle`: white and opaque where it is, transparent black elsewhere.

    Args:
        mask: bool (height, width).

    Returns:
        Bytes as numbers.
    """
    flat = mask.reshape(-1)
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    bounds = np.concatenate(([0], changes, [flat.size])) * _CHANNELS
    bits = [f"{flat.size * _CHANNELS:032b}", f"{7:05b}", *(f"{length - 1:04b}" for length in _COUNT_BITS)]
    value = bool(flat[0])
    for words in np.diff(bounds).tolist():
        word = "11111111" if value else "00000000"
        for begin in range(0, words, _LONGEST):
            count = min(words - begin, _LONGEST)
            choice = next(number for number, length in enumerate(_COUNT_BITS) if count <= 1 << length)
            bits.append(f"1{choice:02b}{count - 1:0{_COUNT_BITS[choice]}b}{word}")
        value = not value
    stream = "".join(bits)
    stream += "0" * (-len(stream) % 8)
    return list(int(stream, 2).to_bytes(len(stream) // 8, "big"))
