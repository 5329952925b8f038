"""The report of an evaluation: one HTML page for a browser, and Markdown tables for a terminal or a README."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from models.evaluation.figures import (
    EmbeddedFigure,
    iou_figure,
    printable,
    reliability_figure,
    stage_names,
    timing_figure,
)
from models.evaluation.gallery import GalleryImage, fit_gallery
from models.evaluation.measures import (
    FRUIT_IOU,
    PROMPTED_IOU,
    Measure,
    best,
    interval_of,
    main_measures,
    measured,
)
from models.evaluation.results import TOTAL, Candidate, CandidateResult, Group, Interval, Results

REPORT_FILE: Final = "report.html"

_TEMPLATE: Final = "report.html.j2"

_DASH: Final = "–"  # noqa: RUF001 a dash as wide as a digit


@dataclass(frozen=True, slots=True)
class _Section:
    """A group as the template shows it; figures are None where nothing was measured."""

    group: Group
    anchor: str
    main: tuple[Measure, ...]
    all: tuple[Measure, ...]
    best: dict[str, str]
    leaders: list[_Leader]
    fastest: CandidateResult | None
    stages: tuple[str, ...]
    iou: EmbeddedFigure | None
    timing: EmbeddedFigure | None
    reliability: EmbeddedFigure | None
    gallery: list[tuple[Candidate, dict[str, list[GalleryImage]]]]


@dataclass(frozen=True, slots=True)
class _Leader:
    """The best candidate of some, and those whose intervals overlap with its."""

    among: str
    title: str
    interval: Interval
    overlapping: list[str]


def write_report(results: Results, gallery: Sequence[GalleryImage], folder: Path) -> Path:
    """Write `report.html`, which needs no other file and no network.

    Args:
        results: of the evaluation.
        gallery: best and worst images of each candidate in each group; made smaller for a page of about 4 MB at most.
        folder: of the report; made where it does not exist. An older report is replaced.

    Returns:
        The file.

    Raises:
        DataError: an image that is not a JPEG.
        OSError: the file cannot be written.
    """
    return write_page(render(results, fit_gallery(gallery)), folder / REPORT_FILE)


def write_page(page: str, file: Path) -> Path:
    """Write a page in a folder that is made where it does not exist; an older page is replaced.

    Raises:
        OSError: the file cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(page, "utf-8")
    return part.replace(file)


def page_environment() -> Environment:
    """Return what renders the templates of reports, with the filters that they share."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        extensions=["jinja2.ext.do"],
        finalize=lambda value: printable(value) if type(value) is str else value,  # not of Markup
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"share": share, "ends": interval_ends, "plural": counted}
    return environment


def render(results: Results, gallery: Sequence[GalleryImage]) -> str:
    """Return the report as HTML."""
    every = [each for group in results.groups for each in group.results]
    environment = page_environment()
    environment.filters |= {"milliseconds": milliseconds, "spread": _spread}
    environment.globals |= {
        "interval_of": interval_of,
        "from_annotation": _from_annotation,
        "total": TOTAL,
        "nan": math.nan,
    }
    return environment.get_template(_TEMPLATE).render(
        results=results,
        sections=[_section(group, f"group-{number}", gallery) for number, group in enumerate(results.groups, start=1)],
        candidates=list({each.candidate.name: each.candidate for each in every}.values()),
        measures=measured(every),
        calibrated=any(each.score_calibration for each in every),
    )


def summary_markdown(results: Results) -> str:
    """Return the main table of each group, with 95 % intervals and the median time per image."""
    return "\n\n".join(_group_markdown(group) for group in results.groups) + "\n"


def share(value: float) -> str:
    """Format an IoU, a share or the like with three decimals; a dash for NaN."""
    # Rounding may leave a zero with a sign.
    return f"{round(value, 3) + 0.0:.3f}" if math.isfinite(value) else _DASH


def interval_ends(interval: Interval) -> str:
    """Format the ends of an interval; empty where it has none."""
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return ""
    return f"{share(interval.low)} to {share(interval.high)}"


def milliseconds(value: float) -> str:
    """Format a time, with one decimal below 100; a dash for NaN."""
    if not math.isfinite(value):
        return _DASH
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.1f}"


def counted(number: int, noun: str) -> str:
    """Format a number of things, such as "1 image" or "3 images"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _section(group: Group, anchor: str, gallery: Sequence[GalleryImage]) -> _Section:
    results = group.results
    ranked = [each for each in results if not each.candidate.oracle]
    timed = [each for each in ranked if math.isfinite(each.timing_ms.get(TOTAL, math.nan))]
    main = main_measures(results)
    leaders = {measure.name: best(ranked, measure.name) for measure in main}
    images = [each for each in gallery if each.group == group.name]
    shown = []
    for each in results:
        own = [image for image in images if image.candidate == each.candidate.name]
        if own:
            worst = sorted((image for image in own if image.kind == "worst"), key=lambda image: image.fruit_iou)
            first = sorted((image for image in own if image.kind == "best"), key=lambda image: -image.fruit_iou)
            shown.append((each.candidate, {"best": first, "worst": worst}))
    return _Section(
        group=group,
        anchor=anchor,
        main=main,
        all=measured(results),
        # As formatted: values that read the same share the lead.
        best={name: share(interval_of(each, name).value) for name, each in leaders.items() if each is not None},
        leaders=_leaders(ranked),
        fastest=min(timed, key=lambda each: each.timing_ms[TOTAL], default=None),
        stages=stage_names(results),
        iou=iou_figure(results) if results else None,
        timing=timing_figure(results) if results else None,
        reliability=reliability_figure(results),
        gallery=shown,
    )


def _leaders(ranked: Sequence[CandidateResult]) -> list[_Leader]:
    """Return the best candidate that needs no annotation, and the best of all."""
    unprompted = [each for each in ranked if not _from_annotation(each)]
    groups = [("without prompts from the annotation", unprompted)]
    if len(unprompted) < len(ranked):
        groups.append(("of all candidates except oracles", list(ranked)))
    leaders = []
    for among, some in groups:
        leader = best(some, FRUIT_IOU)
        if leader is not None:
            interval = interval_of(leader, FRUIT_IOU)
            near = [
                each.candidate.title
                for each in some
                if each is not leader and interval_of(each, FRUIT_IOU).high >= interval.low
            ]
            leaders.append(_Leader(among, leader.candidate.title, interval, near))
    return leaders


def _from_annotation(result: CandidateResult) -> bool:
    """Return whether the candidate is prompted from the annotation."""
    return PROMPTED_IOU in result.measures


def _spread(result: CandidateResult) -> dict[str, str]:
    known = [each.fruit_iou for each in result.per_image if math.isfinite(each.fruit_iou)]
    low, middle = np.quantile(known, (0.05, 0.5)) if known else (math.nan, math.nan)
    return {
        "median": share(float(middle)),
        "5th percentile": share(float(low)),
        "lowest": share(min(known, default=math.nan)),
        "images without fruit": f"{len(result.per_image) - len(known)}",
    }


def _group_markdown(group: Group) -> str:
    first, *others = main_measures(group.results)
    header = ["Candidate", first.title, "Time, ms", *(measure.title for measure in others)]
    rows = [
        [
            each.candidate.title + (" (oracle)" if each.candidate.oracle else ""),
            _with_ends(interval_of(each, first.name)),
            milliseconds(each.timing_ms.get(TOTAL, math.nan)),
            *(_with_ends(interval_of(each, measure.name)) for measure in others),
        ]
        for each in group.results
    ]
    fruits = f", {counted(group.fruits, 'fruit')}" if group.fruits else ""
    lines = [f"**{_markdown(group.title)}** ({counted(group.images, 'image')}{fruits})", "", markdown_row(header)]
    return "\n".join(
        [*lines, markdown_row(["---", *("---:" for _ in header[1:])]), *(markdown_row(row) for row in rows)]
    )


def _with_ends(interval: Interval) -> str:
    ends = interval_ends(interval)
    return f"{share(interval.value)} ({ends})" if ends else share(interval.value)


def markdown_row(cells: Sequence[str]) -> str:
    """Return a row of a table of Markdown."""
    return f"| {' | '.join(_markdown(cell) for cell in cells)} |"


def _markdown(text: str) -> str:
    """Escape what could break a table, or be taken for HTML or emphasis."""
    joined = " ".join(text.split())
    for character in "\\`*_[]<>|":
        joined = joined.replace(character, f"\\{character}")
    return joined
