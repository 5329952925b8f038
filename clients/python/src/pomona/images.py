"""Images as callers have them, encoded for sending."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, TypeAlias, Union

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import ImageOps

from pomona.errors import BadAnswer, InvalidArgument, UnreadableImage

ImageSource: TypeAlias = Union[
    str, "os.PathLike[str]", bytes, bytearray, memoryview, IO[bytes], PIL.Image.Image, NDArray[np.uint8]
]
"""A path, an encoded image (bytes or a binary file), a PIL image, or a uint8 array: (height, width) grey, (height,
width, 3) RGB or (height, width, 4) RGBA."""

_SIGNATURES: Final = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"BM", "image/bmp"),
    (b"II*\x00", "image/tiff"),
    (b"MM\x00*", "image/tiff"),
)
_DECODING_ERRORS: Final = (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError)


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
    """Encode an image for sending: files and encoded bytes as they are, pixels as PNG, without loss.

    Raises:
        UnreadableImage: the file cannot be read, or the source is not an image.
    """
    if isinstance(source, np.ndarray):
        return EncodedImage(_encode_png(_from_array(source)), "image/png")
    if isinstance(source, PIL.Image.Image):
        return EncodedImage(_encode_png(_with_8_bits(source)), "image/png")
    data = _read(source)
    return EncodedImage(data, _media_type(data))


def open_image(source: ImageSource) -> PIL.Image.Image:
    """Open an image as the service sees it: RGB, after EXIF orientation.

    Raises:
        UnreadableImage: the file cannot be read, or the source is not an image.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source).convert("RGB")
    if isinstance(source, PIL.Image.Image):
        return _with_8_bits(source).convert("RGB")
    try:
        with PIL.Image.open(io.BytesIO(_read(source))) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except _DECODING_ERRORS as error:
        raise UnreadableImage(f"The image cannot be decoded: {error or type(error).__name__}.") from error


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
    try:
        image.save(path)
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"{path} cannot be written: {error}.") from error


def jpeg(pixels: PIL.Image.Image | NDArray[np.uint8], quality: int = 95) -> bytes:
    """Encode pixels as JPEG, for frames of a camera: smaller and quicker to encode than PNG, with some loss.

    Args:
        pixels: PIL image, or array as in `ImageSource`.
        quality: 1 to 95.

    Raises:
        UnreadableImage: the pixels are not an image of 8 bits per channel.
    """
    image = _from_array(pixels) if isinstance(pixels, np.ndarray) else _with_8_bits(pixels)
    buffer = io.BytesIO()
    image.convert("L" if image.mode == "L" else "RGB").save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _read(source: Any) -> bytes:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    if isinstance(source, (str, os.PathLike)):
        try:
            return Path(source).read_bytes()
        except (OSError, ValueError) as error:
            raise UnreadableImage(f"{source} cannot be read: {error}.") from error
    read = getattr(source, "read", None)
    data = read() if callable(read) else None
    if isinstance(data, bytes):
        return data
    raise UnreadableImage(
        f"An image must be a path, bytes, a binary file, a PIL image or a uint8 array, got {type(source).__name__}."
    )


def _media_type(data: bytes) -> str:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for start, kind in _SIGNATURES if data.startswith(start)), "application/octet-stream")


def _from_array(array: NDArray[Any]) -> PIL.Image.Image:
    shape_fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not shape_fits or array.size == 0:
        raise UnreadableImage(
            "An image array must be uint8 of shape (height, width), (height, width, 3) RGB or (height, width, 4) RGBA, "
            f"got {array.dtype} {array.shape}."
        )
    return PIL.Image.fromarray(np.ascontiguousarray(array))


def _with_8_bits(image: PIL.Image.Image) -> PIL.Image.Image:
    # Pillow would clip these at 255 without a word.
    if image.mode.startswith(("I", "F")):
        raise UnreadableImage(f"A PIL image must have 8 bits per channel, got mode {image.mode}: scale it first.")
    return image


def _encode_png(image: PIL.Image.Image) -> bytes:
    # Without metadata: the pixels are sent as the caller sees them, whatever orientation the file they are from had.
    plain = image.convert(image.mode if image.mode in ("1", "L", "RGB", "RGBA") else "RGB")
    plain.info = {}
    buffer = io.BytesIO()
    try:
        plain.save(buffer, "PNG", compress_level=1, exif=b"")
    except (OSError, ValueError) as error:
        raise UnreadableImage(f"The image cannot be encoded: {error or type(error).__name__}.") from error
    return buffer.getvalue()
