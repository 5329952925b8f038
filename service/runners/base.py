"""What the runners of all families share: the queue, the warming up, the end."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from typing import Any, ClassVar, Final

from models.backends.base import BackendName, SamBackend
from models.backends.unet_base import UNetBackend
from models.entries import Family
from models.errors import DeviceOutOfMemory
from models.zoo import CatalogueEntry
from service.batching import BatchPolicy
from service.device_queue import DeviceQueue, Tells
from service.keys import stage
from service.observability.observer import Observer
from service.service_times import ServiceTimes
from service.work import Limits, QueueOptions

_GOOD_ENOUGH: Final = 1.05
"""A batch size whose time per item is within this of the best is preferred where it is smaller: it answers sooner."""


class Runner(ABC):
    """One model on one device, fed from one queue.

    Args:
        entry: what the backend was loaded from.
        backend: the model.
        options: of the queue.
        clock: seconds, monotonic.
        observer: hears of batches, waits and drops.
    """

    family: ClassVar[Family]

    def __init__(
        self,
        entry: CatalogueEntry,
        backend: SamBackend | UNetBackend,
        *,
        options: QueueOptions | None = None,
        clock: Callable[[], float] = time.monotonic,
        observer: Observer | None = None,
    ) -> None:
        self.entry = entry
        self.device = backend.device
        self.backend_name: BackendName = backend.name
        self._clock = clock
        self._times = ServiceTimes(family=type)
        policy: BatchPolicy[Any] = BatchPolicy(self._limits, self._times, clock=clock, options=options)
        tells = Tells(entry.name, observer or Observer(), stage)
        self._queue = DeviceQueue(self._run_batch, policy, clock=clock, tells=tells)

    @property
    def broken(self) -> bool:
        """The device failed for good."""
        return self._queue.broken

    async def warm_up(self) -> None:
        """Time every batch size that the backend offers, keep the sizes that pay, and teach the queue their times.

        The second of two runs counts: the first compiles kernels and allocates buffers.
        """
        await asyncio.to_thread(self._warm_up)

    async def close(self, within: float) -> None:
        """Finish what was admitted, for at most `within` seconds, and stop the device's thread."""
        await self._queue.close(within)

    @abstractmethod
    def _warm_up(self) -> None:
        """See `warm_up`; in a thread of its own."""

    @abstractmethod
    def _limits(self, key: Hashable) -> Limits:
        """Of a batch of such work."""

    @abstractmethod
    def _run_batch(self, key: Hashable, payloads: Sequence[Any]) -> Sequence[Any]:
        """What the device's thread does."""

    def _timed(self, key: Hashable, payloads: Sequence[Any], cost: float) -> float:
        """Seconds per payload of the second of two runs, from which the queue learns."""
        self._run_batch(key, payloads)
        started = self._clock()
        self._run_batch(key, payloads)
        seconds = self._clock() - started
        self._times.learn(key, cost, seconds)
        return seconds / len(payloads)


def best_size(sizes: Sequence[int], seconds_per_item: Callable[[int], float]) -> int:
    """The smallest batch size that is about as good as the best, of those that the device has memory for.

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
