"""COCO's compressed run-length encoding, in numpy alone.

The runs go down the columns and alternate between background and mask, background first. From the fourth on, each is
written as the difference to the run two before, in digits of 5 bits, lowest first, with a sixth bit for "more follows",
offset by 48 into ASCII (https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.c).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from pomona.errors import BadAnswer

MAX_PIXELS: Final = 1 << 30
"""Largest mask that is decoded: the service's limit lies far below."""

_MAX_DIGITS: Final = 7  # 5 bits each: enough for a run of 2^32 pixels


@dataclass(frozen=True)
class Rle:
    """A mask as COCO has it; `{"size": [h, w], "counts": "…"}` in JSON.

    Attributes:
        size: height and width.
        counts: the runs, characters 48 to 111.
    """

    size: tuple[int, int]
    counts: str


def encode_rle(mask: NDArray[np.bool_]) -> Rle:
    """Encode a mask, byte for byte as pycocotools does.

    Args:
        mask: bool (height, width), at least one pixel.
    """
    height, width = mask.shape
    # Changes are sought row by row, as the mask lies in memory, and sorted into column order: they are few.
    rows, columns = np.divmod(np.flatnonzero(mask[1:] != mask[:-1]), width)
    seams = np.flatnonzero(mask[0, 1:] != mask[-1, :-1])
    changes = np.concatenate((columns * height + rows + 1, (seams + 1) * height))
    changes.sort()
    start = [0, 0] if mask[0, 0] else [0]
    runs = np.diff(np.concatenate((start, changes, [mask.size]))).astype(np.int64)
    runs[3:] -= runs[1:-2].copy()
    return Rle((height, width), _write(runs))


def decode_rle(rle: Rle) -> NDArray[np.bool_]:
    """Decode a mask.

    Returns:
        bool (height, width), C-contiguous.

    Raises:
        BadAnswer: a size that is not positive or far too large, characters out of range, or runs that do not add up.
    """
    height, width = rle.size
    pixels = height * width
    if height < 1 or width < 1 or pixels > MAX_PIXELS:
        raise BadAnswer(f"An RLE of {height} x {width} pixels is no mask.")
    runs = _read(rle.counts, pixels)
    if runs.min() < 0 or runs.max() > pixels or runs.sum() != pixels:
        raise BadAnswer(f"The runs of an RLE do not add up to {height} x {width} pixels.")
    mask = np.zeros((height, width), np.bool_)
    ends = np.cumsum(runs)
    wanted = np.flatnonzero(runs[1::2])
    if wanted.size:
        # Only the columns that hold something are filled: most masks are small beside their picture.
        left, right = int(ends[2 * wanted[0]]) // height, (int(ends[2 * wanted[-1] + 1]) - 1) // height + 1
        bounds = np.clip(ends, left * height, right * height)
        inside = (np.arange(runs.size) & 1).astype(np.uint8)
        columns = np.repeat(inside, np.diff(bounds, prepend=left * height)).reshape(right - left, height)
        # Pillow turns a picture in blocks, which is many times as fast as numpy's strided copy.
        turned = PIL.Image.fromarray(columns).transpose(PIL.Image.Transpose.TRANSPOSE)
        mask[:, left:right] = np.asarray(turned)
    return mask


def _write(values: NDArray[np.int64]) -> str:
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


def _read(counts: str, pixels: int) -> NDArray[np.int64]:
    codes = np.frombuffer(counts.encode("utf-8", "replace"), np.uint8)
    if codes.size == 0 or codes.min() < 48 or codes.max() > 111:
        raise BadAnswer("The counts of an RLE are empty or hold characters outside '0' to 'o'.")
    digits = codes - np.uint8(48)
    ends = np.flatnonzero(digits < 32)
    if ends.size == 0 or ends[-1] != codes.size - 1 or ends.size > pixels + 1:
        raise BadAnswer("The counts of an RLE end within a number, or are more than the mask has pixels.")
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > _MAX_DIGITS:
        raise BadAnswer(f"The counts of an RLE hold a number of more than {_MAX_DIGITS} digits.")
    places = np.arange(codes.size) - np.repeat(starts, lengths)
    runs: NDArray[np.int64] = np.add.reduceat((digits & 31).astype(np.int64) << (5 * places), starts)
    runs -= (digits[ends] & 16).astype(np.int64) >> 4 << (5 * lengths)
    # Undo the differences to the run two before, which start at the fourth run.
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs
