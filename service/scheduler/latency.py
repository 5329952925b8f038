"""How long a batch takes and how fast work arrives: learned while serving, robust to outliers.

Times heal: what was learned in a bad moment would refuse the very work that could correct it. A time that no batch has
confirmed for `RETRY` times as long is therefore forgotten, and the best known time assumed again. If that is wrong, the
batch that shows it takes at most one part in `RETRY` + 1 of the device (`tests/unit/test_healing.py`).
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from itertools import combinations, takewhile
from statistics import median
from typing import Final

RETRY: Final = 4.0
"""Times as long as a batch took after which what it taught is forgotten, if no other confirms it."""

_LEAST_RETRY_S: Final = 2.0
"""Seconds for which the time of a quick batch is remembered at least."""

_WINDOW: Final = 16
"""Batches remembered per cost: enough to outvote outliers, few enough to follow a change of load within seconds."""

_COSTS: Final = 32
"""Costs remembered per family, the latest."""

_APART: Final = 1.25
"""Costs closer together than this factor say nothing about the slope: it would be fitted to their noise."""

_SPREADS: Final = 2.0
"""Median absolute deviations that a prediction adds: most batches then end earlier than predicted."""

_PREDICTIONS: Final = 1024
"""Predictions cached per family until the next batch is learned."""

_ARRIVALS: Final = 32
"""Arrivals remembered per key."""

_FEWEST_ARRIVALS: Final = 8
"""Fewer arrivals say nothing about a rate."""


def retry_after(seconds: float) -> float:
    """Return seconds after which a batch that was learned to take `seconds` may be tried as if it took less."""
    return max(_LEAST_RETRY_S, RETRY * seconds)


@dataclass(slots=True)
class _Sample:
    """Batches of one cost.

    Attributes:
        ran: their seconds.
        middle: median of these.
        most: upper estimate for the next.
        best: least `middle` ever.
        learned: when the last one was learned, seconds on the caller's clock.
        healed: `ran` is an assumption, which the next batch replaces.
    """

    ran: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    middle: float = 0.0
    most: float = 0.0
    best: float = math.inf
    learned: float = -math.inf
    healed: bool = False

    @property
    def doubtful_from(self) -> float:
        """When it is to be forgotten."""
        return math.inf if self.healed else self.learned + retry_after(self.most)

    def add(self, seconds: float, now: float) -> None:
        if self.healed:
            self.ran.clear()
        self.ran.append(seconds)
        self.middle = median(self.ran)
        self.most = self.middle + _SPREADS * median(abs(other - self.middle) for other in self.ran)
        self.best = min(self.best, self.middle)
        self.learned, self.healed = now, False

    def heal(self, seconds: float, now: float) -> None:
        """Assume from now on that a batch takes no more than `seconds`."""
        if seconds >= self.most:
            self.learned = now
            return
        self.ran.clear()
        self.ran.append(seconds)
        self.middle = self.most = seconds
        self.healed = True


class LatencyCurve:
    """Seconds of a batch by its cost, as learned for one family of keys.

    Attributes:
        version: counts the changes of its predictions.
    """

    def __init__(self) -> None:
        self.version = 0
        self._quickest: tuple[float, float] | None = None  # cost and seconds of the least seconds per cost ever
        self._doubtful_from = math.inf
        self._samples: OrderedDict[float, _Sample] = OrderedDict()  # by cost, the latest last
        self._fixed = self._per_cost = self._margin = 0.0
        self._stale = False
        self._predictions: dict[float, float] = {}

    def learn(self, cost: float, seconds: float, now: float) -> None:
        """Add a batch of `cost` that took `seconds` and ended `now`."""
        sample = self._samples.setdefault(cost, _Sample())
        sample.add(seconds, now)
        self._samples.move_to_end(cost)
        if len(self._samples) > _COSTS:
            self._samples.popitem(last=False)
        if cost > 0 and (self._quickest is None or sample.middle * self._quickest[0] < self._quickest[1] * cost):
            self._quickest = (cost, sample.middle)
        self._changed()

    def heal(self, now: float) -> None:
        """Forget what nothing has confirmed for too long, see the module."""
        if now < self._doubtful_from:
            return
        # A cost that did not run is taken to be as much slower than at its best as the one that ran last.
        latest_cost, latest = next(reversed(self._samples.items()))
        pace = max(1.0, latest.middle / self._best(latest_cost)) if now < latest.doubtful_from < math.inf else 1.0
        for cost, sample in self._samples.items():
            if sample.doubtful_from <= now:
                sample.heal(pace * self._best(cost), now)
        self._changed()

    def _best(self, cost: float) -> float:
        """Return the seconds that a batch takes at most at the best speed known, above 0."""
        known = [(other, sample.best) for other, sample in self._samples.items()]
        if self._quickest is not None:
            known.append(self._quickest)
        # A smaller batch takes no longer, a larger one no longer per cost.
        return max(1e-9, min(seconds * max(1.0, cost / max(other, 1e-9)) for other, seconds in known))

    def _changed(self) -> None:
        self._doubtful_from = min(sample.doubtful_from for sample in self._samples.values())
        self._stale = True
        self._predictions.clear()
        self.version += 1

    def predict(self, cost: float) -> float:
        """Return seconds that more often than not suffice for a batch of `cost`; 0 where nothing was learned."""
        seconds = self._predictions.get(cost)
        if seconds is None:
            if len(self._predictions) >= _PREDICTIONS:
                self._predictions.clear()
            seconds = self._predictions[cost] = self._predict(cost)
        return seconds

    def _predict(self, cost: float) -> float:
        if cost in self._samples:
            # If smaller batches took longer since then, this one does too: the device became slower.
            newer = takewhile(lambda other: other != cost, reversed(self._samples))
            return max(self._samples[cost].most, *(self._samples[other].most for other in newer if other < cost), 0.0)
        if self._stale:
            self._fit()
            self._stale = False
        return self._fixed + self._per_cost * cost + self._margin

    def _fit(self) -> None:
        """Fit Theil and Sen's line to the medians: the median slope of all pairs, the median offset (Sen 1968)."""
        points = [(cost, sample.middle) for cost, sample in self._samples.items()]
        slopes = [
            (seconds - other) / (cost - other_cost)
            for (cost, seconds), (other_cost, other) in combinations(points, 2)
            if max(cost, other_cost) > _APART * min(cost, other_cost)
        ]
        self._per_cost = max(0.0, median(slopes)) if slopes else 0.0
        self._fixed = median(seconds - self._per_cost * cost for cost, seconds in points)
        if not slopes or self._fixed < 0:
            # With one size only, or a line that begins below zero, all time is taken to be per item, which errs on the
            # safe side for larger batches.
            self._per_cost = median(seconds / max(cost, 1e-9) for cost, seconds in points)
            self._fixed = 0.0
        errors = [
            abs(seconds - self._fixed - self._per_cost * cost)
            for cost, sample in self._samples.items()
            for seconds in sample.ran
        ]
        self._margin = _SPREADS * median(errors)


class LatencyModel:
    """Seconds of a batch as a fixed part plus a part per cost, for each family of keys separately."""

    def __init__(self) -> None:
        self._curves: dict[Hashable, LatencyCurve] = {}

    def curve(self, family: Hashable) -> LatencyCurve:
        """Return what is learned for a family; it stays up to date."""
        curve = self._curves.get(family)
        if curve is None:
            curve = self._curves[family] = LatencyCurve()
        return curve

    def learn(self, family: Hashable, cost: float, seconds: float, now: float) -> None:
        """Add a batch of `cost` that took `seconds` and ended `now`, seconds on the caller's clock."""
        self.curve(family).learn(cost, seconds, now)

    def forget(self, matches: Callable[[Hashable], bool]) -> None:
        """Forget families."""
        self._curves = {family: curve for family, curve in self._curves.items() if not matches(family)}

    def heal(self, now: float) -> None:
        """Forget what nothing has confirmed for too long; to be called before predictions are relied on."""
        for curve in self._curves.values():
            curve.heal(now)

    def predict(self, family: Hashable, cost: float) -> float:
        """Return seconds that more often than not suffice for a batch of `cost`; 0 for an unknown family."""
        curve = self._curves.get(family)
        return 0.0 if curve is None else curve.predict(cost)


@dataclass(slots=True)
class _Arrivals:
    recent: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_ARRIVALS))
    total: float | None = None
    """Cost of the recent arrivals, once computed."""


class ArrivalRate:
    """Cost per second that arrived recently, whether admitted or not, by key."""

    def __init__(self) -> None:
        self._arrivals: dict[Hashable, _Arrivals] = {}

    def add(self, key: Hashable, cost: float, now: float) -> None:
        """Count an arrival of `cost`."""
        arrivals = self._arrivals.get(key)
        if arrivals is None:
            arrivals = self._arrivals[key] = _Arrivals()
        arrivals.recent.append((now, cost))
        arrivals.total = None

    def forget(self, matches: Callable[[Hashable], bool]) -> None:
        """Forget keys."""
        self._arrivals = {key: arrivals for key, arrivals in self._arrivals.items() if not matches(key)}

    def expected(self, key: Hashable, now: float, until: float, most: int) -> float:
        """Return the cost that will arrive between `now` and `until` at the recent rate, which falls in silence.

        Args:
            key: of the arrivals.
            now: seconds on the caller's clock, as `until` is.
            until: end of the time.
            most: arrivals that count, of the recent ones' mean cost.
        """
        arrivals = self._arrivals.get(key)
        if arrivals is None or len(arrivals.recent) < _FEWEST_ARRIVALS or until <= now:
            return 0.0
        first = arrivals.recent[0][0]
        if now <= first:
            return 0.0
        if arrivals.total is None:
            arrivals.total = sum(cost for _, cost in arrivals.recent)
        return min(arrivals.total / (now - first) * (until - now), most * arrivals.total / len(arrivals.recent))
