"""Images to the device and results from it, so that neither makes the device wait."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.types import Pixels


@dataclass(frozen=True, slots=True)
class Staged:
    """An image on the device, or on its way there.

    Attributes:
        pixels: uint8 (height, width, 3) on the device: a quarter of the bytes of normalised ones.
        arrived: is passed once it is there; None where there is no way.
    """

    pixels: Tensor
    arrived: torch.cuda.Event | None


class Staging:
    """The way to a device and back.

    To a CUDA device images go through page-locked memory and on a stream of their own: the thread that prepares a
    image starts its copy, and the device copies while it computes other batches. `upload` may be called from any
    thread.

    Args:
        device: on a CPU everything is copied at once.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def upload(self, pixels: Pixels) -> Staged:
        """Start an image's copy; the caller may change its own afterwards.

        Args:
            pixels: uint8 (height, width, 3).
        """
        host = torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=self._stream is not None)
        np.copyto(host.numpy(), pixels)
        if self._stream is None:
            return Staged(host, None)
        with torch.cuda.stream(self._stream):
            # PyTorch keeps page-locked memory until the copies from it are done.
            there = host.to(self._device, non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record(self._stream)
        return Staged(there, arrived)

    def take(self, staged: Staged) -> Tensor:
        """The image, for work on the current stream, which waits for the copy; the calling thread does not."""
        if staged.arrived is not None:
            computing = torch.cuda.current_stream(self._device)
            computing.wait_event(staged.arrived)
            # Else its memory could be given to the next upload while the computation still reads it.
            staged.pixels.record_stream(computing)
        return staged.pixels

    def download(self, result: Tensor) -> NDArray[np.float32]:
        """A result in the host's memory, float32 of the same shape; waits for it."""
        result = result.float()
        if self._stream is None:
            return result.numpy()
        host = torch.empty(result.shape, dtype=torch.float32, pin_memory=True)
        host.copy_(result, non_blocking=True)
        torch.cuda.current_stream(self._device).synchronize()
        return host.numpy()
