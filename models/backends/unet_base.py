"""The interface that every backend of a U-Net offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from models.backends.base import BackendName
from models.types import Pixels
from models.unet.letterbox import UNetLetterbox


class UNetBackend(Protocol):
    """One U-Net on one device. `prepare` may be called from any thread, `infer` from one at a time."""

    name: BackendName
    device: str
    image_batches: tuple[int, ...]
    """Rising sizes of `infer` batches that may pay; the runner measures which does."""

    def prepare(self, pixels: Pixels, letterbox: UNetLetterbox) -> Any:
        """Turn an image into what `infer` takes.

        Args:
            pixels: uint8 (height, width, 3) of size `letterbox.resized`.
            letterbox: how the image lies in what the network sees.

        Raises:
            ValueError: pixels of another size.
        """
        ...

    def infer(self, prepared: Sequence[Any]) -> list[NDArray[np.float32]]:
        """Run the network on prepared images in one batch.

        Args:
            prepared: of images whose letterboxes are equal in `padded`.

        Returns:
            for each image float32 (5, height, width) of `padded`: logits of background, healthy and infected, then
            votes right and down, as `models.unet` reads them.

        Raises:
            ValueError: the padded sizes differ.
            BackendError: the device failed.
        """
        ...


def stacked(prepared: Sequence[Pixels]) -> Pixels:
    """One batch of padded images.

    Args:
        prepared: uint8 (height, width, 3) each.

    Returns:
        uint8 (images, height, width, 3).

    Raises:
        ValueError: their sizes differ.
    """
    if len({image.shape for image in prepared}) > 1:
        raise ValueError("images of different padded sizes go into batches of their own")
    return np.stack(prepared)
