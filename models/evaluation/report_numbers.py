"""Numbers as the report writes them; a dash for what was not measured."""

from __future__ import annotations

import math
from typing import Final

from models.evaluation.results import Interval

DASH: Final = "–"  # noqa: RUF001 a dash as wide as a digit


def share(value: float) -> str:
    """An IoU, a share or the like with three decimals."""
    # Rounding may leave a zero with a sign.
    return f"{round(value, 3) + 0.0:.3f}" if math.isfinite(value) else DASH


def interval_ends(interval: Interval) -> str:
    """The ends of an interval, or nothing where it has none."""
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return ""
    return f"{share(interval.low)} to {share(interval.high)}"


def interval(interval: Interval) -> str:
    """A measure with its interval."""
    ends = interval_ends(interval)
    return f"{share(interval.value)} ({ends})" if ends else share(interval.value)


def milliseconds(value: float) -> str:
    """A time; one decimal where it has fewer than three digits."""
    if not math.isfinite(value):
        return DASH
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.1f}"


def counted(number: int, what: str) -> str:
    """A number of things, such as "1 image" or "3 images"."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
