"""How long a batch takes: learned from the batches that ran, robust to outliers."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from itertools import combinations, takewhile
from statistics import median
from typing import Final

_WINDOW: Final = 16
"""Batches remembered per cost: enough to outvote outliers, few enough to follow a change of load within seconds."""

_COSTS: Final = 32
"""Costs remembered per key, the latest."""

_APART: Final = 1.25
"""Costs by less than this factor apart say nothing of the slope: the noise between them would be taken for it."""

_SPREADS: Final = 2.0
"""Predictions add this many median absolute deviations: most batches then end before they were predicted to."""


@dataclass(slots=True)
class _Seen:
    """Batches of one cost: their seconds, and what the next takes at most, more often than not."""

    ran: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    middle: float = 0.0
    most: float = 0.0

    def note(self, seconds: float) -> None:
        self.ran.append(seconds)
        self.middle = median(self.ran)
        self.most = self.middle + _SPREADS * median(abs(other - self.middle) for other in self.ran)


@dataclass(slots=True)
class _Learned:
    seen: OrderedDict[float, _Seen] = field(default_factory=OrderedDict)
    """By cost, the latest last."""
    fixed: float = 0.0
    per_cost: float = 0.0
    margin: float = 0.0
    stale: bool = True

    def learn(self, cost: float, seconds: float) -> None:
        self.seen.setdefault(cost, _Seen()).note(seconds)
        self.seen.move_to_end(cost)
        if len(self.seen) > _COSTS:
            self.seen.popitem(last=False)
        self.stale = True

    def seconds(self, cost: float) -> float:
        """What a batch of `cost` takes at most, more often than not: as it was seen, else as those of other costs."""
        if cost in self.seen:
            # Where less was seen to take longer since, it does too: the device became slower.
            newer = takewhile(lambda other: other != cost, reversed(self.seen))
            return max(self.seen[cost].most, *(self.seen[other].most for other in newer if other < cost), 0.0)
        if self.stale:
            self.fit()
            self.stale = False
        return self.fixed + self.per_cost * cost + self.margin

    def fit(self) -> None:
        """Theil and Sen's line through each cost's median: the median slope of pairs, the median offset (Sen 1968)."""
        points = [(cost, seen.middle) for cost, seen in self.seen.items()]
        slopes = [
            (seconds - other) / (cost - other_cost)
            for (cost, seconds), (other_cost, other) in combinations(points, 2)
            if max(cost, other_cost) > _APART * min(cost, other_cost)
        ]
        self.per_cost = max(0.0, median(slopes)) if slopes else 0.0
        self.fixed = median(seconds - self.per_cost * cost for cost, seconds in points)
        if not slopes or self.fixed < 0:
            # One size only, or a line that begins below zero: taken as all per item, which errs on the safe side for
            # larger ones.
            self.per_cost = median(seconds / max(cost, 1e-9) for cost, seconds in points)
            self.fixed = 0.0
        errors = [
            abs(seconds - self.fixed - self.per_cost * cost) for cost, seen in self.seen.items() for seconds in seen.ran
        ]
        self.margin = _SPREADS * median(errors)


class LatencyModel:
    """Seconds of a batch as a fixed part plus a part per cost, for each key by itself.

    Where a device runs fixed batch sizes (buckets), costs are rounded up to the next of them, as the device does.

    Args:
        buckets: rising costs that the device is compiled for; empty where it takes any.
    """

    def __init__(self, buckets: tuple[float, ...] = ()) -> None:
        self._buckets = buckets
        self._learned: dict[Hashable, _Learned] = {}

    def learn(self, key: Hashable, cost: float, seconds: float) -> None:
        """A batch of `cost` took `seconds`."""
        self._learned.setdefault(key, _Learned()).learn(self._bucket(cost), seconds)

    def predict(self, key: Hashable, cost: float) -> float:
        """Seconds that a batch of `cost` will take at most, more often than not; 0 for an unknown key."""
        learned = self._learned.get(key)
        if learned is None:
            return 0.0
        return learned.seconds(self._bucket(cost))

    def _bucket(self, cost: float) -> float:
        return next((bucket for bucket in self._buckets if bucket >= cost), cost)


_AWINDOW: Final = 32
"""ArrivalRate remembered per key."""

_LEAST: Final = 8
"""ArrivalRate without which nothing is expected: fewer say nothing of a rate."""


class ArrivalRate:
    """Cost per second of what arrived lately, admitted or not, by key."""

    def __init__(self) -> None:
        self._seen: dict[Hashable, deque[tuple[float, float]]] = {}

    def note(self, key: Hashable, cost: float, now: float) -> None:
        """Something of `cost` came."""
        self._seen.setdefault(key, deque(maxlen=_AWINDOW)).append((now, cost))

    def expected(self, key: Hashable, now: float, until: float) -> float:
        """Cost that will come between `now` and `until` where it goes on as it did; silence lets it fall."""
        seen = self._seen.get(key)
        if seen is None or len(seen) < _LEAST or until <= now or now <= seen[0][0]:
            return 0.0
        return sum(cost for _, cost in seen) / (now - seen[0][0]) * (until - now)
