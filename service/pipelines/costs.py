"""What a request takes in bytes, known before it is spent, and how much memory there is for all of them.

The numbers were measured as peaks of a process (`python -m loadtest memory` repeats that) and rounded up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from models import images
from models.catalog import MAX_INPUT_AREA
from models.errors import PomonaError
from models.letterbox import HasResized, Letterbox, letterbox_for
from models.masks import Rle
from models.sam.constants import INPUT_SIDE
from models.types import Prompt, Size
from models.unet.scales import SCALES
from service.api.schema import MaskFormat
from service.capture.captures import RESERVED_BYTES
from service.memory import Kind
from service.settings import Settings

HASHED_AT_ONCE: Final = 512 * 1024
"""Bytes; about 0.3 ms of the event loop, which is less than a thread's round trip costs."""

DECODED: Final = 8
"""Bytes per pixel while an image is decoded, see `models.images.decoding_bytes`. JPEGs with several scans and no
subsampling take ten to twelve, and colours of more than 8 bits eleven: of the largest size they are refused."""

PIXELS: Final = 3
"""Bytes per pixel of an image that is kept for an overlay or a second model."""

OVERLAY: Final = 8
"""Bytes per pixel while an overlay is encoded: at worst the PNG is as large as the pixels, then base64 of it."""

_POLYGONS: Final = 3
_CROP: Final = 1.25
"""Bytes per pixel while a mask is encoded: the mask, for polygons twice more, else strips."""

_CLASSES: Final = 4
"""Bytes per pixel while classes are encoded."""

_MASK_PROMPT: Final = 2.5
_RLE: Final = 64
"""Bytes per pixel and per character of RLE while a mask prompt is decoded."""

_AT_ONCE: Final = 160 << 20
"""Bytes of the masks of one request that are encoded at a time, or one mask."""

_MOST_AT_ONCE: Final = 8
_LOGITS: Final = 4
"""Bytes per cell of a mask's logits: float32. What a batch takes on the device's thread exists once."""

_MASKS: Final = 3
"""Most masks of a prompt."""

_EDGES: Final = 5
"""Bytes per pixel of a map of edges as a PNG: it is nearly empty, at worst 16 bits and base64 of it."""

_THINNING: Final = 48
"""Bytes per pixel of the model's input while ridges are thinned."""

MOST_AT_A_TIME: Final = 16
"""Points of a chunk, whatever the device would take at once."""

_IN_HAND: Final = 2 * 3 * MOST_AT_A_TIME
"""Most masks of the chunks of points that are with the device."""

_FRUITS: Final = 2
"""Bytes per pixel of the classes and of the masks of fruit, which cover half of the image together with what is
infected of them."""

CANDIDATES: Final = 32 << 20
"""Bytes of the masks among which `automatic` and `edges` choose."""

_MEASURES: Final = 8 << 20
"""Bytes of what is known of these masks: at most as many as fit, each with packed bits of a coarse mask."""

_EMBEDDING: Final = 4 << 20
"""Bytes of the embedding of a crop, which is not cached."""

_INPUTS: Final = 4
"""How often an upload is held at most: see `service.oip.http`."""

_MESSAGES: Final = 4
"""Least number of messages that can be read at a time, places of streams included."""

_MOST_FRUITS: Final = 64
_OUTPUT: Final = 5 * 4
_MEAN: Final = 60
"""Bytes for each cell that the mean with another scale takes: with two, 117 were measured."""


_SMALL: Final = 4 << 20
"""What every request takes beside."""

_OF_LIMIT: Final = 0.95
"""Part of the container's limit that is used: the rest is the kernel's, and what malloc keeps in pieces."""

_MIB: Final = 1 << 20


def prepared(padded: Size, channels_bytes: int = 12) -> int:
    """Return the bytes of a model's input: by default float32 RGB."""
    return padded.pixels * channels_bytes


def queued_sam(letterbox: Letterbox, masks: int, *, whole: bool) -> int:
    """Return what a SAM's request holds while it waits for the device, and of what the device returns.

    Args:
        letterbox: the image's.
        masks: how many there will be.
        whole: whether the image's pixels are kept.
    """
    pixels = PIXELS * letterbox.original.pixels if whole else 0
    return _SMALL + prepared(letterbox.padded) + masks * letterbox.logits.pixels * _LOGITS + pixels


def masks_of(prompts: Sequence[Prompt]) -> int:
    """Return how many masks the prompts have."""
    return sum(_MASKS if prompt.multimask else 1 for prompt in prompts)


def proposals(*, crops: bool) -> int:
    """Return what the masks take among which everything in an image is chosen, and the crop that is being encoded."""
    square = Size(INPUT_SIDE, INPUT_SIDE)
    return CANDIDATES + _MEASURES + (prepared(square) + _EMBEDDING if crops else 0)


def edges(letterbox: Letterbox) -> int:
    """Return what a map of edges takes while it is made, thinned, resized and encoded."""
    return _SMALL + _THINNING * letterbox.padded.pixels + _EDGES * letterbox.original.pixels


def queued_unet(padded: Size, original: Size, *, whole: bool) -> int:
    """Return what a U-Net's request holds, see `queued_sam`: also its output, five channels of float32."""
    return _SMALL + padded.pixels * (PIXELS + _OUTPUT) + (PIXELS * original.pixels if whole else 0)


def queued_detector(padded: Size, original: Size, output: int, *, whole: bool) -> int:
    """Return what a detector's request holds, see `queued_sam`: also its output, so many values of float32."""
    return _SMALL + prepared(padded) + _LOGITS * output + (PIXELS * original.pixels if whole else 0)


def queued_fruits(padded: Sequence[Size], original: Size, letterbox: Letterbox | None, *, whole: bool) -> int:
    """Return what an inspection holds: a U-Net's request, its fruit, and what the SAM takes, where there is one.

    Args:
        padded: inputs of the U-Net, one for each scale.
        original: of the image.
        letterbox: of the SAM.
        whole: whether the image's pixels are kept.
    """
    own, *others = padded
    scales = sum(each.pixels * (PIXELS + _OUTPUT) + own.pixels * _MEAN for each in others)
    sam = 0 if letterbox is None else prepared(letterbox.padded) + _MOST_FRUITS * letterbox.logits.pixels * _LOGITS
    return queued_unet(own, original, whole=whole) + scales + _FRUITS * original.pixels + sam


def decoding(data: bytes | None, size: Size, letterboxes: Sequence[HasResized] = ()) -> int:
    """Return what decoding an image takes.

    Args:
        data: the file; None of pixels that came raw.
        size: of the image.
        letterboxes: how it fits into what the models see, where a large JPEG may be decoded at a part of its size.
    """
    if data is None:
        return _SMALL + PIXELS * size.pixels
    return _SMALL + images.decoding_bytes(data, size, [letterbox.resized for letterbox in letterboxes])


def at_once(size: Size, mask_format: MaskFormat) -> int:
    """Return how many masks of a request may be encoded at a time."""
    return int(max(1, min(_MOST_AT_ONCE, _AT_ONCE // _mask(size, mask_format))))


def encoding(size: Size, mask_format: MaskFormat, prompts: int) -> int:
    """Return what encoding the masks of a SAM takes, as many at a time as `at_once` says."""
    return _SMALL + min(prompts, at_once(size, mask_format)) * _mask(size, mask_format)


def encoding_classes(size: Size, *, overlay: bool) -> int:
    """Return what encoding the classes or the fruit of a U-Net takes."""
    return _SMALL + (OVERLAY if overlay else _CLASSES) * size.pixels


def mask_prompts(prompts: Sequence[Prompt]) -> int:
    """Return what decoding the mask prompts takes, which are decoded one after another; 0 without any."""
    masks = [prompt.mask for prompt in prompts if isinstance(prompt.mask, Rle)]
    return max((int(_MASK_PROMPT * mask.size[0] * mask.size[1]) + _RLE * len(mask.counts) for mask in masks), default=0)


def largest(settings: Settings) -> dict[Kind, int]:
    """Return the most that a legal request takes at a time, by kind."""
    pixels = settings.max_pixels
    image, square = Size(1, pixels), letterbox_for(Size(INPUT_SIDE, INPUT_SIDE))
    return {
        Kind.INPUT: _SMALL + _INPUTS * settings.max_upload_bytes,
        Kind.WORK: _SMALL + max(max(DECODED, OVERLAY) * pixels, _EDGES * pixels + _THINNING * square.padded.pixels),
        Kind.QUEUED: max(
            queued_sam(square, _MASKS * settings.max_prompts, whole=False) + PIXELS * pixels,
            queued_fruits([Size(1, round(scale * MAX_INPUT_AREA)) for scale in SCALES], image, square, whole=True),
            queued_sam(square, _IN_HAND, whole=False) + proposals(crops=True) + PIXELS * pixels,
        ),
    }


def _mask(size: Size, mask_format: MaskFormat) -> int:
    return int((_POLYGONS if mask_format == "polygons" else _CROP) * size.pixels)


def least(settings: Settings) -> int:
    """Return the least budget with which the largest request that is allowed is answered."""
    return sum(largest(settings).values()) + _MESSAGES * settings.max_upload_bytes


def spare(
    settings: Settings, *, total: int, limit: int | None, resident: int, workers: int, sessions: int = 0
) -> float:
    """Return the bytes that neither the budget `total` nor anything else uses; see `budget`."""
    return math.inf if limit is None else max(0, _beside_models(settings, limit, resident, workers, sessions) - total)


def _beside_models(settings: Settings, limit: int, resident: int, workers: int, sessions: int) -> int:
    capturing = 0 if settings.capture_dir is None else RESERVED_BYTES
    return int(_OF_LIMIT * limit / workers) - resident - settings.embedding_cache_bytes - capturing - sessions


class TooLittleMemory(PomonaError):
    """There is not enough memory for the largest request that is allowed."""


def budget(
    settings: Settings, *, limit: int | None, resident: int, workers: int, sessions: int = 0
) -> tuple[int, Mapping[Kind, int]]:
    """Return the budget and the largest request's part of it, see `MemoryBudget.resize`.

    Args:
        settings: with the limits of a request.
        limit: bytes that all workers together may have, or None where nothing says.
        resident: bytes that this worker takes with its models loaded.
        workers: how many there are.
        sessions: bytes that sessions may take of the same memory.

    Raises:
        TooLittleMemory: the largest request that is allowed would not fit.
    """
    most, needed = largest(settings), least(settings)
    if settings.memory_mib:
        total = int(settings.memory_mib * _MIB)
    elif limit is None:
        return 2 * needed, most
    else:
        total = _beside_models(settings, limit, resident, workers, sessions)
    if total < needed:
        raise TooLittleMemory(
            f"There are {total // _MIB} MiB for requests, beside models, embedding cache and sessions, but the largest "
            f"that is allowed takes {needed // _MIB} MiB. Give the container more memory, or lower "
            "POMONA_MAX_MEGAPIXELS, POMONA_MAX_UPLOAD_MIB, POMONA_MAX_PROMPTS or POMONA_EMBEDDING_CACHE_MIB."
        )
    return total, most
