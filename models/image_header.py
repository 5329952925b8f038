"""Reads headers of JPEG, PNG, WebP, BMP and TIFF files of untrusted origin in a bounded number of steps.

Pillow's readers walk through every segment, chunk and tag of a file, however many it has, before they know its size:
millions of empty ones cost seconds. Here a header is given up after a fixed number of them, large values are not
looked at, and what is found says which parts of the file hold pixels, so that decoders need not see the others.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from models.errors import ImageTooComplex, NotAnImage, TruncatedImage, UnsupportedImageFormat

Format: TypeAlias = Literal["JPEG", "PNG", "WebP", "BMP", "TIFF"]
Span: TypeAlias = tuple[int, int]
"""Start and end of a part of a file, half-open."""

ACCEPTED: Final = "JPEG, PNG, WebP, BMP or TIFF"
"""The supported formats, for error messages."""

MAX_STEPS: Final[Mapping[Format, int]] = {"JPEG": 4096, "PNG": 32_768, "WebP": 4096, "BMP": 1, "TIFF": 1024}
"""Most segments and padding bytes before a JPEG's first scan, chunks of a PNG or WebP, or tags of a TIFF.

Photographs have fewer than 100, except PNG with its pixels in chunks of 8 KiB, or of a row."""

QUICK_STEPS: Final = 64
"""Most steps of a header that is read at once, in 5 to 50 µs, rather than in a worker thread."""

MAX_VALUES: Final = 1 << 16
"""Most strips or tiles of a TIFF, and most values of any other tag that decoders see, except colour maps."""

MAX_SCANS: Final = 100
"""Most scans of a JPEG: libtiff's limit too. Progressive files have 6 to 12."""

MAX_SCANNED_PIXELS: Final = 1_000_000_000
"""Most pixels times scans of a JPEG: 20 scans of 50 megapixels. Each scan costs at least 0.4 ns per pixel."""

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
_ORIENTATION: Final = 274  # EXIF and TIFF tag
_XMP_ORIENTATION: Final = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
_XMP_KEYWORD: Final = b"XML:com.adobe.xmp"
_XMP_READ: Final = 1 << 20  # bytes of an XMP packet that are searched
_TEXT: Final = 1 << 20  # bytes that a compressed text or profile may unpack to, as in Pillow


class _TooManySteps(Exception):
    """The header has more parts than may be looked at."""


class _Damaged(Exception):
    """The header ends early or makes no sense."""


@dataclass(frozen=True, slots=True)
class Jpeg:
    """What decoding a JPEG depends on.

    Attributes:
        layers: components: 1 (grey), 3 (RGB) or 4 (CMYK).
        adobe: whether Adobe's segment is there, with which CMYK is stored inverted.
        scan: where the first scan begins.
        several_scans: whether others follow.
    """

    layers: int
    adobe: bool
    scan: int
    several_scans: bool


@dataclass(frozen=True, slots=True)
class Tiff:
    """What decoding a TIFF depends on.

    Attributes:
        head: the bytes before the offset of the directory.
        entries: of the tags that decoders need, as in the file.
        big: whether offsets have 8 bytes.
        tile: width and height of a tile, or of a strip.
        compression: value of the tag.
        stored: bytes of all tiles or strips together.
    """

    head: bytes
    entries: tuple[bytes, ...]
    big: bool
    tile: tuple[int, int]
    compression: int
    stored: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says about its first image.

    Attributes:
        format: of the file.
        width: pixels of a row, before the orientation is applied.
        height: rows, before the orientation is applied.
        orientation: of EXIF, 1 to 8; XMP's where there is none in EXIF.
        parts: of the file, in order, that hold pixels and what is needed to decode them.
        profile: parts that hold the ICC profile.
        sample_bits: bits in which a sample is stored.
        full_scale: value of a white sample of 16 bits, where a TIFF says so; else None.
        significant_bits: of a sample before it was stored in 16 bits, where a PNG says so; else None.
        jpeg: of a JPEG.
        tiff: of a TIFF.
        run_length: whether a BMP is run-length encoded.
    """

    format: Format
    width: int
    height: int
    orientation: int = 1
    parts: tuple[Span, ...] = ()
    profile: tuple[Span, ...] = ()
    sample_bits: int = 8
    full_scale: int | None = None
    significant_bits: int | None = None
    jpeg: Jpeg | None = None
    tiff: Tiff | None = None
    run_length: bool = False


@dataclass(slots=True)
class _Steps:
    """Counts down what may still be looked at."""

    left: int
    quick: bool

    def take(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise _TooManySteps

    def slow(self, nbytes: int) -> None:
        """Refuse to look at more than 256 KiB where the header is read at once."""
        if self.quick and nbytes > 1 << 18:
            raise _TooManySteps


def read_header(data: bytes) -> Header:
    """Read the header of a file, in 30 ms at most.

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
        return _read(name, data, _Steps(MAX_STEPS[name], quick=False))
    except _TooManySteps:
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
        return _read(name, data, _Steps(QUICK_STEPS, quick=True))
    except _TooManySteps:
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
        return _inflate(data[slice(*header.profile[0])])
    parts = [data[start:end] for start, end in header.profile]
    if header.format != "JPEG":
        return parts[0]
    # Each part has its number, counted from 1, and that of all.
    parts.sort()
    return b"".join(part[2:] for part in parts) if parts[0][1] == len(parts) else None


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


def _read(name: Format, data: bytes, steps: _Steps) -> Header:
    try:
        header = _READERS[name](data, steps)
        if header.width < 1 or header.height < 1:
            raise _Damaged(f"it says {header.width} x {header.height} pixels")
    except (_Damaged, IndexError, struct.error) as error:
        raise TruncatedImage(
            f"The bytes start like a {name} image, but the header ends early, is damaged or describes a rare kind of "
            f"{name} ({error}). Send the whole file, or save it as PNG and send that."
        ) from error
    return header


# JPEG

_MARKER: Final = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")  # within scans: neither stuffing nor restarts
_SOS: Final = 0xDA
_EOI: Final = 0xD9
_ALONE: Final = frozenset({0x00, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)})  # markers without a segment
_FRAMES: Final = frozenset({*range(0xC0, 0xD0), 0xDE} - {0xC4, 0xC8, 0xCC})
_PROGRESSIVE: Final = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_ADOBE: Final = 0xEE
_METADATA: Final = frozenset({*range(0xE1, 0xF0), 0xFE} - {_ADOBE})
_JUNK: Final = 1 << 16  # bytes between two segments


def _read_jpeg(data: bytes, steps: _Steps) -> Header:
    at, kept, frame = 2, 0, None
    exif, xmp = b"", b""
    parts: list[Span] = []
    profile: list[Span] = []
    adobe = False
    while True:
        steps.take()
        at = data.find(b"\xff", at, at + _JUNK) + 1
        if not at:
            raise _Damaged("no segment follows")
        marker = data[at]
        if marker == 0xFF:
            continue
        at += 1
        if marker in _ALONE:
            continue
        if marker < 0xC0:
            raise _Damaged(f"0xff{marker:02x} is no marker")
        start = at + 2
        end = at + int.from_bytes(data[at:start], "big")
        if end < start or end > len(data):
            raise _Damaged("a segment ends early")
        if marker in _METADATA:
            # Whatever is between the segments is left out too.
            if at - 2 > kept:
                parts.append((kept, at - 2))
            kept = end
            if marker == 0xE1 and data.startswith(b"Exif\0\0", start):
                exif = exif + data[start + 6 : end] if exif else data[start:end]
            elif marker == 0xE1 and data.startswith(b"http://ns.adobe.com/xap/1.0/\0", start):
                xmp = data[start:end]
            elif marker == 0xE2 and data.startswith(b"ICC_PROFILE\0", start) and end >= start + 14:
                profile.append((start + 12, end))
        elif marker == _ADOBE:
            adobe = adobe or data.startswith(b"Adobe", start)
        elif marker in _FRAMES:
            bits, height, width, layers = struct.unpack_from(">BHHB", data, start)
            if bits != 8 or layers not in {1, 3, 4}:
                raise _Damaged(f"it has {layers} components of {bits} bits")
            frame = (marker, width, height, layers)
        elif marker == _SOS:
            break
        at = end
    if frame is None:
        raise _Damaged("it says no size")
    marker, width, height, layers = frame
    parts.append((kept, len(data)))
    several = marker in _PROGRESSIVE or data[start] < layers
    steps.slow(len(exif))
    return Header(
        "JPEG",
        width,
        height,
        _orientation(exif, xmp, steps),
        tuple(parts),
        tuple(profile),
        jpeg=Jpeg(layers, adobe, at - 2, several),
    )


# PNG

_DEPTHS: Final = {0: {1, 2, 4, 8, 16}, 2: {8, 16}, 3: {1, 2, 4, 8}, 4: {8, 16}, 6: {8, 16}}  # by colour type
_PALETTE: Final = 3
_CHUNK_NAME: Final = re.compile(rb"[A-Za-z]{4}")
_RAW_EXIF: Final = b"Raw profile type exif"
_KEYWORDS: Final = (b"exif", _XMP_KEYWORD, _RAW_EXIF)


def _read_png(data: bytes, steps: _Steps) -> Header:
    length, name = struct.unpack_from(">I4s", data, 8)
    width, height, depth, colour, _, method = struct.unpack_from(">IIBBBB", data, 16)
    if name != b"IHDR" or length < 13 or depth not in _DEPTHS.get(colour, ()) or method:
        raise _Damaged("its first chunk is no valid IHDR")
    at = 20 + length
    if zlib.crc32(data[12 : at - 4]) != int.from_bytes(data[at - 4 : at], "big"):
        raise _Damaged("bad checksum of IHDR")
    parts: list[Span] = [(0, at)]
    found: dict[bytes, tuple[bytes, Span]] = {}
    profile: tuple[Span, ...] = ()
    bits: int | None = None
    pixels: int | None = None  # where they begin
    while at + 8 <= len(data):
        steps.take()
        length, name = struct.unpack_from(">I4s", data, at)
        start, end = at + 8, at + 8 + length
        if name == b"IDAT":
            if pixels is None:
                pixels = at
                parts.append((at, at))
            if parts[-1][1] == at:
                parts[-1] = (pixels, end + 4)
        elif name == b"IEND":
            break
        elif _CHUNK_NAME.match(name) is None or end > len(data):
            if pixels is None:
                raise _Damaged("a chunk is damaged")
            break
        elif name == b"PLTE":
            if pixels is None and colour == _PALETTE:
                parts.append((at, end + 4))
        elif name == b"eXIf":
            found[b"exif"] = (name, (start, end))
        elif name in {b"tEXt", b"zTXt", b"iTXt"}:
            keyword = data[start : min(end, start + 80)].partition(b"\0")[0]
            if keyword in _KEYWORDS:
                found[keyword] = (name, (start, end))
        elif name == b"iCCP" and pixels is None:
            # The name, its end, and the method of compression.
            if (stop := data.find(b"\0", start, min(end, start + 80))) > 0:
                profile = ((stop + 2, end),)
        elif name == b"sBIT" and length:
            bits = max(data[start : min(end, start + 3)])
        at = end + 4
    if pixels is None:
        raise _Damaged("it has no pixels")
    exif, xmp = (_png_value(data, *found[keyword], steps) if keyword in found else b"" for keyword in _KEYWORDS[:2])
    if not exif and _RAW_EXIF in found:
        exif = _from_hexadecimal(_png_value(data, *found[_RAW_EXIF], steps))
    orientation = _orientation(exif, xmp, steps)
    return Header(
        "PNG",
        width,
        height,
        orientation,
        tuple(parts),
        profile,
        sample_bits=depth,
        significant_bits=bits if bits is not None and depth == 16 and 0 < bits < 16 else None,
    )


def _png_value(data: bytes, name: bytes, span: Span, steps: _Steps) -> bytes:
    """Return what a chunk holds; empty where it is damaged."""
    start, end = span
    steps.slow(end - start)
    chunk = data[start : min(end, start + _XMP_READ)]
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
        raise _TooManySteps
    return _inflate(packed) or b""


def _inflate(packed: bytes) -> bytes | None:
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


# WebP

_VP8X_ICC, _VP8X_EXIF, _VP8X_XMP = 0x20, 0x08, 0x04


def _read_webp(data: bytes, steps: _Steps) -> Header:
    name, length = struct.unpack_from("<4sI", data, 12)
    end = min(len(data), 20 + length + length % 2)
    if name == b"VP8 ":
        if data[23:26] != b"\x9d\x01\x2a":
            raise _Damaged("its frame has no start code")
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
        return Header("WebP", width, height, parts=((12, end),))
    if name == b"VP8L":
        if data[20] != 0x2F:
            raise _Damaged("its frame has no signature")
        (bits,) = struct.unpack_from("<I", data, 21)
        return Header("WebP", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, parts=((12, end),))
    if name != b"VP8X" or len(data) < 30:
        raise _Damaged("its first chunk is none of VP8, VP8L and VP8X")
    flags = data[20]
    width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    wanted = {
        chunk: True
        for chunk, flag in ((b"ICCP", _VP8X_ICC), (b"EXIF", _VP8X_EXIF), (b"XMP ", _VP8X_XMP))
        if flags & flag
    }
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
    orientation = _orientation(exif, xmp, steps)
    profile = (found[b"ICCP"],) if b"ICCP" in found else ()
    return Header("WebP", width, height, orientation, tuple(parts), profile)


# BMP


def _read_bmp(data: bytes, _: _Steps) -> Header:
    (size,) = struct.unpack_from("<I", data, 14)
    if size == 12:
        width, height = struct.unpack_from("<HH", data, 18)
        return Header("BMP", width, height, parts=((0, len(data)),))
    width, height = struct.unpack_from("<II", data, 18)
    (compression,) = struct.unpack_from("<I", data, 30)
    if data[25] == 0xFF:  # rows from the top
        height = (1 << 32) - height
    return Header("BMP", width, height, parts=((0, len(data)),), run_length=compression in {1, 2})


# TIFF and EXIF

_TYPES: Final = {1: "B", 2: "s", 3: "H", 4: "L", 5: "2L", 6: "b", 7: "s", 8: "h", 9: "l", 10: "2l", 11: "f", 12: "d"}
_TYPES_BIG: Final = {13: "L", 16: "Q"}
_SIZES: Final = {kind: struct.calcsize("<" + code) for kind, code in (_TYPES | _TYPES_BIG).items()}
_NUMBERS: Final = {3, 4, 6, 8, 9, 11, 12, 13, 16}
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _SAMPLES = 256, 257, 258, 259, 277
_STRIPS, _ROWS_PER_STRIP, _STRIP_SIZES = 273, 278, 279
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_SIZES = 322, 323, 324, 325
_MAX_SAMPLE_VALUE, _COLOUR_MAP, _XMP, _JPEG_TABLES, _ICC = 281, 320, 700, 347, 34675
_DECODED: Final = frozenset(
    {_WIDTH, _HEIGHT, _BITS, _COMPRESSION, 262, 266, _STRIPS, _SAMPLES, _ROWS_PER_STRIP, _STRIP_SIZES, 284, 292, 293}
    | {317, _COLOUR_MAP, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_SIZES, 332, 338, 339, _JPEG_TABLES}
    | {*range(512, 522), *range(529, 533)}
)
"""Tags that say where pixels are and how they are stored."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """A tag of a directory: its type, number of values, and where these are."""

    kind: int
    count: int
    at: int
    raw: bytes

    def number(self, data: bytes, order: str) -> float | None:
        """Return its first value; None where that is no number or beyond the end."""
        if not self.count or self.at + _SIZES[self.kind] > len(data):
            return None
        if self.kind in {5, 10}:
            above, below = struct.unpack_from(order + ("2L" if self.kind == 5 else "2l"), data, self.at)
            return above / below if below else None
        if self.kind not in _NUMBERS:
            return None
        value: float = struct.unpack_from(order + (_TYPES | _TYPES_BIG)[self.kind], data, self.at)[0]
        return value


@dataclass(slots=True)
class _Directory:
    """The first directory of a TIFF, or of EXIF, which is one."""

    data: bytes
    order: str
    big: bool
    entries: dict[int, _Entry] = field(default_factory=dict)

    def integer(self, tag: int, default: int) -> int:
        """Return the first value of a tag."""
        entry = self.entries.get(tag)
        value = None if entry is None else entry.number(self.data, self.order)
        return default if value is None or value != value or abs(value) == float("inf") else int(value)

    def total(self, tag: int) -> int:
        """Return the sum of a tag's values."""
        entry = self.entries.get(tag)
        if entry is None or entry.kind not in {3, 4, 13, 16}:
            return 0
        code = (_TYPES | _TYPES_BIG)[entry.kind]
        return sum(struct.unpack_from(f"{self.order}{entry.count}{code}", self.data, entry.at))


def _read_directory(data: bytes, steps: Callable[[], None]) -> _Directory:
    """Read the tags of a TIFF's first directory, as far as their values are within the file."""
    if data[:4] not in {b"MM\0*", b"II*\0", b"MM*\0", b"II\0*", b"MM\0+", b"II+\0"}:
        raise _Damaged("no TIFF header")
    order, big = ("<" if data[:2] == b"II" else ">"), data[2] == 43
    (at,) = struct.unpack_from(order + ("Q" if big else "L"), data, 8 if big else 4)
    if at > len(data):
        raise _Damaged("its directory lies beyond the end")
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, at)
    at += 8 if big else 2
    directory = _Directory(data, order, big)
    form, inline = struct.Struct(order + ("HHQ" if big else "HHL")), (8 if big else 4)
    size, room = form.size + inline, len(data)
    for start in range(at, min(at + count * size, len(data) - size + 1), size):
        steps()
        tag, kind, values = form.unpack_from(data, start)
        if tag in directory.entries or kind not in _SIZES:
            continue
        nbytes, place = values * _SIZES[kind], start + form.size
        if nbytes > inline:
            (place,) = struct.unpack_from(order + ("Q" if big else "L"), data, place)
            room -= nbytes
            if room < 0:
                continue
            if place + nbytes > len(data):
                break
        if values:
            directory.entries[tag] = _Entry(kind, values, place, data[start : start + size])
    return directory


def _orientation(exif: bytes, xmp: bytes, steps: _Steps) -> int:
    """Return the orientation of EXIF, else of XMP, 1 to 8: as Pillow finds it."""
    if exif:
        for _ in range(2):
            exif = exif.removeprefix(b"Exif\0\0")
    if exif:
        left = _Steps(QUICK_STEPS if steps.quick else MAX_VALUES, steps.quick)
        try:
            directory = _read_directory(exif, left.take)
        except (_Damaged, struct.error, IndexError):
            return 1
        if _ORIENTATION in directory.entries:
            return _known(directory.entries[_ORIENTATION].number(exif, directory.order))
    steps.slow(len(xmp))
    found = _XMP_ORIENTATION.search(xmp[:_XMP_READ])
    return _known(int(found[1])) if found else 1


def _known(orientation: float | None) -> int:
    return int(orientation) if orientation in range(1, 9) else 1


def _read_tiff(data: bytes, steps: _Steps) -> Header:
    directory = _read_directory(data, steps.take)
    entries, integer = directory.entries, directory.integer
    for tag in _DECODED & entries.keys():
        most = 3 * MAX_VALUES if tag == _COLOUR_MAP else MAX_VALUES if tag in _LISTS else 4 * 64
        if entries[tag].count > most:
            raise _TooManySteps
    if _WIDTH not in entries or _HEIGHT not in entries:
        raise _Damaged("it says no size")
    width, height = integer(_WIDTH, 0), integer(_HEIGHT, 0)
    xmp, orientation = b"", 1
    if _ORIENTATION in entries:
        orientation = _known(entries[_ORIENTATION].number(data, directory.order))
    elif (entry := entries.get(_XMP)) is not None:
        xmp = data[entry.at : entry.at + min(entry.count, _XMP_READ)]
        orientation = _orientation(b"", xmp, steps)
    profile: tuple[Span, ...] = ()
    if (entry := entries.get(_ICC)) is not None and entry.kind in {1, 7}:
        profile = ((entry.at, entry.at + entry.count),)
    tile = (integer(_TILE_WIDTH, width), integer(_TILE_HEIGHT, height))
    if _TILES not in entries:
        tile = (width, min(height, integer(_ROWS_PER_STRIP, height)))
    most_value = integer(_MAX_SAMPLE_VALUE, 0)
    bits = integer(_BITS, 1)
    return Header(
        "TIFF",
        width,
        height,
        orientation,
        ((0, len(data)),),
        profile,
        sample_bits=bits,
        # Some write the largest value that occurs: the scale is the next power of two.
        full_scale=(1 << most_value.bit_length()) - 1 if bits == 16 and 0 < most_value < 1 << 16 else None,
        tiff=Tiff(
            data[:4],
            tuple(entries[tag].raw for tag in sorted(_DECODED & entries.keys())),
            directory.big,
            tile,
            integer(_COMPRESSION, 1),
            directory.total(_TILE_SIZES if _TILES in entries else _STRIP_SIZES),
        ),
    )


_LISTS: Final = frozenset({_STRIPS, _STRIP_SIZES, _TILES, _TILE_SIZES, _JPEG_TABLES})

_READERS: Final[Mapping[Format, Callable[[bytes, _Steps], Header]]] = {
    "JPEG": _read_jpeg,
    "PNG": _read_png,
    "WebP": _read_webp,
    "BMP": _read_bmp,
    "TIFF": _read_tiff,
}
