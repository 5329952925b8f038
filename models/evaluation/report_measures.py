"""Which measures a report shows, and who does best."""

from __future__ import annotations

import math
from collections.abc import Iterable

from models.evaluation.report_catalogue import FRUIT_IOU, MAIN, PROMPTED_IOU, Measure, described, in_order
from models.evaluation.results import Group, Interval, Measured, Results


def measured_names(every: Iterable[Measured]) -> tuple[str, ...]:
    """Names of what at least one of the subjects was measured by."""
    return in_order(name for each in every for name, interval in each.measures.items() if math.isfinite(interval.value))


def main_names(group: Group) -> tuple[str, ...]:
    """Columns of a group's main table."""
    names = measured_names(group.measured)
    return tuple(name for name in MAIN if name in names or name == FRUIT_IOU)


def glossary(results: Results) -> tuple[Measure, ...]:
    """All measures that the results hold."""
    return tuple(
        described(name) for name in measured_names(each for group in results.groups for each in group.measured)
    )


def interval_of(measured: Measured, name: str) -> Interval:
    """A subject's measure; NaN where it was not measured."""
    nothing = float("nan")
    return measured.measures.get(name, Interval(nothing, nothing, nothing))


def prompted_from_annotation(measured: Measured) -> bool:
    """Whether the subject was told by the annotation where the fruit is, which a line has nobody to tell."""
    return PROMPTED_IOU in measured.measures


def best(every: Iterable[Measured], name: str) -> Measured | None:
    """The subject that measures best; None where none was measured.

    Args:
        every: the subjects to choose from.
        name: of the measure; of one whose best is 0, the nearest to it.
    """
    sign = described(name).sign
    known = [(interval_of(each, name).value, each) for each in every]
    known = [pair for pair in known if math.isfinite(pair[0])]
    return max(known, key=lambda pair: sign * pair[0] if sign else -abs(pair[0]))[1] if known else None
