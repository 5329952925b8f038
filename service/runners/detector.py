"""A detector on a device: batches of images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from models.backends.base import DetectorBackend
from models.catalog import CatalogueEntry, Family
from models.detector.letterbox import DetectorLetterbox, detector_letterbox
from models.detector.postprocess import BOX_VALUES, Detection, Thresholds, cell_count, detections
from models.types import Pixels, Size
from service.runners.base import Runner, best_size, sizes_like
from service.scheduler.policy import Limits, Requester, WorkItem
from service.scheduler.queue import BatchKey, BatchResult, DeviceQueue, Ticket


class DetectorRunner(Runner):
    """One detector on one device; see `Runner`. All images have the same size in it, and the cost 1."""

    family: ClassVar[Family] = "detector"

    def __init__(self, entry: CatalogueEntry, backend: DetectorBackend, queue: DeviceQueue) -> None:
        super().__init__(entry, backend, queue)
        self.backend = backend

    @property
    def runner(self) -> DetectorRunner:
        """Itself: it finds boxes whatever is asked for; see `service.pipelines.detect.BoxFinder`."""
        return self

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the output."""
        return self.backend.classes

    def output_values(self, letterbox: DetectorLetterbox) -> int:
        """Return the number of values of an output."""
        return cell_count(letterbox.padded) * (BOX_VALUES + len(self.classes))

    def boxes(
        self, output: NDArray[np.float32], letterbox: DetectorLetterbox, thresholds: Thresholds
    ) -> list[Detection]:
        """Return the objects in an output, best first; for worker threads."""
        return detections(output, letterbox, thresholds)

    def letterbox(self, size: Size) -> DetectorLetterbox:
        """Fit an image into the network's input."""
        return detector_letterbox(size, self.backend.input_size)

    def prepare(self, pixels: Pixels, letterbox: DetectorLetterbox) -> Any:
        """Return the network's input from a resized image; for worker threads."""
        return self.backend.prepare(pixels, letterbox)

    def reserve(
        self,
        request: Requester,
        letterbox: DetectorLetterbox,  # noqa: ARG002 (all images have the same size in it)
        *,
        deadline: float | None,
        ready_by: float,
    ) -> Ticket:
        """Reserve the place of one image on arrival; see `UNetRunner.reserve`."""
        item: WorkItem[BatchKey, Any] = WorkItem(self._key(), request, deadline=deadline, cost=1.0, ready_by=ready_by)
        (ticket,) = self._queue.reserve(item)
        return ticket

    async def infer(self, ticket: Ticket, prepared: Any) -> BatchResult[NDArray[np.float32]]:
        """Run the network on a prepared image.

        Returns:
            Output float32 (cells, 5 + classes).

        Raises:
            DeadlineExceeded: the item was dropped from the queue.
            BackendError: the device failed.
        """
        return await ticket.run(prepared)

    def _key(self) -> BatchKey:
        return BatchKey(self._model, "infer", self.backend.input_size)

    def _warm_up(self) -> None:
        letterbox = self.letterbox(self.backend.input_size)
        prepared = self.prepare(np.zeros((letterbox.resized.height, letterbox.resized.width, 3), np.uint8), letterbox)
        self._max_images = best_size(
            sizes_like(self.backend.image_batches, self._largest_images),
            lambda size: self._timed(self._key(), [prepared] * size, size),
        )

    def _limits(self, key: BatchKey) -> Limits:  # noqa: ARG002 (all of its work is of one kind)
        return Limits(self._max_images, math.inf)

    def _execute(self, key: BatchKey, payloads: Sequence[Any]) -> Sequence[Any]:  # noqa: ARG002 (as above)
        return self.backend.infer(payloads)
