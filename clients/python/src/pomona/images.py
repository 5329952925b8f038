"""Images as callers have them, encoded for sending."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, TypeAlias, Union

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import ImageOps
from PIL.PngImagePlugin import PngInfo

from pomona import _checks as checks
from pomona.errors import BadAnswer, InvalidArgument, PomonaError, UnreadableImage

ImageSource: TypeAlias = Union[
    str,
    "os.PathLike[str]",
    bytes,
    bytearray,
    memoryview,
    IO[bytes],
    PIL.Image.Image,
    NDArray[np.uint8],
    NDArray[np.uint16],
]
"""A path, an encoded image (bytes or a binary file), a PIL image, or an array: uint8 (height, width) grey, (height,
width, 3) RGB or (height, width, 4) RGBA, or uint16 (height, width) grey."""

_SIGNATURES: Final = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"BM", "image/bmp"),
    (b"II*\x00", "image/tiff"),
    (b"MM\x00*", "image/tiff"),
)
# What Pillow raises for files that are damaged, closed or of a rare kind.
_DECODING_ERRORS: Final = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,
    SystemError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
    PIL.Image.DecompressionBombError,
)
_WRITER: Final = "pomona"
"""In the files that are written here, so that the command line replaces no others."""

_DEPTHS: Final = (8, 10, 12, 14, 16)  # bits of a camera's samples
_MODE_TO_SEND: Final = {mode: mode for mode in ("1", "L", "RGB", "RGBA")} | {"RGBa": "RGBA"}
_MODE_BEFORE: Final = {"La": "LA"}  # Pillow converts it to no other


@dataclass(frozen=True)
class EncodedImage:
    """An image file in memory.

    Attributes:
        data: bytes of the file.
        media_type: by its first bytes; `application/octet-stream` where they are not known.
    """

    data: bytes
    media_type: str

    def __repr__(self) -> str:
        return f"EncodedImage({len(self.data)} bytes, {self.media_type})"


def encode_image(source: ImageSource) -> EncodedImage:
    """Encode an image for sending: files and encoded bytes as they are, pixels as PNG.

    Pixels of 8 bits, and grey ones of up to 16, are sent without loss. The service scales the latter by the fewest bits
    of 8, 10, 12, 14 and 16 that hold them.

    Raises:
        UnreadableImage: the file cannot be read, the source is not an image, or its pixels are floating-point numbers
            or integers beyond 16 bits.
    """
    if isinstance(source, (np.ndarray, PIL.Image.Image)):
        return EncodedImage(_encode_png(_pixels(source)), "image/png")
    data = _read(source)
    return EncodedImage(data, _media_type(data))


def open_image(source: ImageSource) -> PIL.Image.Image:
    """Open an image as the service sees it: RGB, after EXIF orientation.

    Raises:
        UnreadableImage: as for `encode_image`, or the file cannot be decoded.
    """
    if isinstance(source, (np.ndarray, PIL.Image.Image)):
        return _to_rgb(_pixels(source))
    data = _read(source)
    with decoding(), PIL.Image.open(io.BytesIO(data)) as image:
        return _to_rgb(_pixels(ImageOps.exif_transpose(image)))


def open_png(data: bytes) -> PIL.Image.Image:
    """Decode a PNG of an answer.

    Raises:
        BadAnswer: it is not a PNG, or damaged.
    """
    try:
        image = PIL.Image.open(io.BytesIO(data), formats=["PNG"])
        image.load()
    except _DECODING_ERRORS as error:
        raise BadAnswer(f"A PNG in the answer cannot be decoded: {error or type(error).__name__}.") from error
    return image


def save_image(image: PIL.Image.Image, path: str | os.PathLike[str]) -> None:
    """Write an image in the format of the file's name.

    Raises:
        InvalidArgument: the name has no known extension, or the file cannot be written.
    """
    target = Path(checks.path(path))
    kind = target.suffix.lower()
    note: dict[str, Any] = {}
    if kind == ".png":
        note["pnginfo"] = PngInfo()
        note["pnginfo"].add_text("Software", _WRITER)
    elif kind in (".jpg", ".jpeg"):
        note["comment"] = _WRITER
    try:
        image.save(target, **note)
    except _DECODING_ERRORS as error:
        raise InvalidArgument(f"{target} cannot be written: {error or type(error).__name__}.") from error


def may_replace(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is not an image, or one that was written here: it says so, or is a mask of one bit."""
    try:
        with PIL.Image.open(path) as image:
            written_by = image.info.get("Software"), image.info.get("comment")
            return image.mode == "1" or _WRITER in written_by or _WRITER.encode() in written_by
    except _DECODING_ERRORS:
        return True


def jpeg(pixels: PIL.Image.Image | NDArray[np.uint8], quality: int = 95) -> bytes:
    """Encode pixels as JPEG, for frames of a camera: smaller and quicker to encode than PNG, with some loss.

    Args:
        pixels: PIL image, or array as in `ImageSource`.
        quality: 1 to 95.

    Raises:
        UnreadableImage: the pixels are not an image of 8 bits per channel, or too many for JPEG.
        InvalidArgument: the quality is not 1 to 95.
    """
    checks.whole(quality, "quality", low=1, high=95)
    if not isinstance(pixels, (np.ndarray, PIL.Image.Image)):
        raise UnreadableImage(f"jpeg() takes a PIL image or an array, got {type(pixels).__name__}.")
    image = _pixels(pixels)
    if image.mode == "I;16":
        raise UnreadableImage(
            "JPEG has 8 bits per channel, got 16: scale the pixels to uint8, or send them as they are."
        )
    buffer = io.BytesIO()
    with decoding("The image cannot be encoded"):
        image.convert("L" if image.mode == "L" else "RGB").save(buffer, "JPEG", quality=int(quality))
    return buffer.getvalue()


def _read(source: Any) -> bytes:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    if isinstance(source, (str, os.PathLike)):
        try:
            return Path(source).read_bytes()
        except (OSError, ValueError, TypeError) as error:
            raise UnreadableImage(f"{checks.shown(source)} cannot be read: {error}.") from error
    read = getattr(source, "read", None)
    try:
        data = read() if callable(read) else None
    except (OSError, ValueError, TypeError) as error:
        raise UnreadableImage(f"The image's file cannot be read: {error}.") from error
    if isinstance(data, bytes):
        return data
    raise UnreadableImage(
        f"An image must be a path, bytes, a binary file, a PIL image or an array, got {type(source).__name__}."
    )


def _media_type(data: bytes) -> str:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for start, kind in _SIGNATURES if data.startswith(start)), "application/octet-stream")


@contextmanager
def decoding(problem: str = "The image cannot be decoded") -> Iterator[None]:
    """Raise `UnreadableImage` for the errors of Pillow in the block."""
    try:
        yield
    except PomonaError:
        raise
    except _DECODING_ERRORS as error:
        raise UnreadableImage(f"{problem}: {error or type(error).__name__}.") from error


def _pixels(source: PIL.Image.Image | NDArray[Any]) -> PIL.Image.Image:
    """Return an image in a mode that PNG holds without loss: 1, L, RGB, RGBA or I;16; others become RGB."""
    image = _from_array(source) if isinstance(source, np.ndarray) else source
    if image.width < 1 or image.height < 1:
        raise UnreadableImage(f"An image must have pixels, got {image.width} x {image.height}.")
    with decoding():
        image.load()
        if image.mode == "F":
            raise UnreadableImage("Pixels must be integers, got floating-point numbers: scale them to uint8 or uint16.")
        if image.mode.startswith("I"):
            return PIL.Image.fromarray(_16_bits(np.asarray(image)))
        # Without metadata: the pixels are sent as the caller sees them, whatever orientation the file had that they are
        # from; and Pillow fails to convert some transparent colours, which do not matter here.
        plain = image.copy()
        plain.info = {}
        for mode in (_MODE_BEFORE.get(plain.mode, plain.mode), _MODE_TO_SEND.get(plain.mode, "RGB")):
            plain = plain if plain.mode == mode else plain.convert(mode)
        return plain


def _16_bits(samples: NDArray[Any]) -> NDArray[np.uint16]:
    low, high = int(samples.min()), int(samples.max())
    if low < 0 or high > np.iinfo(np.uint16).max:
        raise UnreadableImage(f"Pixels must have at most 16 bits (0 to 65535), got {low} to {high}: scale them first.")
    return samples.astype(np.uint16)


def _from_array(array: NDArray[Any]) -> PIL.Image.Image:
    colours = array.ndim == 3 and array.shape[2] in (3, 4)
    fits = (array.dtype == np.uint8 and colours) or (array.dtype in (np.uint8, np.uint16) and array.ndim == 2)
    if not fits or array.size == 0:
        raise UnreadableImage(
            "An image array must be uint8 of shape (height, width), (height, width, 3) RGB or (height, width, 4) RGBA, "
            f"or uint16 (height, width), got {array.dtype} {array.shape}: scale it first."
        )
    with decoding():
        return PIL.Image.fromarray(np.ascontiguousarray(array))


def _to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    if image.mode != "I;16":
        return image.convert("RGB")
    samples = np.asarray(image)
    seen = int(np.bitwise_or.reduce(samples, axis=None))
    white = next((1 << depth) - 1 for depth in _DEPTHS if not seen >> depth)
    grey = (samples.astype(np.uint32) * 255 + white // 2) // white
    return PIL.Image.fromarray(grey.astype(np.uint8)).convert("RGB")


def _encode_png(image: PIL.Image.Image) -> bytes:
    buffer = io.BytesIO()
    with decoding("The image cannot be encoded"):
        image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
