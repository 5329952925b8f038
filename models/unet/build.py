"""Builds U-Nets (Ronneberger et al. 2015) with the weights of a checkpoint or with random ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from models.unet.constants import OUTPUTS, PIXEL_MEAN, PIXEL_STD
from models.weights.checkpoints import mismatch

ENCODERS: Final[Mapping[str, str]] = {"unet-resnet18": "resnet18", "unet-mobilenetv2": "mobilenet_v2"}
"""Names of the architectures' encoders in segmentation-models-pytorch."""


def new_unet(architecture: str, seed: int) -> nn.Module:
    """Build an untrained network, float32 on the CPU, in training mode.

    Args:
        architecture: a key of `ENCODERS`.
        seed: seed of the weights; the state of PyTorch's global generator is not changed.

    Returns:
        A module from normalised float32 (batch, 3, height, width), both sides multiples of 32, to float32 (batch, 5,
        height, width): the logits of `models.types.CLASSES`, and offsets right and down in units of `OFFSET_UNIT`, see
        `models.unet.instances`. Its tensors have segmentation-models-pytorch's names.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _network(architecture)


def build_unet(architecture: str, state_dict: Mapping[str, Tensor]) -> nn.Module:
    """Build `architecture` and load every tensor of `state_dict` into it.

    Args:
        architecture: a key of `ENCODERS`.
        state_dict: a checkpoint's tensors under segmentation-models-pytorch's names, of any floating type.

    Returns:
        As `new_unet`, in evaluation mode.

    Raises:
        BadCheckpoint: a tensor is missing, unexpected, or of the wrong shape.
    """
    network = _network(architecture)
    try:
        # Copies into the network's own tensors, and so converts to float32.
        network.load_state_dict(dict(state_dict), strict=True)
    except RuntimeError as error:
        raise mismatch(
            architecture, error, f", with {OUTPUTS} output channels as `make train-unet` makes them"
        ) from error
    return network.eval().requires_grad_(requires_grad=False)


class PixelsToLogits(nn.Module):
    """A network with normalisation before it, as backends run it.

    Args:
        network: network from `build_unet`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(PIXEL_MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(PIXEL_STD)[:, None, None])

    def forward(self, pixels: Tensor) -> Tensor:
        """Uint8 (batch, height, width, 3), both sides multiples of 32, to float32 (batch, 5, height, width)."""
        logits: Tensor = self.network((pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std)
        return logits


def _network(architecture: str) -> nn.Module:
    network: nn.Module = smp.Unet(ENCODERS[architecture], encoder_weights=None, in_channels=3, classes=OUTPUTS)
    return network
