"""How long a batch takes: learned from the batches that ran, robust to outliers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from itertools import combinations
from statistics import median
from typing import Final

_WINDOW: Final = 32
"""Batches remembered per key: enough to outvote outliers, few enough to follow a change of load within seconds."""

_SPREADS: Final = 2.0
"""Predictions add this many median absolute deviations: most batches then end before they were predicted to."""


@dataclass(slots=True)
class _Learned:
    ran: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    fixed: float = 0.0
    per_cost: float = 0.0
    margin: float = 0.0
    stale: bool = False

    def seconds(self, cost: float) -> float:
        """What a batch of `cost` takes at most, more often than not."""
        if self.stale:
            self.fit()
            self.stale = False
        return self.fixed + self.per_cost * cost + self.margin

    def fit(self) -> None:
        """Theil and Sen's line: the median of all pairs' slopes, then the median offset (Sen 1968)."""
        ran = list(self.ran)
        slopes = [
            (seconds - other) / (cost - other_cost)
            for (cost, seconds), (other_cost, other) in combinations(ran, 2)
            if cost != other_cost
        ]
        self.per_cost = max(0.0, median(slopes)) if slopes else 0.0
        self.fixed = median(seconds - self.per_cost * cost for cost, seconds in ran)
        if not slopes or self.fixed < 0:
            # One batch size only, or sizes so alike that the noise made the line too steep: taken as all per item,
            # which is right for what was seen and errs on the safe side for larger ones.
            self.per_cost = median(seconds / max(cost, 1e-9) for cost, seconds in ran)
            self.fixed = 0.0
        errors = (abs(seconds - self.fixed - self.per_cost * cost) for cost, seconds in ran)
        self.margin = _SPREADS * median(errors)


class ServiceTimes:
    """Seconds of a batch as a fixed part plus a part per cost, for each key by itself.

    Where a device runs fixed batch sizes (buckets), costs are rounded up to the next of them, as the device does.

    Args:
        buckets: rising costs that the device is compiled for; empty where it takes any.
        family: names what is learned together; by default each key is learned by itself.
    """

    def __init__(
        self, buckets: tuple[float, ...] = (), family: Callable[[Hashable], Hashable] = lambda key: key
    ) -> None:
        self._buckets = buckets
        self._family = family
        self._learned: dict[Hashable, _Learned] = {}

    def learn(self, key: Hashable, cost: float, seconds: float) -> None:
        """A batch of `cost` took `seconds`."""
        learned = self._learned.setdefault(self._family(key), _Learned())
        learned.ran.append((self._bucket(cost), seconds))
        learned.stale = True

    def predict(self, key: Hashable, cost: float) -> float:
        """Seconds that a batch of `cost` will take at most, more often than not; 0 for an unknown key."""
        learned = self._learned.get(self._family(key))
        if learned is None:
            return 0.0
        return learned.seconds(self._bucket(cost))

    def _bucket(self, cost: float) -> float:
        return next((bucket for bucket in self._buckets if bucket >= cost), cost)
