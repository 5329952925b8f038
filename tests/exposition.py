"""What the service exposes once everything that it can tell of has happened."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, get_args

from prometheus_client.parser import text_string_to_metric_families

from service.observability.metrics import PrometheusObserver, exposition
from service.observability.observer import STAGES, CacheEvent, Outcome
from tests.fakes import LOADED, LOADED_UNET

OWN: Final = "pomona_"
_DOCUMENT: Final = Path(__file__).parents[1] / "docs" / "metrics.md"
_HTTP, _GRPC = "/v1/segment", "/pomona.v1.Segmentation/Segment"


@dataclass
class Told:
    """A metric.

    Attributes:
        name: as it stands in a query, of a histogram without `_bucket`, `_sum` and `_count`.
        kind: its type.
        labels: names in alphabetical order, without a histogram's `le`.
        meaning: its help.
    """

    name: str
    kind: str
    meaning: str
    labels: list[str] = field(default_factory=list)

    @property
    def unit(self) -> str:
        """By its name, as Prometheus' conventions have it."""
        return next((unit for unit in ("seconds", "bytes") if self.name.endswith(f"_{unit}")), "")


def tell_everything() -> str:
    """Let every event happen once, and give the exposition."""
    observer = PrometheusObserver()
    observer.loaded(LOADED, backend="openvino", device="cpu")
    observer.loaded(LOADED_UNET, backend="openvino", device="cpu")
    observer.ready(now=True)
    for endpoint in (_HTTP, _GRPC):
        for outcome in get_args(Outcome):
            observer.began(endpoint)
            observer.requested(endpoint, LOADED.name, outcome, 0.1)
    observer.streams("/pomona.v1.Segmentation/SegmentStream", opened=True)
    observer.streams("/pomona.v1.Segmentation/SegmentStream", opened=False)
    observer.refused("overloaded")
    observer.had_deadline(LOADED.name, met=True)
    for entry in (LOADED, LOADED_UNET):
        for stage in STAGES[entry.architecture.family]:
            observer.ran(entry.name, stage, 2, 0.1)
            observer.waited(entry.name, stage, 0.1)
            observer.failed(entry.name, stage)
    observer.dropped(LOADED.name, "overloaded")
    for event in get_args(CacheEvent):
        observer.cached(event)
    observer.holds(4096)
    observer.decoded(0.1)
    observer.postprocessed(0.1)
    return exposition().decode()


def families(text: str) -> dict[str, Told]:
    """Our metrics in an exposition, by name."""
    found: dict[str, Told] = {}
    for family in text_string_to_metric_families(text):
        # A process by itself also tells when each began; workers that share a folder do not.
        if not family.name.startswith(OWN) or family.name.endswith("_created"):
            continue
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels if label != "le"}
        found[name] = Told(name, family.type, family.documentation, sorted(labels))
    return found


def series(text: str) -> dict[str, set[str]]:
    """Labels of every name that a query may use."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def documented() -> dict[str, Told]:
    """What docs/metrics.md says, by name.

    Raises:
        ValueError: a unit is not that of the name.
    """
    rows = [line for line in _DOCUMENT.read_text().splitlines() if line.startswith(f"| `{OWN}")]
    found = {}
    for name, kind, labels, unit, meaning in ([cell.strip() for cell in row.split("|")[1:-1]] for row in rows):
        told = Told(name.strip("`"), kind, meaning, sorted(re.findall(r"`(\w+)`", labels)))
        if told.unit != unit:
            raise ValueError(f"{told.name} is said to be in {unit!r}")
        found[told.name] = told
    return found
