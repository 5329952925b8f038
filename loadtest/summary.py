"""What became of each request, and the summary of many: percentiles, goodput, refusals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np

_REFUSALS: Final = frozenset({429, 503, 504})


class Kind(StrEnum):
    """Which user sent a request, and for what."""

    FRAME = "frame"
    EMBED = "embed"
    CLICK = "click"
    BATCH = "batch image"


class Outcome(StrEnum):
    """How a request ended."""

    IN_TIME = "in time"
    """Answered within its deadline, or had none."""
    LATE = "late"
    """Answered after its deadline."""
    REFUSED = "refused"
    """Answered with 429, 503 or 504 and a problem code."""
    FAILED = "failed"
    """Anything else: another status, no answer, a broken connection."""
    SKIPPED = "skipped"
    """Never sent: the camera already had as many frames in flight as it may have."""


@dataclass(frozen=True, slots=True)
class Record:
    """One request.

    Attributes:
        kind: what it was.
        step: number of the step in which it fell due; None in a pause.
        outcome: how it ended.
        seconds: from when it was due to its end; 0 for a skipped frame.
        lag_s: from when it was due to when it was sent: the delay of the load generator itself.
        code: of the problem, or what else went wrong; empty if nothing did.
    """

    kind: Kind
    step: int | None
    outcome: Outcome
    seconds: float
    lag_s: float = 0.0
    code: str = ""


def judge(status: int, code: str, seconds: float, deadline_s: float | None) -> Outcome:
    """Return how a request ended.

    Args:
        status: HTTP status of the answer; 0 if none came.
        code: of the problem in the answer; empty if it has none.
        seconds: from when the request was due to its answer.
        deadline_s: seconds from when it was due to its deadline, or None.
    """
    if status == 200:
        return Outcome.LATE if deadline_s is not None and seconds > deadline_s else Outcome.IN_TIME
    return Outcome.REFUSED if status in _REFUSALS and code else Outcome.FAILED


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Percentiles of times in milliseconds, interpolated linearly."""

    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Percentiles | None:
        """Compute them; None for no values."""
        if not seconds:
            return None
        return cls(*(round(float(value) * 1000, 2) for value in np.percentile(seconds, [50, 95, 99])))


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and range over the rounds of a measurement."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Compute the spread of at least one value."""
        return cls(*(round(float(value), 3) for value in (np.median(values), min(values), max(values))))

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g})"


@dataclass(frozen=True, slots=True)
class Summary:
    """Summary of the requests of one kind in one step; a request belongs to the step in which it fell due.

    Attributes:
        offered: requests that fell due, including skipped ones.
        in_time: answered within their deadline.
        late: answered after it.
        refused: answered with a refusal.
        failed: neither answered nor refused.
        skipped: never sent.
        offered_per_s: requests that fell due per second of the step.
        answered_per_s: in time or late.
        goodput_per_s: in time.
        refused_share: share of those offered.
        latency_ms: of those answered, from when they were due.
        refused_after_ms: of those refused, from when they were due.
        refusals: counts by problem code.
        failures: counts by what went wrong.
        lag_ms: delay of the load generator; if it is not small, the other times include it.
    """

    offered: int
    in_time: int
    late: int
    refused: int
    failed: int
    skipped: int
    offered_per_s: float
    answered_per_s: float
    goodput_per_s: float
    refused_share: float
    latency_ms: Percentiles | None
    refused_after_ms: Percentiles | None
    refusals: dict[str, int]
    failures: dict[str, int]
    lag_ms: Percentiles | None


def summarise(records: Sequence[Record], step_s: float) -> Summary:
    """Summarise requests.

    Args:
        records: of one kind in one step.
        step_s: length of the step in seconds.
    """
    counts = Counter(record.outcome for record in records)
    answered = [record for record in records if record.outcome in (Outcome.IN_TIME, Outcome.LATE)]
    refused = [record for record in records if record.outcome is Outcome.REFUSED]
    return Summary(
        offered=len(records),
        in_time=counts[Outcome.IN_TIME],
        late=counts[Outcome.LATE],
        refused=len(refused),
        failed=counts[Outcome.FAILED],
        skipped=counts[Outcome.SKIPPED],
        offered_per_s=round(len(records) / step_s, 3),
        answered_per_s=round(len(answered) / step_s, 3),
        goodput_per_s=round(counts[Outcome.IN_TIME] / step_s, 3),
        refused_share=round(len(refused) / len(records), 4) if records else 0.0,
        latency_ms=Percentiles.of([record.seconds for record in answered]),
        refused_after_ms=Percentiles.of([record.seconds for record in refused]),
        refusals=dict(Counter(record.code for record in refused)),
        failures=dict(Counter(record.code for record in records if record.outcome is Outcome.FAILED)),
        lag_ms=Percentiles.of([record.lag_s for record in records if record.outcome is not Outcome.SKIPPED]),
    )
