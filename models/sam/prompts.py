"""Checks prompts and packs those of different images into one rectangular batch for the decoder. Needs no PyTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from models.errors import MalformedPrompt, NoPrompt, PromptOutsideImage
from models.letterbox import EMBEDDING_STRIDE, LOGITS_STRIDE, Letterbox
from models.masks import Rle, bounding_box, decode_rle
from models.sam.constants import LABEL_BOX_BOTTOM_RIGHT, LABEL_BOX_TOP_LEFT, LABEL_FILLER, LABEL_PADDING
from models.types import BACKGROUND, FOREGROUND, BinaryMask, Box, EncodedMask, Logits, Prompt, Size

_CONFIDENCE: Final = 1e-6
"""Binary mask prompts become logits of this probability and 1 minus this: about -13.8 and 13.8, as the decoder itself
returns well outside and inside an object. At half of that, the decoder ignores a mask prompt that comes alone."""


_AT_ONCE: Final = 1 << 22
"""Pixels of a mask that are resized at a time."""


@dataclass(frozen=True, slots=True)
class PackedPrompts:
    """P prompts on images of h x w cells as the decoder takes them, padded to N tokens each.

    Attributes:
        points: float32 (P, N, 2), x and y as fractions of the model's square, 0 to 1; centres of pixels.
        labels: int64 (P, N), see `models.sam.constants`.
        mask_inputs: float32 (P, 1, 4 h, 4 w) logits, or None if the prompts have no mask.
        side: side of the model's square in pixels.
        cells: h and w of every prompt's embedding.
    """

    points: NDArray[np.float32]
    labels: NDArray[np.int64]
    mask_inputs: NDArray[np.float32] | None
    side: int
    cells: Size


def check(prompt: Prompt, letterbox: Letterbox) -> None:
    """Check that a prompt is valid for the image of `letterbox`.

    Raises:
        NoPrompt: there are neither points, box nor mask.
        MalformedPrompt: a label is unknown, a number is not finite, the box is empty, or the mask has neither the
            image's size nor, as logits, the letterbox's.
        PromptOutsideImage: a point or a box corner lies beyond the image.
    """
    size = letterbox.original
    if not prompt.points and prompt.box is None and prompt.mask is None:
        raise NoPrompt("A prompt must have points, a box or a mask.")
    for number, point in enumerate(prompt.points):
        if point.label not in (FOREGROUND, BACKGROUND):
            raise MalformedPrompt(f"labels[{number}] must be 1 (foreground) or 0 (background), got {point.label}.")
        if not np.isfinite((point.x, point.y)).all():
            raise MalformedPrompt(f"points[{number}] must be two finite numbers, got ({point.x:g}, {point.y:g}).")
        if not (0 <= point.x < size.width and 0 <= point.y < size.height):
            raise PromptOutsideImage(
                f"points[{number}] must lie in the image of {size.width} x {size.height} pixels (x to the right, y "
                f"down, after EXIF orientation), got ({point.x:g}, {point.y:g})."
            )
    if prompt.box is not None:
        _check_box(prompt.box, size)
    mask = prompt.mask
    if mask is not None:
        logits = _as_logits(mask)
        needed = size if logits is None else letterbox.logits
        shape = mask.shape if isinstance(mask, np.ndarray) else tuple(mask.size)
        if shape != (needed.height, needed.width):
            raise MalformedPrompt(
                f"The mask must have {needed.width} x {needed.height} cells for this image, "
                f"got {' x '.join(map(str, reversed(shape)))}."
            )
        if logits is not None and not np.isfinite(logits).all():
            raise MalformedPrompt("The logits of the mask must be finite numbers.")


def with_logits(prompt: Prompt, letterbox: Letterbox) -> Prompt:
    """Return a prompt whose mask, if it has one, is what the decoder takes: of 50 megapixels these are 256 KiB.

    Args:
        prompt: checked; its mask may be RLE.
        letterbox: of the image.

    Raises:
        MaskError: the RLE is damaged.
    """
    mask = prompt.mask
    if mask is None or _as_logits(mask) is not None:
        return prompt
    pixels = decode_rle(mask, max_pixels=letterbox.original.pixels) if isinstance(mask, Rle) else np.asarray(mask)
    box = prompt.box or (None if prompt.points else _box_of(pixels, 1, letterbox))
    return replace(prompt, box=box, mask=_mask_input(pixels, letterbox))


def _as_logits(mask: BinaryMask | Logits | EncodedMask) -> NDArray[np.float32] | None:
    """Return a mask that is logits; None of a binary one."""
    return np.asarray(mask, np.float32) if isinstance(mask, np.ndarray) and mask.dtype != np.bool_ else None


def _check_box(box: Box, size: Size) -> None:
    corners = (box.x0, box.y0, box.x1, box.y1)
    if not np.isfinite(corners).all():
        raise MalformedPrompt(f"A box must be four finite numbers, got {list(corners)}.")
    if not (box.x0 < box.x1 and box.y0 < box.y1):
        raise MalformedPrompt(f"A box must be [x0, y0, x1, y1] with x0 < x1 and y0 < y1, got {list(corners)}.")
    if box.x0 < 0 or box.y0 < 0 or box.x1 > size.width or box.y1 > size.height:
        raise PromptOutsideImage(
            f"A box must lie in the image of {size.width} x {size.height} pixels, got {list(corners)}."
        )


def pack(prompts: Sequence[Prompt], letterboxes: Sequence[Letterbox]) -> PackedPrompts:
    """Pack checked prompts, each with the letterbox of its own image, into one batch.

    Either all prompts have a mask or none does: the decoder has one path for each case.

    Args:
        prompts: at least one.
        letterboxes: as many as prompts, equal in `side` and `padded`.

    Raises:
        ValueError: the lengths differ, the letterboxes cannot share a batch, or prompts with and without a mask are
            mixed.
    """
    if len(prompts) != len(letterboxes) or not prompts:
        raise ValueError(
            f"there must be as many letterboxes as prompts, at least one, got {len(letterboxes)} and {len(prompts)}"
        )
    if len({prompt.mask is None for prompt in prompts}) == 2:
        raise ValueError("prompts with and without a mask must go into separate batches")
    if len({(letterbox.side, letterbox.padded) for letterbox in letterboxes}) > 1:
        raise ValueError("images of different sides or padded sizes must go into separate batches")
    prompts = [with_logits(prompt, letterbox) for prompt, letterbox in zip(prompts, letterboxes, strict=True)]
    rows = [_tokens(prompt, letterbox) for prompt, letterbox in zip(prompts, letterboxes, strict=True)]
    masks = [
        logits for prompt in prompts if prompt.mask is not None and (logits := _as_logits(prompt.mask)) is not None
    ]
    width = _padded_width(max(len(labels) for _, labels in rows))
    points = np.zeros((len(rows), width, 2), np.float32)
    labels = np.full((len(rows), width), LABEL_FILLER, np.int64)
    for row, (row_points, row_labels) in enumerate(rows):
        points[row, : len(row_labels)] = row_points
        labels[row, : len(row_labels)] = row_labels
    mask_inputs = np.stack(masks)[:, None] if masks else None
    return PackedPrompts(points, labels, mask_inputs, letterboxes[0].side, letterboxes[0].cells)


def position_grid(matrix: NDArray[np.float32], side: int, cells: Size) -> NDArray[np.float32]:
    """Encode the centres of an embedding's cells, as segment-anything's `PositionEmbeddingRandom` does.

    Positions are fractions of the square, so a smaller embedding has the top left part of the square's grid.

    Args:
        matrix: float32 (2, 128), the checkpoint's random frequencies.
        side: side of the model's square in pixels.
        cells: size of the embedding.

    Returns:
        float32 (1, height * width, 256), -1 to 1, row by row.
    """
    stride = EMBEDDING_STRIDE / side
    ys = (np.arange(cells.height) + 0.5) * stride
    xs = (np.arange(cells.width) + 0.5) * stride
    along_x, along_y = (2 * math.pi * np.outer(2 * at - 1, row) for at, row in zip((xs, ys), matrix, strict=True))
    angles = (along_y[:, None] + along_x[None, :]).reshape(1, cells.pixels, -1)
    grid: NDArray[np.float32] = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(np.float32)
    return grid


def _padded_width(tokens: int) -> int:
    """Return the next power of two, at least 2: compilers then specialise on few shapes."""
    return max(2, 1 << (tokens - 1).bit_length()) if tokens else 2


def _tokens(prompt: Prompt, letterbox: Letterbox) -> tuple[NDArray[np.float32], list[int]]:
    """Return a prompt's points (n, 2) as fractions of the model's square, and its labels, in the reference's order."""
    coords = [(point.x, point.y) for point in prompt.points]
    labels = [point.label for point in prompt.points]
    box = prompt.box
    if prompt.mask is not None and not coords and box is None:
        logits = _as_logits(prompt.mask)
        box = None if logits is None else _box_of(logits > 0, LOGITS_STRIDE, letterbox)
    if box is not None:
        coords += [(box.x0, box.y0), (box.x1, box.y1)]
        labels += [LABEL_BOX_TOP_LEFT, LABEL_BOX_BOTTOM_RIGHT]
    pixels = letterbox.to_model(np.asarray(coords, np.float64).reshape(-1, 2))
    # +0.5: to the centre of the pixel, as the checkpoints were trained.
    placed = ((pixels + 0.5) / letterbox.side).astype(np.float32)
    if labels and box is None:
        placed = np.concatenate([placed, np.zeros((1, 2), np.float32)])
        labels.append(LABEL_PADDING)
    return placed, labels


def _box_of(mask: BinaryMask, stride: int, letterbox: Letterbox) -> Box | None:
    """Return the box of a mask prompt in the image, or None if the mask is empty or needs none.

    In inputs other than the square of 1024 that they were trained on, the checkpoints ignore a mask that comes alone.

    Args:
        mask: bool, a pixel of the image or a cell of logits each.
        stride: pixels of the model's input per cell; 1 of a mask of the image.
        letterbox: of the image.
    """
    if letterbox.is_reference:
        return None
    x0, y0, x1, y1 = bounding_box(mask)
    if x1 == 0:
        return None
    corners = np.array([[x0, y0], [x1, y1]], np.float64)
    if stride > 1:
        corners = letterbox.to_image(corners * stride)
    (left, top), (right, bottom) = corners.tolist()
    return Box(left, top, right, bottom)


def _mask_input(mask: BinaryMask, letterbox: Letterbox) -> NDArray[np.float32]:
    """Return a binary mask prompt as float32 logits of the letterbox's size."""
    padded = np.zeros((letterbox.padded.height, letterbox.padded.width), np.float32)
    padded[: letterbox.resized.height, : letterbox.resized.width] = _shrunk(mask, letterbox.resized)
    height, width = letterbox.logits.height, letterbox.logits.width
    share = padded.reshape(height, LOGITS_STRIDE, width, LOGITS_STRIDE).mean(axis=(1, 3))
    share = np.clip(share, _CONFIDENCE, 1 - _CONFIDENCE)
    logits: NDArray[np.float32] = np.log(share / (1 - share)).astype(np.float32)
    return logits


def _shrunk(mask: BinaryMask, resized: Size) -> NDArray[np.float32]:
    """Return the share of each pixel of the model's input that the mask covers, as OpenCV's `INTER_AREA` does."""
    height, width = mask.shape
    if height * width <= _AT_ONCE:
        return _resized(mask, resized)
    # Along the rows first, strip by strip: as float32 a large mask would take four times its memory.
    step = max(1, _AT_ONCE // width)
    across = np.concatenate(
        [
            _resized(mask[top : top + step], Size(min(step, height - top), resized.width))
            for top in range(0, height, step)
        ]
    )
    return np.asarray(
        cv2.resize(across, (resized.width, resized.height), interpolation=cv2.INTER_AREA), np.float32
    ).reshape(resized.height, resized.width)


def _resized(mask: BinaryMask, size: Size) -> NDArray[np.float32]:
    shares = cv2.resize(mask.astype(np.float32), (size.width, size.height), interpolation=cv2.INTER_AREA)
    return np.asarray(shares, np.float32).reshape(size.height, size.width)
