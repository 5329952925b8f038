"""How fast work of a kind has been coming lately."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Final

_WINDOW: Final = 32
"""Arrivals remembered per key."""

_LEAST: Final = 8
"""Arrivals without which nothing is expected: fewer say nothing of a rate."""


class Arrivals:
    """Cost per second of what arrived lately, admitted or not, by key."""

    def __init__(self) -> None:
        self._seen: dict[Hashable, deque[tuple[float, float]]] = {}

    def note(self, key: Hashable, cost: float, now: float) -> None:
        """Something of `cost` came."""
        self._seen.setdefault(key, deque(maxlen=_WINDOW)).append((now, cost))

    def expected(self, key: Hashable, now: float, until: float) -> float:
        """Cost that will come between `now` and `until` where it goes on as it did; silence lets it fall."""
        seen = self._seen.get(key)
        if seen is None or len(seen) < _LEAST or until <= now or now <= seen[0][0]:
            return 0.0
        return sum(cost for _, cost in seen) / (now - seen[0][0]) * (until - now)
