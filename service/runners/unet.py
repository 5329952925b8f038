"""A U-Net on a device: batches of images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from models.backends.base import UNetBackend
from models.catalog import CatalogueEntry, Family
from models.types import Pixels
from models.unet.letterbox import INPUT_SIZE, UNetLetterbox, unet_letterbox
from service.device_queue import DeviceQueue, Place, Ran
from service.keys import Key, infer_key, megapixels
from service.runners.base import Runner, best_size
from service.work import Limits, Piece, Terms


class UNetRunner(Runner):
    """One U-Net on one device; see `Runner`. Batches span requests, where their images' padded sizes are equal."""

    family: ClassVar[Family] = "unet"

    def __init__(self, entry: CatalogueEntry, backend: UNetBackend, queue: DeviceQueue) -> None:
        super().__init__(entry, backend, queue)
        self.backend = backend

    def prepare(self, pixels: Pixels, frame: UNetLetterbox) -> Any:
        """Turn a resized image into what the network takes; for worker threads."""
        return self.backend.prepare(pixels, frame)

    def reserve(self, terms: Terms, frame: UNetLetterbox, *, ready_by: float) -> Place:
        """Take the place of one image at the door.

        Args:
            terms: of the request; the deadline is when the image must be off the device.
            frame: how the image lies in what the network sees.
            ready_by: when the image should be prepared, seconds on the clock.

        Raises:
            Overloaded, DeadlineUnreachable: by the policy.
            NotReady: the server is shutting down.
            DeviceBroken: the device failed for good.
        """
        (place,) = self._queue.reserve(Piece(infer_key(self._owner, frame), terms, megapixels(frame.padded), ready_by))
        return place

    async def infer(self, place: Place, prepared: Any) -> Ran[NDArray[np.float32]]:
        """Run the network on a prepared image in its place.

        Returns:
            logits float32 (3, height, width) of the frame's `padded`.

        Raises:
            DeadlineExceeded: it was dropped from the queue.
            BackendError: the device failed.
        """
        return await place.run(prepared)

    def _warm_up(self) -> None:
        frame = unet_letterbox(INPUT_SIZE)
        prepared = self.prepare(np.zeros((frame.resized.height, frame.resized.width, 3), np.uint8), frame)
        self._images = best_size(
            self.backend.image_batches,
            lambda size: self._timed(infer_key(self._owner, frame), [prepared] * size, size * megapixels(frame.padded)),
        )

    def _limits(self, key: Key) -> Limits:  # noqa: ARG002 (all of its work is of one kind)
        return Limits(self._images, math.inf)

    def _run_batch(self, key: Key, payloads: Sequence[Any]) -> Sequence[Any]:  # noqa: ARG002 (as above)
        return self.backend.infer(payloads)
