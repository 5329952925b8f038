"""The report as a page: what was measured, group by group, and what each measure means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.etree.ElementTree import Element

from models.evaluation.report_group import group_section
from models.evaluation.report_images import ALL_IMAGES
from models.evaluation.report_markup import document, element
from models.evaluation.report_measures import glossary
from models.evaluation.report_numbers import counted
from models.evaluation.report_style import STYLE
from models.evaluation.results import Group, ImageFile, Results, Subject

_TITLE = "Pomona: how well the models segment"


def page(results: Results, images: Sequence[ImageFile]) -> str:
    """Make the page.

    Args:
        results: what was found.
        images: best and worst of the subjects, of any number; the more there are, the smaller they become.

    Returns:
        HTML 5 that refers to nothing outside of it.

    Raises:
        DataError: an image is no JPEG.
    """
    most = ALL_IMAGES // max(1, len(images))
    anchors = [f"group-{number}" for number in range(1, len(results.groups) + 1)]
    sections = [
        group_section(group, images, anchor=anchor, most=most)
        for group, anchor in zip(results.groups, anchors, strict=True)
    ]
    links = [
        element("li", element("a", title, href=f"#{anchor}"))
        for title, anchor in (
            *((group.title, anchor) for group, anchor in zip(results.groups, anchors, strict=True)),
            ("What was compared", "subjects"),
            ("What the measures mean", "glossary"),
            ("How it was measured", "circumstances"),
        )
    ]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", _TITLE),
        element("style", STYLE),
    )
    body = element(
        "body",
        element("header", element("h1", _TITLE), _opening(results)),
        element("nav", element("ul", links), aria_label="Sections"),
        element("main", sections, _subjects(results), _glossary(results), _circumstances(results)),
    )
    return document(element("html", head, body, lang="en"))


def _opening(results: Results) -> list[Element]:
    opening = [
        element("p", _what(results), class_="lead"),
        element("ul", (element("li", _extent(group)) for group in results.groups), class_="groups"),
        element("p", _where(results), class_="quiet"),
        element(
            "ul",
            element(
                "li",
                element("strong", "Groups are never averaged."),
                " Rendered images are drawn by a program, real ones are photographs: a figure of one says little "
                "about the other, and no figure on this page mixes them.",
            ),
            element(
                "li",
                element("strong", "An oracle is no result one can have."),
                " It chooses among its masks by the annotation, and shows only what a better choice could reach. "
                "Subjects prompted from the annotation need somebody or something that points as well as that.",
            ),
            element(
                "li",
                element("strong", "Intervals come from the bootstrap over images."),
                " The images are drawn anew many times, as many as there are, with replacement; the interval holds "
                "the middle 95 % of what is then measured. It tells how far other images of the same kind would "
                "move the figure, and nothing about images of another kind or about another training. Frames of one "
                "scene count as independent, which makes it too narrow.",
            ),
            class_="rules",
        ),
    ]
    if results.notes:
        notes = element("ul", (element("li", note) for note in results.notes))
        opening.append(element("div", element("strong", "Left out or to be known:"), notes, class_="notes"))
    return opening


def _what(results: Results) -> str:
    if not results.groups:
        return "No images were measured."
    subjects, groups = counted(len(_compared(results)), "subject"), counted(len(results.groups), "group")
    return f"{subjects} on {groups} of images:"


def _extent(group: Group) -> str:
    fruits = f", {counted(group.fruits, 'annotated fruit')}" if group.fruits else ""
    return f"{group.title} ({counted(group.images, 'image')}{fruits})"


def _where(results: Results) -> str:
    run = f"Measured at {results.made_at}, commit {results.commit}, seed {results.seed}."
    machine = "; ".join(f"{name}: {value}" for name, value in results.machine.items())
    return f"{run} The machine: {machine}." if machine else run


def _compared(results: Results) -> list[Subject]:
    return list({each.subject.name: each.subject for group in results.groups for each in group.measured}.values())


def _subjects(results: Results) -> Element:
    cards = []
    for subject in _compared(results):
        facts = {"name": subject.name, "family": subject.family, "revision": subject.revision, **subject.settings}
        cards.append(
            element(
                "article", element("h3", subject.title), element("p", subject.description), _pairs(facts), class_="card"
            )
        )
    return element("section", element("h2", "What was compared"), element("div", cards, class_="cards"), id="subjects")


def _glossary(results: Results) -> Element:
    entries: list[Element] = []
    for measure in glossary(results):
        entries.append(element("dt", measure.title, " ", element("code", measure.name)))
        entries.append(element("dd", f"{measure.text} {measure.direction.capitalize()}.".strip()))
    calibration = (
        element("dt", "Error of the score in bins"),
        element(
            "dd",
            "The expected calibration error: masks are put into bins by their score; the distance of mean score and "
            "mean IoU in each bin, the mean over the bins weighted by their masks. Lower is better.",
        ),
        element("dt", "Error of the score per mask, bias, correlation"),
        element(
            "dd",
            "Score less true IoU of each mask, the mean over all masks without its sign, and with it (the bias: above "
            "0 the model thinks too well of itself); Pearson's correlation of both.",
        ),
    )
    scored = any(each.score_calibration for group in results.groups for each in group.measured)
    text = "A class that is neither predicted nor annotated in an image does not count there. A dash: not measured."
    return element(
        "section",
        element("h2", "What the measures mean"),
        element("p", text),
        element("dl", entries, calibration if scored else (), class_="glossary"),
        id="glossary",
    )


def _circumstances(results: Results) -> Element:
    run = {"made at": results.made_at, "commit": results.commit, "seed": str(results.seed)}
    return element(
        "section",
        element("h2", "How it was measured"),
        element("div", *(
            element("article", element("h3", title), _pairs(facts), class_="card")
            for title, facts in (("Run", run), ("Machine", results.machine), ("Options", results.options))
            if facts
        ), class_="cards"),
        id="circumstances",
    )  # fmt: skip


def _pairs(facts: Mapping[str, str]) -> Element:
    return element(
        "dl",
        (element("div", element("dt", name), element("dd", text)) for name, text in facts.items()),
        class_="pairs",
    )
