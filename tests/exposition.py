"""The metrics that the service exposes, and those that docs/metrics.md lists."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, get_args

from prometheus_client.parser import text_string_to_metric_families

from service.observability.metrics import PrometheusObserver, exposition
from service.observability.observer import STAGES, CacheEvent, Outcome, SessionEvent
from tests.fakes import LOADED, LOADED_UNET

OWN: Final = "pomona_"
_DOCUMENT: Final = Path(__file__).parents[1] / "docs" / "metrics.md"
_HTTP, _GRPC = "/v1/segment", "/pomona.v1.Segmentation/Segment"


@dataclass
class Metric:
    """A metric.

    Attributes:
        name: as in a query; of a histogram without `_bucket`, `_sum` and `_count`.
        kind: its type.
        meaning: its help text.
        labels: names in alphabetical order, without a histogram's `le`.
    """

    name: str
    kind: str
    meaning: str
    labels: list[str] = field(default_factory=list)

    @property
    def unit(self) -> str:
        """The unit that its name ends with, by Prometheus' conventions."""
        return next((unit for unit in ("seconds", "bytes") if self.name.endswith(f"_{unit}")), "")


def expose_everything() -> str:
    """Report every event once and return the exposition."""
    observer = PrometheusObserver()
    observer.model_loaded(LOADED, backend="openvino", device="cpu")
    observer.model_loaded(LOADED_UNET, backend="openvino", device="cpu")
    observer.readiness_changed(ready=True)
    for endpoint in (_HTTP, _GRPC):
        for outcome in get_args(Outcome):
            observer.request_started(endpoint)
            observer.request_finished(endpoint, LOADED.name, outcome, 0.1)
    observer.stream_changed("/pomona.v1.Segmentation/SegmentStream", opened=True)
    observer.stream_changed("/pomona.v1.Segmentation/SegmentStream", opened=False)
    observer.caller_answered("line-3", "ok")
    observer.problem_answered("overloaded")
    observer.deadline_checked(LOADED.name, met=True)
    for entry in (LOADED, LOADED_UNET):
        for stage in STAGES[entry.architecture.family]:
            observer.batch_ran(entry.name, stage, 2, 0.1)
            observer.item_waited(entry.name, stage, 0.1)
            observer.item_failed(entry.name, stage)
    observer.work_dropped(LOADED.name, "overloaded")
    for event in get_args(CacheEvent):
        observer.cache_event(event)
    observer.cache_bytes(4096)
    for session in get_args(SessionEvent):
        observer.track_session(session)
    observer.track_held(1, 4096)
    observer.memory_used("work", 4096)
    observer.memory_limited(1 << 30)
    observer.image_decoded(0.1)
    observer.postprocessed(0.1)
    return exposition().decode()


def families(text: str) -> dict[str, Metric]:
    """Return the metrics in an exposition that are ours, by name."""
    found: dict[str, Metric] = {}
    for family in text_string_to_metric_families(text):
        # Only a process without a shared folder exposes when each metric was created.
        if not family.name.startswith(OWN) or family.name.endswith("_created"):
            continue
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels if label != "le"}
        found[name] = Metric(name, family.type, family.documentation, sorted(labels))
    return found


def series(text: str) -> dict[str, set[str]]:
    """Return the labels of every name that a query may use."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def documented() -> dict[str, Metric]:
    """Return the metrics that docs/metrics.md lists, by name.

    Raises:
        ValueError: a unit is not that of the name.
    """
    rows = [line for line in _DOCUMENT.read_text().splitlines() if line.startswith(f"| `{OWN}")]
    found = {}
    for name, kind, labels, unit, meaning in ([cell.strip() for cell in row.split("|")[1:-1]] for row in rows):
        metric = Metric(name.strip("`"), kind, meaning, sorted(re.findall(r"`(\w+)`", labels)))
        if metric.unit != unit:
            raise ValueError(f"{metric.name} must be in {metric.unit!r}, docs/metrics.md says {unit!r}")
        found[metric.name] = metric
    return found
