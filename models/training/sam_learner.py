"""Fine-tune the mask decoder of a SAM: its loss, one training step, and the learner that `Trainer` runs.

The loss follows Kirillov et al., "Segment Anything", ICCV 2023, appendix A: focal and dice loss of the mask in the
ratio 20 to 1, and the squared error of the predicted IoU. Both mask losses see probabilities, never a thresholded mask,
because a threshold has no gradient.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from models.sam.constants import LOGITS_STRIDE
from models.sam.decoder import PromptDecoder
from models.sam.prompts import pack
from models.training.options import SamLossWeights
from models.training.sam_data import PromptBatch, Tasks, next_prompts
from models.training.sam_validation import SamValidator, decode
from models.training.trainer import Validation

_GAMMA: Final = 2.0
"""Exponent of Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017. Their class weights are left out: with
shares as targets they would move the edge away from one half."""

_SMOOTH: Final = 1.0
"""Cells added to numerator and denominator of the dice loss, so that it is defined if nothing counts."""


def focal_loss(logits: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """Compute the focal loss, the mean over the counted cells.

    Args:
        logits: float32 (..., height, width).
        target: float32, share of the cell that the object covers, 0 to 1; broadcast to `logits`.
        counted: float32, share of the cell that counts, 0 to 1; broadcast likewise.

    Returns:
        float32 (...), at least 0.
    """
    entropy = nnf.binary_cross_entropy_with_logits(logits, target.expand_as(logits), reduction="none")
    wrong = (torch.sigmoid(logits) - target).abs()
    weighted = counted * wrong**_GAMMA * entropy
    return weighted.sum((-2, -1)) / counted.sum((-2, -1)).clamp(min=_SMOOTH)


def dice_loss(logits: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """Compute 1 - the Dice coefficient of probabilities (Milletari et al., "V-Net", 3DV 2016, without squares).

    Args:
        logits: as in `focal_loss`.
        target: as in `focal_loss`.
        counted: as in `focal_loss`.

    Returns:
        float32 (...), 0 to 1.
    """
    predicted = torch.sigmoid(logits) * counted
    true = target * counted
    common = (predicted * target).sum((-2, -1))
    return 1 - (2 * common + _SMOOTH) / (predicted.sum((-2, -1)) + true.sum((-2, -1)) + _SMOOTH)


def sam_loss(
    logits: Tensor, scores: Tensor, ious: Tensor, target: Tensor, counted: Tensor, *, weights: SamLossWeights
) -> Tensor:
    """Compute the loss of the four masks of each prompt.

    The mask for clear prompts (token 0) and the best of the three for ambiguous ones (tokens 1 to 3) are both learned,
    because callers may request either; of the three, only the one with the lowest mask loss. The predicted IoUs of all
    four are learned, because they separate good from bad masks (as in Ravi et al., "SAM 2", 2024).

    Args:
        logits: float32 (P, 4, h, w) of the decoder.
        scores: float32 (P, 4), predicted IoUs.
        ious: float32 (P, 4), true IoUs.
        target: float32 (P, h, w), share of each cell that the object covers.
        counted: float32 (P, h, w), share of each cell that counts.
        weights: weights of the parts.

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


def _mask_loss(logits: Tensor, target: Tensor, counted: Tensor, weights: SamLossWeights) -> Tensor:
    focal = weights.focal * focal_loss(logits, target, counted)
    return focal + weights.dice * dice_loss(logits, target, counted)


def mask_ious(masks: Tensor, truth: Tensor, counted: Tensor) -> Tensor:
    """Compute the intersection over union of masks with the truth.

    Args:
        masks: bool (P, M, height, width).
        truth: bool (P, height, width).
        counted: bool (P, height, width), pixels that count.

    Returns:
        float32 (P, M), 0 to 1; 0 if both are empty.
    """
    masks, truth = masks & counted[:, None], (truth & counted)[:, None]
    common = (masks & truth).sum((-2, -1))
    either = (masks | truth).sum((-2, -1))
    return common / either.clamp(min=1)


def batch_loss(
    decoder: PromptDecoder, batch: PromptBatch, *, weights: SamLossWeights, rounds: int, device: torch.device
) -> Tensor:
    """Compute the mean of the loss over the prompts of a batch and the rounds.

    Masks are compared at the resolution of the logits, where the truth is the share of each cell that the fruit covers:
    a logit of 0 then lies where half is covered, as at the edge of the enlarged mask. The IoUs that the scores predict
    are measured on enlarged masks, at the resolution of the model's input.

    Args:
        decoder: decoder on `device`.
        batch: batch on the CPU.
        weights: weights of the loss.
        rounds: corrections after the first prompt.
        device: device of the decoder.

    Returns:
        float32, a scalar.
    """
    truth, counted = batch.truth.to(device), batch.counted.to(device)
    counted_share = nnf.avg_pool2d(counted.float(), LOGITS_STRIDE)
    both_share = nnf.avg_pool2d((truth & counted).float(), LOGITS_STRIDE)
    target = torch.where(counted_share > 0, both_share / counted_share.clamp(min=1e-6), 0.0)
    embeddings, image_index = batch.embeddings.to(device), batch.image_index.to(device)

    prompts, losses = batch.prompts, []
    for number in range(rounds + 1):
        logits, scores = decode(decoder, embeddings, image_index, pack(prompts, batch.letterboxes))
        logits, scores = logits.float(), scores.float()
        masks = enlarge(logits.detach())
        ious = mask_ious(masks, truth, counted)
        losses.append(sam_loss(logits, scores, ious, target, counted_share, weights=weights))
        if number < rounds:
            # As a caller continues: with the best of three after an ambiguous prompt, then with the single mask.
            chosen = 1 + scores[:, 1:].argmax(dim=1) if number == 0 else torch.zeros_like(image_index)
            rows = torch.arange(len(chosen), device=device)
            prompts = next_prompts(batch, prompts, logits[rows, chosen], masks[rows, chosen])
    return torch.stack(losses).mean()


@torch.no_grad()
def enlarge(logits: Tensor) -> Tensor:
    """Return masks at the resolution of the model's input, bool (P, 4, 4 h, 4 w), of logits (P, 4, h, w)."""
    return nnf.interpolate(logits, scale_factor=LOGITS_STRIDE, mode="bilinear", align_corners=False) > 0


TRAINED: Final = "mask_decoder."
"""Prefix of the tensors that fine-tuning changes, in the decoder and in checkpoints."""


class SamLearner:
    """A mask decoder with its training and validation data; see `models.training.trainer.Learner`.

    Image and prompt encoder are frozen.

    Args:
        decoder: decoder to start from; it is copied.
        tasks: training data.
        validator: validates on the validation images.
        weights: weights of the loss.
        rounds: corrections after the first prompt, at least 0: each adds a click on an error of the previous answer,
            and that answer as a mask prompt.
        device: device to train on.
    """

    def __init__(
        self,
        decoder: PromptDecoder,
        *,
        tasks: Tasks,
        validator: SamValidator,
        weights: SamLossWeights,
        rounds: int,
        device: torch.device,
    ) -> None:
        self.decoder = copy.deepcopy(decoder).to(device)
        self.decoder.requires_grad_(requires_grad=False)
        self.decoder.mask_decoder.requires_grad_(requires_grad=True)
        self.network: nn.Module = self.decoder
        self._tasks = tasks
        self._validator = validator
        self._weights = weights
        self._rounds = rounds
        self._device = device

    @property
    def steps(self) -> int:
        """Number of batches in every epoch."""
        return self._tasks.steps

    @property
    def panels(self) -> Mapping[str, Sequence[str]]:
        """Measures to plot together."""
        return self._validator.panels

    def batches(self, epoch: int) -> Iterable[PromptBatch]:
        """Return the batches of an epoch."""
        return self._tasks.batches(epoch)

    def loss(self, batch: PromptBatch) -> Tensor:
        """Return the mean of the loss over the prompts and the rounds."""
        return batch_loss(self.decoder, batch, weights=self._weights, rounds=self._rounds, device=self._device)

    def validate(self, network: nn.Module) -> Validation:
        """Prompt for every fruit of the validation images."""
        return self._validator.validate(network)

    def weights(self, network: nn.Module) -> Mapping[str, Tensor]:
        """Return the tensors of the mask decoder under the names of checkpoints."""
        return {name: tensor for name, tensor in network.state_dict().items() if name.startswith(TRAINED)}
