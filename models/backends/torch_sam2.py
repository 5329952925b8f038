"""SAM 2 on PyTorch: on CUDA in bfloat16 if the card supports it, else in float32; on the CPU in float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.backends.base import BackendName, Embedding, check_cells
from models.backends.torch_backend import (
    IMAGE_BATCHES,
    PROMPT_BATCHES,
    PreparedImage,
    TorchImages,
    inference_on,
    supports_bf16,
    to_host,
)
from models.letterbox import Letterbox, letterbox_for
from models.sam.prompts import PackedPrompts, position_grid
from models.sam2.build import ImageDecoder, build_sam2
from models.sam2.frames import FrameInputs, TrackedMask
from models.sam2.memory import TrackState
from models.sam2.prompts import with_padding_points
from models.sam2.tracker import Sam2Tracker
from models.types import Logits, Pixels, Size

_OBJECTS_AT_ONCE: Final = 16
"""On a CUDA device; each takes about 100 MB while it is looked for."""


@dataclass(frozen=True, slots=True)
class Sam2Embedding:
    """One image's features at three scales, float32 on the device, see `models.sam2.build.Sam2Encoder`."""

    fine: Tensor
    middle: Tensor
    coarse: Tensor

    @property
    def nbytes(self) -> int:
        """Size in bytes on the device."""
        return self.fine.nbytes + self.middle.nbytes + self.coarse.nbytes


class TorchSam2:
    """Implements `Sam2Backend`. An embedding is a `Sam2Embedding`.

    Args:
        architecture: see `models.sam2.build.build_sam2`.
        state_dict: tensors of the checkpoint.
        device: "cpu", "cuda" or "cuda:N".
        config: file of the configuration, for the architecture "sam2".

    Raises:
        BadCheckpoint: the tensors do not fit the architecture.
        BackendError: `transformers` is not installed, or the device failed.
    """

    name: BackendName = "torch"
    flexible = False

    def __init__(
        self, architecture: str, state_dict: Mapping[str, Tensor], device: str, config: Path | None = None
    ) -> None:
        self.device = device
        self._device = torch.device(device)
        self.image_batches: tuple[int, ...] = IMAGE_BATCHES[self._device.type]
        self.prompt_batches: tuple[int, ...] = PROMPT_BATCHES[self._device.type]
        parts = build_sam2(architecture, state_dict, config)
        self.stretched_to: int | None = parts.side
        self.side = parts.side
        cells = letterbox_for_side(parts.side).cells
        grid = torch.from_numpy(position_grid(parts.decoder.position_matrix.numpy(), parts.side, cells))
        with inference_on(self._device), torch.inference_mode(mode=False):
            self._bf16 = supports_bf16(self._device)
            parts.network.to(self._device)
            self._encoder, self._decoder = parts.encoder, ImageDecoder(parts).to(self._device)
            self._grid = grid.to(self._device)
            self._images = TorchImages(self._device)
            at_once = self.prompt_batches[-1] if self._device.type == "cpu" else _OBJECTS_AT_ONCE
            self._tracker = Sam2Tracker(parts.network, parts.decoder, parts.side, at_once) if parts.tracks else None

    def prepare(self, pixels: Pixels, letterbox: Letterbox) -> PreparedImage:
        """Start copying an image to the device, see `SamBackend.prepare` and `TorchImages.prepare`."""
        if letterbox != letterbox_for(letterbox.original, self.side, "stretch"):
            raise ValueError(f"SAM 2 takes images stretched to the square of {self.side} pixels, got {letterbox}")
        if pixels.shape != (self.side, self.side, 3):
            raise ValueError(f"the pixels must have the shape {(self.side, self.side, 3)}, got {pixels.shape}")
        return self._images.prepare(pixels, letterbox.padded)

    def encode(self, prepared: Sequence[PreparedImage]) -> list[Embedding]:
        """Encode images, see `SamBackend.encode`."""
        with inference_on(self._device), self._autocast():
            features = self._encoder(self._images.batch(prepared, self.image_batches))
            # Copied one by one: a view of one embedding would keep its whole batch in memory.
            return [
                Sam2Embedding(*(scale[row].to(torch.float32, copy=True) for scale in features))
                for row in range(len(prepared))
            ]

    def decode(
        self, embeddings: Sequence[Embedding], image_index: NDArray[np.int64], prompts: PackedPrompts
    ) -> tuple[Logits, NDArray[np.float32]]:
        """Decode prompts, see `SamBackend.decode`."""
        images = [e for e in embeddings if isinstance(e, Sam2Embedding)]
        check_cells([e.coarse.shape for e in images], prompts)
        prompts = with_padding_points(prompts)
        with inference_on(self._device):
            masks = prompts.mask_inputs
            arguments = (
                *(torch.stack(scales) for scales in zip(*((e.fine, e.middle, e.coarse) for e in images), strict=True)),
                torch.from_numpy(image_index).to(self._device),
                torch.from_numpy(prompts.points).to(self._device),
                torch.from_numpy(prompts.labels).to(self._device),
                self._grid,
                None if masks is None else torch.from_numpy(masks).to(self._device),
            )
            with self._autocast():
                logits, scores = self._decoder(*arguments)
            return to_host(logits), to_host(scores)

    @property
    def object_bytes(self) -> int | None:
        """Most bytes that are remembered of an object, see `Sam2Backend`."""
        return None if self._tracker is None else self._tracker.sizes.object_bytes

    def track(self, state: TrackState, embedding: Embedding, inputs: FrameInputs) -> list[TrackedMask]:
        """Find the objects of a video on its next frame, see `Sam2Backend.track`."""
        if self._tracker is None or not isinstance(embedding, Sam2Embedding):
            raise ValueError("only a SAM 2 with its memory's weights tracks, on its own embeddings")
        with inference_on(self._device), self._autocast():
            return self._tracker.step(state, (embedding.fine, embedding.middle, embedding.coarse), inputs)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16)


def letterbox_for_side(side: int) -> Letterbox:
    """Return the letterbox of a square image of SAM 2's own side."""
    return letterbox_for(Size(side, side), side, "stretch")
