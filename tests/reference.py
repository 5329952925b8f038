"""What the reference does with the decoder's logits, at full size and in its own two steps."""

from __future__ import annotations

import cv2
import numpy as np

from models.letterbox import Letterbox
from models.types import Logits


def upsample(logits: Logits, frame: Letterbox) -> Logits:
    """Low-resolution logits to logits of the original image.

    Args:
        logits: float32 of size `frame.logits`.
        frame: how the image lies in the model's square.

    Returns:
        float32 (height, width) of the original image.
    """
    padded = cv2.resize(logits, (frame.padded.width, frame.padded.height), interpolation=cv2.INTER_LINEAR)
    inside = padded[: frame.resized.height, : frame.resized.width]
    size = (frame.original.width, frame.original.height)
    return np.asarray(cv2.resize(inside, size, interpolation=cv2.INTER_LINEAR), np.float32)


def stability_score(logits: Logits) -> float:
    """IoU of the masks at thresholds +1 and -1; 0 where the larger one is empty."""
    inner, outer = np.count_nonzero(logits > 1), np.count_nonzero(logits > -1)
    return float(inner / outer) if outer else 0.0
