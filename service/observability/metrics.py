"""Prometheus metrics, summed over the workers.

Labels are bounded: endpoints, models, outcomes, codes and reasons are all from fixed sets.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, get_args

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

from models.catalog import CatalogueEntry
from service.observability.observer import STAGES, CacheEvent, Observer, Outcome, Stage

_SECONDS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3.5, 5, 10, 30)
_SIZES: Final = (1, 2, 4, 8, 16, 32, 64)
_REASONS: Final = ("overloaded", "deadline_unreachable", "deadline_exceeded", "abandoned")
"""For which work is shed: codes of problems, and a caller who left."""

REQUESTS: Final = Counter(
    "pomona_requests",
    "Requests and frames of streams that were answered, refused or left, over HTTP and gRPC.",
    ["endpoint", "model", "outcome"],
)
DURATION: Final = Histogram(
    "pomona_request_duration_seconds",
    "Time from a request's arrival to its answer.",
    ["endpoint", "model", "outcome"],
    buckets=_SECONDS,
)
IN_PROGRESS: Final = Gauge(
    "pomona_requests_in_progress",
    "Requests and frames that are not answered yet.",
    ["endpoint"],
    multiprocess_mode="livesum",
)
STREAMS: Final = Gauge(
    "pomona_streams_open", "Streams of cameras that are open, over gRPC.", ["endpoint"], multiprocess_mode="livesum"
)
PROBLEMS: Final = Counter("pomona_problems", "Problems that were answered.", ["code"])
DEADLINES: Final = Counter(
    "pomona_deadlines", "Requests with a deadline: answered before it or not.", ["model", "result"]
)
BATCH_SIZE: Final = Histogram(
    "pomona_batch_size", "Pieces of work that ran together on a device.", ["runner", "stage"], buckets=_SIZES
)
BATCH_DURATION: Final = Histogram(
    "pomona_batch_duration_seconds", "Time of a batch on a device.", ["runner", "stage"], buckets=_SECONDS
)
QUEUE_WAIT: Final = Histogram(
    "pomona_queue_wait_seconds",
    "Time from prepared to running, of work that ran.",
    ["runner", "stage"],
    buckets=_SECONDS,
)
SHED: Final = Counter("pomona_shed", "Work refused at the door or dropped from the queue.", ["runner", "reason"])
DEVICE_ERRORS: Final = Counter("pomona_device_errors", "Pieces of work that failed on a device.", ["runner", "stage"])
CACHE: Final = Counter("pomona_embedding_cache_events", "Embeddings found, missed, driven out.", ["event"])
CACHE_BYTES: Final = Gauge(
    "pomona_embedding_cache_bytes", "Bytes of the embeddings at hand.", multiprocess_mode="livesum"
)
DECODE: Final = Histogram("pomona_image_decode_seconds", "Time to decode an image.", buckets=_SECONDS)
POSTPROCESS: Final = Histogram(
    "pomona_postprocess_seconds", "Time to upsample and encode the masks or classes of a request.", buckets=_SECONDS
)
READY: Final = Gauge(
    "pomona_ready_workers", "Workers that answer requests: loaded, not broken, not ending.", multiprocess_mode="livesum"
)
MODEL: Final = Gauge(
    "pomona_model_info",
    "Loaded models; always 1.",
    ["model", "revision", "backend", "device"],
    multiprocess_mode="livemax",
)


EXPOSITION_TYPE: Final = CONTENT_TYPE_LATEST
"""Content type of `exposition`."""


def exposition() -> bytes:
    """All metrics in Prometheus' text format: of all workers where these share a folder, else of this process."""
    registry = REGISTRY
    if (folder := os.environ.get("PROMETHEUS_MULTIPROC_DIR")) is not None:  # set by BentoML for its workers
        _forget_dead_workers(Path(folder))
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def _forget_dead_workers(folder: Path) -> None:
    """What a worker was doing when it died is not going on; what it counted stays."""
    for file in folder.glob("gauge_live*_*.db"):
        pid = file.stem.rpartition("_")[2]
        if not Path("/proc", pid).exists():
            file.unlink(missing_ok=True)


class PrometheusObserver(Observer):
    """See `Observer`."""

    def request_started(self, endpoint: str) -> None:
        """Count it in."""
        IN_PROGRESS.labels(endpoint).inc()

    def request_finished(self, endpoint: str, model: str, outcome: Outcome, seconds: float) -> None:
        """Count and time it."""
        IN_PROGRESS.labels(endpoint).dec()
        REQUESTS.labels(endpoint, model, outcome).inc()
        DURATION.labels(endpoint, model, outcome).observe(seconds)

    def problem_answered(self, code: str) -> None:
        """Count it."""
        PROBLEMS.labels(code).inc()

    def deadline_checked(self, model: str, *, met: bool) -> None:
        """Count it."""
        DEADLINES.labels(model, "met" if met else "missed").inc()

    def batch_ran(self, runner: str, stage: Stage, size: int, seconds: float) -> None:
        """Measure it."""
        BATCH_SIZE.labels(runner, stage).observe(size)
        BATCH_DURATION.labels(runner, stage).observe(seconds)

    def item_failed(self, runner: str, stage: Stage) -> None:
        """Count it."""
        DEVICE_ERRORS.labels(runner, stage).inc()

    def item_waited(self, runner: str, stage: Stage, seconds: float) -> None:
        """Measure it."""
        QUEUE_WAIT.labels(runner, stage).observe(seconds)

    def work_dropped(self, runner: str, reason: str) -> None:
        """Count it."""
        SHED.labels(runner, reason).inc()

    def cache_event(self, event: CacheEvent) -> None:
        """Count it."""
        CACHE.labels(event).inc()

    def cache_bytes(self, nbytes: int) -> None:
        """Show it."""
        CACHE_BYTES.set(nbytes)

    def image_decoded(self, seconds: float) -> None:
        """Measure it."""
        DECODE.observe(seconds)

    def postprocessed(self, seconds: float) -> None:
        """Measure it."""
        POSTPROCESS.observe(seconds)

    def stream_changed(self, endpoint: str, *, opened: bool) -> None:
        """Show it."""
        STREAMS.labels(endpoint).inc(1 if opened else -1)

    def readiness_changed(self, *, ready: bool) -> None:
        """Show it."""
        READY.set(ready)

    def model_loaded(self, entry: CatalogueEntry, *, backend: str, device: str) -> None:
        """Show it, and begin its counters at 0: of one that begins at 1 a rate misses the first event."""
        MODEL.labels(entry.name, entry.revision, backend, device).set(1)
        for reason in _REASONS:
            SHED.labels(entry.name, reason)
        for stage in STAGES[entry.architecture.family]:
            DEVICE_ERRORS.labels(entry.name, stage)
        for result in ("met", "missed"):
            DEADLINES.labels(entry.name, result)
        for event in get_args(CacheEvent):
            CACHE.labels(event)
