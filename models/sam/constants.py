"""Numbers that the Segment Anything checkpoints were trained with (Kirillov et al. 2023, segment-anything 1.0)."""

from __future__ import annotations

from typing import Final

from models.letterbox import EMBEDDING_STRIDE, INPUT_SIDE, LOGITS_STRIDE, PADDING_STEP

__all__ = [
    "EMBEDDING_CHANNELS",
    "EMBEDDING_STRIDE",
    "INPUT_SIDE",
    "LABEL_BOX_BOTTOM_RIGHT",
    "LABEL_BOX_TOP_LEFT",
    "LABEL_FILLER",
    "LABEL_PADDING",
    "LOGITS_SIDE",
    "LOGITS_STRIDE",
    "MASK_TOKENS",
    "PADDING_STEP",
    "PIXEL_MEAN",
    "PIXEL_STD",
]

EMBEDDING_CHANNELS: Final = 256

LOGITS_SIDE: Final = INPUT_SIDE // LOGITS_STRIDE
"""Side of the low-resolution logits for the square that the checkpoints were trained on."""

MASK_TOKENS: Final = 4
"""Masks per prompt in the decoder's output: token 0 for an unambiguous prompt, tokens 1 to 3 for an ambiguous one."""

PIXEL_MEAN: Final = (123.675, 116.28, 103.53)
PIXEL_STD: Final = (58.395, 57.12, 57.375)
"""ImageNet statistics of RGB in 0 to 255."""

LABEL_FILLER: Final = -2
"""Fills a row up to its batch's width; masked out of every attention."""
LABEL_PADDING: Final = -1
"""SAM's own "not a point", which the checkpoints expect once after points that come without a box."""
LABEL_BOX_TOP_LEFT: Final = 2
LABEL_BOX_BOTTOM_RIGHT: Final = 3
