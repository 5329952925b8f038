"""Embeddings of images on disk, computed once: the encoder does not learn, so they never change.

One file for each image, in a folder of the model's revision and the frame; float16, which takes half the room.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.backends.base import SamBackend
from models.letterbox import Letterbox, Padding, letterbox_for, resize
from models.training.errors import CannotTrain
from models.types import Pixels, Size

_NAME = "embedding"


class EmbeddingStore:
    """Where embeddings lie, and how those that are missing are made.

    Args:
        folder: made when needed.
        revision: of the checkpoint whose encoder it is.
        side: of the model's square.
        padding: of the images.
        open_backend: loads the encoder; called once at most, and not at all where nothing is missing.
    """

    def __init__(
        self, folder: Path, *, revision: str, side: int, padding: Padding, open_backend: Callable[[], SamBackend]
    ) -> None:
        self._folder = folder / f"{revision}-{side}-{padding}"
        self._side = side
        self._padding: Padding = padding
        self._open_backend = open_backend
        self._backend: SamBackend | None = None

    def ensure(self, pixels: Pixels) -> tuple[Letterbox, Path]:
        """Find an image's embedding by its content, or compute and keep it.

        Args:
            pixels: uint8 (height, width, 3).

        Returns:
            The image's frame and the embedding's file, for `load_embedding`.

        Raises:
            CannotTrain: the embedding is too large for float16.
            BackendError: the encoder cannot be loaded, or failed.
            OSError: the file cannot be written.
        """
        frame = letterbox_for(Size(*pixels.shape[:2]), self._side, self._padding)
        content = hashlib.sha256(f"{pixels.shape} ".encode())
        content.update(np.ascontiguousarray(pixels).data)
        file = self._folder / f"{content.hexdigest()[:32]}.safetensors"
        if not file.is_file():
            self._write(file, self._encode(pixels, frame))
        return frame, file

    def _encode(self, pixels: Pixels, frame: Letterbox) -> Tensor:
        if self._backend is None:
            self._backend = self._open_backend()
        (embedding,) = self._backend.encode([self._backend.prepare(resize(pixels, frame), frame)])
        return torch.as_tensor(embedding).to("cpu", torch.float16)

    def _write(self, file: Path, embedding: Tensor) -> None:
        if not bool(torch.isfinite(embedding).all()):
            raise CannotTrain("An image's embedding is no number or too large for float16.")
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        save_file({_NAME: embedding.contiguous()}, part)
        part.replace(file)


def load_embedding(file: Path) -> Tensor:
    """Read an embedding.

    Args:
        file: from `EmbeddingStore.ensure`.

    Returns:
        float32 (256, h, w).

    Raises:
        CannotTrain: the file is gone or damaged.
    """
    try:
        embedding: Tensor = load_file(file)[_NAME]
        return embedding.float()
    except (OSError, KeyError, SafetensorError) as error:
        raise CannotTrain(f"{file}: the embedding cannot be read ({error}); delete it, and resume the run.") from error
