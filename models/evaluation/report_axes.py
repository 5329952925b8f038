"""Axes of shares, which figures have in common so that they can be compared."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


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
    step = 0.05 if low >= 0.8 else 0.1 if low >= 0.5 else 0.2
    low = 1 - math.ceil(round((1 - low) / step, 6)) * step
    over = math.ceil(round((max(known, default=1.0) - 1) / step, 6))
    return Axis(round(low, 6), round(1 + max(over, 0) * step, 6), step)
