"""Encoded bytes -> `Image`: upright 8-bit RGB, or an error that says what to send instead.

JPEG (with MPO, several JPEGs in one file), PNG, WebP, BMP and TIFF are read; of a file with
several images, the first. The format is told from the leading bytes before any decoder sees them,
so no decoder runs for a format that is not read here, and the pixel limit is checked from the
header before a pixel is decoded.
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

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import ExifTags
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from models.errors import TooManyPixels, TruncatedImage, UnsupportedImageFormat
from models.image_formats import FORMATS, sniff
from models.types import Image, Pixels, Size

# `load` compares the header with its own limit; Pillow's would warn or raise at another number.
PIL.Image.MAX_IMAGE_PIXELS = None

# What Pillow's decoders raise on damaged bytes. MemoryError is not among them: that is the
# machine's fault, not the image's.
_DAMAGE = (
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

# Pillow warns of odd metadata that does not matter here; strangers could fill the log with it.
_QUIET = ("ignore", None, Warning, re.compile(r"PIL\."), 0)

_TRANSPOSITIONS = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}

_SWAPPING = {_TRANSPOSITIONS[orientation] for orientation in (5, 6, 7, 8)}

_TILE_SIDES = (322, 323)  # TIFF tags
_BITS_PER_SAMPLE = 258  # TIFF tag
_TILE_PIXELS = 1 << 24  # a TIFF tile may exceed a small image, but not by this much
_STRIP = 64  # rows copied at a time: they stay in the cache, 5 times faster than all at once


_LEAST_OF_SCALED = 2
"""Times the size asked for. Left with less to average, the resizing filter shifts masks: IoU 0.97 on the golden
images where a scaled decode is the size asked for, 0.994 where it is twice that."""


def content_id(data: bytes) -> str:
    """Name encoded bytes by what they hold.

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
        The image: uint8 (height, width, 3), RGB, C-contiguous, writable, turned upright as its
        EXIF orientation says.

    Raises:
        NotAnImage: the bytes are of no image format.
        UnsupportedImageFormat: a format or pixel type that is not read here.
        TooManyPixels: the header announces more than `max_pixels`.
        TruncatedImage: the file ends early or is damaged.
    """
    image = load(data, max_pixels=max_pixels)
    with _damage_as_truncated(image.format or "image"):
        pixels = to_pixels(_upright(image))
    return Image(id=content_id(data), pixels=pixels)


def decode_resized(data: bytes, resized: Size, *, max_pixels: int, scaled: bool = False) -> Pixels:
    """Decode an image straight to the size at which a model sees it.

    No full-size array is made, which spares two copies of every pixel.

    Args:
        data: a JPEG, PNG, WebP, BMP or TIFF file.
        resized: size to give, height and width after EXIF orientation, at least 1.
        max_pixels: most pixels (height times width) to decode.
        scaled: a JPEG at least 4 times as large may be decoded at a half, a quarter or an eighth by leaving out DCT
            coefficients (libjpeg's scaled inverse DCT), to no less than twice the size asked for.

    Returns:
        uint8 (height, width, 3) of size `resized`, RGB: where not scaled, exactly what `models.letterbox.resize`
        makes of `decode`'s pixels.

    Raises:
        NotAnImage, UnsupportedImageFormat, TooManyPixels, TruncatedImage: as `decode`.
    """
    with _opened(data, max_pixels) as image:
        # Only for colours that the decoder gives as RGB: drafts of others may change their mode.
        if scaled and isinstance(image, JpegImageFile) and image.mode == "RGB":
            upright = (resized.width, resized.height)
            width, height = reversed(upright) if _transposition(image) in _SWAPPING else upright
            image.draft("RGB", (_LEAST_OF_SCALED * width, _LEAST_OF_SCALED * height))
        image.load()
        turned = _upright(image)
        rgb = turned if turned.mode == "RGB" else PIL.Image.fromarray(to_pixels(turned))
        return np.array(rgb.resize((resized.width, resized.height), PIL.Image.Resampling.BILINEAR))


def load(data: bytes, *, max_pixels: int) -> PIL.Image.Image:
    """Decode an image with Pillow, as it is in the file: own mode, not turned upright.

    Args:
        data: a JPEG, PNG, WebP, BMP or TIFF file.
        max_pixels: most pixels (height times width) to decode.

    Returns:
        Pillow's image, pixels loaded.

    Raises:
        NotAnImage: the bytes are of no image format.
        UnsupportedImageFormat: an image format that is not read here.
        TooManyPixels: the header announces more than `max_pixels`.
        TruncatedImage: the file ends early or is damaged.
    """
    with _opened(data, max_pixels) as image:
        image.load()
    return image


def read_size(data: bytes, *, max_pixels: int) -> Size:
    """Tell an image's size from its header, without decoding it.

    Args:
        data: a JPEG, PNG, WebP, BMP or TIFF file.
        max_pixels: most pixels (height times width) that `decode` would take.

    Returns:
        The size after EXIF orientation, as `decode` gives it.

    Raises:
        NotAnImage: the bytes are of no image format.
        UnsupportedImageFormat: an image format that is not read here.
        TooManyPixels: the header announces more than `max_pixels`.
        TruncatedImage: the header ends early or is damaged.
    """
    with _opened(data, max_pixels) as image:
        width, height = image.size
        # Pillow decodes a whole PNG to look for an orientation that is not there, and turns a TIFF's size itself.
        may_turn = image.format != "TIFF" and (image.format != "PNG" or b"eXIf" in data)
        turned = may_turn and _transposition(image) in _SWAPPING
    return Size(width, height) if turned else Size(height, width)


@contextmanager
def _opened(data: bytes, max_pixels: int) -> Iterator[PIL.Image.Image]:
    """An image whose header is read and within the limit; damage met inside the block is told as such."""
    name = sniff(data)
    # Checked each time, as whoever resets the filters would bring the warnings back.
    if _QUIET not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")
    with _damage_as_truncated(name):
        image = PIL.Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width < 1 or height < 1:
            raise ValueError(f"its header says {width} x {height} pixels")
        _refuse_above(max_pixels, width, height, "image")
        if isinstance(image, TiffImageFile):
            tile_width, tile_height = (int(image.tag_v2.get(tag, 1)) for tag in _TILE_SIDES)
            _refuse_above(max(max_pixels, _TILE_PIXELS), tile_width, tile_height, "TIFF tile")
            image.info["bits"] = image.tag_v2.get(_BITS_PER_SAMPLE)
        yield image


def to_pixels(image: PIL.Image.Image) -> Pixels:
    """Turn a loaded Pillow image of any mode into 8-bit RGB.

    Alpha is dropped and the colours are kept as they are. 16-bit grey is scaled, 65535 to 255;
    12-bit grey, 4095 to 255.

    Args:
        image: a loaded image.

    Returns:
        uint8 (height, width, 3), RGB, C-contiguous, writable.

    Raises:
        UnsupportedImageFormat: floating-point pixels, or integers beyond 16 bits.
    """
    if image.mode == "F":
        raise UnsupportedImageFormat(
            "The image has floating-point pixels, whose range nobody can tell. "
            "Scale it to 8 or 16 bits and send it again."
        )
    if image.mode.startswith("I"):
        return _from_wide_grey(image)
    # Pillow would translate the transparent colour too, which warns or fails on odd ones.
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
    values: NDArray[np.int32] = np.array(image).astype(np.int32)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise UnsupportedImageFormat(
            f"The image has integer pixels from {low} to {high}; at most 0 to 65535 (16 bits) "
            "is read. Scale it to 8 or 16 bits and send it again."
        )
    full = 4095 if image.info.get("bits") == (12,) else 65535
    grey = ((values * 255 + full // 2) // full).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def _upright(image: PIL.Image.Image) -> PIL.Image.Image:
    """Apply the EXIF orientation, as `PIL.ImageOps.exif_transpose` does.

    That function also rewrites the metadata, which fails on broken metadata that does not matter.
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
            f"The bytes start like a {name} image, but its header ends early, is damaged or tells of a rare kind "
            f"of {name}. Send the whole file, or save it as PNG and send that."
        ) from error
    except _DAMAGE as error:
        raise TruncatedImage(f"The {name} image ends early or is damaged ({error}). Send the whole file.") from error
