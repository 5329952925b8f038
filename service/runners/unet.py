"""A U-Net on a device: batches of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from models.backends.base import UNetBackend
from models.catalog import CatalogueEntry, Family
from models.confidence import FractionIntervals
from models.drift import Reference
from models.types import Pixels, Size
from models.unet.letterbox import INPUT_SIZE, UNetLetterbox, input_area, unet_letterbox
from models.unet.scales import SCALES, unet_scales
from service.runners.base import Runner, best_size, megapixels, sizes_like
from service.scheduler.policy import Limits, Requester, WorkItem
from service.scheduler.queue import Background, BatchKey, BatchResult, DeviceQueue, Ticket


class UNetRunner(Runner):
    """One U-Net on one device; see `Runner`. Batches span requests whose images have equal padded sizes."""

    family: ClassVar[Family] = "unet"

    def __init__(
        self,
        entry: CatalogueEntry,
        backend: UNetBackend,
        queue: DeviceQueue,
        intervals: FractionIntervals | None = None,
        reference: Reference | None = None,
    ) -> None:
        super().__init__(entry, backend, queue)
        self.backend = backend
        self.intervals = intervals
        """Of the infected fraction, where the model has been calibrated."""
        self.reference = reference
        """What the model was validated on, where that is known."""

    def letterbox(self, size: Size, *, fast: bool = False) -> UNetLetterbox:
        """Fit an image into the input of the model; where it is to be fast, into one of at most 448 x 224 pixels."""
        return unet_letterbox(size, input_area(self.entry.input_area, fast=fast))

    def scales(self, size: Size) -> tuple[UNetLetterbox, ...]:
        """Fit an image into the input of the model at every scale, that of `letterbox` first."""
        return unet_scales(size, self.entry.input_area)

    def prepare(self, pixels: Pixels, letterbox: UNetLetterbox) -> Any:
        """Return the network's input from a resized image; for worker threads."""
        return self.backend.prepare(pixels, letterbox)

    def reserve(
        self, request: Requester, letterbox: UNetLetterbox, *, deadline: float | None, ready_by: float
    ) -> Ticket:
        """Reserve the place of an image that the network sees once; see `reserve_scales`."""
        (ticket,) = self.reserve_scales(request, (letterbox,), deadline=deadline, ready_by=ready_by)
        return ticket

    def reserve_scales(
        self, request: Requester, letterboxes: Sequence[UNetLetterbox], *, deadline: float | None, ready_by: float
    ) -> Sequence[Ticket]:
        """Reserve the places of one image on arrival, all or none.

        Args:
            request: whose image it is.
            letterboxes: how the image fits into what the network sees, each time that it sees it.
            deadline: when the image must be off the device.
            ready_by: when the image should be prepared; both in seconds on the clock.

        Raises:
            Overloaded, DeadlineUnreachable: by the policy.
            NotReady: the server is shutting down.
            DeviceBroken: the device failed for good.
        """
        return self._queue.reserve(
            *(
                WorkItem(self._key(each), request, deadline=deadline, cost=megapixels(each.padded), ready_by=ready_by)
                for each in letterboxes
            )
        )

    async def infer(self, ticket: Ticket, prepared: Any) -> BatchResult[NDArray[np.float32]]:
        """Run the network on a prepared image.

        Returns:
            Outputs float32 (5, height, width) of the letterbox's `padded`.

        Raises:
            DeadlineExceeded: the item was dropped from the queue.
            BackendError: the device failed.
        """
        return await ticket.run(prepared)

    async def infer_idle(self, prepared: Any, letterbox: UNetLetterbox) -> BatchResult[NDArray[np.float32]] | None:
        """Run the network on an image that no caller waits for; None where the device cannot spare the time now.

        Raises:
            BackendError: the device failed.
        """
        item: WorkItem[BatchKey, Any] = WorkItem(
            self._key(letterbox),
            Background(self._queue.clock()),
            deadline=None,
            cost=megapixels(letterbox.padded),
        )
        return await self._queue.run_idle(item, prepared)

    def _key(self, letterbox: UNetLetterbox) -> BatchKey:
        return BatchKey(self._model, "infer", letterbox.padded)

    def _warm_up(self) -> None:
        letterbox = self.letterbox(INPUT_SIZE)
        prepared = self.prepare(np.zeros((letterbox.resized.height, letterbox.resized.width, 3), np.uint8), letterbox)
        key, cost = self._key(letterbox), megapixels(letterbox.padded)
        self._max_images = best_size(
            sizes_like(self.backend.image_batches, self._largest_images),
            lambda size: self._timed(key, [prepared] * size, size * cost),
        )

    def _limits(self, key: BatchKey) -> Limits:  # noqa: ARG002 (all of its work is of one kind)
        # Larger images of `scales` take no more memory than as many of the model's own area, or one of them.
        own = input_area(self.entry.input_area) / 1e6
        return Limits(self._max_images, max(self._max_images, *SCALES) * own)

    def _execute(self, key: BatchKey, payloads: Sequence[Any]) -> Sequence[Any]:  # noqa: ARG002 (as above)
        return self.backend.infer(payloads)
