"""A U-Net on PyTorch: CUDA with bfloat16 autocast where the card has it, else the CPU in float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.backends.base import BackendName
from models.backends.torch_device import inference_on, takes_bf16
from models.backends.unet_base import stacked
from models.types import Pixels
from models.unet.build import PixelsToLogits, build_unet
from models.unet.letterbox import UNetLetterbox, pad

_IMAGE_BATCHES: Final = {"cpu": (1,), "cuda": (1, 2, 4, 8, 16)}
"""On a CPU images in batches of 2 and 4 were measured to take as long each as a lone one."""


class TorchUNet:
    """See `UNetBackend`.

    Args:
        architecture: a key of `models.unet.build.ENCODERS`.
        state_dict: the checkpoint's tensors.
        device: "cpu", "cuda" or "cuda:N".

    Raises:
        BadCheckpoint: the tensors do not fit the architecture.
        BackendError: the device failed.
    """

    name: BackendName = "torch"

    def __init__(self, architecture: str, state_dict: Mapping[str, Tensor], device: str) -> None:
        self.device = device
        self._device = torch.device(device)
        self.image_batches: tuple[int, ...] = _IMAGE_BATCHES[self._device.type]
        network = PixelsToLogits(build_unet(architecture, state_dict))
        with inference_on(self._device):
            self._network = network.to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            self._bf16 = takes_bf16(self._device)

    def prepare(self, pixels: Pixels, letterbox: UNetLetterbox) -> Pixels:
        """See `UNetBackend.prepare`: a quarter of the bytes of a normalised image."""
        return pad(pixels, letterbox)

    def infer(self, prepared: Sequence[Pixels]) -> list[NDArray[np.float32]]:
        """See `UNetBackend.infer`."""
        batch = stacked(prepared)
        with inference_on(self._device):
            pixels = torch.from_numpy(batch).to(self._device)
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
                logits = self._network(pixels)
            return list(logits.float().contiguous().cpu().numpy())
