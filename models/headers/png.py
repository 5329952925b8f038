"""Reads the header of a PNG: its chunks, as far as they are not pixels."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from typing import Final

from models.headers.header import XMP_READ, Damaged, Header, Span, Steps, TooManySteps
from models.headers.tiff import read_orientation

_XMP_KEYWORD: Final = b"XML:com.adobe.xmp"
_TEXT: Final = 1 << 20  # bytes that a compressed text or profile may unpack to, as in Pillow


_DEPTHS: Final = {0: {1, 2, 4, 8, 16}, 2: {8, 16}, 3: {1, 2, 4, 8}, 4: {8, 16}, 6: {8, 16}}  # by colour type
_GREYS: Final = frozenset({0, 4})  # types of colour, with and without alpha
_PALETTE: Final = 3
_CHUNK_NAME: Final = re.compile(rb"[A-Za-z]{4}")
_RAW_EXIF: Final = b"Raw profile type exif"
_TEXTS: Final = frozenset({b"eXIf", b"tEXt", b"zTXt", b"iTXt"})
_KEYWORDS: Final = (b"exif", _XMP_KEYWORD, _RAW_EXIF)


def read_png(data: bytes, steps: Steps) -> Header:
    """Read the chunks up to the end."""
    length, name = struct.unpack_from(">I4s", data, 8)
    width, height, depth, colour, _, method = struct.unpack_from(">IIBBBB", data, 16)
    if name != b"IHDR" or length < 13 or depth not in _DEPTHS.get(colour, ()) or method:
        raise Damaged("its first chunk is no valid IHDR")
    at = 20 + length
    if zlib.crc32(data[12 : at - 4]) != int.from_bytes(data[at - 4 : at], "big"):
        raise Damaged("bad checksum of IHDR")
    head: list[Span] = [(0, at)]
    pixels: Span | None = None
    texts: dict[bytes, tuple[bytes, Span]] = {}
    profile: tuple[Span, ...] = ()
    bits = 0
    for name, start, end in _chunks(data, at, steps):
        if name == b"IDAT":
            if pixels is None or pixels[1] == start - 8:
                pixels = (start - 8 if pixels is None else pixels[0], end + 4)
        elif name in _TEXTS:
            keyword = b"exif" if name == b"eXIf" else data[start : min(end, start + 80)].partition(b"\0")[0]
            if keyword in _KEYWORDS:
                texts[keyword] = (name, (start, end))
        elif pixels is not None:
            pass  # what decoders need comes before the pixels
        elif name == b"PLTE" and colour == _PALETTE:
            head.append((start - 8, end + 4))
        elif name == b"iCCP" and (stop := data.find(b"\0", start, min(end, start + 80))) > 0:
            profile = ((stop + 2, end),)  # after the name, its end, and the method of compression
        elif name == b"sBIT" and end > start:
            bits = max(data[start : min(end, start + 3)])
    if pixels is None:
        raise Damaged("it has no pixels")
    return Header(
        "PNG",
        width,
        height,
        _orientation(data, texts, steps),
        (*head, pixels),
        profile,
        sample_bits=depth,
        grey=colour in _GREYS,
        significant_bits=bits if depth == 16 and 0 < bits < 16 else None,
    )


def _chunks(data: bytes, at: int, steps: Steps) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name of each chunk, and where its content starts and ends; ends where a chunk is damaged."""
    while at + 8 <= len(data):
        steps.take()
        length, name = struct.unpack_from(">I4s", data, at)
        start, end = at + 8, at + 8 + length
        if name == b"IEND" or _CHUNK_NAME.match(name) is None or (end > len(data) and name != b"IDAT"):
            return
        yield name, start, end
        at = end + 4


def _orientation(data: bytes, texts: dict[bytes, tuple[bytes, Span]], steps: Steps) -> int:
    exif, xmp, raw = (_value(data, *texts[keyword], steps) if keyword in texts else b"" for keyword in _KEYWORDS)
    return read_orientation(exif or _from_hexadecimal(raw), xmp, steps)


def _value(data: bytes, name: bytes, span: Span, steps: Steps) -> bytes:
    """Return what a chunk holds; empty where it is damaged."""
    start, end = span
    steps.slow(end - start)
    chunk = data[start : min(end, start + XMP_READ)]
    if name == b"eXIf":
        return b"Exif\0\0" + chunk
    text = chunk.partition(b"\0")[2]
    if name == b"tEXt":
        return text
    if name == b"zTXt":
        packed = text[1:]
    else:
        packed = text[2:].partition(b"\0")[2].partition(b"\0")[2]
        if text[:1] == b"\0":
            return packed
    if steps.quick:
        raise TooManySteps
    return inflate(packed) or b""


def inflate(packed: bytes) -> bytes | None:
    """Decompress at most 1 MiB; None where there is more, or where the bytes are damaged."""
    inflater = zlib.decompressobj()
    try:
        plain = inflater.decompress(packed, _TEXT)
    except zlib.error:
        return None
    return None if inflater.unconsumed_tail else plain


def _from_hexadecimal(text: bytes) -> bytes:
    """Return the EXIF that ImageMagick writes as text: after three lines, in hexadecimal."""
    try:
        return bytes.fromhex(b"".join(text.split(b"\n", 3)[3:]).decode("ascii"))
    except ValueError:
        return b""
