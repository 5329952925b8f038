"""SAM on PyTorch: CUDA with bfloat16 autocast where the card has it, else the CPU in float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.backends.base import MAX_GRIDS, BackendName, Embedding, check_cells, check_frame
from models.backends.encoder_tools import cuda_tools, lower_weights
from models.backends.staging import Staged, Staging
from models.backends.torch_device import inference_on, takes_bf16
from models.backends.tuned_encoder import TunedEncoder, apart
from models.letterbox import Letterbox
from models.sam.build import build_sam
from models.sam.constants import PIXEL_MEAN, PIXEL_STD
from models.sam.positions import position_grid
from models.sam.prompts import PackedPrompts
from models.types import Logits, Pixels, Size

_IMAGE_BATCHES: Final = {"cpu": (1,), "cuda": (1, 2, 4, 8, 16)}
"""On a CPU a batch of images was measured at 0.84 to 1.05 times the throughput, and takes twice the memory."""

_PROMPT_BATCHES: Final = {"cpu": (1, 2, 4), "cuda": (1, 4, 16, 64)}
"""On a CPU a prompt takes about 60 MB while it runs."""


@dataclass(frozen=True, slots=True)
class _Prepared:
    """An image on its way to the device.

    Attributes:
        staged: the image without padding.
        padded: what the encoder sees.
    """

    staged: Staged
    padded: Size


class TorchSam:
    """See `SamBackend`. An embedding is a float32 tensor (256, h, w) on the device.

    On CUDA the first `encode` of the square of 1024 in each of `image_batches` finds out the fastest form of the
    encoder, which may take a minute; see `TunedEncoder`.

    Args:
        architecture: a key of `models.sam.build.ARCHITECTURES`.
        state_dict: the checkpoint's tensors.
        device: "cpu", "cuda" or "cuda:N".
        tuned: False runs the encoder as it is on CUDA too.
    """

    name: BackendName = "torch"

    def __init__(self, architecture: str, state_dict: Mapping[str, Tensor], device: str, *, tuned: bool = True) -> None:
        self.device = device
        self._device = torch.device(device)
        self.image_batches = _IMAGE_BATCHES[self._device.type]
        self.prompt_batches = _PROMPT_BATCHES[self._device.type]
        model = build_sam(architecture, state_dict)
        self.flexible = model.flexible
        matrix = model.decoder.position_matrix.numpy()
        self._grid = lru_cache(MAX_GRIDS)(
            lambda side, cells: torch.from_numpy(position_grid(matrix, side, cells)).to(self._device)
        )
        # Weights made in inference mode would be closed to compilers.
        with inference_on(self._device), torch.inference_mode(mode=False):
            self._bf16 = takes_bf16(self._device)
            if self._bf16:
                lower_weights(model.encoder)
                lower_weights(model.decoder)
            encoder = model.encoder.to(self._device)
            self._decoder = model.decoder.to(self._device)
            self._mean = torch.tensor(PIXEL_MEAN, device=self._device)
            self._std = torch.tensor(PIXEL_STD, device=self._device)
            self._staging = Staging(self._device)
            self._encode: Callable[[Tensor], list[Tensor]] = lambda batch: apart(encoder(batch))
            if self._device.type == "cuda":
                encoder.to(memory_format=torch.channels_last)
                if tuned:
                    self._encode = TunedEncoder(cuda_tools(encoder, self._device), self.image_batches)

    def prepare(self, pixels: Pixels, letterbox: Letterbox) -> _Prepared:
        """See `SamBackend.prepare`. The image is on its way when this returns.

        Raises:
            DeviceOutOfMemory: the device has no room for another waiting image.
        """
        check_frame(pixels, letterbox, flexible=self.flexible)
        with inference_on(self._device):
            return _Prepared(self._staging.upload(pixels), letterbox.padded)

    def encode(self, prepared: Sequence[_Prepared]) -> list[Embedding]:
        """See `SamBackend.encode`."""
        padded = prepared[0].padded
        if any(image.padded != padded for image in prepared):
            raise ValueError("images of different padded sizes go into batches of their own")
        with inference_on(self._device), self._autocast():
            batch = self._batch([self._staging.take(image.staged) for image in prepared], padded)
            return list(self._encode(batch))

    def _batch(self, images: Sequence[Tensor], padded: Size) -> Tensor:
        """Normalised float32 (n, 3, height, width), zero right of and below each image."""
        if self._device.type == "cuda":
            # Channels last, as the tensor cores take them.
            batch = torch.zeros(len(images), padded.height, padded.width, 3, device=self._device).movedim(-1, 1)
        else:
            batch = torch.zeros(len(images), 3, padded.height, padded.width)
        for row, pixels in zip(batch, images, strict=True):
            height, width, _ = pixels.shape
            row[:, :height, :width] = ((pixels.float() - self._mean) / self._std).movedim(-1, 0)
        return batch

    def decode(
        self,
        embeddings: Sequence[Embedding],
        image_index: NDArray[np.int64],
        prompts: PackedPrompts,
    ) -> tuple[Logits, NDArray[np.float32]]:
        """See `SamBackend.decode`."""
        images = [e for e in embeddings if isinstance(e, Tensor)]
        check_cells([e.shape for e in images], prompts)
        with inference_on(self._device):
            masks = prompts.mask_inputs
            arguments = (
                torch.stack(images),
                torch.from_numpy(image_index).to(self._device),
                torch.from_numpy(prompts.points).to(self._device),
                torch.from_numpy(prompts.labels).to(self._device),
                self._grid(prompts.side, prompts.cells),
                None if masks is None else torch.from_numpy(masks).to(self._device),
            )
            with self._autocast():
                logits, scores = self._decoder(*arguments)
            return self._staging.download(logits), self._staging.download(scores)

    def _autocast(self) -> torch.autocast:
        # Nothing to cache: no weight is converted twice.
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16, cache_enabled=False)
