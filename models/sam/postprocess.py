"""From the decoder's low-resolution logits to masks of the original image."""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from models.masks import area, bounding_box
from models.sam.constants import INPUT_SIDE
from models.transforms import Frame
from models.types import Logits, Mask

_STABILITY_OFFSET: Final = 1.0
"""segment-anything's `stability_score_offset`."""


def upsample(logits: Logits, frame: Frame) -> Logits:
    """Logits of the padded square to logits of the original image, in the reference's two bilinear steps.

    Args:
        logits: float32 (256, 256).
        frame: how the picture lies in the model's square.

    Returns:
        float32 (height, width) of the original image.
    """
    square = cv2.resize(logits, (INPUT_SIDE, INPUT_SIDE), interpolation=cv2.INTER_LINEAR)
    inside = square[: frame.resized.height, : frame.resized.width]
    size = (frame.original.width, frame.original.height)
    return np.asarray(cv2.resize(inside, size, interpolation=cv2.INTER_LINEAR), np.float32)


def stability_score(logits: Logits) -> float:
    """IoU of the masks at thresholds +1 and -1 (SAM paper, appendix B); 0 where the larger one is empty."""
    inner = int(np.count_nonzero(logits > _STABILITY_OFFSET))
    outer = int(np.count_nonzero(logits > -_STABILITY_OFFSET))
    return inner / outer if outer else 0.0


def masks_of(logits: Logits, scores: NDArray[np.float32], frame: Frame, *, multimask: bool) -> tuple[Mask, ...]:
    """One prompt's masks: three, best predicted IoU first, or the one that the model keeps for clear prompts.

    Args:
        logits: float32 (4, 256, 256), the decoder's row of this prompt.
        scores: float32 (4,), its predicted IoUs.
        frame: of the prompt's picture.
        multimask: tokens 1 to 3 instead of token 0, as the reference chooses them.
    """
    tokens = sorted((1, 2, 3), key=lambda token: -scores[token]) if multimask else [0]
    return tuple(_mask(logits[token], float(scores[token]), frame) for token in tokens)


def _mask(low_resolution: Logits, score: float, frame: Frame) -> Mask:
    logits = upsample(low_resolution, frame)
    pixels = logits > 0
    return Mask(
        pixels=pixels,
        logits=low_resolution,
        score=score,
        stability_score=stability_score(logits),
        box=bounding_box(pixels),
        area=area(pixels),
    )
