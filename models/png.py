"""Writes PNG files block by block, so that no copy of the whole image is ever made."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from models.types import Size

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"

Colours = Literal["grey", "rgb", "indexed"]

_COLOUR_TYPES: Final[dict[Colours, int]] = {"grey": 0, "rgb": 2, "indexed": 3}
_RGB: Final = 3
_LEVEL: Final = 1
"""Of zlib: higher ones take several times as long for a few percent."""


def write_png(
    size: Size,
    blocks: Iterable[NDArray[np.uint8]],
    colours: Colours,
    *,
    bits: Literal[1, 8, 16] = 8,
    palette: bytes = b"",
) -> bytes:
    """Write a PNG file.

    Args:
        size: of the image.
        blocks: uint8 (rows, bytes of a row), from the top down, all rows once; packed where a pixel has one bit.
        colours: what a pixel is: a grey value, red, green and blue, or a place in the palette.
        bits: per pixel or, of RGB, per channel; 16 of grey only, the high byte first.
        palette: red, green and blue of each index.

    Returns:
        The file. RGB rows are stored as differences to the pixel on the left (filter 1), which halves photographs.
    """
    header = struct.pack(">IIBBBBB", size.width, size.height, bits, _COLOUR_TYPES[colours], 0, 0, 0)
    parts = [SIGNATURE, _chunk(b"IHDR", header)]
    if palette:
        parts.append(_chunk(b"PLTE", palette))
    packer = zlib.compressobj(_LEVEL)
    for block in blocks:
        rows = np.empty((len(block), 1 + block.shape[1]), np.uint8)
        rows[:, 0] = 1 if colours == "rgb" else 0
        rows[:, 1:] = block
        if colours == "rgb":
            rows[:, 1 + _RGB :] -= block[:, :-_RGB]
        if packed := packer.compress(rows.data):
            parts.append(_chunk(b"IDAT", packed))
    parts += [_chunk(b"IDAT", packer.flush()), _chunk(b"IEND", b"")]
    return b"".join(parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))
