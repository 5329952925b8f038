"""What happens before a worker is ready: files prepared, models loaded and warmed up."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from models.backends.base import BackendName
from models.backends.load import (
    choose_backend,
    ensure_files,
    load_detector,
    load_grounding,
    load_sam,
    load_sam2,
    load_unet,
)
from models.catalog import CatalogueEntry, load_catalogue
from models.confidence import read_intervals
from models.errors import UnknownModel
from service.memory import MemoryBudget, memory_limit, resident_bytes
from service.observability.observer import Observer
from service.pipelines import Pipelines, costs
from service.pipelines.engine import Engine
from service.pipelines.warmup import warm_up
from service.runners.base import Runner
from service.runners.detector import DetectorRunner
from service.runners.embedding_cache import EmbeddingCache
from service.runners.grounding import GroundingRunner
from service.runners.sam import SamRunner
from service.runners.sam2 import Sam2Runner
from service.runners.unet import UNetRunner
from service.scheduler.queue import DeviceQueue
from service.settings import Settings

_LOG = logging.getLogger("pomona.lifecycle")


def wanted_entries(settings: Settings, catalogue: Mapping[str, CatalogueEntry]) -> list[CatalogueEntry]:
    """Return the catalogue's entries of `settings.models`, in their order.

    Raises:
        UnknownModel: a name is not in the catalogue.
    """
    unknown = [name for name in settings.models if name not in catalogue]
    if unknown:
        raise UnknownModel(
            f"POMONA_MODELS must name models of the catalogue ({', '.join(catalogue)}), got {', '.join(unknown)}. "
            "POMONA_MODELS_FILE adds your own."
        )
    return [catalogue[name] for name in settings.models]


def prepare_files(settings: Settings) -> None:
    """Fetch, verify and convert what the workers will load, once for all of them.

    Raises:
        PomonaError: a checkpoint cannot be fetched or converted.
    """
    backend = choose_backend(settings.backend, settings.device)
    for entry in wanted_entries(settings, load_catalogue(settings.models_file)):
        ensure_files(entry, backend, settings.model_store)


async def load_pipelines(settings: Settings, *, device_index: int, observer: Observer | None = None) -> Pipelines:
    """Load and warm up the models of one worker.

    Args:
        settings: what to load.
        device_index: which CUDA device, where there is more than one.
        observer: receives what is measured.

    Raises:
        PomonaError: a model cannot be loaded.
    """
    observer = observer or Observer()
    catalogue = load_catalogue(settings.models_file)
    backend = choose_backend(settings.backend, settings.device)
    queue_of = functools.cache(functools.partial(DeviceQueue, options=settings.queue_options, observer=observer))
    runners: dict[str, Runner] = {}
    for entry in wanted_entries(settings, catalogue):
        started = time.perf_counter()
        runner = await _load(entry, backend, settings, device_index=device_index, queue_of=queue_of)
        loaded = time.perf_counter()
        await runner.warm_up()
        runners[entry.name] = runner
        observer.model_loaded(entry, backend=runner.backend_name, device=runner.device)
        _LOG.info(
            "model ready",
            extra={
                "model": entry.name,
                "revision": entry.revision,
                "backend": runner.backend_name,
                "device": runner.device,
                "load_s": round(loaded - started, 2),
                "warm_up_s": round(time.perf_counter() - loaded, 2),
            },
        )
    cache = EmbeddingCache(
        max_bytes=settings.embedding_cache_bytes, max_age=settings.embedding_max_age_s, observer=observer
    )
    pipelines = Pipelines.of(Engine(runners, catalogue, settings), cache)
    await warm_up(pipelines, settings.camera_sizes)
    return pipelines


def limit_memory(memory: MemoryBudget, settings: Settings, *, workers: int, pipelines: Pipelines) -> None:
    """Set the budget for requests, now that it is known what the loaded models leave.

    Args:
        memory: of the requests.
        settings: limits.
        workers: how many there are.
        pipelines: of the loaded models.

    Raises:
        TooLittleMemory: it is too little for the largest request that is allowed.
    """
    resident, limit = resident_bytes(), memory_limit()
    tracking = any(isinstance(each, Sam2Runner) and each.device == "cpu" for each in pipelines.engine.runners.values())
    sessions = settings.track_memory_bytes if tracking else 0
    total, largest = costs.budget(settings, limit=limit, resident=resident, workers=workers, sessions=sessions)
    memory.resize(total, largest)
    _LOG.info(
        "memory",
        extra={
            "limit_mib": None if limit is None else limit >> 20,
            "resident_mib": resident >> 20,
            "requests_mib": total >> 20,
        },
    )


async def _load(
    entry: CatalogueEntry,
    backend: BackendName,
    settings: Settings,
    *,
    device_index: int,
    queue_of: Callable[[str], DeviceQueue],
) -> Runner:
    """Load one model in a thread, so that the event loop keeps answering /livez."""
    where: dict[str, Any] = {
        "device": settings.device,
        "device_index": device_index,
        "threads": settings.threads,
    }
    if entry.architecture.family == "unet":
        unet = await asyncio.to_thread(load_unet, entry, backend, settings.model_store, **where)
        return UNetRunner(entry, unet, queue_of(unet.device), await asyncio.to_thread(read_intervals, entry))
    if entry.architecture.family == "detector":
        detector = await asyncio.to_thread(
            load_detector, entry, backend, settings.model_store, threads=settings.threads
        )
        return DetectorRunner(entry, detector, queue_of(detector.device))
    if entry.architecture.family == "grounding":
        grounding = await asyncio.to_thread(
            load_grounding, entry, settings.model_store, device=settings.device, device_index=device_index
        )
        return GroundingRunner(entry, grounding, queue_of(grounding.device))
    if entry.architecture.family == "sam2":
        sam2 = await asyncio.to_thread(load_sam2, entry, backend, settings.model_store, **where)
        return Sam2Runner(entry, sam2, queue_of(sam2.device))
    sam = await asyncio.to_thread(load_sam, entry, backend, settings.model_store, **where)
    return SamRunner(entry, sam, queue_of(sam.device))
