"""The figures of the report, drawn by matplotlib as SVG.

Colours are those of Okabe and Ito, "Color Universal Design" (2008), which people with any common colour blindness can
distinguish.
"""

from __future__ import annotations

import base64
import io
import math
import re
import textwrap
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from models.evaluation.measures import FRUIT_IOU, interval_of
from models.evaluation.operations import Row
from models.evaluation.results import TOTAL, Calibration, CandidateResult
from models.evaluation.rounds import BEST_OF_THREE, iou_after, reached

STAGES: Final = ("decode", "encode", "prompt", "infer", "postprocess")
"""Stages in the order in which they run; others follow."""

_COLOURS: Final = {
    "decode": "#56b4e9",
    "encode": "#0072b2",
    "prompt": "#e69f00",
    "infer": "#009e73",
    "postprocess": "#cc79a7",
}
_OTHER: Final = "#8a929c"
_MARK: Final = "#0072b2"
_ACCENT: Final = "#e69f00"
_INK: Final = "#1d2127"
_QUIET: Final = "#5b6470"
_GRID: Final = "#d9dde3"

_STYLE: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "pomona",  # equal results make equal files
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "font.sans-serif": ["DejaVu Sans", "Arial"],
    "font.size": 9,
    "text.color": _INK,
    "axes.labelcolor": _QUIET,
    "axes.edgecolor": _GRID,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _GRID,
    "grid.linewidth": 0.7,
    "xtick.bottom": False,
    "ytick.left": False,
    "xtick.labelcolor": _QUIET,
    "ytick.labelcolor": _INK,
    "legend.frameon": False,
}
_UNPRINTABLE: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
_WIDTH: Final = 10.0  # inches
_ROW: Final = 0.36
_TITLE_WIDTH: Final = 38  # characters
_COLUMNS: Final = 4
_PANELS: Final = 3
_LINES: Final = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#5b6470")


@dataclass(frozen=True, slots=True)
class EmbeddedFigure:
    """A figure as part of a page.

    Attributes:
        uri: SVG as a data URI.
        alt: what it shows.
    """

    uri: str
    alt: str


def printable(text: str) -> str:
    """Replace what HTML and XML cannot hold, such as control characters and halves of characters in file names."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def stage_names(results: Iterable[CandidateResult]) -> tuple[str, ...]:
    """Return the stages of all candidates in the order in which they run, without the total."""
    found = {stage for each in results for stage in each.timing_ms} - {TOTAL}
    return (*(stage for stage in STAGES if stage in found), *sorted(found - set(STAGES)))


def iou_figure(results: Sequence[CandidateResult]) -> EmbeddedFigure:
    """Draw the mean IoU of fruit with its interval, and beside it the spread over the images."""
    with mpl.rc_context(_STYLE):
        figure, axes = _rows(results, columns=2)
        mean, spread = axes
        for row, each in enumerate(results):
            colour, fill = (_QUIET, "white") if each.candidate.oracle else (_MARK, _MARK)
            interval = interval_of(each, FRUIT_IOU)
            mean.plot((interval.low, interval.high), (row, row), color=colour, linewidth=2.5, solid_capstyle="round")
            mean.plot(interval.value, row, "o", markersize=6, color=colour, markerfacecolor=fill)
            known = [score.fruit_iou for score in each.per_image if math.isfinite(score.fruit_iou)]
            spread.boxplot(
                [known],
                positions=[row],
                orientation="horizontal",
                widths=0.55,
                whis=(5, 95),
                manage_ticks=False,
                patch_artist=True,
                boxprops={"facecolor": "#dcebf5" if not each.candidate.oracle else "white", "edgecolor": colour},
                medianprops={"color": _ACCENT, "linewidth": 2},
                whiskerprops={"color": colour},
                capprops={"color": colour},
                flierprops={"marker": "o", "markersize": 2.5, "markerfacecolor": colour, "markeredgewidth": 0},
            )
        mean.set_title("Mean and 95 % interval")
        spread.set_title("Images: quartiles, 5th to 95th percentile, others as dots")
        for axis in axes:
            axis.set_xlabel("fruit IoU per image")
        return _embedded(figure, "Mean fruit IoU with its 95 % interval, and its spread over the images, by candidate")


def timing_figure(results: Sequence[CandidateResult]) -> EmbeddedFigure:
    """Draw the stages of each candidate one after the other.

    A bar is as long as the median of the total, and stages share it in proportion, as the sum of medians need not be
    the median of sums.
    """
    stages = stage_names(results)
    with mpl.rc_context(_STYLE):
        figure, (axis,) = _rows(results, columns=1, extra=0.3)
        starts = np.zeros(len(results))
        for stage in stages:
            widths = np.array([_share_of_total(each.timing_ms, stage) for each in results])
            axis.barh(
                range(len(results)),
                widths,
                left=starts,
                height=0.6,
                color=_COLOURS.get(stage, _OTHER),
                edgecolor="white",
                label=f"{stage}",
            )
            starts += widths
        for row, (each, end) in enumerate(zip(results, starts, strict=True)):
            total = each.timing_ms.get(TOTAL, end)
            if math.isfinite(total):
                axis.annotate(f"{total:,.0f}", (end, row), (4, 0), textcoords="offset points", va="center", fontsize=8)
        axis.set_xlabel("milliseconds per image")
        axis.set_xlim(left=0)
        if stages:
            figure.legend(loc="outside upper right", ncols=len(stages))
        return _embedded(figure, "Median milliseconds per image of each candidate, by stage; numbers in the table")


def reliability_figure(results: Sequence[CandidateResult]) -> EmbeddedFigure | None:
    """Draw score against IoU for each candidate with calibrated scores; None where there is none."""
    calibrated = [
        (each.candidate.title, each.score_calibration) for each in results if each.score_calibration is not None
    ]
    if not calibrated:
        return None
    ends = [value for _, each in calibrated for one in each.bins for value in (one.mean_score, one.mean_iou)]
    low = max(0.0, math.floor(10 * min(ends, default=0)) / 10 - 0.05)
    high = max(1.0, *ends) + 0.03
    rows = math.ceil(len(calibrated) / _COLUMNS)
    columns = math.ceil(len(calibrated) / rows)
    with mpl.rc_context(_STYLE):
        figure = Figure((2.5 * columns, 2.9 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        for axis in axes.flat[len(calibrated) :]:
            axis.set_visible(False)
        for axis, (title, calibration) in zip(axes.flat, calibrated, strict=False):
            _reliability(axis, calibration)
            axis.set_title("\n".join(textwrap.wrap(printable(title), 30)))
            axis.set(xlim=(low, high), ylim=(low, high), box_aspect=1)
        figure.supxlabel("mean score", fontsize=9, color=_QUIET)
        figure.supylabel("mean IoU", fontsize=9, color=_QUIET)
        return _embedded(figure, "Mean IoU of masks against their mean score, by candidate; numbers in the table")


def clicks_figure(rows: Sequence[Row]) -> EmbeddedFigure:
    """Draw the mean IoU over the number of clicks with its interval, a panel for each set of images."""
    sets, methods = _distinct(rows)
    columns = min(_PANELS, len(sets))
    lines = math.ceil(len(sets) / columns)
    with mpl.rc_context(_STYLE):
        figure = Figure((max(4.0, 3.3 * columns), 0.4 + 2.8 * lines), layout="constrained")
        axes = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
        for axis in axes.flat[len(sets) :]:
            axis.set_visible(False)
        for place, (axis, images) in enumerate(zip(axes.flat, sets, strict=False)):
            axis.tick_params(labelbottom=place + columns >= len(sets))  # nothing below it
            for row in (row for row in rows if row.images == images):
                found = reached(row.measures)
                colour = methods[row.method]
                clicks = [number for number, _ in found]
                axis.fill_between(
                    clicks, [each.low for _, each in found], [each.high for _, each in found], color=colour, alpha=0.15
                )
                axis.plot(clicks, [each.value for _, each in found], "o-", color=colour, markersize=3.5)
            axis.set_title("\n".join(textwrap.wrap(printable(images), _TITLE_WIDTH)))
            axis.xaxis.get_major_locator().set_params(integer=True)
        figure.supxlabel("clicks", fontsize=9, color=_QUIET)
        figure.supylabel("mean IoU", fontsize=9, color=_QUIET)
        for method, colour in methods.items():
            axes.flat[0].plot([], [], "o-", color=colour, markersize=3.5, label=printable(method))
        figure.legend(loc="outside upper left", ncols=min(4, len(methods)))
        return _embedded(figure, "Mean IoU over the number of clicks, by set of images and model; numbers in the table")


def single_point_figure(rows: Sequence[Row]) -> EmbeddedFigure:
    """Draw the mean IoU of a single point for each set, and what the annotation would choose of its three masks."""
    sets, methods = _distinct(rows)
    titles = ["\n".join(textwrap.wrap(printable(images), _TITLE_WIDTH)) for images in sets]
    with mpl.rc_context(_STYLE):
        figure = Figure((_WIDTH, 1.1 + _ROW * sum(1 + title.count("\n") for title in titles)), layout="constrained")
        axis = figure.subplots()
        axis.grid(visible=False, axis="y")
        axis.spines["left"].set_visible(False)
        for row in rows:
            place, number = sets.index(row.images), list(methods).index(row.method)
            at = place + 0.5 * (number + 0.5) / len(methods) - 0.25
            single, best = row.measures[iou_after(1)], row.measures[BEST_OF_THREE]
            colour = methods[row.method]
            axis.plot((single.low, single.high), (at, at), color=colour, linewidth=2.5, solid_capstyle="round")
            axis.plot(single.value, at, "o", markersize=6, color=colour)
            axis.plot(best.value, at, "o", markersize=6, color=colour, markerfacecolor="white")
        for method, colour in methods.items():
            axis.plot([], [], "o", color=colour, label=printable(method))
        axis.plot([], [], "o", color=_QUIET, markerfacecolor="white", label="best of three by the annotation")
        axis.set_yticks(range(len(sets)), titles)
        axis.set_ylim(len(sets) - 0.4, -0.6)
        axis.set_xlabel("mean IoU after one click, with its 95 % interval")
        figure.legend(loc="outside upper left", ncols=min(4, len(methods) + 1))
        return _embedded(figure, "Mean IoU after one click, by set of images and model; numbers in the table")


def _distinct(rows: Sequence[Row]) -> tuple[list[str], dict[str, str]]:
    """Return the sets of images, and the methods with their colours."""
    methods = list(dict.fromkeys(row.method for row in rows))
    return list(dict.fromkeys(row.images for row in rows)), {
        method: _LINES[number % len(_LINES)] for number, method in enumerate(methods)
    }


def _reliability(axis: Axes, calibration: Calibration) -> None:
    axis.plot((0, 2), (0, 2), color=_QUIET, linestyle=(0, (4, 4)), linewidth=1)
    scores = [each.mean_score for each in calibration.bins]
    ious = [each.mean_iou for each in calibration.bins]
    counts = np.array([each.count for each in calibration.bins], np.float64)
    axis.plot(scores, ious, color=_MARK, linewidth=1.2)
    axis.scatter(scores, ious, 10 + 90 * counts / counts.max(initial=1), color=_MARK, edgecolors="white", zorder=3)


def _rows(results: Sequence[CandidateResult], *, columns: int, extra: float = 0.0) -> tuple[Figure, Sequence[Axes]]:
    """Return a figure with one row per candidate, the first at the top, and its axes side by side."""
    titles = ["\n".join(textwrap.wrap(printable(each.candidate.title), _TITLE_WIDTH)) for each in results]
    lines = sum(max(1, title.count("\n") * 0.75 + 0.65) for title in titles)
    figure = Figure((_WIDTH, 0.9 + extra + _ROW * lines), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False, sharey=True)[0]
    for axis in axes:
        axis.grid(visible=False, axis="y")
        axis.spines["left"].set_visible(False)
    axes[0].set_yticks(range(len(titles)), titles)
    axes[0].set_ylim(len(titles) - 0.4, -0.6)
    return figure, list(axes)


def _share_of_total(timing: Mapping[str, float], stage: str) -> float:
    times = {name: time for name, time in timing.items() if name != TOTAL and math.isfinite(time)}
    together = sum(times.values())
    total = timing.get(TOTAL, math.nan)
    scale = total / together if math.isfinite(total) and together else 1.0
    return times.get(stage, 0.0) * scale


def _embedded(figure: Figure, alt: str) -> EmbeddedFigure:
    file = io.BytesIO()
    with warnings.catch_warnings():
        # The browser has the fonts that matplotlib measures text without.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return EmbeddedFigure("data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode("ascii"), alt)
