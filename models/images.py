"""Decodes JPEG, PNG, WebP, BMP and TIFF files of untrusted origin to upright 8-bit RGB.

Of a file with several images (MPO, multi-page TIFF) the first is decoded. The format is determined from the leading
bytes, so no decoder runs for an unsupported format, and the pixel limit is checked against the header before any pixel
is decoded.
"""

from __future__ import annotations

import hashlib
import io
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, cast

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import ExifTags
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from models.errors import NotAnImage, TooManyPixels, TruncatedImage, UnsupportedImageFormat
from models.types import Image, Pixels, Size

# `_opened` compares the header with the caller's limit; Pillow's own would warn or raise at another number.
PIL.Image.MAX_IMAGE_PIXELS = None

ACCEPTED: Final = "JPEG, PNG, WebP, BMP or TIFF"
"""The supported formats, for error messages."""

# Taken from the plugins so that they are registered: Pillow otherwise imports all of its plugins when the first TIFF or
# WebP arrives.
_PILLOW_FORMATS: Final = tuple(
    str(reader.format) for reader in (JpegImageFile, PngImageFile, WebPImageFile, BmpImageFile, TiffImageFile)
)

_SUPPORTED: Final = (
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

# What Pillow's decoders raise on damaged bytes. MemoryError is not among them: the machine is at fault then, not the
# image.
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
    struct.error,
    zlib.error,
)

# Pillow warns of odd metadata that does not matter here; callers could fill the log with it.
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

_SWAPPING: Final = {_TRANSPOSITIONS[orientation] for orientation in (5, 6, 7, 8)}

_TILE_SIDES: Final = (322, 323)  # TIFF tags
_BITS_PER_SAMPLE: Final = 258  # TIFF tag
_TILE_PIXELS: Final = 1 << 24  # a TIFF tile may exceed a small image, but not by this much
_STRIP: Final = 64  # rows copied at a time: they stay in the cache, 5 times faster than all at once

_DECODED_BYTES: Final = 8  # per pixel: Pillow stores 4, and twice while it turns or converts them
_MOST_CHANNELS: Final = 4
_SEQUENTIAL: Final = (b"\xff\xc0", b"\xff\xc1")
_PROGRESSIVE: Final = b"\xff\xc2"
_SNIFFED_FOR_FRAME: Final = 1 << 20

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


def decode(data: bytes, *, max_pixels: int) -> Image:
    """Decode an image completely and turn it upright.

    Args:
        data: a JPEG, PNG, WebP, BMP or TIFF file.
        max_pixels: most pixels (height times width) to decode.

    Returns:
        The image: uint8 (height, width, 3), RGB, C-contiguous, writable, EXIF orientation applied.

    Raises:
        NotAnImage: the bytes are in no known image format.
        UnsupportedImageFormat: the format or pixel type is not supported.
        TooManyPixels: the header announces more than `max_pixels`.
        TruncatedImage: the file ends early or is damaged.
    """
    with _damage_as_truncated("image"):
        # No name for what Pillow decoded: it goes once it is turned.
        pixels = _to_pixels(_upright(load(data, max_pixels=max_pixels)))
    return Image(id=content_id(data), pixels=pixels)


def decode_resized(data: bytes, resized: Size, *, max_pixels: int, scaled: bool = False) -> Pixels:
    """Decode an image directly to the size of a model's input.

    No full-size array is made, which saves two copies of every pixel.

    Args:
        data: a JPEG, PNG, WebP, BMP or TIFF file.
        resized: size of the result after EXIF orientation, height and width at least 1.
        max_pixels: most pixels (height times width) to decode.
        scaled: allow a JPEG at least 4 times as large to be decoded at a half, a quarter or an eighth by leaving out
            DCT coefficients (libjpeg's scaled inverse DCT), to no less than twice `resized`.

    Returns:
        uint8 (height, width, 3) of size `resized`, RGB: unless scaled, exactly the result of
        `models.letterbox.resize` on the pixels of `decode`.

    Raises:
        NotAnImage, UnsupportedImageFormat, TooManyPixels, TruncatedImage: as `decode`.
    """
    with _opened(data, max_pixels) as image:
        # Only if the decoder outputs RGB: drafts of other colour spaces may change the mode.
        if scaled and isinstance(image, JpegImageFile) and image.mode == "RGB":
            upright = (resized.width, resized.height)
            width, height = reversed(upright) if _transposition(image) in _SWAPPING else upright
            image.draft("RGB", (_LEAST_OF_SCALED * width, _LEAST_OF_SCALED * height))
        image.load()
        turned = _upright(image)
        rgb = turned if turned.mode == "RGB" else PIL.Image.fromarray(_to_pixels(turned))
        return np.array(rgb.resize((resized.width, resized.height), PIL.Image.Resampling.BILINEAR))


def load(data: bytes, *, max_pixels: int) -> PIL.Image.Image:
    """Decode an image with Pillow, keeping its mode and without applying its EXIF orientation.

    Args:
        data: a JPEG, PNG, WebP, BMP or TIFF file.
        max_pixels: most pixels (height times width) to decode.

    Returns:
        Pillow's image, pixels loaded.

    Raises:
        NotAnImage, UnsupportedImageFormat: the bytes are in no supported image format.
        TooManyPixels: the header announces more than `max_pixels`.
        TruncatedImage: the file ends early or is damaged.
    """
    with _opened(data, max_pixels) as image:
        image.load()
    return image


def read_size(data: bytes, *, max_pixels: int) -> Size:
    """Read an image's size from its header, without decoding it.

    Args:
        data: a JPEG, PNG, WebP, BMP or TIFF file.
        max_pixels: most pixels (height times width) to accept.

    Returns:
        The size after EXIF orientation, as `decode` returns it.

    Raises:
        NotAnImage, UnsupportedImageFormat: the bytes are in no supported image format.
        TooManyPixels: the header announces more than `max_pixels`.
        TruncatedImage: the header ends early or is damaged.
    """
    with _opened(data, max_pixels) as image:
        width, height = image.size
        # Pillow decodes a whole PNG in search of a missing orientation, and turns a TIFF's size itself.
        may_turn = image.format != "TIFF" and (image.format != "PNG" or b"eXIf" in data)
        turned = may_turn and _transposition(image) in _SWAPPING
    return Size(width, height) if turned else Size(height, width)


def _sniff(data: bytes) -> str:
    """Return the format that the leading bytes announce, or raise if it is not supported."""
    head = data[:_SNIFFED]
    for pattern, name in _SUPPORTED:
        if pattern.match(head):
            return name
    for pattern, name in _UNSUPPORTED:
        if pattern.match(head):
            raise UnsupportedImageFormat(f"The image is {name}. Send {ACCEPTED}.")
    if not data:
        raise NotAnImage(f"The image has no bytes. Send {ACCEPTED}.")
    raise NotAnImage(f"The {len(data)} bytes start like no image format: {data[:8]!r}. Send {ACCEPTED}.")


def decoding_bytes(data: bytes, size: Size, resized: Size | None = None) -> int:
    """Return the most memory that decoding an image takes, result and file not included.

    Args:
        data: a JPEG, PNG, WebP, BMP or TIFF file.
        size: of the image, from `read_size`.
        resized: what a large JPEG may be decoded towards, see `decode_resized`; None if it is decoded whole.
    """
    if not data.startswith(b"\xff\xd8"):
        return _DECODED_BYTES * size.pixels
    pixels = size.pixels
    if resized is not None:
        least = min(size.height // resized.height, size.width // resized.width) // _LEAST_OF_SCALED
        pixels //= next(scale for scale in (8, 4, 2, 1) if scale <= max(1, least)) ** 2
    turned = _DECODED_BYTES * pixels
    return max(turned, turned // 2 + int(_coefficient_bytes(data, size) * size.pixels))


def _coefficient_bytes(data: bytes, size: Size) -> float:
    """Return the bytes per pixel of the coefficients that libjpeg keeps: of a progressive file all, else none."""
    sides = {size.height.to_bytes(2, "big"), size.width.to_bytes(2, "big")}
    for marker in (*_SEQUENTIAL, _PROGRESSIVE):
        at = data.find(marker, 0, _SNIFFED_FOR_FRAME)
        # Within a thumbnail, or by chance in other data, the size would be another.
        while at >= 0 and {data[at + 5 : at + 7], data[at + 7 : at + 9]} != sides:
            at = data.find(marker, at + 1, _SNIFFED_FOR_FRAME)
        if at < 0:
            continue
        if marker != _PROGRESSIVE:
            return 0.0
        factors = data[at + 11 : at + 11 + 3 * data[at + 9] : 3]
        shares = [(factor >> 4) * (factor & 15) for factor in factors]
        return 2 * sum(shares) / (max(shares, default=0) or 1) if len(shares) <= _MOST_CHANNELS else 2 * _MOST_CHANNELS
    return 2 * _MOST_CHANNELS


@contextmanager
def _opened(data: bytes, max_pixels: int) -> Iterator[PIL.Image.Image]:
    """Yield an image whose header is within the limit; damage found in the block is raised as `TruncatedImage`."""
    name = _sniff(data)
    # Checked each time, as resetting the filters elsewhere would bring the warnings back.
    if _QUIET not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")
    with _damage_as_truncated(name):
        image = PIL.Image.open(io.BytesIO(data), formats=_PILLOW_FORMATS)
        width, height = image.size
        if width < 1 or height < 1:
            raise ValueError(f"its header says {width} x {height} pixels")
        _refuse_above(max_pixels, width, height, "image")
        if isinstance(image, TiffImageFile):
            tile_width, tile_height = (int(image.tag_v2.get(tag, 1)) for tag in _TILE_SIDES)
            _refuse_above(max(max_pixels, _TILE_PIXELS), tile_width, tile_height, "TIFF tile")
            image.info["bits"] = image.tag_v2.get(_BITS_PER_SAMPLE)
        yield image


def _to_pixels(image: PIL.Image.Image) -> Pixels:
    """Convert a loaded Pillow image of any mode to 8-bit RGB.

    Alpha is dropped and the colours are left unchanged. 16-bit grey is scaled, 65535 to 255; 12-bit grey, 4095 to 255.

    Args:
        image: a loaded image.

    Returns:
        uint8 (height, width, 3), RGB, C-contiguous, writable.

    Raises:
        UnsupportedImageFormat: the pixels are floating-point numbers, or integers beyond 16 bits.
    """
    if image.mode == "F":
        raise UnsupportedImageFormat(
            "Pixels must be integers of at most 16 bits, got floating-point numbers. Scale the image to 8 or 16 bits."
        )
    if image.mode.startswith("I"):
        return _from_wide_grey(image)
    # Pillow would convert the transparent colour too, which warns or fails on odd ones.
    image.info.pop("transparency", None)
    if image.mode in {"La", "RGBa"}:
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.mode != "RGB":
        image = image.convert("RGB")
    width, height = image.size
    pixels = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, _STRIP):
        bottom = min(top + _STRIP, height)
        pixels[top:bottom] = np.asarray(image.crop((0, top, width, bottom)))
    return pixels


def _from_wide_grey(image: PIL.Image.Image) -> Pixels:
    low, high = (int(value) for value in cast("tuple[float, float]", image.getextrema()))
    if low < 0 or high > 65535:
        raise UnsupportedImageFormat(
            f"Integer pixels must lie in 0 to 65535 (16 bits), got {low} to {high}. Scale the image to 8 or 16 bits."
        )
    full = 4095 if image.info.get("bits") == (12,) else 65535
    width, height = image.size
    pixels = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, _STRIP):
        bottom = min(top + _STRIP, height)
        values: NDArray[np.int32] = np.asarray(image.crop((0, top, width, bottom))).astype(np.int32)
        pixels[top:bottom] = ((values * 255 + full // 2) // full)[:, :, None]
    return pixels


def _upright(image: PIL.Image.Image) -> PIL.Image.Image:
    """Apply the EXIF orientation, as `PIL.ImageOps.exif_transpose` does.

    That function also rewrites the metadata, which fails on broken metadata that does not matter here.
    """
    transposition = _transposition(image)
    return image if transposition is None else image.transpose(transposition)


def _transposition(image: PIL.Image.Image) -> PIL.Image.Transpose | None:
    try:
        return _TRANSPOSITIONS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except _DAMAGE:
        return None


def _refuse_above(limit: int, width: int, height: int, what: str) -> None:
    if width * height > limit:
        raise TooManyPixels(
            f"The {what} has {width * height} pixels ({width} x {height}); the limit is {limit}. Send a smaller one."
        )


@contextmanager
def _damage_as_truncated(name: str) -> Iterator[None]:
    try:
        yield
    except PIL.UnidentifiedImageError as error:
        raise TruncatedImage(
            f"The bytes start like a {name} image, but the header ends early, is damaged or describes a rare kind of "
            f"{name}. Send the whole file, or save it as PNG and send that."
        ) from error
    except _DAMAGE as error:
        raise TruncatedImage(f"The {name} image ends early or is damaged ({error}). Send the whole file.") from error
