"""SAM on PyTorch: CUDA with bfloat16 autocast where the card has it, else the CPU in float32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.backends.base import MAX_GRIDS, BackendName, Embedding, check_cells, check_frame
from models.errors import BackendError, DeviceBroken, DeviceOutOfMemory
from models.sam.build import build_sam
from models.sam.constants import PIXEL_MEAN, PIXEL_STD
from models.sam.positions import position_grid
from models.sam.prompts import PackedPrompts
from models.transforms import Frame
from models.types import Logits, Pixels, Size

_PICTURE_BATCHES: Final = {"cpu": (1,), "cuda": (1, 2, 4, 8, 16)}
"""On a CPU a batch of pictures was measured at 0.84 to 1.05 times the throughput, and takes twice the memory."""

_PROMPT_BATCHES: Final = {"cpu": (1, 2, 4), "cuda": (1, 4, 16, 64)}
"""On a CPU a prompt takes about 60 MB while it runs."""


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A picture on its way to the device.

    Attributes:
        pixels: uint8 (3, height, width) in the host's memory: a quarter of the bytes of normalised ones.
        padded: what the encoder sees.
    """

    pixels: Tensor
    padded: Size


class TorchSam:
    """See `SamBackend`. An embedding is a float32 tensor (256, h, w) on the device.

    Args:
        architecture: a key of `models.sam.build.ARCHITECTURES`.
        state_dict: the checkpoint's tensors.
        device: "cpu", "cuda" or "cuda:N".
    """

    name: BackendName = "torch"

    def __init__(self, architecture: str, state_dict: Mapping[str, Tensor], device: str) -> None:
        self.device = device
        self._device = torch.device(device)
        self.picture_batches = _PICTURE_BATCHES[self._device.type]
        self.prompt_batches = _PROMPT_BATCHES[self._device.type]
        model = build_sam(architecture, state_dict)
        self.flexible = model.flexible
        matrix = model.decoder.position_matrix.numpy()
        self._grid = lru_cache(MAX_GRIDS)(
            lambda side, cells: torch.from_numpy(position_grid(matrix, side, cells)).to(self._device)
        )
        with self._guarded():
            self._encoder = model.encoder.to(self._device)
            self._decoder = model.decoder.to(self._device)
            self._mean = torch.tensor(PIXEL_MEAN, device=self._device)[:, None, None]
            self._std = torch.tensor(PIXEL_STD, device=self._device)[:, None, None]
            self._bf16 = self._device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)

    def prepare(self, pixels: Pixels, frame: Frame) -> _Prepared:
        """See `SamBackend.prepare`."""
        check_frame(pixels, frame, flexible=self.flexible)
        return _Prepared(torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))), frame.padded)

    def encode(self, prepared: Sequence[_Prepared]) -> list[Embedding]:
        """See `SamBackend.encode`."""
        padded = prepared[0].padded
        if any(picture.padded != padded for picture in prepared):
            raise ValueError("pictures of different padded sizes go into batches of their own")
        with self._guarded():
            batch = torch.zeros(len(prepared), 3, padded.height, padded.width, device=self._device)
            for row, picture in zip(batch, prepared, strict=True):
                height, width = picture.pixels.shape[-2:]
                pixels = picture.pixels.to(self._device, torch.float32, non_blocking=True)
                row[:, :height, :width] = (pixels - self._mean) / self._std
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
        pictures = [e for e in embeddings if isinstance(e, Tensor)]
        check_cells([e.shape for e in pictures], prompts)
        with self._guarded():
            masks = prompts.mask_inputs
            arguments = (
                torch.stack(pictures),
                torch.from_numpy(image_index).to(self._device),
                torch.from_numpy(prompts.points).to(self._device),
                torch.from_numpy(prompts.labels).to(self._device),
                self._grid(prompts.side, prompts.cells),
                None if masks is None else torch.from_numpy(masks).to(self._device),
            )
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
                logits, scores = self._decoder(*arguments)
            return logits.float().cpu().numpy(), scores.float().cpu().numpy()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            with torch.inference_mode():
                yield
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise DeviceOutOfMemory(f"{self.device} has no memory for this batch: {error}") from error
        except RuntimeError as error:
            # After a CUDA error the process's context is lost: every later call fails too.
            kind = DeviceBroken if "CUDA error" in str(error) else BackendError
            raise kind(f"PyTorch failed on {self.device}: {error}") from error
