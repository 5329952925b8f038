"""Tables of the report: a group's figures, subject by subject."""

from __future__ import annotations

import math
from collections.abc import Iterable
from xml.etree.ElementTree import Element

from models.evaluation.report_axes import axis_of
from models.evaluation.report_catalogue import FRUIT_IOU, described
from models.evaluation.report_figures import bar_length, scale, stacked_bar, stage_class, stage_names, whisker
from models.evaluation.report_markup import Node, element
from models.evaluation.report_measures import (
    best,
    interval_of,
    main_names,
    measured_names,
    prompted_from_annotation,
)
from models.evaluation.report_numbers import interval_ends, milliseconds, share
from models.evaluation.results import Group, Interval, Measured


def main_table(group: Group) -> Element:
    """Subjects as rows, the measures that decide as columns; the total time stands beside the first.

    Args:
        group: at least one subject.

    Returns:
        A table in a frame that scrolls where it is too narrow. The best that one can have of each column is bold.
    """
    names = main_names(group)
    intervals = [interval_of(each, FRUIT_IOU) for each in group.measured]
    axis = axis_of(end for each in intervals for end in (each.value, each.low, each.high))
    fair = [each for each in group.measured if not each.subject.oracle]
    leaders = {name: best(fair, name) for name in names}
    heads: list[Element] = [element("th", "Subject", scope="col")]
    for name in names:
        told = described(name)
        heads.append(element("th", told.title, element("small", told.direction), scope="col", title=told.text))
        if name == FRUIT_IOU:
            heads.append(element("th", "95 % interval", scale(axis), scope="col", class_="drawn"))
            heads.append(element("th", "Time, ms", element("small", "median per image"), scope="col"))
    rows = []
    for each in group.measured:
        cells = [_subject_head(each)]
        for name in names:
            cells.append(_interval_cell(interval_of(each, name), leads=_leads(each, leaders[name], name)))
            if name == FRUIT_IOU:
                cells.append(element("td", whisker(interval_of(each, name), axis), class_="drawn"))
                cells.append(element("td", milliseconds(each.milliseconds.get("total", math.nan)), class_="number"))
        rows.append(element("tr", cells, class_="oracle" if each.subject.oracle else "subject"))
    return framed(f"{group.title}: main measures", heads, rows)


def all_measures_table(group: Group) -> Element:
    """Measures as rows, subjects as columns."""
    heads = [element("th", "Measure", scope="col")]
    heads += [element("th", each.subject.title, scope="col") for each in group.measured]
    rows = []
    for name in measured_names(group.measured):
        told = described(name)
        cells = [element("th", told.title, element("small", told.direction), scope="row", title=told.text)]
        cells += [_interval_cell(interval_of(each, name), leads=False) for each in group.measured]
        rows.append(element("tr", cells))
    return framed(f"{group.title}: all measures", heads, rows)


def timing_table(group: Group) -> Element:
    """Stages of each subject, drawn one after the other and told as numbers."""
    stages = stage_names(stage for each in group.measured for stage in each.milliseconds)
    most = max(*(bar_length(each.milliseconds) for each in group.measured), 1e-6)
    heads = [element("th", "Subject", scope="col"), element("th", "One after the other", scope="col", class_="drawn")]
    heads += [
        element(
            "th",
            element("span", class_=f"swatch {stage_class(stage)}", aria_hidden="true"),
            stage,
            scope="col",
            class_="stage",
        )
        for stage in stages
    ]
    heads.append(element("th", "total", scope="col"))
    rows = []
    for each in group.measured:
        times = {stage: each.milliseconds.get(stage, math.nan) for stage in (*stages, "total")}
        told = ", ".join(f"{stage} {milliseconds(time)}" for stage, time in times.items() if math.isfinite(time))
        bar = stacked_bar(each.milliseconds, most=most, label=f"{each.subject.title}, milliseconds: {told}")
        cells = [element("th", each.subject.title, scope="row"), element("td", bar, class_="drawn wide")]
        cells += [element("td", milliseconds(time), class_="number") for time in times.values()]
        rows.append(element("tr", cells))
    return framed(f"{group.title}: time per stage", heads, rows)


def framed(caption: str, heads: Iterable[Element], rows: Iterable[Element]) -> Element:
    """A table that can be scrolled sideways, with the keyboard too."""
    table = element(
        "table",
        element("caption", caption, class_="unseen"),
        element("thead", element("tr", heads)),
        element("tbody", rows),
    )
    return element("div", table, class_="scrolls", role="region", aria_label=caption, tabindex="0")


def _subject_head(measured: Measured) -> Element:
    remarks: list[Node] = []
    if measured.subject.oracle:
        remarks.append(element("small", "oracle: no result one can have"))
    elif prompted_from_annotation(measured):
        remarks.append(element("small", "prompted from the annotation"))
    return element("th", measured.subject.title, remarks, scope="row")


def _leads(measured: Measured, leader: Measured | None, name: str) -> bool:
    """Whether nobody can be seen to be better: figures that are written alike are alike."""
    if leader is None or measured.subject.oracle:
        return False
    return share(interval_of(measured, name).value) == share(interval_of(leader, name).value)


def _interval_cell(interval: Interval, *, leads: bool) -> Element:
    value: Node = element("strong", share(interval.value)) if leads else share(interval.value)
    return element("td", value, element("small", interval_ends(interval)), class_="number")
