"""Axes of shares, which figures have in common so that they can be compared."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

_STEPS: Final = (0.05, 0.1, 0.2)
_MOST_BELOW, _MOST = 5, 7  # steps up to 1, and in all: ticks need room for their numbers


@dataclass(frozen=True, slots=True)
class Axis:
    """What several figures share, so that they can be compared.

    Attributes:
        low: where it begins.
        high: where it ends, above `low`.
        step: from one tick to the next.
    """

    low: float
    high: float
    step: float

    def at(self, value: float, length: float) -> float:
        """How far from its beginning a value lies on an axis of that length; those beyond lie at its ends."""
        return min(max((value - self.low) / (self.high - self.low), 0), 1) * length

    def ticks(self) -> list[float]:
        """Values of the ticks, both ends included."""
        return [self.low + place * self.step for place in range(round((self.high - self.low) / self.step) + 1)]


def axis_of(values: Iterable[float]) -> Axis:
    """The axis on which values near 1 are told apart: it ends at 1, or beyond if they do.

    Args:
        values: shares; NaN are passed over.

    Returns:
        An axis of at most five steps up to 1; it begins at 0 to 0.9.
    """
    known = [value for value in values if math.isfinite(value)]
    low = min(max(math.floor(round(min(known, default=0.0) * 10, 6)), 0), 9) / 10
    high = max(known, default=1.0)
    for step in _STEPS:
        below, over = (max(math.ceil(round(reach / step, 6)), 0) for reach in (1 - low, high - 1))
        if below <= _MOST_BELOW and below + over <= _MOST:
            break
    return Axis(round(1 - below * step, 6), round(1 + over * step, 6), step)
