"""Figures out of records: what was offered, what was answered and in time, how long it took, what was refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loadtest.outcomes import Outcome, Record


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of times in milliseconds, interpolated linearly between neighbours."""

    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Percentiles | None:
        """Compute them; None of nothing."""
        if not seconds:
            return None
        return cls(*(round(float(value) * 1000, 2) for value in np.percentile(seconds, [50, 95, 99])))


@dataclass(frozen=True, slots=True)
class Spread:
    """Of the rounds of a measurement."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Median, least and greatest of at least one value."""
        return cls(*(round(float(value), 3) for value in (np.median(values), min(values), max(values))))

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g})"


@dataclass(frozen=True, slots=True)
class Refusals:
    """Those with one problem code.

    Attributes:
        count: how many.
        after_ms: how long they took.
    """

    count: int
    after_ms: Percentiles | None


@dataclass(frozen=True, slots=True)
class Figures:
    """Of the requests of one kind in one step; a request belongs to the step in which it fell due.

    Attributes:
        offered: requests that fell due, skipped ones among them.
        in_time: answered within their deadline.
        late: answered after it.
        refused: told in good order that they will not be answered.
        failed: neither.
        skipped: never sent.
        offered_per_s: requests that fell due per second of the step.
        answered_per_s: in time or late.
        goodput_per_s: in time.
        refused_share: of those offered.
        latency_ms: of those answered, from when they were due.
        refused_after_ms: of those refused, from when they were due.
        refusals: by problem code.
        failures: how many, by what went wrong.
        lag_ms: how late the load generator sent them; where this is not small, the others are the generator's too.
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
    refusals: dict[str, Refusals]
    failures: dict[str, int]
    lag_ms: Percentiles | None


def summarise(records: Sequence[Record], step_s: float) -> Figures:
    """Compute the figures.

    Args:
        records: of one kind in one step.
        step_s: length of the step.
    """
    counts = Counter(record.outcome for record in records)
    answered = [record for record in records if record.outcome in (Outcome.IN_TIME, Outcome.LATE)]
    refused = [record for record in records if record.outcome is Outcome.REFUSED]
    by_code: dict[str, list[float]] = {}
    for record in refused:
        by_code.setdefault(record.code, []).append(record.seconds)
    return Figures(
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
        refusals={code: Refusals(len(after), Percentiles.of(after)) for code, after in sorted(by_code.items())},
        failures=dict(sorted(Counter(record.code for record in records if record.outcome is Outcome.FAILED).items())),
        lag_ms=Percentiles.of([record.lag_s for record in records if record.outcome is not Outcome.SKIPPED]),
    )
