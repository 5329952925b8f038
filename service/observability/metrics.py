"""Prometheus metrics, summed over the workers.

Labels are bounded: endpoints, models, outcomes, codes and reasons are all from fixed sets, and callers are counted by
name up to a limit.
"""

from __future__ import annotations

import functools
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
from service.access import MAX_KEYS
from service.observability.observer import STAGES, CacheEvent, Observer, Outcome, SessionEvent, Stage

_SECONDS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3.5, 5, 10, 30)
_SIZES: Final = (1, 2, 4, 8, 16, 32, 64)
_REASONS: Final = ("overloaded", "deadline_unreachable", "deadline_exceeded", "abandoned")
"""Why items are dropped: codes of problems, and a caller who left."""

REQUESTS: Final = Counter(
    "pomona_requests",
    "Requests and frames of streams that ended, over HTTP and gRPC, by outcome.",
    ["endpoint", "model", "outcome"],
)
DURATION: Final = Histogram(
    "pomona_request_duration_seconds",
    "Time from a request's arrival to its answer.",
    ["endpoint", "model", "outcome"],
    buckets=_SECONDS,
)
CALLERS: Final = Counter(
    "pomona_caller_requests",
    "Requests and frames of streams that ended, by name of the caller's API key and outcome.",
    ["caller", "outcome"],
)
IN_PROGRESS: Final = Gauge(
    "pomona_requests_in_progress",
    "Requests and frames that are not answered yet.",
    ["endpoint"],
    multiprocess_mode="livesum",
)
STREAMS: Final = Gauge(
    "pomona_streams_open", "Open camera streams, over gRPC.", ["endpoint"], multiprocess_mode="livesum"
)
PROBLEMS: Final = Counter("pomona_problems", "Errors that were answered, by code.", ["code"])
DEADLINES: Final = Counter(
    "pomona_deadlines", "Requests with a deadline, answered before it or not.", ["model", "result"]
)
BATCH_SIZE: Final = Histogram(
    "pomona_batch_size",
    "Items that ran together on a device.",
    ["runner", "stage"],
    buckets=_SIZES,
)
BATCH_DURATION: Final = Histogram(
    "pomona_batch_duration_seconds",
    "Time of a batch on a device.",
    ["runner", "stage"],
    buckets=_SECONDS,
)
QUEUE_WAIT: Final = Histogram(
    "pomona_queue_wait_seconds",
    "Time that prepared items waited for the device.",
    ["runner", "stage"],
    buckets=_SECONDS,
)
SHED: Final = Counter(
    "pomona_shed", "Items refused on arrival or dropped from the queue, by reason.", ["runner", "reason"]
)
DEVICE_ERRORS: Final = Counter("pomona_device_errors", "Items that failed on a device.", ["runner", "stage"])
CACHE: Final = Counter("pomona_embedding_cache_events", "Embeddings found, missed and evicted.", ["event"])
CACHE_BYTES: Final = Gauge(
    "pomona_embedding_cache_bytes", "Bytes of the cached embeddings.", multiprocess_mode="livesum"
)
TRACK_SESSIONS: Final = Gauge("pomona_track_sessions_open", "Open sessions of track.", multiprocess_mode="livesum")
TRACK_EVENTS: Final = Counter(
    "pomona_track_sessions", "Sessions of track that were opened, closed, expired or refused.", ["event"]
)
TRACK_BYTES: Final = Gauge(
    "pomona_track_bytes",
    "Bytes set aside for what sessions of track remember of their objects.",
    multiprocess_mode="livesum",
)
MEMORY: Final = Gauge(
    "pomona_memory_bytes",
    "Memory that requests hold of the budget: input, queued for the device, work of threads.",
    ["kind"],
    multiprocess_mode="livesum",
)
MEMORY_LIMIT: Final = Gauge("pomona_memory_limit_bytes", "Memory budget for requests.", multiprocess_mode="livesum")
DECODE: Final = Histogram("pomona_image_decode_seconds", "Time to decode an image.", buckets=_SECONDS)
POSTPROCESS: Final = Histogram(
    "pomona_postprocess_seconds", "Time to upsample and encode the masks or classes of a request.", buckets=_SECONDS
)
READY: Final = Gauge(
    "pomona_ready_workers",
    "Workers that answer requests: loaded, not broken, not stopping.",
    multiprocess_mode="livesum",
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
    """Return all metrics in Prometheus' text format: of all workers if they share a folder, else of this process."""
    registry = REGISTRY
    if (folder := os.environ.get("PROMETHEUS_MULTIPROC_DIR")) is not None:  # set by BentoML for its workers
        _forget_dead_workers(Path(folder))
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def _forget_dead_workers(folder: Path) -> None:
    """Remove the gauges of dead workers; what they counted stays."""
    for file in folder.glob("gauge_live*_*.db"):
        pid = file.stem.rpartition("_")[2]
        if not Path("/proc", pid).exists():
            file.unlink(missing_ok=True)


class PrometheusObserver(Observer):
    """Observer that updates the metrics; children of labelled metrics are looked up once."""

    def __init__(self) -> None:
        self._callers: set[str] = set()
        self._child = functools.cache(lambda metric, *labels: metric.labels(*labels))

    def request_started(self, endpoint: str) -> None:
        """Count it in."""
        self._child(IN_PROGRESS, endpoint).inc()

    def request_finished(self, endpoint: str, model: str, outcome: Outcome, seconds: float) -> None:
        """Count and time it."""
        self._child(IN_PROGRESS, endpoint).dec()
        self._child(REQUESTS, endpoint, model, outcome).inc()
        self._child(DURATION, endpoint, model, outcome).observe(seconds)

    def caller_answered(self, caller: str, outcome: Outcome) -> None:
        """Count it; callers beyond the most that a file of keys can have are counted together."""
        if caller not in self._callers:
            if len(self._callers) >= MAX_KEYS:
                caller = "other"
            else:
                self._callers.add(caller)
        self._child(CALLERS, caller, outcome).inc()

    def problem_answered(self, code: str) -> None:
        """Count it."""
        self._child(PROBLEMS, code).inc()

    def deadline_checked(self, model: str, *, met: bool) -> None:
        """Count it."""
        self._child(DEADLINES, model, "met" if met else "missed").inc()

    def batch_ran(self, model: str, stage: Stage, size: int, seconds: float) -> None:
        """Observe its size and time."""
        self._child(BATCH_SIZE, model, stage).observe(size)
        self._child(BATCH_DURATION, model, stage).observe(seconds)

    def item_failed(self, model: str, stage: Stage) -> None:
        """Count it."""
        self._child(DEVICE_ERRORS, model, stage).inc()

    def item_waited(self, model: str, stage: Stage, seconds: float) -> None:
        """Observe the time."""
        self._child(QUEUE_WAIT, model, stage).observe(seconds)

    def work_dropped(self, model: str, reason: str) -> None:
        """Count it."""
        self._child(SHED, model, reason).inc()

    def cache_event(self, event: CacheEvent) -> None:
        """Count it."""
        self._child(CACHE, event).inc()

    def cache_bytes(self, nbytes: int) -> None:
        """Set the gauge."""
        CACHE_BYTES.set(nbytes)

    def track_session(self, event: SessionEvent) -> None:
        """Count it."""
        self._child(TRACK_EVENTS, event).inc()

    def track_held(self, sessions: int, nbytes: int) -> None:
        """Set the gauges."""
        TRACK_SESSIONS.set(sessions)
        TRACK_BYTES.set(nbytes)

    def memory_used(self, kind: str, nbytes: int) -> None:
        """Set the gauge."""
        self._child(MEMORY, kind).set(nbytes)

    def memory_limited(self, nbytes: int) -> None:
        """Set the gauge."""
        MEMORY_LIMIT.set(nbytes)

    def image_decoded(self, seconds: float) -> None:
        """Observe the time."""
        DECODE.observe(seconds)

    def postprocessed(self, seconds: float) -> None:
        """Observe the time."""
        POSTPROCESS.observe(seconds)

    def stream_changed(self, endpoint: str, *, opened: bool) -> None:
        """Count it in or out."""
        self._child(STREAMS, endpoint).inc(1 if opened else -1)

    def readiness_changed(self, *, ready: bool) -> None:
        """Set the gauge."""
        READY.set(ready)

    def model_loaded(self, entry: CatalogueEntry, *, backend: str, device: str) -> None:
        """Set the gauge, and start the model's counters at 0: of one that starts at 1 a rate misses an event."""
        MODEL.labels(entry.name, entry.revision, backend, device).set(1)
        for reason in _REASONS:
            SHED.labels(entry.name, reason)
        for stage in STAGES[entry.architecture.family]:
            DEVICE_ERRORS.labels(entry.name, stage)
        for result in ("met", "missed"):
            DEADLINES.labels(entry.name, result)
        for event in get_args(CacheEvent):
            CACHE.labels(event)
        for event in get_args(SessionEvent) if entry.architecture.family == "sam2" else ():
            TRACK_EVENTS.labels(event)
