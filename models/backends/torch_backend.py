"""SAM on PyTorch: CUDA with bfloat16 autocast where the card has it, else the CPU in float32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models.backends.base import BackendName, Embedding
from models.errors import BackendError
from models.sam.build import build_sam
from models.sam.constants import INPUT_SIDE, PIXEL_MEAN, PIXEL_STD
from models.sam.prompts import PackedPrompts
from models.types import Logits, Pixels

_MAX_PROMPTS: Final = {"cpu": 4, "cuda": 64}
"""On the CPU a prompt costs the same in a batch as alone, and about 60 MB while it runs."""


class TorchSam:
    """See `SamBackend`. An embedding is a float32 tensor (256, 64, 64) on the device.

    Args:
        architecture: a key of `models.sam.build.ARCHITECTURES`.
        state_dict: the checkpoint's tensors.
        device: "cpu", "cuda" or "cuda:N".
    """

    name: BackendName = "torch"

    def __init__(self, architecture: str, state_dict: Mapping[str, Tensor], device: str) -> None:
        self.device = device
        self._device = torch.device(device)
        self.max_prompts = _MAX_PROMPTS[self._device.type]
        model = build_sam(architecture, state_dict)
        with self._guarded():
            self._encoder = model.encoder.to(self._device)
            self._decoder = model.decoder.to(self._device)
            self._mean = torch.tensor(PIXEL_MEAN, device=self._device)[:, None, None]
            self._std = torch.tensor(PIXEL_STD, device=self._device)[:, None, None]
            self._bf16 = self._device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)

    def prepare(self, pixels: Pixels) -> Tensor:
        """A picture as a uint8 tensor (3, height, width) in the host's memory."""
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))

    def encode(self, prepared: Sequence[Tensor]) -> list[Embedding]:
        """See `SamBackend.encode`."""
        with self._guarded():
            batch = torch.stack([self._normalise(picture) for picture in prepared])
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
                embeddings = self._encoder(batch)
            return list(embeddings.float())

    def decode(
        self,
        embeddings: Sequence[Embedding],
        image_index: NDArray[np.int64],
        prompts: PackedPrompts,
    ) -> tuple[Logits, NDArray[np.float32]]:
        """See `SamBackend.decode`."""
        with self._guarded():
            masks = prompts.mask_inputs
            arguments = (
                torch.stack([e for e in embeddings if isinstance(e, Tensor)]),
                torch.from_numpy(image_index).to(self._device),
                torch.from_numpy(prompts.coords).to(self._device),
                torch.from_numpy(prompts.labels).to(self._device),
                None if masks is None else torch.from_numpy(masks).to(self._device),
            )
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
                logits, scores = self._decoder(*arguments)
            return logits.float().cpu().numpy(), scores.float().cpu().numpy()

    def _normalise(self, picture: Tensor) -> Tensor:
        pixels = (picture.to(self._device, torch.float32, non_blocking=True) - self._mean) / self._std
        height, width = pixels.shape[-2:]
        return functional.pad(pixels, (0, INPUT_SIDE - width, 0, INPUT_SIDE - height))

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            with torch.inference_mode():
                yield
        except RuntimeError as error:
            raise BackendError(f"PyTorch failed on {self.device}: {error}") from error
