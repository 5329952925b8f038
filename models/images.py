"""Decodes JPEG, PNG, WebP, BMP and TIFF files of untrusted origin to upright 8-bit sRGB.

Of a file with several images (MPO, animations, multi-page TIFF) the first is decoded. The header is read by
`models.headers`; what decoding costs is limited by it before any pixel is decoded, and decoders see only the parts
of a file that hold pixels.
"""

from __future__ import annotations

import ctypes
import hashlib
import io
import logging
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Final, TypeAlias, cast

import cv2
import numpy as np
import PIL.Image
from PIL import ImageFile, _imaging
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from models.colour import to_srgb
from models.errors import DecodingStopped, ImageTooComplex, TooManyPixels, TruncatedImage, UnsupportedImageFormat
from models.headers.header import MAX_SCANNED_PIXELS, MAX_SCANS, Header, Tiff
from models.headers.jpeg import count_scans
from models.headers.read import icc_profile, read_header, read_short_header
from models.headers.tiff import JPEG_IN_TIFF
from models.image_samples import narrow_samples, to_8_bits
from models.types import Image, Pixels, Size

Stop: TypeAlias = Callable[[], bool]
"""Says whether an image is no longer needed, from any thread."""

MAX_RUN_LENGTH_PIXELS: Final = 4_000_000
MAX_RUN_LENGTH_BYTES: Final = 2 << 20
"""Most pixels and bytes of a run-length encoded BMP, which Pillow decodes at 0.1 to 0.5 µs each."""

_TILE_PIXELS: Final = 1 << 24  # a TIFF's tile may exceed a small image, but not by this much
_TILED: Final = 2  # a TIFF's tiles together may exceed the pixel limit by this factor: those at the edge stick out

# Pillow logs odd tags as errors; what is wrong with a file is said to its caller.
logging.getLogger("PIL").setLevel(logging.CRITICAL)

# `_refuse_dear` compares the header with the caller's limit; Pillow's own would warn or raise at another number.
PIL.Image.MAX_IMAGE_PIXELS = None

# What OpenCV and Pillow's libtiff write about damaged files would stand between the lines of a log. Pillow has no
# setting for it; its own library finds the function among those it is linked with.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
for _handler in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
    with suppress(AttributeError):
        getattr(ctypes.CDLL(_imaging.__file__), _handler)(None)

# What decoders raise on damaged bytes. MemoryError is not among them: the machine is at fault then, not the image.
_DAMAGE: Final = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    cv2.error,
    struct.error,
    zlib.error,
)

# Pillow warns of odd tags that do not matter here; callers could fill the log with it.
_QUIET: Final = ("ignore", None, Warning, re.compile(r"PIL\."), 0)

_TRANSPOSITIONS: Final = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}

_SWAPPING: Final = frozenset({5, 6, 7, 8})  # orientations

_STRIP: Final = 64  # rows copied at a time: they stay in the cache, 5 times faster than all at once
_BLOCK: Final = 1 << 14  # bytes of a JPEG with several scans between two looks at `stop`

_DECODED_BYTES: Final = 8  # per pixel: Pillow stores 4, and twice while it turns or converts them
_WIDE_BYTES: Final = 11  # of colours with more than 8 bits; 10.2 was measured of PNGs with 48 and 64 bits per pixel
_NARROW: Final = 8
_MOST_CHANNELS: Final = 4

_LEAST_OF_SCALED: Final = 2
"""Least size of a scaled decode, in multiples of the final size. With less to average, the resizing filter shifts
masks: IoU on the golden images was 0.97 for a scaled decode of the final size, 0.994 for one of twice that."""


def content_id(data: bytes) -> str:
    """Compute the content id of encoded bytes.

    Args:
        data: an encoded image.

    Returns:
        The first 32 hex digits of its SHA-256.
    """
    return hashlib.sha256(data).hexdigest()[:32]


def _never() -> bool:
    return False


def decode(data: bytes, *, max_pixels: int, stop: Stop = _never) -> Image:
    """Decode an image completely, convert it to sRGB and turn it upright.

    Alpha is dropped and the colours under it are left unchanged. Samples of more than 8 bits are scaled to 8 bits by
    `models.image_samples`.

    Args:
        data: a JPEG, PNG, WebP, BMP or TIFF file.
        max_pixels: most pixels (height times width) to decode.
        stop: asked every few milliseconds, except within a WebP or a compressed TIFF.

    Returns:
        The image: uint8 (height, width, 3), sRGB, C-contiguous, writable, EXIF orientation applied.

    Raises:
        NotAnImage: the bytes are in no known image format.
        UnsupportedImageFormat: the format or pixel type is not supported.
        TooManyPixels: the header announces more than `max_pixels`.
        ImageTooComplex: decoding would cost much more than its pixels need.
        TruncatedImage: the file ends early or is damaged.
        DecodingStopped: `stop` said so.
    """
    with _decoded(data, max_pixels, stop) as (header, image):
        pixels = _to_array(_upright(_to_srgb(image, header, data, stop), header))
    return Image(id=content_id(data), pixels=pixels)


def decode_resized(data: bytes, resized: Size, *, max_pixels: int, scaled: bool = False, stop: Stop = _never) -> Pixels:
    """Decode an image directly to the size of a model's input; see `decode_to_sizes`."""
    (pixels,) = decode_to_sizes(data, (resized,), max_pixels=max_pixels, scaled=scaled, stop=stop)
    return pixels


def decode_to_sizes(
    data: bytes, sizes: Sequence[Size], *, max_pixels: int, scaled: bool = False, stop: Stop = _never
) -> list[Pixels]:
    """Decode an image once, directly to the sizes of the inputs of one or more models.

    No full-size array is made, which saves two copies of every pixel.

    Args:
        data: a JPEG, PNG, WebP, BMP or TIFF file.
        sizes: sizes of the results after EXIF orientation, at least one; height and width at least 1.
        max_pixels: most pixels (height times width) to decode.
        scaled: allow a JPEG at least 4 times as large to be decoded at a half, a quarter or an eighth by leaving out
            DCT coefficients (libjpeg's scaled inverse DCT), to no less than twice any of `sizes`.
        stop: as for `decode`.

    Returns:
        uint8 (height, width, 3) of each size, sRGB: unless scaled, exactly the results of `models.letterbox.resize` on
        the pixels of `decode`.

    Raises:
        ImageError, DecodingStopped: as `decode`.
    """
    with _decoded(data, max_pixels, stop, at_least=_covering(sizes) if scaled else None) as (header, image):
        rgb = _upright(_to_srgb(image, header, data, stop), header)
        return [np.array(rgb.resize((size.width, size.height), PIL.Image.Resampling.BILINEAR)) for size in sizes]


def _covering(sizes: Sequence[Size]) -> Size:
    """Return the smallest size that no given one exceeds."""
    return Size(max(size.height for size in sizes), max(size.width for size in sizes))


def load(data: bytes, *, max_pixels: int) -> PIL.Image.Image:
    """Decode an image, keeping its mode and colours, without applying its EXIF orientation.

    Args:
        data: a JPEG, PNG, WebP, BMP or TIFF file.
        max_pixels: most pixels (height times width) to decode.

    Returns:
        Pillow's image, pixels loaded.

    Raises:
        ImageError: as `decode`.
    """
    with _decoded(data, max_pixels, _never) as (_, image):
        return image


def read_size(data: bytes, *, max_pixels: int) -> Size:
    """Read an image's size from its header, without decoding it, in some 30 ms at most.

    Args:
        data: a JPEG, PNG, WebP, BMP or TIFF file.
        max_pixels: most pixels (height times width) to accept.

    Returns:
        The size after EXIF orientation, as `decode` returns it.

    Raises:
        NotAnImage, UnsupportedImageFormat: the bytes are in no supported image format.
        TooManyPixels: the header announces more than `max_pixels`.
        ImageTooComplex: the header has too many parts.
        TruncatedImage: the header ends early or is damaged.
    """
    return _size(read_header(data), max_pixels)


def decoding_bytes(data: bytes, size: Size, sizes: Sequence[Size] = ()) -> int:
    """Return the most memory that decoding an image takes, result and file not included, in microseconds.

    Args:
        data: a JPEG, PNG, WebP, BMP or TIFF file.
        size: of the image, from `read_size`.
        sizes: what a large JPEG may be decoded towards, see `decode_to_sizes`; empty if it is decoded whole.

    Raises:
        ImageError: as `read_size`.
    """
    header = read_short_header(data)
    pixels = size.pixels
    if not data.startswith(b"\xff\xd8"):
        narrow = header is not None and (header.sample_bits <= _NARROW or header.grey)
        return (_DECODED_BYTES if narrow else _WIDE_BYTES) * pixels
    if sizes:
        pixels //= decoding_scale(size, sizes) ** 2
    # Of several scans libjpeg keeps all coefficients, two bytes each.
    samples: float = _MOST_CHANNELS
    if header is not None and header.jpeg is not None:
        samples = header.jpeg.samples if header.jpeg.several_scans else 0
    turned = _DECODED_BYTES * pixels
    return max(turned, turned // 2 + int(2 * samples * size.pixels))


def decoding_scale(size: Size, sizes: Sequence[Size]) -> int:
    """Return by what a JPEG's sides are divided when it is decoded towards some sizes: 1, 2, 4 or 8.

    Args:
        size: of the image.
        sizes: see `decode_to_sizes`; at least one.
    """
    least = _covering(sizes)
    most = min(size.height // least.height, size.width // least.width) // _LEAST_OF_SCALED
    return next(scale for scale in (8, 4, 2, 1) if scale <= max(1, most))


def read_size_quickly(data: bytes, *, max_pixels: int) -> Size | None:
    """Read an image's size where that takes microseconds, so that an event loop may do it.

    Args:
        data: a JPEG, PNG, WebP, BMP or TIFF file.
        max_pixels: most pixels (height times width) to accept.

    Returns:
        What `read_size` returns; None where the header has many parts, for which a worker thread is the place.

    Raises:
        ImageError: as `read_size`.
    """
    header = read_short_header(data)
    return None if header is None else _size(header, max_pixels)


def _size(header: Header, max_pixels: int) -> Size:
    _refuse_above(max_pixels, header.width, header.height, "image")
    if header.orientation in _SWAPPING:
        return Size(header.width, header.height)
    return Size(header.height, header.width)


# What decoding costs


def _refuse_dear(header: Header, data: bytes, max_pixels: int) -> None:
    """Refuse what costs much more than the pixels of the image need."""
    width, height = header.width, header.height
    _refuse_above(max_pixels, width, height, "image")
    if header.jpeg is not None and header.jpeg.several_scans:
        _refuse_scans(count_scans(data, header.jpeg.scan), width * height, "JPEG")
    if header.tiff is not None:
        _refuse_tiles(header, header.tiff, data, max_pixels)
    if header.run_length and (width * height > MAX_RUN_LENGTH_PIXELS or len(data) > MAX_RUN_LENGTH_BYTES):
        raise ImageTooComplex(
            f"A run-length encoded BMP must have at most {MAX_RUN_LENGTH_PIXELS} pixels and {MAX_RUN_LENGTH_BYTES} "
            f"bytes, got {width * height} pixels and {len(data)} bytes. Save it as PNG."
        )


def _refuse_tiles(header: Header, tiff: Tiff, data: bytes, max_pixels: int) -> None:
    """Refuse a TIFF whose tiles have many more pixels than the image, or are JPEGs that cost more than others."""
    width, height = tiff.tile
    if width < 1 or height < 1:
        raise TruncatedImage(f"The TIFF has tiles of {width} x {height} pixels. Save it as PNG and send that.")
    limit = max(max_pixels, _TILE_PIXELS)
    _refuse_above(limit, width, height, "TIFF tile")
    count = -(-header.width // width) * -(-header.height // height)
    if count * width * height > _TILED * limit:
        raise ImageTooComplex(
            f"The tiles of a TIFF must have at most {_TILED * limit} pixels together, got {count} tiles of {width} x "
            f"{height}. Save it with tiles or strips of the image's size."
        )
    if tiff.compression in JPEG_IN_TIFF:
        if tiff.stored > len(data):
            raise TruncatedImage(
                f"The TIFF's strips have {tiff.stored} bytes together, the file has {len(data)}. Send the whole file."
            )
        scans = sum(data.count(b"\xff\xda", at, at + (1 << 20) + 1) for at in range(0, len(data), 1 << 20))
        _refuse_scans(-(-scans // count), count * width * height, "TIFF's JPEG")


def _refuse_scans(scans: int, pixels: int, what: str) -> None:
    if scans > MAX_SCANS or scans * pixels > MAX_SCANNED_PIXELS:
        number = f"more than {MAX_SCANS}" if scans > MAX_SCANS else str(scans)
        raise ImageTooComplex(
            f"The {what} has {number} scans of {pixels} pixels; at most {MAX_SCANS} scans are decoded, and at most "
            f"{MAX_SCANNED_PIXELS} pixels in all scans together. Save it as a baseline JPEG."
        )


def _refuse_above(limit: int, width: int, height: int, what: str) -> None:
    if width * height > limit:
        raise TooManyPixels(
            f"The {what} has {width * height} pixels ({width} x {height}); the limit is {limit}. Send a smaller one."
        )


# Decoding


class _Parts(io.RawIOBase):
    """A file made of a head, a body that is not copied, and a tail. Reading ends where `stop` says."""

    def __init__(self, head: bytes, body: memoryview, tail: bytes, stop: Stop) -> None:
        super().__init__()
        self._parts = ((0, head), (len(head), body), (len(head) + len(body), tail))
        self._length = len(head) + len(body) + len(tail)
        self._stop = stop
        self._at = 0

    def read(self, size: int = -1) -> bytes:
        _check(self._stop)
        at = self._at
        self._at = end = self._length if size < 0 else max(at, min(at + size, self._length))
        return b"".join(part[max(0, at - start) : max(0, end - start)] for start, part in self._parts)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._length)[whence]
        return self._at

    def tell(self) -> int:
        return self._at


class _Whole(io.BytesIO):
    """A file in memory. Reading ends where `stop` says."""

    def __init__(self, data: bytes, stop: Stop) -> None:
        super().__init__(data)
        self._stop = stop

    def read(self, size: int | None = -1) -> bytes:
        _check(self._stop)
        return super().read(size)


def _check(stop: Stop) -> None:
    if stop():
        raise DecodingStopped("The image is no longer needed.")


@contextmanager
def _decoded(
    data: bytes, max_pixels: int, stop: Stop, *, at_least: Size | None = None
) -> Iterator[tuple[Header, PIL.Image.Image]]:
    """Yield an image whose pixels are loaded; damage found in the block is raised as `TruncatedImage`.

    Args:
        data: a file.
        max_pixels: most pixels.
        stop: says when to give up.
        at_least: upright size of which a JPEG may be decoded at no less than `_LEAST_OF_SCALED` times.
    """
    header = read_header(data)
    _refuse_dear(header, data, max_pixels)
    # Checked each time, as resetting the filters elsewhere would bring the warnings back.
    if _QUIET not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")
    with _damage_as_truncated(header.format):
        if header.format == "WebP":
            yield header, _decode_webp(header, data, stop)
            return
        image = _opened(header, data, stop)
        # Only if the decoder outputs RGB: drafts of other colour spaces may change the mode.
        if at_least is not None and isinstance(image, JpegImageFile) and image.mode == "RGB":
            width, height = at_least.width, at_least.height
            if header.orientation in _SWAPPING:
                width, height = height, width
            image.draft("RGB", (_LEAST_OF_SCALED * width, _LEAST_OF_SCALED * height))
        image.load()
        yield header, image


def _opened(header: Header, data: bytes, stop: Stop) -> ImageFile.ImageFile:
    """Open a file with Pillow, without the parts that hold no pixels."""
    if header.format == "BMP":
        return BmpImageFile(_Whole(data, stop))
    if header.tiff is not None:
        return TiffImageFile(_Whole(_without_tags(header.tiff, data), stop))
    *heads, (start, end) = header.parts
    head, body = b"".join(data[slice(*part)] for part in heads), memoryview(data)[start:end]
    if header.jpeg is None:
        # Where the pixels end early, what follows must not be taken for them.
        return PngImageFile(cast("IO[bytes]", _Parts(head, body, b"" if end > len(data) else _IEND, stop)))
    image = JpegImageFile(cast("IO[bytes]", _Parts(head, body, b"", stop)))
    if header.jpeg.several_scans:
        image.decodermaxblock = _BLOCK
    if header.jpeg.layers == 4 and not header.jpeg.adobe:
        # Pillow takes any CMYK as inverted, which it is in Adobe's files.
        (tile,) = image.tile
        image.tile = [tile._replace(args=("CMYK", ""))]
    return image


_IEND: Final = b"\0\0\0\0IEND\xaeB`\x82"


def _without_tags(tiff: Tiff, data: bytes) -> bytes:
    """Return a TIFF whose only directory, at its end, has the tags that decoders need."""
    order = "<" if data[:2] == b"II" else ">"
    at = len(data) + len(data) % 2
    count, offset, head = ("Q", "Q", 16) if tiff.big else ("H", "L", 8)
    parts = [data[:8] if tiff.big else data[:4], struct.pack(order + offset, at), data[head:], b"\0" * (len(data) % 2)]
    parts += [struct.pack(order + count, len(tiff.entries)), *tiff.entries, struct.pack(order + offset, 0)]
    return b"".join(parts)


def _decode_webp(header: Header, data: bytes, stop: Stop) -> PIL.Image.Image:
    """Decode a WebP with OpenCV: Pillow would hold the interpreter's lock while it copies the pixels."""
    _check(stop)
    body = bytearray().join(data[slice(*part)] for part in header.parts)
    if body.startswith(b"VP8X"):
        body[8] &= 0x12  # of its flags, animation and alpha: metadata is left out
    file = b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body
    pixels = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR_RGB)
    if pixels is None or pixels.shape != (header.height, header.width, 3):
        raise ValueError("its pixels cannot be read")
    image = PIL.Image.new("RGB", (header.width, header.height))
    for top in range(0, header.height, _STRIP):  # in one, it would hold that lock
        _check(stop)
        image.paste(PIL.Image.fromarray(pixels[top : top + _STRIP]), (0, top))
    return image


def _to_srgb(image: PIL.Image.Image, header: Header, data: bytes, stop: Stop) -> PIL.Image.Image:
    """Convert a loaded image of any mode to sRGB, 8 bits.

    Raises:
        UnsupportedImageFormat: the pixels are floating-point numbers, or integers beyond 16 bits.
    """
    if image.mode == "F":
        raise UnsupportedImageFormat(
            "Pixels must be integers of at most 16 bits, got floating-point numbers. Scale the image to 8 or 16 bits."
        )
    if image.mode.startswith("I"):
        image = to_8_bits(image, header)
    elif header.sample_bits == 16:
        image = narrow_samples(image, lambda: _opened(header, data, stop), header, lambda: _check(stop)) or image
    _check(stop)
    # Pillow would convert the transparent colour too, which warns or fails on odd ones.
    image.info.pop("transparency", None)
    if image.mode in {"La", "RGBa"}:
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if header.profile and image.mode not in {"L", "RGB", "CMYK"}:
        image = image.convert("L" if image.mode in {"1", "LA"} else "RGB")
    image = to_srgb(image, icc_profile(header, data))
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_array(image: PIL.Image.Image) -> Pixels:
    """Return the pixels of an RGB image: uint8 (height, width, 3), C-contiguous, writable."""
    width, height = image.size
    pixels = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, _STRIP):
        bottom = min(top + _STRIP, height)
        pixels[top:bottom] = np.asarray(image.crop((0, top, width, bottom)))
    return pixels


def _upright(image: PIL.Image.Image, header: Header) -> PIL.Image.Image:
    """Apply the EXIF orientation, as `PIL.ImageOps.exif_transpose` does."""
    transposition = _TRANSPOSITIONS.get(header.orientation)
    return image if transposition is None else image.transpose(transposition)


@contextmanager
def _damage_as_truncated(name: str) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise TruncatedImage(f"The {name} image ends early or is damaged ({error}). Send the whole file.") from error
