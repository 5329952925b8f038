"""Reads the header of a WebP: its chunks, as far as they are not pixels."""

from __future__ import annotations

import struct
from typing import Final

from models.headers.header import Damaged, Header, Span, Steps
from models.headers.tiff import read_orientation

_FLAGS: Final = ((b"ICCP", 0x20), (b"EXIF", 0x08), (b"XMP ", 0x04))


def read_webp(data: bytes, steps: Steps) -> Header:
    """Read the chunks up to the end."""
    name, length = struct.unpack_from("<4sI", data, 12)
    end = min(len(data), 20 + length + length % 2)
    if name == b"VP8 ":
        if data[23:26] != b"\x9d\x01\x2a":
            raise Damaged("its frame has no start code")
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
        return Header("WebP", width, height, parts=((12, end),))
    if name == b"VP8L":
        if data[20] != 0x2F:
            raise Damaged("its frame has no signature")
        (bits,) = struct.unpack_from("<I", data, 21)
        return Header("WebP", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, parts=((12, end),))
    if name != b"VP8X" or len(data) < 30:
        raise Damaged("its first chunk is none of VP8, VP8L and VP8X")
    flags = data[20]
    width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    wanted = {chunk for chunk, flag in _FLAGS if flags & flag}
    found: dict[bytes, Span] = {}
    parts: list[Span] = [(12, end)]
    limit = min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    at, whole = end, False
    while at + 8 <= limit:
        steps.take()
        name, length = struct.unpack_from("<4sI", data, at)
        start, end = at + 8, at + 8 + length
        if name in wanted and name not in found and end <= limit:
            found[name] = (start, end)
        elif name in {b"ANIM", b"ALPH"} and not whole:
            parts.append((at, min(limit, end + length % 2)))
        elif name in {b"VP8 ", b"VP8L", b"ANMF"} and not whole:
            parts.append((at, min(limit, end + length % 2)))
            whole = True
        at = end + length % 2
    exif, xmp = (data[slice(*found[chunk])] if chunk in found else b"" for chunk in (b"EXIF", b"XMP "))
    steps.slow(len(exif) + len(xmp))
    orientation = read_orientation(exif, xmp, steps)
    profile = (found[b"ICCP"],) if b"ICCP" in found else ()
    return Header("WebP", width, height, orientation, tuple(parts), profile)
