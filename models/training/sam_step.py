"""One step of fine-tuning: a batch of prompts through the decoder, round by round, to a loss."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as nnf
from numpy.typing import NDArray
from torch import Tensor

from models.backends.base import MAX_GRIDS
from models.sam.constants import LOGITS_STRIDE
from models.sam.decoder import PromptDecoder
from models.sam.prompts import PackedPrompts, pack, position_grid
from models.training.sam_batches import PromptBatch, next_prompts
from models.training.sam_losses import LossWeights, mask_ious, sam_loss
from models.types import Size


def batch_loss(
    decoder: PromptDecoder, batch: PromptBatch, *, weights: LossWeights, rounds: int, device: torch.device
) -> Tensor:
    """Mean over a batch's prompts and the rounds of the loss.

    Masks are compared at the resolution of the logits, where the truth is the share of each cell that the fruit covers:
    a logit of 0 then lies where half is covered, as at the edge of the enlarged mask. The IoUs that the scores are to
    predict are counted on enlarged masks, at the resolution of the model's input.

    Args:
        decoder: on `device`.
        batch: on the CPU.
        weights: of the loss.
        rounds: corrections after the first prompt.
        device: of the decoder.

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
        logits, scores = decode(decoder, embeddings, image_index, pack(prompts, batch.frames))
        logits, scores = logits.float(), scores.float()
        masks = enlarged(logits.detach())
        ious = mask_ious(masks, truth, counted)
        losses.append(sam_loss(logits, scores, ious, target, counted_share, weights=weights))
        if number < rounds:
            # As a caller goes on: with the best of three after a prompt that may mean several things, then with one.
            chosen = 1 + scores[:, 1:].argmax(dim=1) if number == 0 else torch.zeros_like(image_index)
            rows = torch.arange(len(chosen), device=device)
            prompts = next_prompts(batch, prompts, logits[rows, chosen], masks[rows, chosen])
    return torch.stack(losses).mean()


@torch.no_grad()
def enlarged(logits: Tensor) -> Tensor:
    """Masks at the resolution of the model's input, bool (P, 4, 4 h, 4 w), of logits (P, 4, h, w)."""
    return nnf.interpolate(logits, scale_factor=LOGITS_STRIDE, mode="bilinear", align_corners=False) > 0


def decode(
    decoder: PromptDecoder, embeddings: Tensor, image_index: Tensor, packed: PackedPrompts
) -> tuple[Tensor, Tensor]:
    """Run a decoder on packed prompts; see `PromptDecoder.forward`."""
    device = embeddings.device
    grid = _grid(decoder.position_matrix.cpu().numpy().tobytes(), packed.side, packed.cells)
    masks = None if packed.mask_inputs is None else torch.from_numpy(packed.mask_inputs).to(device)
    logits, scores = decoder(
        embeddings,
        image_index,
        torch.from_numpy(packed.points).to(device),
        torch.from_numpy(packed.labels).to(device),
        torch.from_numpy(grid).to(device),
        masks,
    )
    return logits, scores


@lru_cache(MAX_GRIDS)
def _grid(matrix: bytes, side: int, cells: Size) -> NDArray[np.float32]:
    """Kept as an array: a tensor made while validating could not be trained with."""
    return position_grid(np.frombuffer(matrix, np.float32).reshape(2, -1), side, cells)
