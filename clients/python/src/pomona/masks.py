"""Masks as they travel, decoded when they are looked at."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from pomona.errors import BadAnswer, InvalidArgument, UnreadableImage
from pomona.outlines import Polygon, fill
from pomona.rle import Rle, decode_rle, encode_rle

_LOGITS_STRIDE: Final = 4  # one of the logits covers 4 x 4 pixels of what the encoder saw


@dataclass(frozen=True)
class Png:
    """A mask as a PNG file, white where the mask is."""

    data: bytes


@dataclass(frozen=True)
class Polygons:
    """A mask as polygons; see `pomona.outlines.fill`."""

    polygons: Sequence[Polygon]


@dataclass(frozen=True)
class Logits:
    """What the mask decoder said, before it was enlarged; positive inside the mask.

    Attributes:
        shape: height and width.
        data: float16, little-endian, row by row, of `window` and what lies beyond it.
        window: how much of them the picture covers, (height, width) in cells; the rest is padding.
    """

    shape: tuple[int, int]
    data: bytes
    window: tuple[float, float]

    @property
    def values(self) -> NDArray[np.float32]:
        """As numbers, float32 (height, width).

        Raises:
            BadAnswer: data of another length.
        """
        height, width = self.shape
        if height < 1 or width < 1 or len(self.data) != 2 * height * width:
            raise BadAnswer(f"Logits of {height} x {width} cells have {len(self.data)} bytes.")
        return np.frombuffer(self.data, "<f2").astype(np.float32).reshape(height, width)


Encoded: TypeAlias = Rle | Png | Polygons | Logits


class PixelBox(NamedTuple):
    """The tight half-open box of a mask, whole pixels; all 0 for an empty mask."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def width(self) -> int:
        """Pixels across."""
        return self.x1 - self.x0

    @property
    def height(self) -> int:
        """Pixels down."""
        return self.y1 - self.y0


@dataclass(frozen=True)
class Mask:
    """Which pixels of a picture are meant.

    Attributes:
        size: height and width of the picture.
        encoded: as it travelled.
    """

    size: tuple[int, int]
    encoded: Encoded

    @classmethod
    def of(cls, array: NDArray[Any]) -> Mask:
        """A mask from an array.

        Args:
            array: bool or integer (height, width); what is not 0 is in the mask.

        Raises:
            InvalidArgument: of another shape or type, or without a pixel.
        """
        if array.ndim != 2 or array.size == 0 or array.dtype.kind not in "bui":
            raise InvalidArgument(
                f"A mask is a bool array (height, width), not {array.dtype} {array.shape}; threshold it first."
            )
        height, width = array.shape
        return cls((height, width), encode_rle(array != 0))

    @classmethod
    def open(cls, path: str | PathLike[str]) -> Mask:
        """A mask from a picture file; what is not black is in the mask.

        Raises:
            UnreadableImage: no such file, or no picture.
        """
        try:
            with PIL.Image.open(path) as picture:
                return cls.of(np.asarray(picture.convert("L")))
        except (OSError, ValueError, SyntaxError) as error:
            raise UnreadableImage(f"{path} cannot be read as a mask: {error}.") from error

    @cached_property
    def array(self) -> NDArray[np.bool_]:
        """The pixels, bool (height, width), decoded at the first look; it is kept and cannot be written to.

        Raises:
            BadAnswer: it does not decode to a mask of the picture's size.
        """
        decoded = _decode(self.encoded, self.size)
        if decoded.shape != self.size:
            raise BadAnswer(f"A mask of {self.size} pixels decodes to {decoded.shape}.")
        decoded.setflags(write=False)
        return decoded

    @cached_property
    def rle(self) -> Rle:
        """As COCO's RLE."""
        return self.encoded if isinstance(self.encoded, Rle) else encode_rle(self.array)

    @cached_property
    def area(self) -> int:
        """Pixels in the mask."""
        return int(np.count_nonzero(self.array))

    @cached_property
    def box(self) -> PixelBox:
        """The tight half-open box; all 0 for an empty mask."""
        rows = np.flatnonzero(self.array.any(axis=1))
        if rows.size == 0:
            return PixelBox(0, 0, 0, 0)
        columns = np.flatnonzero(self.array.any(axis=0))
        return PixelBox(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)

    def image(self) -> PIL.Image.Image:
        """A picture of one bit per pixel, white where the mask is."""
        height, width = self.size
        return PIL.Image.frombytes("1", (width, height), np.packbits(self.array, axis=1).tobytes())

    def save(self, path: str | PathLike[str]) -> None:
        """Write it as a picture, white where the mask is; the format follows the file's name.

        Raises:
            InvalidArgument: a name of no known format, or a place that cannot be written to.
        """
        save_picture(self.image(), path)


@dataclass(frozen=True)
class ScoredMask:
    """One of the masks of a prompt.

    Attributes:
        mask: to be used in a prompt again, or decoded.
        score: predicted IoU, about 0 to 1.
        stability_score: 0 to 1: IoU of the masks at thresholds 1 above and 1 below.
        box: tight and half-open; all 0 for an empty mask.
        area: pixels in the mask.
    """

    mask: Mask
    score: float
    stability_score: float
    box: PixelBox
    area: int

    @property
    def array(self) -> NDArray[np.bool_]:
        """The pixels, bool (height, width) of the picture's size, decoded at the first look."""
        return self.mask.array

    def save(self, path: str | PathLike[str]) -> None:
        """Write the mask as a picture, white where the mask is; see `Mask.save`."""
        self.mask.save(path)


def save_picture(picture: PIL.Image.Image, path: str | PathLike[str]) -> None:
    """Write a picture in the format of the file's name.

    Raises:
        InvalidArgument: a name of no known format, or a place that cannot be written to.
    """
    try:
        picture.save(path)
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"{path} cannot be written: {error}.") from error


def from_base64(text: str) -> bytes:
    """Bytes out of an answer.

    Raises:
        BadAnswer: it is not base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadAnswer(f"Bytes in the answer are not base64: {error}.") from error


def open_png(data: bytes) -> PIL.Image.Image:
    """A picture out of an answer, read to its end.

    Raises:
        BadAnswer: it is no PNG.
    """
    try:
        picture = PIL.Image.open(io.BytesIO(data), formats=["PNG"])
        picture.load()
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise BadAnswer(f"A picture in the answer cannot be read: {error}.") from error
    return picture


def window_of(size: tuple[int, int], side: int) -> tuple[float, float]:
    """Cells of the logits that a picture covers.

    Args:
        size: height and width of the picture.
        side: its longest side as the encoder saw it, in pixels.

    Returns:
        (height, width) in cells, with fractions.
    """
    scale = side / max(size)
    rows, columns = (max(1, int(length * scale + 0.5)) / _LOGITS_STRIDE for length in size)
    return rows, columns


def masks_of_map(data: bytes, size: tuple[int, int]) -> tuple[Mask, Mask]:
    """Healthy and infected fruit out of a picture of classes.

    Args:
        data: an indexed PNG: 0 background, 1 healthy, 2 infected.
        size: height and width of the picture.

    Raises:
        BadAnswer: it is no PNG.
    """
    index = np.asarray(open_png(data))
    return Mask(size, encode_rle(index == 1)), Mask(size, encode_rle(index == 2))


def _decode(encoded: Encoded, size: tuple[int, int]) -> NDArray[np.bool_]:
    if isinstance(encoded, Rle):
        return decode_rle(encoded)
    if isinstance(encoded, Png):
        white: NDArray[np.bool_] = np.asarray(open_png(encoded.data)) != 0
        return white
    if isinstance(encoded, Polygons):
        return fill(encoded.polygons, size)
    return _enlarged(encoded, size)


def _enlarged(logits: Logits, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Enlarged bilinearly in one step, where the service takes two: along edges a pixel may differ."""
    rows, columns = logits.window
    height, width = size
    cells = PIL.Image.fromarray(logits.values)
    # A triangle filter of one cell is bilinear interpolation where the picture is the larger of the two.
    enlarged = cells.resize((width, height), PIL.Image.Resampling.BILINEAR, box=(0, 0, columns, rows))
    inside: NDArray[np.bool_] = np.asarray(enlarged) > 0
    return inside
