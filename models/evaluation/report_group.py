"""A group's section of the report: images that are measured together, and with no others."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from xml.etree.ElementTree import Element

from models.evaluation.report_catalogue import FRUIT_IOU
from models.evaluation.report_images import gallery
from models.evaluation.report_markup import Node, element
from models.evaluation.report_measures import best, interval_of, prompted_from_annotation
from models.evaluation.report_multiples import calibrations, spread
from models.evaluation.report_numbers import counted, interval, milliseconds
from models.evaluation.report_tables import all_measures_table, main_table, timing_table
from models.evaluation.results import Group, ImageFile, Measured


def group_section(group: Group, images: Sequence[ImageFile], *, anchor: str, most: int) -> Element:
    """All that was measured on a group.

    Args:
        group: with or without subjects.
        images: of any group; those of this one are shown.
        anchor: the section's id on the page.
        most: bytes that each image may have.

    Returns:
        The section.

    Raises:
        DataError: an image is no JPEG.
    """
    fruits = counted(group.fruits, "annotated fruit") if group.fruits else "fruits not told apart"
    opening = (
        element("h2", group.title),
        element("p", group.description),
        element("p", f"{counted(group.images, 'image')}, {fruits}.", class_="facts"),
    )
    if not group.measured:
        return element("section", opening, element("p", "Nothing was measured on it."), id=anchor)
    return element(
        "section",
        opening,
        element("ul", (element("li", sentence) for sentence in _leaders(group)), class_="leaders"),
        main_table(group),
        element(
            "p",
            "Beneath each value its 95 % interval. Bold: the best value of a column, oracles left out; ",
            "where intervals overlap, a difference may be chance.",
            class_="quiet",
        ),
        element(
            "details", element("summary", f"All measures of {group.title}"), all_measures_table(group), class_="more"
        ),
        spread(group),
        element("h3", "Time per stage"),
        element(
            "p",
            "Milliseconds, the median over the images of each stage and of the total. A bar is as long as the total, "
            "and stages share it in proportion: the sum of medians need not be the median of sums.",
            class_="quiet",
        ),
        timing_table(group),
        calibrations(group),
        _galleries(group, images, most=most),
        id=anchor,
    )


def _leaders(group: Group) -> list[list[Node]]:
    """Who is best, among those whose answers one can have and among those that nobody has to prompt."""
    fair = [each for each in group.measured if not each.subject.oracle]
    alone = [each for each in fair if not prompted_from_annotation(each)]
    told = []
    for every, who in ((alone, "without any prompt from the annotation"), (fair, "of all but oracles")):
        leader = best(every, FRUIT_IOU)
        if leader is None or (every is fair and len(fair) == len(alone)):
            continue
        leading = interval_of(leader, FRUIT_IOU)
        sentence: list[Node] = [
            f"Highest fruit IoU {who}: ",
            element("strong", leader.subject.title),
            f", {interval(leading)}.",
        ]
        near = [
            each.subject.title
            for each in every
            if each is not leader and interval_of(each, FRUIT_IOU).high >= leading.low
        ]
        if near:
            sentence.append(f" Intervals that overlap with it: {'; '.join(near)}.")
        told.append(sentence)
    timed = [each for each in fair if math.isfinite(_total(each))]
    if timed:
        fastest = min(timed, key=_total)
        time = milliseconds(_total(fastest))
        told.append(["Fastest: ", element("strong", fastest.subject.title), f", {time} ms per image."])
    return told


def _total(measured: Measured) -> float:
    return measured.milliseconds.get("total", math.nan)


def _galleries(group: Group, images: Sequence[ImageFile], *, most: int) -> Iterable[Element]:
    shown = [each for each in images if each.group == group.name]
    if not shown:
        return
    yield element("h3", "Best and worst images")
    yield element(
        "p",
        "Left the outlines of the annotation, right those of the subject: fruits in blue, infected areas in purple.",
        class_="quiet",
    )
    for each in group.measured:
        own = [image for image in shown if image.subject == each.subject.name]
        if own:
            title = element("summary", element("h4", each.subject.title))
            yield element("details", title, gallery(each.subject, own, most=most), open="open", class_="strips")
