"""Reads headers of JPEG, PNG, WebP, BMP and TIFF files of untrusted origin in a bounded number of steps.

Pillow's readers walk through every segment, chunk and tag of a file, however many it has, before they know its size:
millions of empty ones cost seconds. Here a header is given up after a fixed number of them, large values are not
looked at, and what is found says which parts of the file hold pixels, so that decoders need not see the others.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from typing import Final

from models.errors import ImageTooComplex, NotAnImage, TruncatedImage, UnsupportedImageFormat
from models.headers.header import MAX_STEPS, MAX_VALUES, QUICK_STEPS, Damaged, Format, Header, Steps, TooManySteps
from models.headers.jpeg import read_jpeg
from models.headers.png import inflate, read_png
from models.headers.tiff import read_tiff
from models.headers.webp import read_webp

ACCEPTED: Final = "JPEG, PNG, WebP, BMP or TIFF"
"""The supported formats, for error messages."""

_FORMATS: Final[tuple[tuple[re.Pattern[bytes], Format], ...]] = (
    (re.compile(rb"\xff\xd8\xff"), "JPEG"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "PNG"),
    (re.compile(rb"RIFF.{4}WEBP", re.DOTALL), "WebP"),
    # Text may start with "BM", so the size of the second header must be a known one or cut off.
    (re.compile(rb"BM.{12}([\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0|.{0,3}\Z)", re.DOTALL), "BMP"),
    (re.compile(rb"BM.{0,11}\Z", re.DOTALL), "BMP"),
    (re.compile(rb"II[*+]\0|MM\0[*+]|MM\*\0|II\0\*"), "TIFF"),
)

_UNSUPPORTED: Final = (
    (re.compile(rb"GIF8[79]a"), "GIF"),
    (re.compile(rb"8BPS"), "PSD"),
    (re.compile(rb".{4}ftypavi[fs]", re.DOTALL), "AVIF"),
    (re.compile(rb".{4}ftypmif1.{4}.{0,48}avif", re.DOTALL), "AVIF"),
    (re.compile(rb".{4}ftyp(hei|hev|mif1|msf1)", re.DOTALL), "HEIC"),
    (re.compile(rb"\x00\x00\x01\x00[^\x00]\x00"), "ICO"),
    (re.compile(rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51"), "JPEG 2000"),
    (re.compile(rb"\0\0\0\x0cJXL \r\n\x87\n|\xff\x0a"), "JPEG XL"),
    (re.compile(rb"%PDF-"), "PDF"),
    (
        re.compile(rb"(\xef\xbb\xbf)?\s*(<\?xml|<!--|<!doctype svg|<svg).*<svg|\s*<svg", re.I | re.S),
        "SVG",
    ),
)

_SNIFFED: Final = 1024


def read_header(data: bytes) -> Header:
    """Read the header of a file, in some 30 ms at most.

    Args:
        data: a JPEG, PNG, WebP, BMP or TIFF file.

    Returns:
        What it says of its first image; width and height are at least 1.

    Raises:
        NotAnImage, UnsupportedImageFormat: the bytes are in no supported image format.
        TruncatedImage: the header ends early or is damaged.
        ImageTooComplex: the header has more parts than `MAX_STEPS`.
    """
    name = sniff(data)
    try:
        return _read(name, data, Steps(MAX_STEPS[name], quick=False))
    except TooManySteps:
        raise ImageTooComplex(
            f"The header of the {name} image has more than {MAX_STEPS[name]} parts, or one with more than {MAX_VALUES} "
            "values. Save the image again with an ordinary program, without metadata."
        ) from None


def read_short_header(data: bytes) -> Header | None:
    """Read the header of a file if that takes microseconds.

    Args:
        data: a JPEG, PNG, WebP, BMP or TIFF file.

    Returns:
        What `read_header` returns, or None where the header has more parts than `QUICK_STEPS` or large ones.

    Raises:
        NotAnImage, UnsupportedImageFormat, TruncatedImage: as `read_header`.
    """
    name = sniff(data)
    try:
        return _read(name, data, Steps(QUICK_STEPS, quick=True))
    except TooManySteps:
        return None


def sniff(data: bytes) -> Format:
    """Return the format that the leading bytes announce.

    Raises:
        NotAnImage, UnsupportedImageFormat: it is not supported.
    """
    head = data[:_SNIFFED]
    for pattern, name in _FORMATS:
        if pattern.match(head):
            return name
    for pattern, other in _UNSUPPORTED:
        if pattern.match(head):
            raise UnsupportedImageFormat(f"The image is {other}. Send {ACCEPTED}.")
    if not data:
        raise NotAnImage(f"The image has no bytes. Send {ACCEPTED}.")
    raise NotAnImage(f"The {len(data)} bytes start like no image format: {data[:8]!r}. Send {ACCEPTED}.")


def icc_profile(header: Header, data: bytes) -> bytes | None:
    """Return the ICC profile of a file, at most 1 MiB if it is compressed; None where there is none or it is damaged.

    Args:
        header: of the file.
        data: the file.
    """
    if not header.profile:
        return None
    if header.format == "PNG":
        return inflate(data[slice(*header.profile[0])])
    parts = [data[start:end] for start, end in header.profile]
    if header.format != "JPEG":
        return parts[0]
    # Each part has its number, counted from 1, and that of all.
    parts.sort()
    return b"".join(part[2:] for part in parts) if parts[0][1] == len(parts) else None


def _read(name: Format, data: bytes, steps: Steps) -> Header:
    try:
        header = _READERS[name](data, steps)
    except (Damaged, IndexError, struct.error) as error:
        raise TruncatedImage(
            f"The bytes start like a {name} image, but the header ends early, is damaged or describes a rare kind of "
            f"{name} ({error}). Send the whole file, or save it as PNG and send that."
        ) from error
    if header.width < 1 or header.height < 1:
        raise TruncatedImage(
            f"The {name} image is damaged: its header says {header.width} x {header.height}. Send the whole file."
        )
    return header


def _read_bmp(data: bytes, _: Steps) -> Header:
    (size,) = struct.unpack_from("<I", data, 14)
    if size == 12:
        width, height = struct.unpack_from("<HH", data, 18)
        return Header("BMP", width, height, parts=((0, len(data)),))
    width, height = struct.unpack_from("<II", data, 18)
    (compression,) = struct.unpack_from("<I", data, 30)
    if data[25] == 0xFF:  # rows from the top
        height = (1 << 32) - height
    return Header("BMP", width, height, parts=((0, len(data)),), run_length=compression in {1, 2})


_READERS: Final[Mapping[Format, Callable[[bytes, Steps], Header]]] = {
    "JPEG": read_jpeg,
    "PNG": read_png,
    "WebP": read_webp,
    "BMP": _read_bmp,
    "TIFF": read_tiff,
}
