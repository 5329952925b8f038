"""What fine-tuning a SAM minimises (Kirillov et al., "Segment Anything", ICCV 2023, appendix A).

Focal and dice loss of the mask in the ratio 20 to 1, and the squared error of the predicted IoU. Both mask losses see
probabilities, never a thresholded mask: a threshold has no gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor

from models.training.errors import CannotTrain

_FOCUS = 2.0
"""The exponent of Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017. Their balance of the classes is left
out: with shares as targets it would move the edge off the half."""

_SMOOTH = 1.0
"""Cells added above and below in the dice loss, so that it is defined where nothing is counted."""


@dataclass(frozen=True, slots=True)
class LossWeights:
    """How much each part counts.

    Attributes:
        focal: of the focal loss.
        dice: of the dice loss.
        iou: of the squared error of the predicted IoU.

    Raises:
        CannotTrain: a weight that is negative or no number, or no mask loss at all.
    """

    focal: float = 20.0
    dice: float = 1.0
    iou: float = 1.0

    def __post_init__(self) -> None:
        weights = (self.focal, self.dice, self.iou)
        if not all(0 <= weight < math.inf for weight in weights) or self.focal + self.dice == 0:
            raise CannotTrain(f"Loss weights {weights}: each must be at least 0, and focal or dice above it.")


def focal_loss(logits: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """Cross entropy that well predicted cells hardly add to; mean over the counted cells.

    Args:
        logits: float32 (..., height, width).
        target: float32, share of the cell that the object covers, 0 to 1; broadcast to `logits`.
        counted: float32, share of the cell that counts, 0 to 1; broadcast likewise.

    Returns:
        float32 (...), at least 0.
    """
    entropy = nnf.binary_cross_entropy_with_logits(logits, target.expand_as(logits), reduction="none")
    wrong = (torch.sigmoid(logits) - target).abs()
    weighted = counted * wrong**_FOCUS * entropy
    return weighted.sum((-2, -1)) / counted.sum((-2, -1)).clamp(min=_SMOOTH)


def dice_loss(logits: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """One less the Dice coefficient of probabilities (Milletari et al., "V-Net", 3DV 2016, without squares).

    Args:
        logits: as in `focal_loss`.
        target: likewise.
        counted: likewise.

    Returns:
        float32 (...), 0 to 1.
    """
    predicted = torch.sigmoid(logits) * counted
    true = target * counted
    common = (predicted * target).sum((-2, -1))
    return 1 - (2 * common + _SMOOTH) / (predicted.sum((-2, -1)) + true.sum((-2, -1)) + _SMOOTH)


def sam_loss(
    logits: Tensor, scores: Tensor, ious: Tensor, target: Tensor, counted: Tensor, *, weights: LossWeights
) -> Tensor:
    """The loss of each prompt's four masks.

    The mask for clear prompts (token 0) and the best of the three for ambiguous ones (tokens 1 to 3) are both learned,
    as callers may ask for either; of the three, only the one of the lowest mask loss is. The predicted IoUs of all
    four are, as that is what tells the good from the bad (as in Ravi et al., "SAM 2", 2024).

    Args:
        logits: float32 (P, 4, h, w), the decoder's.
        scores: float32 (P, 4), the IoUs that it predicts.
        ious: float32 (P, 4), what they should have been.
        target: float32 (P, h, w), share of each cell that the object covers.
        counted: float32 (P, h, w), share of each cell that counts.
        weights: of the parts.

    Returns:
        float32 (P,).
    """
    target, counted = target[:, None], counted[:, None]
    with torch.no_grad():
        three = _mask_loss(logits[:, 1:].detach(), target, counted, weights)
    best = 1 + three.argmin(dim=1)
    rows = torch.arange(len(best), device=best.device)
    learned = torch.stack([logits[:, 0], logits[rows, best]], dim=1)
    masks = _mask_loss(learned, target, counted, weights).sum(dim=1)
    return masks + weights.iou * ((scores - ious) ** 2).mean(dim=1)


def _mask_loss(logits: Tensor, target: Tensor, counted: Tensor, weights: LossWeights) -> Tensor:
    focal = weights.focal * focal_loss(logits, target, counted)
    return focal + weights.dice * dice_loss(logits, target, counted)


def mask_ious(masks: Tensor, truth: Tensor, counted: Tensor) -> Tensor:
    """Intersection over union of masks with the truth.

    Args:
        masks: bool (P, M, height, width).
        truth: bool (P, height, width).
        counted: bool (P, height, width), pixels that count.

    Returns:
        float32 (P, M), 0 to 1; 0 where both are empty.
    """
    masks, truth = masks & counted[:, None], (truth & counted)[:, None]
    common = (masks & truth).sum((-2, -1))
    either = (masks | truth).sum((-2, -1))
    return common / either.clamp(min=1)
