"""The interface that every backend of a U-Net offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from models.backends.base import BackendName
from models.types import Pixels
from models.unet.frames import UNetFrame


class UNetBackend(Protocol):
    """One U-Net on one device. `prepare` may be called from any thread, `infer` from one at a time."""

    name: BackendName
    device: str
    picture_batches: tuple[int, ...]
    """Rising sizes of `infer` batches that may pay; the runner measures which does."""

    def prepare(self, pixels: Pixels, frame: UNetFrame) -> Any:
        """Turn a picture into what `infer` takes.

        Args:
            pixels: uint8 (height, width, 3) of size `frame.resized`.
            frame: how the picture lies in what the network sees.

        Raises:
            ValueError: pixels of another size.
        """
        ...

    def infer(self, prepared: Sequence[Any]) -> list[NDArray[np.float32]]:
        """Run the network on prepared pictures in one batch.

        Args:
            prepared: of pictures whose frames are equal in `padded`.

        Returns:
            for each picture float32 (5, height, width) of `padded`: logits of background, healthy and infected, then
            votes right and down, as `models.unet` reads them.

        Raises:
            ValueError: the padded sizes differ.
            BackendError: the device failed.
        """
        ...


def stacked(prepared: Sequence[Pixels]) -> Pixels:
    """One batch of padded pictures.

    Args:
        prepared: uint8 (height, width, 3) each.

    Returns:
        uint8 (pictures, height, width, 3).

    Raises:
        ValueError: their sizes differ.
    """
    if len({picture.shape for picture in prepared}) > 1:
        raise ValueError("pictures of different padded sizes go into batches of their own")
    return np.stack(prepared)
