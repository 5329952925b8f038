"""Fine-tuning of a SAM's mask decoder as `models.training.fitting` runs it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from models.sam.decoder import PromptDecoder
from models.training.fitting import Validation
from models.training.sam_batches import PromptBatch, Tasks
from models.training.sam_losses import LossWeights
from models.training.sam_step import batch_loss
from models.training.sam_validation import PANELS, Validator

TRAINED: Final = "mask_decoder."
"""Prefix of the tensors that fine-tuning changes, in the decoder as in checkpoints."""


class SamLearner:
    """See `models.training.fitting.Learner`. Image and prompt encoder are frozen.

    Args:
        decoder: the one to begin from; it is copied.
        tasks: what to learn from.
        judge: of the validation images.
        weights: of the loss.
        rounds: corrections after the first prompt, at least 0: each adds a click on what is wrong with the answer
            before, and that answer as a mask prompt.
        device: where to train.
    """

    def __init__(
        self,
        decoder: PromptDecoder,
        *,
        tasks: Tasks,
        judge: Validator,
        weights: LossWeights,
        rounds: int,
        device: torch.device,
    ) -> None:
        self.decoder = copy.deepcopy(decoder).to(device)
        self.decoder.requires_grad_(requires_grad=False)
        self.decoder.mask_decoder.requires_grad_(requires_grad=True)
        self.network: nn.Module = self.decoder
        self._tasks = tasks
        self._judge = judge
        self._weights = weights
        self._rounds = rounds
        self._device = device

    @property
    def steps(self) -> int:
        """Batches in every epoch."""
        return self._tasks.steps

    @property
    def panels(self) -> Mapping[str, Sequence[str]]:
        """Measures to plot together."""
        return PANELS

    def batches(self, epoch: int) -> Iterable[PromptBatch]:
        """The batches of an epoch."""
        return self._tasks.batches(epoch)

    def loss(self, batch: PromptBatch) -> Tensor:
        """Mean over the prompts and the rounds of the loss."""
        return batch_loss(self.decoder, batch, weights=self._weights, rounds=self._rounds, device=self._device)

    def validate(self, network: nn.Module) -> Validation:
        """Prompt for every fruit to validate on."""
        return self._judge.validate(network)

    def weights(self, network: nn.Module) -> Mapping[str, Tensor]:
        """The mask decoder's tensors, under the names of checkpoints."""
        return {name: tensor for name, tensor in network.state_dict().items() if name.startswith(TRAINED)}
