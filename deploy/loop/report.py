"""The figures before and after, what they mean, and how they are written down."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import PIL.Image

from models.data.samples import Sample
from models.metrics import infected_fraction_error, is_fruit, mask_iou
from models.types import BinaryMask, Pixels, SemanticMap

FORGOTTEN: Final = 0.03
"""By how much the IoU of ordinary fruit may fall."""

_SHOWN: Final = 4
_WIDTH: Final = 336
_TRUTH: Final = (255, 255, 255)
_SAID: Final = (255, 140, 0)


@dataclass(frozen=True)
class Figures:
    """What a revision is worth on some frames.

    Attributes:
        frames: with fruit.
        fruit_iou: mean over them of the IoU of fruit against background.
        least_fruit_iou: of a frame.
        infected_fraction_error: mean over them of the difference between said and true infected fraction, absolute.
    """

    frames: int
    fruit_iou: float
    least_fruit_iou: float
    infected_fraction_error: float


def figures_of(said: Sequence[SemanticMap], truth: Sequence[Sample]) -> Figures:
    """Compare answers with the truth; frames without fruit do not count.

    Args:
        said: classes of each pixel, uint8 (height, width).
        truth: of the same frames.

    Raises:
        ValueError: no frame has fruit.
    """
    pairs = [(one, each.semantic) for one, each in zip(said, truth, strict=True) if is_fruit(each.semantic).any()]
    if not pairs:
        raise ValueError("At least one frame must have fruit.")
    ious = [mask_iou(is_fruit(one), is_fruit(true)) for one, true in pairs]
    errors = [abs(infected_fraction_error(one, true)) for one, true in pairs]
    return Figures(len(pairs), float(np.mean(ious)), min(ious), float(np.mean(errors)))


@dataclass(frozen=True)
class Report:
    """What one turn of the circle brought.

    Attributes:
        before: name of the frames, and figures of the revision that answered at the start.
        after: likewise at the end.
        revisions: at the start, and at the end.
        captured: frames that the service kept of those that were sent, by part.
        sent: frames that the line sent from the start of training to the end.
        lost: of them, without an answer.
        shadow: what the comparison on live frames said.
        seconds: that each step took.
    """

    before: Mapping[str, Figures]
    after: Mapping[str, Figures]
    revisions: tuple[str, str]
    captured: Mapping[str, int]
    sent: int
    lost: int
    shadow: Mapping[str, float | int | None]
    seconds: Mapping[str, float]


def failures(report: Report) -> list[str]:
    """Return what went wrong, a sentence each; empty for a turn that was worth it."""
    found = []
    new, old = ([each[name].fruit_iou for each in (report.before, report.after)] for name in ("new fruit", "ordinary"))
    if new[1] <= new[0]:
        found.append(f"The IoU of the new fruit must rise, went from {new[0]:.3f} to {new[1]:.3f}.")
    if old[1] < old[0] - FORGOTTEN:
        found.append(
            f"The IoU of ordinary fruit must not fall by more than {FORGOTTEN}, went from {old[0]:.3f} to {old[1]:.3f}."
        )
    if report.lost:
        found.append(f"Every frame must be answered, {report.lost} of {report.sent} were not.")
    return found


def as_markdown(report: Report) -> str:
    """Return the report as a table and a few lines."""
    lines = [
        f"| frames | | before ({report.revisions[0]}) | after ({report.revisions[1]}) |",
        "|---|---|---:|---:|",
    ]
    for name, before in report.before.items():
        after = report.after[name]
        lines += [
            f"| {before.frames} of {name} | IoU of fruit, mean | {before.fruit_iou:.3f} | {after.fruit_iou:.3f} |",
            f"| | least | {before.least_fruit_iou:.3f} | {after.least_fruit_iou:.3f} |",
            f"| | error of the infected fraction, mean | {before.infected_fraction_error:.3f} | "
            f"{after.infected_fraction_error:.3f} |",
        ]
    captured = ", ".join(f"{count} {part}" for part, count in report.captured.items())
    shadow = ", ".join(
        f"{name.replace('_', ' ')} {round(value, 3)}" for name, value in report.shadow.items() if value is not None
    )
    seconds = ", ".join(f"{name} {value:.0f}" for name, value in report.seconds.items())
    lines += [
        "",
        f"- captured and labelled: {captured}",
        f"- shadow: {shadow}",
        f"- frames sent meanwhile: {report.sent}, without an answer: {report.lost}",
        f"- seconds: {seconds}",
    ]
    return "\n".join(lines) + "\n"


def write_report(report: Report, folder: Path) -> None:
    """Write `report.json` and `report.md`."""
    (folder / "report.json").write_text(json.dumps(asdict(report), indent=1) + "\n", "utf-8")
    (folder / "report.md").write_text(as_markdown(report), "utf-8")


def before_and_after(
    truth: Sequence[Sample], before: Sequence[SemanticMap], after: Sequence[SemanticMap]
) -> PIL.Image.Image:
    """Show some frames, from the worst to the best before: left before, right after.

    Returns:
        RGB. The truth is outlined in white, the answer in orange.
    """
    ious = [mask_iou(is_fruit(one), is_fruit(each.semantic)) for one, each in zip(before, truth, strict=True)]
    order = np.argsort(ious).tolist()
    chosen = [order[place] for place in np.linspace(0, len(order) - 1, min(_SHOWN, len(order))).round().astype(int)]
    rows = [np.hstack([_drawn(truth[one], said[one]) for said in (before, after)]) for one in chosen]
    return PIL.Image.fromarray(np.vstack(rows))


def _drawn(sample: Sample, said: SemanticMap) -> Pixels:
    height = round(sample.size.height * _WIDTH / sample.size.width)
    drawn = np.asarray(cv2.resize(sample.pixels, (_WIDTH, height), interpolation=cv2.INTER_AREA), np.uint8)
    for mask, colour in ((is_fruit(sample.semantic), _TRUTH), (is_fruit(said), _SAID)):
        _outline(drawn, mask, colour)
    return drawn


def _outline(drawn: Pixels, mask: BinaryMask, colour: tuple[int, int, int]) -> None:
    size = (drawn.shape[1], drawn.shape[0])
    small = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(small, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(drawn, contours, -1, colour, 1, cv2.LINE_8)
