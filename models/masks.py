"""Binary mask <-> COCO RLE and PNG, logits <-> base64, and the measures of a mask.

Polygons are in `models.polygons`. Whatever is decoded here may come from strangers: every decoder
checks the announced size before it allocates, and raises `MaskError` on anything that is not right.
"""

from __future__ import annotations

import base64
import binascii
import struct
import zlib
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from models import images
from models.errors import ImageError, MaskError
from models.types import BinaryMask, Logits

MAX_PIXELS = 100_000_000
"""Largest mask that is decoded unless the caller knows better."""

MAX_LOGITS_SIDE = 256
"""Longest side of low-resolution logits: those of the square of 1024 pixels."""

_MAX_DIGITS = 7  # 5 bits each: a run of 2^32 pixels, the most that COCO's tools write, takes 7
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_FLOAT16_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True, slots=True)
class Rle:
    """COCO's compressed run-length encoding; `{"size": [h, w], "counts": "…"}` in JSON.

    The runs go down the columns and alternate between background and mask, background first. From
    the fourth on, each is written as the difference to the run two before, in digits of 5 bits,
    lowest first, with a sixth bit for "more follows", offset by 48 into ASCII.

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
        data: base64 of the values, little-endian, row by row.
    """

    shape: tuple[int, int]
    dtype: str
    data: str


def encode_rle(mask: BinaryMask) -> Rle:
    """Encode a mask as COCO RLE, byte for byte as `pycocotools.mask.encode` does.

    Args:
        mask: bool (height, width), at least one pixel.

    Returns:
        Its run-length encoding.
    """
    height, width = mask.shape
    # Changes are sought row by row, as the mask lies in memory, and sorted into column order
    # afterwards: they are few, and turning the whole mask would take longer than all the rest.
    at = np.flatnonzero(mask[1:] != mask[:-1])
    rows, columns = np.divmod(at, width)
    seams = np.flatnonzero(mask[0, 1:] != mask[-1, :-1])
    changes = np.concatenate((columns * height + rows + 1, (seams + 1) * height))
    changes.sort()
    start = [0, 0] if mask[0, 0] else [0]
    runs = np.diff(np.concatenate((start, changes, [height * width])))
    return Rle((height, width), write_runs(runs))


def decode_rle(rle: Rle, *, max_pixels: int = MAX_PIXELS) -> BinaryMask:
    """Decode COCO RLE.

    Args:
        rle: a run-length encoding from anywhere.
        max_pixels: most pixels to decode.

    Returns:
        bool (height, width), C-contiguous.

    Raises:
        MaskError: a size that is not positive or too large, characters out of range, or runs that
            are negative, too long, too many, or do not add up to the size.
    """
    height, width = _checked_size(rle.size, max_pixels)
    pixels = height * width
    runs = _read_runs(rle.counts, pixels)
    if runs.size == 0 or runs.min() < 0:
        raise MaskError("The RLE has a run of negative length, or no run at all.")
    # The first test keeps the sum of the second from overflowing.
    if runs.max() > pixels or runs.sum() != pixels:
        raise MaskError(f"The RLE's runs do not add up to {height} x {width} = {pixels} pixels.")
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
    height, width = mask.shape
    rows = np.zeros((height, 1 + (width + 7) // 8), np.uint8)  # each row starts with its filter: 0
    rows[:, 1:] = np.packbits(mask, axis=1)
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"".join(
        (
            _PNG_SIGNATURE,
            _png_chunk(b"IHDR", header),
            _png_chunk(b"IDAT", zlib.compress(rows.tobytes(), 1)),
            _png_chunk(b"IEND", b""),
        )
    )


def decode_png(data: bytes, *, max_pixels: int = MAX_PIXELS) -> BinaryMask:
    """Decode a mask from a greyscale PNG.

    Args:
        data: a PNG file with 1 to 16 bits of grey.
        max_pixels: most pixels to decode.

    Returns:
        bool (height, width): True where the grey is not 0.

    Raises:
        MaskError: not a PNG, damaged, too large, or not greyscale.
    """
    if not data.startswith(_PNG_SIGNATURE):
        raise MaskError("The mask is not a PNG file. Send a greyscale PNG, 0 where no object is.")
    try:
        image = images.load(data, max_pixels=max_pixels)
    except ImageError as error:
        raise MaskError(f"The mask's PNG cannot be read: {error.detail}") from error
    if image.mode not in {"1", "L", "I", "I;16", "I;16B"}:
        raise MaskError(
            f"The mask's PNG has colours or alpha (mode {image.mode}). Send a greyscale PNG, 0 where no object is."
        )
    mask: BinaryMask = np.array(image) != 0
    return mask


def encode_logits(logits: Logits) -> EncodedLogits:
    """Encode low-resolution logits at half precision.

    Rounding is to the nearest float16: within 0.05 % of the value, so within 0.008 for logits from
    -32 to 32. Values beyond 65504 become 65504. Signs, hence the mask, survive but for values
    within 3e-8 of 0, which become 0.

    Args:
        logits: float32 (height, width), 1 to 256 each, no NaN.

    Returns:
        The logits, two bytes each before base64.
    """
    halves = np.clip(logits, -_FLOAT16_MAX, _FLOAT16_MAX).astype("<f2")
    height, width = halves.shape
    return EncodedLogits((height, width), "float16", base64.b64encode(halves.tobytes()).decode())


def decode_logits(encoded: EncodedLogits) -> Logits:
    """Decode low-resolution logits.

    Whether their shape is that of an image's frame is for `models.sam.prompts.check` to say.

    Args:
        encoded: logits from anywhere.

    Returns:
        float32 (height, width), 1 to 256 each, finite.

    Raises:
        MaskError: a shape that no frame has or another dtype, data that is not base64 or of the
            wrong length, or values that are not finite.
    """
    shape = encoded.shape
    plausible = len(shape) == 2 and all(type(side) is int and 1 <= side <= MAX_LOGITS_SIDE for side in shape)
    if not plausible or encoded.dtype != "float16":
        raise MaskError(
            f"Logits have a shape [height, width] of 1 to {MAX_LOGITS_SIDE} each and dtype float16, "
            f"not {list(shape)} and {encoded.dtype}."
        )
    height, width = shape
    expected = height * width * 2
    try:
        data = base64.b64decode(encoded.data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MaskError(f"The logits' data is not base64: {error}.") from error
    if len(data) != expected:
        raise MaskError(f"The logits' data has {len(data)} bytes; {expected} are expected.")
    logits = np.frombuffer(data, "<f2").astype(np.float32).reshape(height, width)
    if not np.isfinite(logits).all():
        raise MaskError("The logits hold values that are not finite.")
    return logits


def bounding_box(mask: BinaryMask) -> tuple[int, int, int, int]:
    """Find the box of a mask.

    Args:
        mask: bool (height, width).

    Returns:
        The tight half-open box x0, y0, x1, y1 in whole pixels; (0, 0, 0, 0) for an empty mask.
    """
    rows = np.flatnonzero(mask.any(axis=1))
    if rows.size == 0:
        return (0, 0, 0, 0)
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(mask[top:bottom].any(axis=0))
    return (int(columns[0]), top, int(columns[-1]) + 1, bottom)


def write_runs(runs: NDArray[np.int64]) -> str:
    """Write runs of pixels in COCO's characters; see `Rle`.

    Args:
        runs: int64 (runs,), background first.
    """
    values = runs.copy()
    values[3:] -= runs[1:-2]
    digits = np.empty((values.size, _MAX_DIGITS + 1), np.uint8)
    written = np.zeros(digits.shape, np.bool_)
    unfinished = np.ones(values.size, np.bool_)
    for place in range(digits.shape[1]):
        digit = values & 31
        values >>= 5
        # Done when what is left is the sign, and the sign is the highest bit written.
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
        raise MaskError("The RLE's counts hold characters that are not ASCII.") from error
    if codes.size == 0 or codes.min() < 48 or codes.max() > 111:
        raise MaskError("The RLE's counts are empty or hold characters outside '0' to 'o'.")
    digits = codes - np.uint8(48)
    ends = np.flatnonzero(digits < 32)
    if ends.size == 0 or ends[-1] != codes.size - 1:
        raise MaskError("The RLE's counts end within a number.")
    if ends.size > pixels + 1:
        raise MaskError(f"The RLE has {ends.size} runs, more than its {pixels} pixels allow.")
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > _MAX_DIGITS:
        raise MaskError(f"The RLE has a number of more than {_MAX_DIGITS} digits.")
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
        raise MaskError(f"A mask's size is [height, width], both whole and positive, not {size}.")
    height, width = size
    if height * width > max_pixels:
        raise MaskError(f"The mask has {height} x {width} pixels; the limit is {max_pixels}.")
    return height, width


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
