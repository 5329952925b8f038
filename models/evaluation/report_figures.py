"""Figures of the report as SVG: numbers in, elements out; colours come from the page's style."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final
from xml.etree.ElementTree import Element

import numpy as np

from models.evaluation.report_axes import Axis
from models.evaluation.report_markup import element
from models.evaluation.report_numbers import milliseconds, share
from models.evaluation.results import Calibration, Interval

BINS: Final = 20
"""Bars of a histogram."""

STAGES: Final = ("decode", "encode", "prompt", "infer", "postprocess")
"""Stages in the order in which they run, which is that of their colours too; others follow."""

_ROOM: Final = 12  # for half a label or a dot, left and right of a plot


def whisker(interval: Interval, axis: Axis) -> Element:
    """A dot at the value, and a line over the interval; nothing but the grid where it was not measured."""
    width, height = 124, 18
    inside = width - 2 * _ROOM
    parts = [
        element("line", class_="grid", x1=x, x2=x, y1=0, y2=height)
        for x in (_ROOM + axis.at(tick, inside) for tick in axis.ticks())
    ]
    if math.isfinite(interval.low) and math.isfinite(interval.high):
        left, right = (_ROOM + axis.at(end, inside) for end in (interval.low, interval.high))
        parts.append(element("line", class_="whisker", x1=left, x2=right, y1=height / 2, y2=height / 2))
    if math.isfinite(interval.value):
        parts.append(element("circle", class_="dot", cx=_ROOM + axis.at(interval.value, inside), cy=height / 2, r=3.2))
    # The numbers stand beside it.
    return element("svg", parts, viewBox=f"0 0 {width} {height}", width=width, height=height, aria_hidden="true")


def scale(axis: Axis) -> Element:
    """The axis of `whisker`, with numbers: for the head of its column."""
    width, height = 124, 14
    ticks = axis.ticks()
    every = 1 if len(ticks) <= 5 else 2
    numbers = [
        element("text", f"{tick:.2g}", x=_ROOM + axis.at(tick, width - 2 * _ROOM), y=11, text_anchor="middle")
        for tick in ticks[::-1][::every]
    ]
    return element("svg", numbers, viewBox=f"0 0 {width} {height}", width=width, height=height, aria_hidden="true")


def histogram_counts(values: Sequence[float], axis: Axis) -> list[int]:
    """How many values each bar of a histogram stands for; NaN are passed over, the last bar includes its end."""
    known = np.array([value for value in values if math.isfinite(value)], np.float64)
    return [int(count) for count in np.histogram(known, bins=BINS, range=(axis.low, axis.high))[0]]


def histogram(values: Sequence[float], axis: Axis, *, most: int, label: str) -> Element:
    """How many images measure how well.

    Args:
        values: one for each image; NaN are passed over.
        axis: below.
        most: images at the top of the plot, the same for figures side by side; at least 1.
        label: what it shows, for those who do not see it.

    Returns:
        The figure, with a line at the median.
    """
    width, height, left, top, bottom = 240, 120, 26, 8, 98
    inside = width - left - _ROOM
    parts = [element("line", class_="axis", x1=left, x2=width - _ROOM, y1=bottom, y2=bottom)]
    for count, y in ((most, top), (0, bottom)):
        parts.append(element("text", f"{count}", x=left - 5, y=y + 4, text_anchor="end"))
    parts.append(element("line", class_="grid", x1=left, x2=width - _ROOM, y1=top, y2=top))
    for tick in axis.ticks():
        x = left + axis.at(tick, inside)
        parts.append(element("text", f"{tick:.2g}", x=x, y=bottom + 15, text_anchor="middle"))
    for place, count in enumerate(histogram_counts(values, axis)):
        tall = count / most * (bottom - top)
        x = left + place * inside / BINS
        if count:
            bar = element("rect", class_="bar", x=x + 0.5, y=bottom - tall, width=inside / BINS - 1, height=tall)
            parts.append(bar)
    known = [value for value in values if math.isfinite(value)]
    if known:
        x = left + axis.at(float(np.median(known)), inside)
        parts.append(element("line", class_="median", x1=x, x2=x, y1=top - 6, y2=bottom))
    return element("svg", parts, viewBox=f"0 0 {width} {height}", role="img", aria_label=label)


def stage_names(stages: Iterable[str]) -> tuple[str, ...]:
    """The stages without "total", in the order in which they run."""
    given = set(stages) - {"total"}
    return (*(stage for stage in STAGES if stage in given), *sorted(given - set(STAGES)))


def stage_class(stage: str) -> str:
    """The style's class that gives a stage its colour."""
    return f"stage-{STAGES.index(stage)}" if stage in STAGES else "stage-other"


def bar_length(times: Mapping[str, float]) -> float:
    """Milliseconds of "total", or of all stages together where it was not measured."""
    total = times.get("total", math.nan)
    return total if math.isfinite(total) else sum(_stages(times).values())


def stacked_bar(times: Mapping[str, float], *, most: float, label: str) -> Element:
    """Stages one after the other; it stretches to the room it is given.

    Args:
        times: milliseconds of each stage and of the "total", which is as long as the bar: medians of stages have a
            sum of their own, so stages share it in proportion. NaN are passed over.
        most: milliseconds at the end of the room, above 0.
        label: what it shows, for those who do not see it.

    Returns:
        The figure.
    """
    stages = _stages(times)
    together = sum(stages.values())
    parts, start = [], 0.0
    for stage, time in stages.items():
        width = time / together * bar_length(times) / most * 1000 if together else 0
        part = element("rect", class_=stage_class(stage), x=start, y=0, width=width, height=20)
        part.append(element("title", f"{stage}: {milliseconds(time)} ms"))
        parts.append(part)
        start += width
    return element(
        "svg", parts, class_="stack", viewBox="0 0 1000 20", preserveAspectRatio="none", role="img", aria_label=label
    )


def _stages(times: Mapping[str, float]) -> dict[str, float]:
    return {stage: times[stage] for stage in stage_names(times) if math.isfinite(times[stage])}


def reliability(calibration: Calibration, axis: Axis, *, label: str) -> Element:
    """What the masks of similar score measured: dots on the diagonal are scores that came true.

    Args:
        calibration: whose bins are drawn; a dot's area grows with the masks in it.
        axis: of both the scores and the IoUs.
        label: what it shows, for those who do not see it.

    Returns:
        The figure.
    """
    size, left, top = 230, 34, 20
    inside = size - left - 12
    bottom = top + inside
    parts = []
    for tick in axis.ticks():
        away = axis.at(tick, inside)
        x, y = left + away, bottom - away
        parts.append(element("line", class_="grid", x1=x, x2=x, y1=top, y2=bottom))
        parts.append(element("line", class_="grid", x1=left, x2=left + inside, y1=y, y2=y))
        parts.append(element("text", f"{tick:.2g}", x=x, y=bottom + 15, text_anchor="middle"))
        parts.append(element("text", f"{tick:.2g}", x=left - 5, y=y + 4, text_anchor="end"))
    parts.append(element("line", class_="diagonal", x1=left, y1=bottom, x2=left + inside, y2=top))
    parts.append(element("text", "mean IoU", x=left - 5, y=top - 9))
    parts.append(element("text", "mean score", x=left + inside, y=bottom + 31, text_anchor="end"))
    places = [
        (left + axis.at(each.mean_score, inside), bottom - axis.at(each.mean_iou, inside)) for each in calibration.bins
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts.append(element("polyline", class_="curve", points=line))
    most = max((each.count for each in calibration.bins), default=1)
    for each, (x, y) in zip(calibration.bins, places, strict=True):
        told = f"score {share(each.mean_score)}, IoU {share(each.mean_iou)}, {each.count} masks"
        dot = element("circle", class_="bubble", cx=x, cy=y, r=2.5 + 6.5 * math.sqrt(each.count / most))
        dot.append(element("title", told))
        parts.append(dot)
    return element("svg", parts, viewBox=f"0 0 {size} {bottom + 36}", role="img", aria_label=label)
