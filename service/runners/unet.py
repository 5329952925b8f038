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
from service.runners.base import Runner, best_size
from service.runners.keys import Key, infer_key, megapixels
from service.scheduler.policy import Limits, WorkItem
from service.scheduler.queue import BatchResult, DeviceQueue, Ticket


class UNetRunner(Runner):
    """One U-Net on one device; see `Runner`. Batches span requests, where their images' padded sizes are equal."""

    family: ClassVar[Family] = "unet"

    def __init__(self, entry: CatalogueEntry, backend: UNetBackend, queue: DeviceQueue) -> None:
        super().__init__(entry, backend, queue)
        self.backend = backend

    def prepare(self, pixels: Pixels, letterbox: UNetLetterbox) -> Any:
        """Turn a resized image into what the network takes; for worker threads."""
        return self.backend.prepare(pixels, letterbox)

    def reserve(self, request: Any, letterbox: UNetLetterbox, *, deadline: float | None, ready_by: float) -> Ticket:
        """Take the ticket of one image at the door.

        Args:
            terms: of the request; the deadline is when the image must be off the device.
            letterbox: how the image lies in what the network sees.
            ready_by: when the image should be prepared, seconds on the clock.

        Raises:
            Overloaded, DeadlineUnreachable: by the policy.
            NotReady: the server is shutting down.
            DeviceBroken: the device failed for good.
        """
        (ticket,) = self._queue.reserve(
            WorkItem(
                infer_key(self._owner, letterbox),
                request,
                deadline=deadline,
                cost=megapixels(letterbox.padded),
                ready_by=ready_by,
            )
        )
        return ticket

    async def infer(self, ticket: Ticket, prepared: Any) -> BatchResult[NDArray[np.float32]]:
        """Run the network on a prepared image in its ticket.

        Returns:
            logits float32 (3, height, width) of the letterbox's `padded`.

        Raises:
            DeadlineExceeded: it was dropped from the queue.
            BackendError: the device failed.
        """
        return await ticket.run(prepared)

    def _warm_up(self) -> None:
        letterbox = unet_letterbox(INPUT_SIZE)
        prepared = self.prepare(np.zeros((letterbox.resized.height, letterbox.resized.width, 3), np.uint8), letterbox)
        self._images = best_size(
            self.backend.image_batches,
            lambda size: self._timed(
                infer_key(self._owner, letterbox), [prepared] * size, size * megapixels(letterbox.padded)
            ),
        )

    def _limits(self, key: Key) -> Limits:  # noqa: ARG002 (all of its work is of one kind)
        return Limits(self._images, math.inf)

    def _run_batch(self, key: Key, payloads: Sequence[Any]) -> Sequence[Any]:  # noqa: ARG002 (as above)
        return self.backend.infer(payloads)
