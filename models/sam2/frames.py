"""What is said about a frame of a video, and what is found on it. Needs no PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import cv2
import numpy as np
import PIL.Image

from models.letterbox import Letterbox
from models.masks import Rle, decode_rle
from models.types import BinaryMask, Logits, Prompt


@dataclass(frozen=True, slots=True)
class FrameInputs:
    """What is said about a frame.

    Attributes:
        letterbox: how the frame was stretched.
        prompts: points or a box by the object's id, for new objects or to correct known ones.
        masks: of objects, bool (side, side) of the model's square.
        removed: ids of objects that are followed no longer.
    """

    letterbox: Letterbox
    prompts: Mapping[int, Prompt] = field(default_factory=dict)
    masks: Mapping[int, BinaryMask] = field(default_factory=dict)
    removed: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class TrackedMask:
    """An object on a frame.

    Attributes:
        object_id: of the object.
        logits: float32 (4 h, 4 w), low-resolution.
        score: predicted IoU, 0 to 1.
        presence: logit of the object being in view.
    """

    object_id: int
    logits: Logits
    score: float
    presence: float


def mask_for(prompt: Prompt, letterbox: Letterbox) -> BinaryMask:
    """Return a mask prompt in the model's square, as `transformers` resizes it.

    Args:
        prompt: checked; its mask is RLE, or logits of an earlier answer.
        letterbox: of the frame.

    Returns:
        bool (side, side).

    Raises:
        MaskError: the RLE is damaged.
    """
    mask, side = prompt.mask, letterbox.side
    if isinstance(mask, Rle):
        pixels = decode_rle(mask, max_pixels=letterbox.original.pixels)
        # Pillow's filter averages all covered pixels when shrinking, and takes bytes: a quarter of float32's memory.
        bytes_ = PIL.Image.fromarray(pixels.view(np.uint8) * np.uint8(255))
        return np.asarray(bytes_.resize((side, side), PIL.Image.Resampling.BILINEAR)) >= 128
    logits = np.asarray(mask, np.float32)
    return np.asarray(cv2.resize(logits, (side, side), interpolation=cv2.INTER_LINEAR)) > 0
