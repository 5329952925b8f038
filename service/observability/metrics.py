"""Prometheus metrics, summed over the workers.

Labels are bounded: endpoints, models, outcomes, codes and reasons are all from fixed sets.
"""

from __future__ import annotations

import os
from typing import Final

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

from service.observability.observer import CacheEvent, Observer, Outcome, Stage

_SECONDS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3.5, 5, 10, 30)
_SIZES: Final = (1, 2, 4, 8, 16, 32, 64)

REQUESTS: Final = Counter("pomona_requests", "Requests by what became of them.", ["endpoint", "model", "outcome"])
DURATION: Final = Histogram(
    "pomona_request_duration_seconds",
    "From arrival to answer.",
    ["endpoint", "model", "outcome"],
    buckets=_SECONDS,
)
IN_PROGRESS: Final = Gauge(
    "pomona_requests_in_progress", "Requests that are not answered yet.", ["endpoint"], multiprocess_mode="livesum"
)
PROBLEMS: Final = Counter("pomona_problems", "Problems answered, by code.", ["code"])
DEADLINES: Final = Counter("pomona_deadlines", "Requests with a deadline: met or missed.", ["model", "result"])
BATCH_SIZE: Final = Histogram(
    "pomona_batch_size", "Items that ran together on a device.", ["runner", "stage"], buckets=_SIZES
)
BATCH_DURATION: Final = Histogram(
    "pomona_batch_duration_seconds", "Time of a batch on a device.", ["runner", "stage"], buckets=_SECONDS
)
QUEUE_WAIT: Final = Histogram(
    "pomona_queue_wait_seconds", "From prepared to running.", ["runner", "stage"], buckets=_SECONDS
)
SHED: Final = Counter("pomona_shed", "Work refused at the door or dropped from the queue.", ["runner", "reason"])
CACHE: Final = Counter("pomona_embedding_cache_events", "Embeddings found, missed, driven out.", ["event"])
CACHE_BYTES: Final = Gauge(
    "pomona_embedding_cache_bytes", "Bytes of the embeddings at hand.", multiprocess_mode="livesum"
)
DECODE: Final = Histogram("pomona_picture_decode_seconds", "Decoding of a picture.", buckets=_SECONDS)
POSTPROCESS: Final = Histogram(
    "pomona_postprocess_seconds", "Masks or classes of a request upsampled and encoded.", buckets=_SECONDS
)
MODEL: Final = Gauge(
    "pomona_model_info",
    "1 for every loaded model.",
    ["model", "revision", "backend", "device"],
    multiprocess_mode="livemax",
)


EXPOSITION_TYPE: Final = CONTENT_TYPE_LATEST
"""Content type of `exposition`."""


def exposition() -> bytes:
    """All metrics in Prometheus' text format: of all workers where these share a folder, else of this process."""
    registry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:  # set by BentoML for its workers
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


class PrometheusObserver(Observer):
    """See `Observer`."""

    def began(self, endpoint: str) -> None:
        """Count it in."""
        IN_PROGRESS.labels(endpoint).inc()

    def requested(self, endpoint: str, model: str, outcome: Outcome, seconds: float) -> None:
        """Count and time it."""
        IN_PROGRESS.labels(endpoint).dec()
        REQUESTS.labels(endpoint, model, outcome).inc()
        DURATION.labels(endpoint, model, outcome).observe(seconds)

    def refused(self, code: str) -> None:
        """Count it."""
        PROBLEMS.labels(code).inc()

    def had_deadline(self, model: str, *, met: bool) -> None:
        """Count it."""
        DEADLINES.labels(model, "met" if met else "missed").inc()

    def ran(self, runner: str, stage: Stage, size: int, seconds: float) -> None:
        """Measure it."""
        BATCH_SIZE.labels(runner, stage).observe(size)
        BATCH_DURATION.labels(runner, stage).observe(seconds)

    def waited(self, runner: str, stage: Stage, seconds: float) -> None:
        """Measure it."""
        QUEUE_WAIT.labels(runner, stage).observe(seconds)

    def dropped(self, runner: str, reason: str) -> None:
        """Count it."""
        SHED.labels(runner, reason).inc()

    def cached(self, event: CacheEvent) -> None:
        """Count it."""
        CACHE.labels(event).inc()

    def holds(self, nbytes: int) -> None:
        """Show it."""
        CACHE_BYTES.set(nbytes)

    def decoded(self, seconds: float) -> None:
        """Measure it."""
        DECODE.observe(seconds)

    def postprocessed(self, seconds: float) -> None:
        """Measure it."""
        POSTPROCESS.observe(seconds)

    def loaded(self, model: str, revision: str, backend: str, device: str) -> None:
        """Show it."""
        MODEL.labels(model, revision, backend, device).set(1)
