"""What the runners of all families share: their part of the device, warm-up, the end."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Final

from models.backends.base import BackendName, DetectorBackend, GroundingBackend, SamBackend, UNetBackend
from models.catalog import CatalogueEntry, Family
from models.errors import DeviceOutOfMemory
from models.letterbox import Letterbox
from models.sam.constants import INPUT_SIDE
from models.types import Size
from service.runners.slices import Slices
from service.scheduler.policy import Limits
from service.scheduler.queue import BatchKey, DeviceQueue, ModelInstance

_GOOD_ENOUGH: Final = 1.05
"""Of batch sizes whose time per item is within this factor of the best, the smallest is used: it answers sooner."""


class Runner(ABC):
    """One model on one device.

    Args:
        entry: what the backend was loaded from.
        backend: the model.
        queue: of the backend's device, shared with the other runners on it.
    """

    family: ClassVar[Family]

    def __init__(
        self,
        entry: CatalogueEntry,
        backend: SamBackend | UNetBackend | DetectorBackend | GroundingBackend,
        queue: DeviceQueue,
    ) -> None:
        self.entry = entry
        self.device = backend.device
        self.backend_name: BackendName = backend.name
        self._queue = queue
        self._model = ModelInstance(entry.name, self._limits, self._execute)
        self._largest_images: int | None = None
        self._max_images = backend.image_batches[-1]
        self._slices: Slices | None = None
        self._expected: Callable[[BatchKey, float], float] = self.predict

    @property
    def queue(self) -> DeviceQueue:
        """Of the device, shared with the other runners on it."""
        return self._queue

    @property
    def broken(self) -> bool:
        """Whether the device failed for good, for all runners on it."""
        return self._queue.broken

    async def warm_up(self) -> None:
        """Time every batch size that the backend offers, keep the sizes that pay, and teach the queue their times.

        The second of two runs counts: the first compiles kernels and allocates buffers. The runners of a device warm
        up one after another, before they serve.
        """
        await self._queue.alone(self._warm_up)

    async def warm_up_beside(self, other: Runner) -> None:
        """Warm up while the device serves another revision of the same model; see `service.runners.slices`.

        Each batch is one slice of work, none larger than the batches of the other revision: of the sizes that the
        backend offers, only the smallest and those are tried.

        Args:
            other: serves on the same device.

        Raises:
            NotReady: the server is shutting down.
            BackendError: the model or its device failed.
        """
        self._take_sizes_of(other)
        self._slices = Slices(self._queue, self.entry.name)
        self._expected = other.predict
        try:
            await asyncio.to_thread(self._warm_up)
        finally:
            self._slices = None

    def predict(self, key: BatchKey, cost: float) -> float:
        """Predict seconds of a batch of this model that is like one of another revision; 0 where nothing is known."""
        return self._queue.predict(replace(key, model=self._model), cost)

    def discard(self) -> None:
        """Give up the memory of the model; nothing may run on it any more."""
        self._queue.forget(self._model)
        vars(self).pop("backend", None)

    async def close(self, within: float) -> None:
        """Finish the device's admitted work, for at most `within` seconds, and stop its thread.

        This ends all runners on the device; closing another of them too is harmless.
        """
        await self._queue.close(within)

    @abstractmethod
    def _warm_up(self) -> None:
        """See `warm_up`; on the device's thread."""

    @abstractmethod
    def _limits(self, key: BatchKey) -> Limits:
        """Return the limits of a batch of such work."""

    @abstractmethod
    def _execute(self, key: BatchKey, payloads: Sequence[Any]) -> Sequence[Any]:
        """Run a batch, on the device's thread."""

    def _timed(self, key: BatchKey, payloads: Sequence[Any], cost: float) -> float:
        """Return the seconds per payload of the second of two runs, from which the queue learns."""
        self._run(key, payloads, cost)
        seconds, _ = self._run(key, payloads, cost)
        self._queue.learn(key, cost, seconds)
        return seconds / len(payloads)

    def _run(self, key: BatchKey, payloads: Sequence[Any], cost: float) -> tuple[float, Sequence[Any]]:
        """Run a batch of the warm-up; return its seconds and its results."""

        def execute() -> tuple[float, Sequence[Any]]:
            started = self._queue.clock()
            results = self._execute(key, payloads)
            return self._queue.clock() - started, results

        if self._slices is None:
            return execute()
        return self._slices.run(execute, key.stage, self._expected(key, cost))

    def _take_sizes_of(self, other: Runner) -> None:
        """Try no batches but the smallest and those of another revision."""
        self._largest_images = other._max_images


def best_size(sizes: Sequence[int], seconds_per_item: Callable[[int], float]) -> int:
    """Return the smallest batch size that is about as good as the best, of those that the device has memory for.

    Args:
        sizes: rising.
        seconds_per_item: measures one.

    Raises:
        DeviceOutOfMemory: not even the smallest fits.
    """
    measured: dict[int, float] = {}
    for size in sizes:
        try:
            measured[size] = seconds_per_item(size)
        except DeviceOutOfMemory:
            if not measured:
                raise
            break
    best = min(measured.values())
    return next(size for size, seconds in measured.items() if seconds <= best * _GOOD_ENOUGH)


def sizes_like(sizes: Sequence[int], most: int | None) -> Sequence[int]:
    """Return the smallest of rising batch sizes and the largest up to `most`; all of them where that is None."""
    if most is None:
        return sizes
    return sorted({sizes[0], max((size for size in sizes if size <= most), default=sizes[0])})


def megapixels(size: Size) -> float:
    """Return height times width in millions."""
    return size.pixels / 1e6


def share(letterbox: Letterbox) -> float:
    """Return the fraction of the full square of 1024 that the model sees."""
    return letterbox.padded.pixels / INPUT_SIDE**2
