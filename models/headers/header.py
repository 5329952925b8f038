"""What a header says, and how much of one is looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Format: TypeAlias = Literal["JPEG", "PNG", "WebP", "BMP", "TIFF"]
Span: TypeAlias = tuple[int, int]
"""Start and end of a part of a file, half-open."""

MAX_STEPS: Final[Mapping[Format, int]] = {"JPEG": 4096, "PNG": 16_384, "WebP": 4096, "BMP": 1, "TIFF": 1024}
"""Most segments and padding bytes before a JPEG's first scan, chunks of a PNG or WebP, or tags of a TIFF.

Photographs have fewer than 100, except PNG with its pixels in chunks of 8 KiB, or of a row."""

QUICK_STEPS: Final = 64
"""Most steps of a header that is read at once, in 5 to 50 µs, rather than in a worker thread."""

MAX_VALUES: Final = 1 << 16
"""Most strips or tiles of a TIFF, and most values of any other tag that decoders see, except colour maps."""

MAX_SCANS: Final = 100
"""Most scans of a JPEG: libtiff's limit too. Progressive files have 6 to 12."""

MAX_SCANNED_PIXELS: Final = 750_000_000
"""Most pixels times scans of a JPEG: 15 scans of 50 megapixels. A scan costs 0.4 to 1 ns per pixel, however small."""

XMP_READ: Final = 1 << 20
"""Most bytes of an XMP packet, or of a text in a PNG, that are looked at."""


class TooManySteps(Exception):
    """The header has more parts than may be looked at."""


class Damaged(Exception):
    """The header ends early or makes no sense."""


@dataclass(frozen=True, slots=True)
class Jpeg:
    """What decoding a JPEG depends on.

    Attributes:
        layers: components: 1 (grey), 3 (RGB) or 4 (CMYK).
        adobe: whether Adobe's segment is there, with which CMYK is stored inverted.
        scan: where the first scan begins.
        several_scans: whether others follow.
        samples: in all components together, per pixel of the finest: 3 without chroma subsampling, 1.5 with 4:2:0.
    """

    layers: int
    adobe: bool
    scan: int
    several_scans: bool
    samples: float


@dataclass(frozen=True, slots=True)
class Tiff:
    """What decoding a TIFF depends on.

    Attributes:
        head: the bytes before the offset of the directory.
        entries: of the tags that decoders need, as in the file.
        big: whether offsets have 8 bytes.
        tile: width and height of a tile, or of a strip.
        compression: value of the tag.
        stored: bytes of all tiles or strips together, where they are JPEGs; else 0.
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
        grey: whether a pixel has one sample, alpha aside; of PNG and TIFF.
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
    grey: bool = False
    full_scale: int | None = None
    significant_bits: int | None = None
    jpeg: Jpeg | None = None
    tiff: Tiff | None = None
    run_length: bool = False


@dataclass(slots=True)
class Steps:
    """Counts down what may still be looked at."""

    left: int
    quick: bool

    def take(self) -> None:
        """Count one step."""
        self.left -= 1
        if self.left < 0:
            raise TooManySteps

    def slow(self, nbytes: int) -> None:
        """Refuse to look at more than 256 KiB where the header is read at once."""
        if self.quick and nbytes > 1 << 18:
            raise TooManySteps
