"""Pictures as callers have them -> bytes to send."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, TypeAlias, Union

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from pomona.errors import UnreadableImage

ImageSource: TypeAlias = Union[
    str, "os.PathLike[str]", bytes, bytearray, memoryview, IO[bytes], PIL.Image.Image, NDArray[np.uint8]
]
"""A path, an encoded picture (bytes or a binary file), a PIL picture, or an array: uint8 (height, width), or (height,
width, 3) RGB, or (height, width, 4) RGBA."""

_SIGNATURES: Final = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"BM", "image/bmp"),
    (b"II*\x00", "image/tiff"),
    (b"MM\x00*", "image/tiff"),
)
_UNKNOWN: Final = "application/octet-stream"


@dataclass(frozen=True)
class Picture:
    """An encoded picture.

    Attributes:
        data: the file's bytes.
        media_type: told from the first of them; `application/octet-stream` where they tell nothing.
    """

    data: bytes
    media_type: str

    def __repr__(self) -> str:
        return f"Picture({len(self.data)} bytes, {self.media_type})"


def picture_of(source: ImageSource) -> Picture:
    """Make a picture ready to be sent: encoded ones as they are, pixels as PNG, without loss.

    Raises:
        UnreadableImage: no such file, or something that is no picture.
    """
    if isinstance(source, np.ndarray):
        return Picture(_png(_of_array(source)), "image/png")
    if isinstance(source, PIL.Image.Image):
        return Picture(_png(source), "image/png")
    data = _bytes_of(source)
    return Picture(data, _media_type(data))


def open_image(source: ImageSource) -> PIL.Image.Image:
    """A picture to draw in, upright: RGB, after EXIF orientation, as the service sees it.

    Raises:
        UnreadableImage: no such file, or something that is no picture.
    """
    if isinstance(source, np.ndarray):
        return _of_array(source).convert("RGB")
    if isinstance(source, PIL.Image.Image):
        return source.convert("RGB")
    try:
        with PIL.Image.open(io.BytesIO(_bytes_of(source))) as picture:
            return _upright(picture).convert("RGB")
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise UnreadableImage(f"The picture cannot be read: {error}.") from error


def jpeg(pixels: PIL.Image.Image | NDArray[np.uint8], quality: int = 95) -> bytes:
    """Encode pixels as JPEG, for frames of a camera: smaller and quicker to encode than PNG, at some loss.

    Args:
        pixels: a PIL picture, or an array as `ImageSource` has it.
        quality: 1 to 95.

    Raises:
        UnreadableImage: an array that is no picture.
    """
    picture = _of_array(pixels) if isinstance(pixels, np.ndarray) else pixels
    buffer = io.BytesIO()
    picture.convert("L" if picture.mode == "L" else "RGB").save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _bytes_of(source: Any) -> bytes:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    if isinstance(source, (str, os.PathLike)):
        try:
            return Path(source).read_bytes()
        except (OSError, ValueError) as error:
            raise UnreadableImage(f"{source} cannot be read: {error}.") from error
    read = getattr(source, "read", None)
    if callable(read):
        data = read()
        if isinstance(data, bytes):
            return data
    raise UnreadableImage(
        f"{type(source).__name__} is no picture; a path, bytes, a binary file, a PIL picture or a uint8 array is."
    )


def _media_type(data: bytes) -> str:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((media_type for start, media_type in _SIGNATURES if data.startswith(start)), _UNKNOWN)


def _of_array(array: NDArray[Any]) -> PIL.Image.Image:
    shape_fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not shape_fits or array.size == 0:
        raise UnreadableImage(
            f"An array of {array.dtype} {array.shape} is no picture; uint8 (height, width) grey, (height, width, 3) "
            "RGB or (height, width, 4) RGBA is."
        )
    return PIL.Image.fromarray(np.ascontiguousarray(array))


def _png(picture: PIL.Image.Image) -> bytes:
    # Written anew: an orientation that the picture's metadata asks for was not followed by whoever holds the pixels.
    plain = picture.convert(picture.mode if picture.mode in ("1", "L", "RGB", "RGBA") else "RGB")
    plain.info = {}
    buffer = io.BytesIO()
    try:
        plain.save(buffer, "PNG", compress_level=1, exif=b"")
    except (OSError, ValueError) as error:
        raise UnreadableImage(f"The picture cannot be encoded: {error}.") from error
    return buffer.getvalue()


def _upright(picture: PIL.Image.Image) -> PIL.Image.Image:
    from PIL import ImageOps

    return ImageOps.exif_transpose(picture) or picture
