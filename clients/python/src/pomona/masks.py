"""Masks, decoded when they are first looked at, and COCO's run-length encoding in numpy alone.

The service sends masks as RLE, or with `logits=True` as the low-resolution logits of the SAM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from typing import Any, Final, NamedTuple

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from pomona import _checks as checks
from pomona.errors import BadAnswer, InvalidArgument
from pomona.images import decoding, save_image

_MAX_PIXELS: Final = 1 << 30  # far above the service's limit
_MAX_DIGITS: Final = 7  # of 5 bits: enough for a run of 2^32 pixels
_LOGITS_STRIDE: Final = 4  # a logit covers 4 x 4 pixels of what the encoder saw


@dataclass(frozen=True)
class Rle:
    """A mask as COCO's compressed RLE; in JSON `{"size": [h, w], "counts": "…"}`.

    Attributes:
        size: height and width.
        counts: runs down the columns, characters 48 to 111.

    Raises:
        InvalidArgument: the size is not two whole numbers, or the counts are not a string.
    """

    size: tuple[int, int]
    counts: str

    def __post_init__(self) -> None:
        _check_size(self.size)
        checks.text(self.counts, "the counts of an RLE")


@dataclass(frozen=True)
class Logits:
    """The output of a SAM's mask decoder before upsampling; positive inside the mask.

    Attributes:
        shape: height and width.
        data: float16, little-endian, row by row.
        window: (height, width) of the part that the image covers, in logits, with fractions; the rest is padding.

    Raises:
        InvalidArgument: the data are not bytes, or a number is none or not in its range.
    """

    shape: tuple[int, int]
    data: bytes
    window: tuple[float, float]

    def __post_init__(self) -> None:
        _check_size(self.shape)
        if not isinstance(self.data, bytes):
            raise InvalidArgument(f"The data of logits must be bytes, got {checks.shown(self.data)}.")
        if not (isinstance(self.window, Sequence) and len(self.window) == 2):
            raise InvalidArgument(f"The window of logits must be (height, width), got {checks.shown(self.window)}.")
        for length, whole in zip(self.window, self.shape, strict=True):
            checks.number(length, "the window of logits", low=1 / _LOGITS_STRIDE, high=whole)

    @property
    def values(self) -> NDArray[np.float32]:
        """float32 (height, width).

        Raises:
            BadAnswer: the data do not have the length that the shape needs.
        """
        height, width = self.shape
        if height < 1 or width < 1 or len(self.data) != 2 * height * width:
            raise BadAnswer(f"Logits of shape {self.shape} must have 2 bytes each, got {len(self.data)} bytes in all.")
        return np.frombuffer(self.data, "<f2").astype(np.float32).reshape(height, width)


class PixelBox(NamedTuple):
    """The tight half-open box of a mask in whole pixels; all 0 for an empty mask."""

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
    """A set of pixels of an image.

    Attributes:
        size: height and width of the image.
        encoded: the mask as the service sent it, or as it is sent in a prompt.

    Raises:
        InvalidArgument: the size is not two whole numbers, or the mask is of another type.
    """

    size: tuple[int, int]
    encoded: Rle | Logits

    def __post_init__(self) -> None:
        _check_size(self.size)
        if not isinstance(self.encoded, (Rle, Logits)):
            raise InvalidArgument(f"A mask must be encoded as Rle or Logits, got {checks.shown(self.encoded)}.")

    @classmethod
    def of(cls, array: NDArray[Any]) -> Mask:
        """Make a mask from an array.

        Args:
            array: bool or integer (height, width); nonzero inside the mask.

        Raises:
            InvalidArgument: another shape or type, or no pixels.
        """
        if not isinstance(array, np.ndarray):
            raise InvalidArgument(f"A mask must be a bool array (height, width), got {checks.shown(array)}.")
        if array.ndim != 2 or array.size == 0 or array.dtype.kind not in "bui":
            raise InvalidArgument(
                f"A mask must be a bool array (height, width), got {array.dtype} {array.shape}: threshold it first."
            )
        height, width = array.shape
        return cls((height, width), encode_rle(array != 0))

    @classmethod
    def open(cls, path: str | PathLike[str]) -> Mask:
        """Read a mask from an image file; pixels that are not black are inside.

        Raises:
            UnreadableImage: the file cannot be read, or is not an image.
        """
        name = checks.path(path)
        with decoding(f"{checks.shown(name)} cannot be read as a mask"), PIL.Image.open(name) as image:
            # Converted to 8 bits, a small number of a 16-bit or floating-point mask would become black.
            wide = image.mode.startswith(("I", "F"))
            pixels: NDArray[Any] = np.asarray(image if wide else image.convert("RGB"))
            return cls.of(np.not_equal(pixels, 0) if wide else np.any(pixels, axis=2))

    @cached_property
    def array(self) -> NDArray[np.bool_]:
        """The pixels as bool (height, width), decoded at first use and read-only.

        Raises:
            BadAnswer: the mask cannot be decoded, or is not of the image's size.
        """
        height, width = self.size
        if height < 1 or width < 1 or height * width > _MAX_PIXELS:
            raise BadAnswer(f"A mask must have at least one pixel and at most {_MAX_PIXELS}, got {self.size}.")
        decoded = decode_rle(self.encoded) if isinstance(self.encoded, Rle) else _upsample(self.encoded, self.size)
        if decoded.shape != self.size:
            raise BadAnswer(f"A mask must have the image's size {self.size}, got {decoded.shape}.")
        decoded.setflags(write=False)
        return decoded

    @cached_property
    def rle(self) -> Rle:
        """The mask as COCO's RLE."""
        return self.encoded if isinstance(self.encoded, Rle) else encode_rle(self.array)

    @cached_property
    def area(self) -> int:
        """Number of pixels in the mask."""
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
        """Return an image of one bit per pixel, white inside the mask."""
        height, width = self.size
        return PIL.Image.frombytes("1", (width, height), np.packbits(self.array, axis=1).tobytes())

    def save(self, path: str | PathLike[str]) -> None:
        """Write the mask as an image, white inside the mask, in the format of the file's name.

        Raises:
            InvalidArgument: the name has no known extension, or the file cannot be written.
        """
        save_image(self.image(), path)


@dataclass(frozen=True)
class ScoredMask:
    """One of the masks of a prompt.

    Attributes:
        mask: to decode, or to use in a prompt.
        score: predicted IoU, about 0 to 1.
        stability_score: IoU of the masks at thresholds 1 above and 1 below, 0 to 1.
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
        """The pixels as bool (height, width) of the image's size, decoded at first use."""
        return self.mask.array

    def save(self, path: str | PathLike[str]) -> None:
        """Write the mask as an image, white inside the mask; see `Mask.save`."""
        self.mask.save(path)


def _check_size(size: Any) -> None:
    if not (isinstance(size, tuple) and len(size) == 2):
        raise InvalidArgument(f"A size must be (height, width), got {checks.shown(size)}.")
    for length in size:
        checks.whole(length, "a height or a width", low=0)


def logits_window(size: tuple[int, int], longest_side: int) -> tuple[float, float]:
    """Return the part of a SAM's logits that an image covers.

    Args:
        size: height and width of the image.
        longest_side: of the image as the encoder saw it, in pixels.

    Returns:
        (height, width) in logits, with fractions.
    """
    scale = longest_side / max(size)
    rows, columns = (max(1, int(length * scale + 0.5)) / _LOGITS_STRIDE for length in size)
    return rows, columns


def _upsample(logits: Logits, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Upsample bilinearly in one step; the service takes two steps, so pixels along edges may differ."""
    rows, columns = logits.window
    height, width = size
    # A triangle filter of one logit is bilinear interpolation where the image is the larger of the two.
    upsampled = PIL.Image.fromarray(logits.values).resize(
        (width, height), PIL.Image.Resampling.BILINEAR, box=(0, 0, columns, rows)
    )
    inside: NDArray[np.bool_] = np.asarray(upsampled) > 0
    return inside


# COCO's compressed RLE (https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.c): the runs go down the
# columns and alternate between background and mask, background first. From the fourth on, each is written as the
# difference to the run two before, in digits of 5 bits, lowest first, with a sixth bit for "more follows", offset by 48
# into ASCII.


def encode_rle(mask: NDArray[np.bool_]) -> Rle:
    """Encode a mask, byte for byte as pycocotools does.

    Args:
        mask: bool (height, width), at least one pixel.
    """
    height, width = mask.shape
    # Changes are found row by row, as the mask lies in memory, and sorted into column order: they are few.
    rows, columns = np.divmod(np.flatnonzero(mask[1:] != mask[:-1]), width)
    seams = np.flatnonzero(mask[0, 1:] != mask[-1, :-1])
    changes = np.concatenate((columns * height + rows + 1, (seams + 1) * height))
    changes.sort()
    start = [0, 0] if mask[0, 0] else [0]
    runs = np.diff(np.concatenate((start, changes, [mask.size]))).astype(np.int64)
    runs[3:] -= runs[1:-2].copy()
    return Rle((height, width), _write_numbers(runs))


def decode_rle(rle: Rle) -> NDArray[np.bool_]:
    """Decode a mask.

    Returns:
        bool (height, width), C-contiguous.

    Raises:
        BadAnswer: the size is not positive or far too large, a character is out of range, or the runs do not add up.
    """
    height, width = rle.size
    pixels = height * width
    if height < 1 or width < 1 or pixels > _MAX_PIXELS:
        raise BadAnswer(f"The size of an RLE must be positive and at most {_MAX_PIXELS} pixels, got {rle.size}.")
    runs = _read_numbers(rle.counts, pixels)
    if runs.min() < 0 or runs.max() > pixels or runs.sum() != pixels:
        raise BadAnswer(f"The runs of an RLE must add up to {height} x {width} pixels.")
    mask = np.zeros((height, width), np.bool_)
    ends = np.cumsum(runs)
    filled = np.flatnonzero(runs[1::2])
    if filled.size:
        # Only the columns that hold something are filled: most masks are small beside their image.
        left, right = int(ends[2 * filled[0]]) // height, (int(ends[2 * filled[-1] + 1]) - 1) // height + 1
        bounds = np.clip(ends, left * height, right * height)
        inside = (np.arange(runs.size) & 1).astype(np.uint8)
        columns = np.repeat(inside, np.diff(bounds, prepend=left * height)).reshape(right - left, height)
        # Pillow transposes in blocks, which is many times as fast as numpy's strided copy.
        transposed = PIL.Image.fromarray(columns).transpose(PIL.Image.Transpose.TRANSPOSE)
        mask[:, left:right] = np.asarray(transposed)
    return mask


def _write_numbers(values: NDArray[np.int64]) -> str:
    digits = np.empty((values.size, _MAX_DIGITS + 1), np.uint8)
    written = np.zeros(digits.shape, np.bool_)
    unfinished = np.ones(values.size, np.bool_)
    for place in range(digits.shape[1]):
        digit = values & 31
        values = values >> 5
        # Done when what is left is the sign, and the sign is the highest bit written.
        more = values != np.where(digit & 16, -1, 0)
        digits[:, place] = digit + 48 + (more << 5)
        written[:, place] = unfinished
        unfinished = unfinished & more
    return digits[written].tobytes().decode("ascii")


def _read_numbers(counts: str, pixels: int) -> NDArray[np.int64]:
    codes = np.frombuffer(counts.encode("utf-8", "replace"), np.uint8)
    if codes.size == 0 or codes.min() < 48 or codes.max() > 111:
        raise BadAnswer("The counts of an RLE must be characters from '0' to 'o', at least one.")
    digits = codes - np.uint8(48)
    ends = np.flatnonzero(digits < 32)
    if ends.size == 0 or ends[-1] != codes.size - 1 or ends.size > pixels + 1:
        raise BadAnswer("The counts of an RLE must end with a whole number and have no more numbers than pixels.")
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > _MAX_DIGITS:
        raise BadAnswer(f"A number in the counts of an RLE must have at most {_MAX_DIGITS} digits.")
    places = np.arange(codes.size) - np.repeat(starts, lengths)
    runs: NDArray[np.int64] = np.add.reduceat((digits & 31).astype(np.int64) << (5 * places), starts)
    runs -= (digits[ends] & 16).astype(np.int64) >> 4 << (5 * lengths)
    # Undo the differences to the run two before, which start at the fourth run.
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs
