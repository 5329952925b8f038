"""A U-Net on a device: batches of pictures."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from models.backends.unet_base import UNetBackend
from models.entries import Family
from models.types import Pixels
from models.unet.frames import INPUT_SIZE, UNetFrame, unet_frame
from models.zoo import CatalogueEntry
from service.device_queue import Place, Ran
from service.keys import InferKey, megapixels
from service.observability.observer import Observer
from service.runners.base import Runner, best_size
from service.work import Limits, Piece, QueueOptions, Terms


class UNetRunner(Runner):
    """One U-Net on one device. Batches span requests; pictures share one where their padded sizes are equal.

    Args:
        entry: what the backend was loaded from.
        backend: the model.
        options: of the queue.
        clock: seconds, monotonic.
        observer: hears of batches, waits and drops.
    """

    family: ClassVar[Family] = "unet"

    def __init__(
        self,
        entry: CatalogueEntry,
        backend: UNetBackend,
        *,
        options: QueueOptions | None = None,
        clock: Callable[[], float] = time.monotonic,
        observer: Observer | None = None,
    ) -> None:
        super().__init__(entry, backend, options=options, clock=clock, observer=observer)
        self.backend = backend
        self._pictures = backend.picture_batches[-1]

    def prepare(self, pixels: Pixels, frame: UNetFrame) -> Any:
        """Turn a resized picture into what the network takes; for worker threads."""
        return self.backend.prepare(pixels, frame)

    def reserve(self, terms: Terms, frame: UNetFrame, *, ready_by: float) -> Place:
        """Take the place of one picture at the door.

        Args:
            terms: of the request; the deadline is when the picture must be off the device.
            frame: how the picture lies in what the network sees.
            ready_by: when the picture should be prepared, seconds on the clock.

        Raises:
            Overloaded, DeadlineUnreachable: by the policy.
            NotReady: the server is shutting down.
            DeviceBroken: the device failed for good.
        """
        (place,) = self._queue.reserve(Piece(InferKey(frame.padded), terms, megapixels(frame.padded), ready_by))
        return place

    async def infer(self, place: Place, prepared: Any) -> Ran[NDArray[np.float32]]:
        """Run the network on a prepared picture in its place.

        Returns:
            logits float32 (3, height, width) of the frame's `padded`.

        Raises:
            DeadlineExceeded: it was dropped from the queue.
            BackendError: the device failed.
        """
        return await place.run(prepared)

    def _warm_up(self) -> None:
        frame = unet_frame(INPUT_SIZE)
        prepared = self.prepare(np.zeros((frame.resized.height, frame.resized.width, 3), np.uint8), frame)
        self._pictures = best_size(
            self.backend.picture_batches,
            lambda size: self._timed(InferKey(frame.padded), [prepared] * size, size * megapixels(frame.padded)),
        )

    def _limits(self, key: Hashable) -> Limits:  # noqa: ARG002 (all of its work is of one kind)
        return Limits(self._pictures, math.inf)

    def _run_batch(self, key: Hashable, payloads: Sequence[Any]) -> Sequence[Any]:  # noqa: ARG002 (as above)
        return self.backend.infer(payloads)
