"""Figures of all subjects of a group, side by side on the same axes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from xml.etree.ElementTree import Element

import numpy as np

from models.evaluation.report_axes import axis_of
from models.evaluation.report_figures import BINS, histogram, histogram_counts, reliability
from models.evaluation.report_markup import element
from models.evaluation.report_numbers import share
from models.evaluation.results import Group


def spread(group: Group) -> Element:
    """A histogram of fruit IoU for each subject, all on the same axes.

    Args:
        group: at least one subject.
    """
    values = {each.subject.name: [score.fruit_iou for score in each.per_image] for each in group.measured}
    axis = axis_of(value for every in values.values() for value in every)
    most = max(1, *(max(histogram_counts(every, axis)) for every in values.values()))
    figures = []
    for each in group.measured:
        every = values[each.subject.name]
        known = [value for value in every if math.isfinite(value)]
        told = "nothing measured"
        if known:
            told = f"median {share(float(np.median(known)))}, lowest {share(min(known))}"
        if len(known) < len(every):
            told += f"; {len(every) - len(known)} without fruit not counted"
        drawn = histogram(
            every, axis, most=most, label=f"Histogram of fruit IoU per image of {each.subject.title}: {told}"
        )
        figures.append(_small(each.subject.title, drawn, told))
    wide = (axis.high - axis.low) / BINS
    return element(
        "div",
        element("h3", "Spread over the images"),
        element(
            "p",
            f"Images (upwards) by fruit IoU (sideways), in steps of {wide:.3g}; the line is the median. All figures "
            "share their axes.",
            class_="quiet",
        ),
        element("div", figures, class_="multiples"),
    )


def calibrations(group: Group) -> Iterable[Element]:
    """A reliability curve for each subject whose scores were compared; nothing where none was."""
    drawn = [(each, each.score_calibration) for each in group.measured if each.score_calibration is not None]
    if not drawn:
        return
    axis = axis_of(end for _, known in drawn for each in known.bins for end in (each.mean_score, each.mean_iou))
    figures = []
    for each, known in drawn:
        error = f"error {share(known.ece)} in bins, {share(known.mean_abs_error)} per mask"
        told = f"{error}; bias {share(known.bias)}, correlation {share(known.correlation)}; {known.count:,} masks"
        figure = reliability(known, axis, label=f"Score against IoU of {each.subject.title}: {told}")
        figures.append(_small(each.subject.title, figure, told))
    yield element("h3", "How true the model's own score is")
    yield element(
        "p",
        "SAM gives each mask a score, the IoU that it expects. Each dot is a bin of masks with similar scores: on the "
        "diagonal the score came true, below it the model thinks too well of itself. Larger dots are more masks.",
        class_="quiet",
    )
    yield element("div", figures, class_="multiples")


def _small(title: str, drawn: Element, told: str) -> Element:
    return element("figure", element("h4", title), drawn, element("figcaption", told))
