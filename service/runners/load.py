"""Loads the runners of catalogue entries, and says what memory that takes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from models.backends.base import BackendName
from models.backends.load import is_prepared, load_detector, load_grounding, load_sam, load_sam2, load_unet
from models.catalog import CatalogueEntry
from models.confidence import INTERVALS
from models.drift import REFERENCES
from service.runners.base import Runner
from service.runners.detector import DetectorRunner
from service.runners.grounding import GroundingRunner
from service.runners.sam import SamRunner
from service.runners.sam2 import Sam2Runner
from service.runners.unet import UNetRunner
from service.scheduler.queue import DeviceQueue
from service.settings import Settings

_RUNNER_BYTES: Final = 256 << 20
_CONVERTING_BYTES: Final = 1024 << 20
_TIMES: Final = 4
"""Of the checkpoint's bytes. Measured on OpenVINO: a U-Net of 13 MB takes 265 MiB once batches have run, MobileSAM of
41 MB 380 MiB; the process that converts the U-Net takes 990 MiB."""


@dataclass(frozen=True, slots=True)
class LoadingCost:
    """Bytes of memory that a model takes.

    Attributes:
        loading: while it is converted and loaded.
        loaded: from then on.
    """

    loading: int
    loaded: int


@dataclass(frozen=True, slots=True)
class RunnerLoader:
    """Loads the models of one worker.

    Attributes:
        settings: of the service.
        backend: executes them.
        device_index: which CUDA device, where there is more than one.
        queue_of: returns the queue of a device.
    """

    settings: Settings
    backend: BackendName
    device_index: int
    queue_of: Callable[[str], DeviceQueue]

    def cost(self, entry: CatalogueEntry) -> LoadingCost:
        """Return what a model will take, by an estimate that is rather too high; for worker threads."""
        loaded = _RUNNER_BYTES + _TIMES * entry.size
        if is_prepared(entry, self.backend, self.settings.model_store):
            return LoadingCost(loaded, loaded)
        return LoadingCost(max(loaded, _CONVERTING_BYTES + _TIMES * entry.size), loaded)

    async def load(self, entry: CatalogueEntry) -> Runner:
        """Load one model in a thread, so that the event loop goes on; it is not warmed up.

        Raises:
            PomonaError: its files cannot be used, or its device failed.
        """
        settings = self.settings
        where: dict[str, Any] = {
            "device": settings.device,
            "device_index": self.device_index,
            "threads": settings.threads,
        }
        if entry.architecture.family == "unet":
            unet = await asyncio.to_thread(load_unet, entry, self.backend, settings.model_store, **where)
            intervals = await asyncio.to_thread(INTERVALS.read, entry)
            reference = await asyncio.to_thread(REFERENCES.read, entry)
            return UNetRunner(entry, unet, self.queue_of(unet.device), intervals, reference)
        if entry.architecture.family == "detector":
            detector = await asyncio.to_thread(
                load_detector, entry, self.backend, settings.model_store, threads=settings.threads
            )
            return DetectorRunner(entry, detector, self.queue_of(detector.device))
        if entry.architecture.family == "grounding":
            grounding = await asyncio.to_thread(
                load_grounding,
                entry,
                settings.model_store,
                device=settings.device,
                device_index=self.device_index,
            )
            return GroundingRunner(entry, grounding, self.queue_of(grounding.device))
        if entry.architecture.family == "sam2":
            sam2 = await asyncio.to_thread(load_sam2, entry, self.backend, settings.model_store, **where)
            return Sam2Runner(entry, sam2, self.queue_of(sam2.device))
        sam = await asyncio.to_thread(load_sam, entry, self.backend, settings.model_store, **where)
        return SamRunner(entry, sam, self.queue_of(sam.device))
