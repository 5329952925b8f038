"""The interface that every backend of a SAM offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from models.sam.constants import INPUT_SIDE, PIXEL_MEAN, PIXEL_STD
from models.sam.prompts import PackedPrompts
from models.types import Logits, Pixels

BackendName = Literal["torch", "openvino"]

_SCALE: Final = (1 / np.asarray(PIXEL_STD)).astype(np.float32)
_SHIFT: Final = (-np.asarray(PIXEL_MEAN) / np.asarray(PIXEL_STD)).astype(np.float32)


class Embedding(Protocol):
    """One picture's embedding, kept where the backend computes (256 x 64 x 64 float32: 4 MiB)."""

    @property
    def nbytes(self) -> int:
        """Bytes that it holds on the device."""
        ...


class SamBackend(Protocol):
    """One SAM on one device. `prepare` may be called from any thread, `encode` and `decode` from one at a time."""

    name: BackendName
    device: str
    max_prompts: int
    """Prompts per `decode` call that keep memory bounded and lose no throughput."""

    def prepare(self, pixels: Pixels) -> Any:
        """Turn a picture of at most 1024 x 1024, uint8 (height, width, 3), into what `encode` takes."""
        ...

    def encode(self, prepared: Sequence[Any]) -> list[Embedding]:
        """Encode prepared pictures in one batch.

        Raises:
            BackendError: the device failed.
        """
        ...

    def decode(
        self,
        embeddings: Sequence[Embedding],
        image_index: NDArray[np.int64],
        prompts: PackedPrompts,
    ) -> tuple[Logits, NDArray[np.float32]]:
        """Decode P prompts on their pictures in one batch.

        Args:
            embeddings: of the I pictures in the batch.
            image_index: int64 (P,), each prompt's picture.
            prompts: P of them, at most `max_prompts`.

        Returns:
            logits float32 (P, 4, 256, 256), of the padded square, and predicted IoU float32 (P, 4).

        Raises:
            BackendError: the device failed.
        """
        ...


def normalise(pixels: Pixels) -> NDArray[np.float32]:
    """Normalise a picture and pad it to the model's square, as segment-anything's `Sam.preprocess`.

    Args:
        pixels: uint8 (height, width, 3), at most 1024 x 1024.

    Returns:
        float32 (3, 1024, 1024); zero right of and below the picture.
    """
    height, width = pixels.shape[:2]
    square = np.zeros((3, INPUT_SIDE, INPUT_SIDE), np.float32)
    for channel in range(3):
        inside = square[channel, :height, :width]
        np.multiply(pixels[..., channel], _SCALE[channel], out=inside)
        inside += _SHIFT[channel]
    return square
