"""Numbers that the Segment Anything checkpoints were trained with (Kirillov et al. 2023, segment-anything 1.0)."""

from __future__ import annotations

from typing import Final

INPUT_SIDE: Final = 1024
"""Side of the padded square that the checkpoints were trained on, in pixels."""

PADDING_STEP: Final = 64
"""What the encoder sees is a multiple of this each way: few shapes, so that images share batches and graphs."""

EMBEDDING_STRIDE: Final = 16
"""Pixels of the input per cell of the embedding: 1024 gives 64 x 64."""

EMBEDDING_CHANNELS: Final = 256

LOGITS_STRIDE: Final = 4
"""Pixels of the input per cell of the low-resolution logits and of mask prompts."""

LOGITS_SIDE: Final = INPUT_SIDE // LOGITS_STRIDE
"""Side of the low-resolution logits of the square that the checkpoints were trained on."""

MASK_TOKENS: Final = 4
"""Masks per prompt out of the decoder: token 0 for an unambiguous prompt, tokens 1 to 3 for an ambiguous one."""

PIXEL_MEAN: Final = (123.675, 116.28, 103.53)
PIXEL_STD: Final = (58.395, 57.12, 57.375)
"""ImageNet statistics of RGB in 0 to 255."""

LABEL_FILLER: Final = -2
"""Fills a row up to its batch's width; unseen by every other token."""
LABEL_PADDING: Final = -1
"""SAM's own "not a point", which the checkpoints expect once after points that come without a box."""
LABEL_BOX_TOP_LEFT: Final = 2
LABEL_BOX_BOTTOM_RIGHT: Final = 3
