"""Reads the header of a JPEG: its segments up to the first scan."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import Final

from models.headers.header import MAX_SCANS, MAX_STEPS, Damaged, Header, Jpeg, Span, Steps
from models.headers.tiff import read_orientation

_MARKER: Final = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")  # within scans: neither stuffing nor restarts
_APP1: Final = 0xE1  # EXIF and XMP
_APP2: Final = 0xE2  # ICC profiles
_SOS: Final = 0xDA
_EOI: Final = 0xD9
_ALONE: Final = frozenset({0x00, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)})  # markers without a segment
_FRAMES: Final = frozenset({*range(0xC0, 0xD0), 0xDE} - {0xC4, 0xC8, 0xCC})
_PROGRESSIVE: Final = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_ADOBE: Final = 0xEE
_METADATA: Final = frozenset({*range(0xE1, 0xF0), 0xFE} - {_ADOBE})
_MAX_EXIF: Final = 16  # segments
_JUNK: Final = 1 << 16  # bytes between two segments


def read_jpeg(data: bytes, steps: Steps) -> Header:
    """Read the segments up to the first scan."""
    kept, frame, adobe = 0, None, False
    exif: list[bytes] = []
    xmp = b""
    parts: list[Span] = []
    profile: list[Span] = []
    for marker, start, end in _segments(data, steps):
        if marker in _METADATA:
            # Whatever is between the segments is left out too.
            if start - 4 > kept:
                parts.append((kept, start - 4))
            kept = end
            if marker == _APP1 and data.startswith(b"Exif\0\0", start):
                if len(exif) < _MAX_EXIF:
                    exif.append(data[start + 6 : end] if exif else data[start:end])
            elif marker == _APP1 and data.startswith(b"http://ns.adobe.com/xap/1.0/\0", start):
                xmp = data[start:end]
            elif marker == _APP2 and data.startswith(b"ICC_PROFILE\0", start) and end >= start + 14:
                profile.append((start + 12, end))
        elif marker == _ADOBE:
            adobe = adobe or data.startswith(b"Adobe", start)
        elif marker in _FRAMES:
            frame = (marker in _PROGRESSIVE, *_frame(data, start))
        scan = start
    if frame is None:
        raise Damaged("it says no size")
    progressive, width, height, layers, samples = frame
    parts.append((kept, len(data)))
    steps.slow(len(exif) << 16)
    return Header(
        "JPEG",
        width,
        height,
        read_orientation(b"".join(exif), xmp, steps),
        tuple(parts),
        tuple(profile),
        jpeg=Jpeg(layers, adobe, scan - 4, progressive or data[scan] < layers, samples),
    )


def _segments(data: bytes, steps: Steps) -> Iterator[tuple[int, int, int]]:
    """Yield the marker of each segment, and where its content starts and ends; the first scan's is the last."""
    at = 2
    while True:
        steps.take()
        at = data.find(b"\xff", at, at + _JUNK) + 1
        if not at:
            raise Damaged("no segment follows")
        marker = data[at]
        if marker == 0xFF:  # padding
            continue
        at += 1
        if marker in _ALONE:
            continue
        if marker < 0xC0:
            raise Damaged(f"0xff{marker:02x} is no marker")
        start = at + 2
        at += int.from_bytes(data[at:start], "big")
        if at < start or at > len(data):
            raise Damaged("a segment ends early")
        yield marker, start, at
        if marker == _SOS:
            return


def _frame(data: bytes, start: int) -> tuple[int, int, int, float]:
    """Return width, height, number of components, and their samples per pixel of the finest."""
    bits, height, width, layers = struct.unpack_from(">BHHB", data, start)
    if bits != 8 or layers not in {1, 3, 4}:
        raise Damaged(f"it has {layers} components of {bits} bits")
    factors = [(factor >> 4) * (factor & 15) for factor in data[start + 7 : start + 6 + 3 * layers : 3]]
    if len(factors) < layers or 0 in factors:
        raise Damaged("its components have no size")
    return width, height, layers, sum(factors) / max(factors)


def count_scans(data: bytes, start: int) -> int:
    """Count the scans of a JPEG.

    Args:
        data: the file.
        start: where the first one begins.

    Returns:
        Scans up to the end of the image; one more than `MAX_SCANS` where there are more, or where there are thousands
        of other segments between them.
    """
    at, scans, others = start, 0, 0
    while (found := _MARKER.search(data, at)) is not None:
        marker, at = data[found.end() - 1], found.end()
        if marker == _EOI:
            break
        scans += marker == _SOS
        others += marker != _SOS
        if scans > MAX_SCANS or others > MAX_STEPS["JPEG"]:
            return MAX_SCANS + 1
        at += int.from_bytes(data[at : at + 2], "big")
    return scans
