"""From a checkpoint's tensors, or from chance alone, to a U-Net (Ronneberger et al. 2015)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from models.errors import BadCheckpoint
from models.unet.constants import OUTPUTS, PIXEL_MEAN, PIXEL_STD

ENCODERS: Final[Mapping[str, str]] = {"unet-resnet18": "resnet18", "unet-mobilenetv2": "mobilenet_v2"}
"""The encoder of every architecture, under the name that segmentation-models-pytorch gives it."""


def new_unet(architecture: str, seed: int) -> nn.Module:
    """An untrained network, float32 on the CPU, in training mode.

    Args:
        architecture: a key of `ENCODERS`.
        seed: of the weights; PyTorch's own generator is left as it was.

    Returns:
        Normalised float32 (batch, 3, height, width), both multiples of 32, to float32 (batch, 5, height, width): the
        logits of `models.data.samples.CLASSES`, and votes right and down in `OFFSET_UNIT`s, see
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
        BadCheckpoint: a tensor is missing, left over, or of the wrong shape.
    """
    network = _network(architecture)
    try:
        # Copies into the network's own tensors, and so converts to float32.
        network.load_state_dict(dict(state_dict), strict=True)
    except RuntimeError as error:
        raise BadCheckpoint(
            f"The checkpoint does not fit the architecture {architecture}: {_first_lines(error)} "
            f"Name the architecture that it was trained with; {OUTPUTS} channels are expected, as training here makes."
        ) from error
    return network.eval().requires_grad_(requires_grad=False)


class PixelsToLogits(nn.Module):
    """A network with the normalisation before it: what backends run.

    Args:
        network: as `build_unet` gives it.
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


def _first_lines(error: RuntimeError, limit: int = 300) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= limit else text[:limit] + " …"
