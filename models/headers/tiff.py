"""Reads the first directory of a TIFF, and of EXIF, which is one; and the orientation of EXIF and XMP."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from models.headers.header import MAX_VALUES, QUICK_STEPS, XMP_READ, Damaged, Header, Span, Steps, Tiff, TooManySteps

_ORIENTATION: Final = 274  # EXIF and TIFF tag
_XMP_ORIENTATION: Final = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')

_TYPES: Final = {1: "B", 2: "s", 3: "H", 4: "L", 5: "2L", 6: "b", 7: "s", 8: "h", 9: "l", 10: "2l", 11: "f", 12: "d"}
_TYPES_BIG: Final = {13: "L", 16: "Q"}
_SIZES: Final = {kind: struct.calcsize("<" + code) for kind, code in (_TYPES | _TYPES_BIG).items()}
_NUMBERS: Final = {3, 4, 6, 8, 9, 11, 12, 13, 16}
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _SAMPLES = 256, 257, 258, 259, 277
_STRIPS, _ROWS_PER_STRIP, _STRIP_SIZES = 273, 278, 279
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_SIZES = 322, 323, 324, 325
_MAX_SAMPLE_VALUE, _COLOUR_MAP, _XMP, _JPEG_TABLES, _ICC = 281, 320, 700, 347, 34675
JPEG_IN_TIFF: Final = frozenset({6, 7})
"""Values of the compression tag."""

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
        return default if value is None or not math.isfinite(value) else int(value)

    def total(self, tag: int, steps: Steps) -> int:
        """Return the sum of a tag's values."""
        entry = self.entries.get(tag)
        steps.slow(entry.count << 8 if entry else 0)
        if entry is None or entry.kind not in {3, 4, 13, 16}:
            return 0
        code = (_TYPES | _TYPES_BIG)[entry.kind]
        return sum(struct.unpack_from(f"{self.order}{entry.count}{code}", self.data, entry.at))


def _read_directory(data: bytes, steps: Callable[[], None]) -> _Directory:
    """Read the tags of a TIFF's first directory, as far as their values are within the file."""
    if data[:4] not in {b"MM\0*", b"II*\0", b"MM*\0", b"II\0*", b"MM\0+", b"II+\0"}:
        raise Damaged("no TIFF header")
    order, big = ("<" if data[:2] == b"II" else ">"), data[2] == 43
    (at,) = struct.unpack_from(order + ("Q" if big else "L"), data, 8 if big else 4)
    if at > len(data):
        raise Damaged("its directory lies beyond the end")
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


def read_orientation(exif: bytes, xmp: bytes, steps: Steps) -> int:
    """Return the orientation of EXIF, else of XMP, 1 to 8: as Pillow finds it."""
    if exif:
        for _ in range(2):
            exif = exif.removeprefix(b"Exif\0\0")
    if exif:
        left = Steps(QUICK_STEPS if steps.quick else MAX_VALUES, steps.quick)
        try:
            directory = _read_directory(exif, left.take)
        except (Damaged, struct.error, IndexError):
            return 1
        if _ORIENTATION in directory.entries:
            return _known(directory.entries[_ORIENTATION].number(exif, directory.order))
    steps.slow(len(xmp))
    found = _XMP_ORIENTATION.search(xmp[:XMP_READ])
    return _known(int(found[1])) if found else 1


def _known(orientation: float | None) -> int:
    return int(orientation) if orientation is not None and orientation in range(1, 9) else 1


def read_tiff(data: bytes, steps: Steps) -> Header:
    """Read the first directory."""
    directory = _read_directory(data, steps.take)
    entries, integer = directory.entries, directory.integer
    for tag in _DECODED & entries.keys():
        most = 3 * MAX_VALUES if tag == _COLOUR_MAP else MAX_VALUES if tag in _LISTS else 4 * 64
        if entries[tag].count > most:
            raise TooManySteps
    if _WIDTH not in entries or _HEIGHT not in entries:
        raise Damaged("it says no size")
    width, height = integer(_WIDTH, 0), integer(_HEIGHT, 0)
    xmp, orientation = b"", 1
    if _ORIENTATION in entries:
        orientation = _known(entries[_ORIENTATION].number(data, directory.order))
    elif (entry := entries.get(_XMP)) is not None:
        xmp = data[entry.at : entry.at + min(entry.count, XMP_READ)]
        orientation = read_orientation(b"", xmp, steps)
    profile: tuple[Span, ...] = ()
    if (entry := entries.get(_ICC)) is not None and entry.kind in {1, 7}:
        profile = ((entry.at, entry.at + entry.count),)
    tile = (integer(_TILE_WIDTH, width), integer(_TILE_HEIGHT, height))
    if _TILES not in entries:
        tile = (width, min(height, integer(_ROWS_PER_STRIP, height)))
    sizes = _TILE_SIZES if _TILES in entries else _STRIP_SIZES
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
        grey=integer(_SAMPLES, 1) <= 2,
        # Some write the largest value that occurs: the scale is the next power of two.
        full_scale=(1 << most_value.bit_length()) - 1 if bits == 16 and 0 < most_value < 1 << 16 else None,
        tiff=Tiff(
            data[:4],
            tuple(entries[tag].raw for tag in sorted(_DECODED & entries.keys())),
            directory.big,
            tile,
            compression := integer(_COMPRESSION, 1),
            directory.total(sizes, steps) if compression in JPEG_IN_TIFF else 0,
        ),
    )


_LISTS: Final = frozenset({_STRIPS, _STRIP_SIZES, _TILES, _TILE_SIZES, _JPEG_TABLES})
