"""Converts masks to COCO RLE and PNG, low-resolution logits to bytes, and back; crops masks to the boxes they fill.

Polygons are in `models.polygons`. Decoders take data of untrusted origin: they check the announced size before they
allocate, and raise `MaskError` for anything invalid.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from models import images
from models.errors import ImageError, MaskError
from models.png import SIGNATURE, write_png
from models.types import BinaryMask, Logits, Size

PixelBox: TypeAlias = tuple[int, int, int, int]
"""A half-open box x0, y0, x1, y1 in whole pixels."""

MAX_PIXELS: Final = 100_000_000
"""Default limit of the pixels of a decoded mask."""

MAX_LOGITS_SIDE: Final = 256
"""Longest side of low-resolution logits: those of the square of 1024 pixels."""

_MAX_DIGITS: Final = 7  # 5 bits each: a run of 2^32 pixels, the most that COCO's tools write, takes 7
_STRIP: Final = 64
"""Rows of a mask that are worked on at a time: they stay in the cache, and no copy of the whole is made."""

_FLOAT16_MAX: Final = float(np.finfo(np.float16).max)


@dataclass(frozen=True, slots=True)
class Rle:
    """COCO's compressed run-length encoding; `{"size": [h, w], "counts": "…"}` in JSON.

    The runs go down the columns and alternate between background and mask, background first. From the fourth on, each
    is written as the difference to the run two before, in digits of 5 bits, lowest first, with a sixth bit for "more
    follows", offset by 48 into ASCII.

    Attributes:
        size: height and width.
        counts: the runs, characters 48 to 111.
    """

    size: tuple[int, int]
    counts: str


@dataclass(frozen=True, slots=True)
class EncodedLogits:
    """Low-resolution logits for transport.

    Attributes:
        shape: height and width, 1 to 256 each.
        dtype: "float16".
        data: the values, two bytes each, little-endian, row by row.
    """

    shape: tuple[int, int]
    dtype: str
    data: bytes


@dataclass(frozen=True, slots=True, eq=False)
class CroppedMask:
    """A mask that is empty outside a box.

    A fruit covers a small part of a large image; working in its box alone takes a fraction of the time.

    Attributes:
        pixels: bool (height, width) of the box, at least one pixel.
        x0: the box's left column in the image.
        y0: the box's top row in the image.
        size: size of the image, which contains the box.
    """

    pixels: BinaryMask
    x0: int
    y0: int
    size: Size

    @property
    def box(self) -> PixelBox:
        """The box in the image; it may be larger than the mask's tight box."""
        height, width = self.pixels.shape
        return (self.x0, self.y0, self.x0 + width, self.y0 + height)

    @property
    def area(self) -> int:
        """Number of pixels in the mask."""
        return int(np.count_nonzero(self.pixels))

    def tight(self) -> CroppedMask:
        """Return the same mask in its tight box, or in one pixel of its box if it is empty."""
        left, top, right, bottom = bounding_box(self.pixels)
        right, bottom = max(right, left + 1), max(bottom, top + 1)
        return CroppedMask(self.pixels[top:bottom, left:right], self.x0 + left, self.y0 + top, self.size)

    def within(self, box: PixelBox) -> BinaryMask:
        """Return the part of the mask that lies in a box of the image: bool (height, width) of that box."""
        x0, y0, x1, y1 = box
        seen = np.zeros((y1 - y0, x1 - x0), np.bool_)
        if (shared := intersection(self.box, box)) is not None:
            left, top, right, bottom = shared
            mine = self.pixels[top - self.y0 : bottom - self.y0, left - self.x0 : right - self.x0]
            seen[top - y0 : bottom - y0, left - x0 : right - x0] = mine
        return seen

    def full(self) -> BinaryMask:
        """Return the mask of the whole image: bool (height, width)."""
        return self.within((0, 0, self.size.width, self.size.height))


def whole(mask: BinaryMask) -> CroppedMask:
    """Return a mask as one that is cropped to the whole image."""
    return CroppedMask(mask, 0, 0, Size(*mask.shape))


def bounding_box(mask: BinaryMask) -> PixelBox:
    """Find the tight box of a mask.

    Args:
        mask: bool (height, width).

    Returns:
        The half-open box x0, y0, x1, y1 in whole pixels; (0, 0, 0, 0) for an empty mask.
    """
    rows = np.flatnonzero(mask.any(axis=1))
    if rows.size == 0:
        return (0, 0, 0, 0)
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(mask[top:bottom].any(axis=0))
    return (int(columns[0]), top, int(columns[-1]) + 1, bottom)


def intersection(one: PixelBox, other: PixelBox) -> PixelBox | None:
    """Intersect two boxes; None if they share no pixel."""
    x0, y0 = max(one[0], other[0]), max(one[1], other[1])
    x1, y1 = min(one[2], other[2]), min(one[3], other[3])
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def encode_rle(mask: BinaryMask) -> Rle:
    """Encode a mask as COCO RLE, byte for byte as `pycocotools.mask.encode` does.

    Args:
        mask: bool (height, width), at least one pixel.

    Returns:
        Its run-length encoding.
    """
    return rle_of(whole(mask))


def rle_of(mask: CroppedMask) -> Rle:
    """Encode a cropped mask as COCO RLE of the whole image, byte for byte as `encode_rle` does."""
    height, width = mask.size.height, mask.size.width
    rows, columns = mask.pixels.shape
    # Changes are found row by row, in memory order, and sorted into column order afterwards: they are few, and
    # transposing the whole mask would take longer than all the rest.
    at = np.concatenate([start * columns + np.flatnonzero(changed) for start, changed in _changes_down(mask.pixels)])
    down, across = np.divmod(at, columns)
    changes = (across + mask.x0) * height + down + mask.y0
    changes.sort()
    if rows == height:
        # If a column ends in the mask and the next one begins in it, nothing changes between them.
        again = np.zeros(changes.size + 1, np.bool_)
        again[1:-1] = changes[1:] == changes[:-1]
        changes = changes[~(again[1:] | again[:-1])]
    if changes.size and changes[-1] == height * width:
        changes = changes[:-1]
    return Rle((height, width), _write_runs(np.diff(np.concatenate(([0], changes, [height * width])))))


def decode_rle(rle: Rle, *, max_pixels: int = MAX_PIXELS) -> BinaryMask:
    """Decode COCO RLE.

    Args:
        rle: a run-length encoding of untrusted origin.
        max_pixels: most pixels to decode.

    Returns:
        bool (height, width), C-contiguous.

    Raises:
        MaskError: the size is not positive or too large, characters are out of range, or runs are negative, too long,
            too many, or do not add up to the size.
    """
    height, width = _checked_size(rle.size, max_pixels)
    pixels = height * width
    runs = _read_runs(rle.counts, pixels)
    if runs.size == 0 or runs.min() < 0:
        raise MaskError("The runs of the RLE must not be negative, and there must be at least one.")
    # The first test keeps the sum of the second from overflowing.
    if runs.max() > pixels or runs.sum() != pixels:
        raise MaskError(f"The runs of the RLE must add up to {height} x {width} = {pixels} pixels.")
    values = np.arange(runs.size, dtype=np.uint8) & 1
    columns = np.repeat(values, runs).reshape(width, height)
    rows: NDArray[np.uint8] = np.asarray(cv2.transpose(columns), np.uint8).reshape(height, width)
    return rows.view(np.bool_)


def encode_png(mask: BinaryMask) -> bytes:
    """Encode a mask as a PNG of one bit per pixel.

    Args:
        mask: bool (height, width), at least one pixel.

    Returns:
        A greyscale PNG file, white where the mask is.
    """
    return png_of(whole(mask))


def png_of(mask: CroppedMask) -> bytes:
    """Encode a cropped mask as a PNG of the whole image, as `encode_png` does."""
    height, width = mask.size.height, mask.size.width
    strips = (mask.within((0, top, width, min(top + _STRIP, height))) for top in range(0, height, _STRIP))
    return write_png(mask.size, (np.packbits(strip, axis=1) for strip in strips), "grey", bits=1)


def decode_png(data: bytes, *, max_pixels: int = MAX_PIXELS) -> BinaryMask:
    """Decode a mask from a greyscale PNG.

    Args:
        data: a PNG file with 1 to 16 bits of grey.
        max_pixels: most pixels to decode.

    Returns:
        bool (height, width): True where the grey is not 0.

    Raises:
        MaskError: the data is not a PNG, damaged, too large, or not greyscale.
    """
    if not data.startswith(SIGNATURE):
        raise MaskError("The mask must be a greyscale PNG file, 0 outside the object.")
    try:
        image = images.load(data, max_pixels=max_pixels)
    except ImageError as error:
        raise MaskError(f"The PNG of the mask cannot be read: {error.detail}") from error
    if image.mode not in {"1", "L", "I", "I;16", "I;16B"}:
        raise MaskError(
            f"The PNG of the mask must be greyscale without alpha, 0 outside the object, got mode {image.mode}."
        )
    mask: BinaryMask = np.array(image) != 0
    return mask


def encode_logits(logits: Logits) -> EncodedLogits:
    """Encode low-resolution logits at half precision.

    Values are rounded to the nearest float16: within 0.05 %, so within 0.008 for logits from -32 to 32. Values beyond
    65504 become 65504. Signs, and with them the mask, are kept, except that values within 3e-8 of 0 become 0.

    Args:
        logits: float32 (height, width), 1 to 256 each, no NaN.

    Returns:
        The logits as bytes, with their shape.
    """
    halves = np.clip(logits, -_FLOAT16_MAX, _FLOAT16_MAX).astype("<f2")
    height, width = halves.shape
    return EncodedLogits((height, width), "float16", halves.tobytes())


def decode_logits(encoded: EncodedLogits) -> Logits:
    """Decode low-resolution logits.

    Whether their shape fits an image's letterbox is checked by `models.sam.prompts.check`.

    Args:
        encoded: logits of untrusted origin.

    Returns:
        float32 (height, width), 1 to 256 each, finite.

    Raises:
        MaskError: the shape, the dtype or the length of the data is invalid, or a value is not finite.
    """
    shape = encoded.shape
    plausible = len(shape) == 2 and all(type(side) is int and 1 <= side <= MAX_LOGITS_SIDE for side in shape)
    if not plausible or encoded.dtype != "float16":
        raise MaskError(
            f"Logits must have a shape [height, width] of 1 to {MAX_LOGITS_SIDE} each and dtype float16, "
            f"got {list(shape)} and {encoded.dtype}."
        )
    height, width = shape
    expected = height * width * 2
    if len(encoded.data) != expected:
        raise MaskError(f"The data of logits must have {expected} bytes, got {len(encoded.data)}.")
    logits = np.frombuffer(encoded.data, "<f2").astype(np.float32).reshape(height, width)
    if not np.isfinite(logits).all():
        raise MaskError("All logits must be finite.")
    return logits


def _changes_down(inside: BinaryMask) -> Iterator[tuple[int, BinaryMask]]:
    """Yield, strip by strip, where pixels differ from those above them; outside of the array all are False.

    Args:
        inside: bool (rows, columns).

    Yields:
        The strip's first row, and bool (n, columns); the last row of all is the one below the array.
    """
    rows, columns = inside.shape
    for start in range(0, rows + 1, _STRIP):
        stop = min(start + _STRIP, rows + 1)
        changed = np.zeros((stop - start, columns), np.bool_)
        changed[: min(stop, rows) - start] = inside[start:stop]
        above = inside[max(0, start - 1) : stop - 1]
        changed[len(changed) - len(above) :] ^= above
        yield start, changed


def _write_runs(runs: NDArray[np.int64]) -> str:
    """Write runs of pixels, background first, in COCO's characters; see `Rle`."""
    values = runs.copy()
    values[3:] -= runs[1:-2]
    digits = np.empty((values.size, _MAX_DIGITS + 1), np.uint8)
    written = np.zeros(digits.shape, np.bool_)
    unfinished = np.ones(values.size, np.bool_)
    for place in range(digits.shape[1]):
        digit = values & 31
        values >>= 5
        # Finished when only the sign is left, and the sign is the highest bit written.
        more = values != np.where(digit & 16, -1, 0)
        digits[:, place] = digit + 48 + (more << 5)
        written[:, place] = unfinished
        unfinished = unfinished & more
        if not unfinished.any():
            break
    return digits[written].tobytes().decode("ascii")


def _read_runs(counts: str, pixels: int) -> NDArray[np.int64]:
    try:
        codes = np.frombuffer(counts.encode("ascii"), np.uint8)
    except UnicodeEncodeError as error:
        raise MaskError("The counts of the RLE must be ASCII.") from error
    if codes.size == 0 or codes.min() < 48 or codes.max() > 111:
        raise MaskError("The counts of the RLE must be characters from '0' to 'o', at least one.")
    digits = codes - np.uint8(48)
    ends = np.flatnonzero(digits < 32)
    if ends.size == 0 or ends[-1] != codes.size - 1:
        raise MaskError("The counts of the RLE end within a number.")
    if ends.size > pixels + 1:
        raise MaskError(f"An RLE of {pixels} pixels must have at most {pixels + 1} runs, got {ends.size}.")
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > _MAX_DIGITS:
        raise MaskError(f"Numbers in the counts of the RLE must have at most {_MAX_DIGITS} digits.")
    places = np.arange(codes.size) - np.repeat(starts, lengths)
    runs = np.add.reduceat((digits & 31).astype(np.int64) << (5 * places), starts)
    runs -= (digits[ends] & 16).astype(np.int64) >> 4 << (5 * lengths)
    # Undo the differences to the run two before, which start at the fourth run.
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def _checked_size(size: tuple[int, int], max_pixels: int) -> tuple[int, int]:
    whole = len(size) == 2 and all(type(side) is int and side > 0 for side in size)
    if not whole:
        raise MaskError(f"The size of a mask must be [height, width], two positive whole numbers, got {size}.")
    height, width = size
    if height * width > max_pixels:
        raise MaskError(f"A mask must have at most {max_pixels} pixels, got {height} x {width}.")
    return height, width
