"""Image files whose structure is made to cost a reader time or memory, by name; each is a legal upload.

Most are nothing but structure: millions of empty segments, chunks or tags before a pixel that may never come.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import numpy as np
import PIL.Image

LARGE: Final = 28 << 20
"""Bytes of the large files: below the default limit of an upload, 32 MiB."""

_SIDE: Final = 7000  # 49 megapixels: below the default limit of an image, 50


def png_chunk(name: bytes, data: bytes = b"") -> bytes:
    """Return a chunk with its length and checksum."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, colour: int, depth: int, *, before: bytes = b"", pixels: bytes | None = None) -> bytes:
    """Return a PNG of zeros.

    Args:
        width: pixels of a row.
        height: rows.
        colour: type of IHDR.
        depth: bits of a sample.
        before: chunks between IHDR and the pixels.
        pixels: all chunks of pixels; zeros by default.
    """
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    if pixels is None:
        squeezer = zlib.compressobj(1)
        row = bytes(1 + (width * channels * depth + 7) // 8)
        pixels = png_chunk(b"IDAT", b"".join(map(squeezer.compress, [row] * height)) + squeezer.flush())
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + before + pixels + png_chunk(b"IEND")


def tiff(*tags: tuple[int, int, int, int], order: str = "<", big: bool = False) -> bytes:
    """Return a TIFF of one directory, whose tags are number, type, count, and value or offset."""
    entries = b"".join(struct.pack(order + ("HHQQ" if big else "HHLL"), *tag) for tag in sorted(tags))
    mark = b"II" if order == "<" else b"MM"
    if big:
        return mark + struct.pack(order + "HHHQQ", 43, 8, 0, 16, len(tags)) + entries + bytes(8)
    return mark + struct.pack(order + "HLH", 42, 8, len(tags)) + entries + bytes(4)


def encode(image: PIL.Image.Image, kind: str, **options: object) -> bytes:
    """Return the image as a file of Pillow's format `kind`."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg_with_scans(side: int, extra: int) -> bytes:
    """Return a grey progressive JPEG with `extra` scans that change nothing."""
    plain = encode(PIL.Image.new("L", (side, side), 99), "JPEG", progressive=True, quality=20)
    start = plain.rindex(b"\xff\xda")
    last = plain[start:-2]
    # Refinements of the last band: each of its blocks is visited, though it has no coefficient.
    return plain[:-2] + last * extra + plain[-2:]


def _jpeg_segments() -> bytes:
    plain = encode(PIL.Image.new("RGB", (64, 64)), "JPEG")
    return plain[:2] + b"\xff\xe5\0\2" * (LARGE // 4) + plain[2:]


def _jpeg_padding() -> bytes:
    plain = encode(PIL.Image.new("RGB", (64, 64)), "JPEG")
    return plain[:2] + b"\xff" * LARGE + plain[2:]


def _jpeg_segments_between_scans() -> bytes:
    plain = encode(PIL.Image.new("RGB", (64, 64)), "JPEG", progressive=True)
    at = plain.rindex(b"\xff\xda")
    return plain[:at] + b"\xff\xe5\0\2" * (LARGE // 4) + plain[at:]


def _jpeg_exif_tags() -> bytes:
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 5400) + b"\0\x90\3\0\1\0\0\0\1\0\0\0" * 5400
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    plain = encode(PIL.Image.new("RGB", (64, 64)), "JPEG")
    return plain[:2] + segment * 400 + plain[2:]


def _png_chunks(where: str) -> bytes:
    tiny = png_chunk(b"prVt") * (LARGE // 12)
    plain = png(64, 64, 2, 8)
    at = {"before": plain.index(b"IDAT") - 4, "after": plain.index(b"IEND") - 4}[where]
    return plain[:at] + tiny + plain[at:]


def _png_pixels_by_the_byte() -> bytes:
    squeezed = zlib.compress(np.random.default_rng(0).bytes(1447 * 1448), 0)
    chunks = [png_chunk(b"IDAT", bytes((byte,))) for byte in range(256)]
    return png(1447, 1447, 0, 8, pixels=b"".join(map(chunks.__getitem__, squeezed)))


def _png_profiles() -> bytes:
    chunk = png_chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(1 << 20), 9))
    return png(64, 64, 2, 8, before=chunk * (LARGE // len(chunk)))


def _png_xmp() -> bytes:
    text = b"XML:com.adobe.xmp\0\0\0\0\0" + b"tiff:Orientatio" * (LARGE // 15)
    return png(64, 64, 2, 8, before=png_chunk(b"iTXt", text))


def _webp_chunks() -> bytes:
    plain = encode(PIL.Image.new("RGB", (64, 64), (9, 99, 199)), "WEBP", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0")
    body = plain[12:] + b"prVt\0\0\0\0" * (LARGE // 8)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def _bmp_runs() -> bytes:
    """Only ends of lines: 32-bit rows of a million pixels that have none."""
    palette = bytes(range(256)) * 4
    data = b"\1\0\0\0" * (LARGE // 4)
    head = struct.pack("<IiiHHIIiiII", 40, 1_000_000, 49, 1, 8, 1, len(data), 0, 0, 256, 0)
    return struct.pack("<2sIHHI", b"BM", 14 + len(head) + len(palette) + len(data), 0, 0, 1078) + head + palette + data


def _tiff_strips() -> bytes:
    count = LARGE // 8
    tags = [(256, 4, 1, 8), (257, 4, 1, count), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1)]
    return tiff(*tags, (273, 4, count, 200), (278, 4, 1, 1), (279, 4, count, 200)) + bytes(LARGE)


def _tiff_tiles() -> bytes:
    """A column of huge tiles, all of them the same."""
    squeezed = zlib.compress(bytes(4096 * 4096), 9)
    count = 49_000_000 // 4096
    tags = [(256, 4, 1, 1), (257, 4, 1, count * 4096), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1)]
    tags += [(322, 4, 1, 4096), (323, 4, 1, 4096), (324, 4, count, 200), (325, 4, count, 200 + 4 * count)]
    head = tiff(*tags).ljust(200, b"\0")
    at = 200 + 8 * count
    return (
        head + struct.pack(f"<{count}L", *[at] * count) + struct.pack(f"<{count}L", *[len(squeezed)] * count) + squeezed
    )


def _tiff_values(tag: int, kind: int, count: int) -> bytes:
    return tiff((256, 4, 1, 64), (257, 4, 1, 64), (tag, kind, count, 8)) + bytes(LARGE)


def _tiff_tags(*, big: bool) -> bytes:
    tags = [(256, 4, 1, 64), (257, 4, 1, 64), *((number, 3, 1, 0) for number in range(300, 65_533))]
    if not big:
        return tiff(*tags)
    entries, times = tiff(*tags, big=True)[24:-8], LARGE // 20 // len(tags)
    return b"II" + struct.pack("<HHHQQ", 43, 8, 0, 16, times * len(tags)) + entries * times + bytes(8)


HOSTILE: Final[Mapping[str, Callable[[], bytes]]] = {
    "JPEG of 7 million empty segments": _jpeg_segments,
    "JPEG of 28 MiB of padding": _jpeg_padding,
    "JPEG of 7 million segments between two scans": _jpeg_segments_between_scans,
    "JPEG of 400 segments of EXIF, 5400 tags each": _jpeg_exif_tags,
    "JPEG of 49 megapixels with 400 extra scans": partial(jpeg_with_scans, _SIDE, 400),
    "JPEG of 20 megapixels with 40 extra scans": partial(jpeg_with_scans, 4470, 40),
    "PNG of 2 million chunks before its pixels": partial(_png_chunks, "before"),
    "PNG of 2 million chunks after its pixels": partial(_png_chunks, "after"),
    "PNG of 2 million chunks of one pixel": _png_pixels_by_the_byte,
    "PNG of 25,000 profiles of 1 MiB": _png_profiles,
    "PNG of 28 MiB of XMP": _png_xmp,
    "PNG of 49 megapixels of 64 bits, with the word eXIf": partial(
        png, _SIDE, _SIDE, 6, 16, before=png_chunk(b"tEXt", b"Comment\0eXIf")
    ),
    "WebP of 3 million chunks": _webp_chunks,
    "WebP of 49 megapixels": lambda: encode(PIL.Image.new("RGB", (_SIDE, _SIDE), (9, 99, 199)), "WEBP", method=0),
    "run-length encoded BMP of 49 megapixels": _bmp_runs,
    "TIFF of 14 million values of BitsPerSample": partial(_tiff_values, 258, 3, LARGE // 2),
    "TIFF of 28 MiB of XMP": partial(_tiff_values, 700, 1, LARGE),
    "TIFF of 65,535 tags": partial(_tiff_tags, big=False),
    "BigTIFF of 1.4 million tags": partial(_tiff_tags, big=True),
    "TIFF of 3 million strips": _tiff_strips,
    "TIFF of 49 megapixels in 12,000 tiles of 17 megapixels": _tiff_tiles,
}
