"""Interactive segmentation: a simulated user clicks on the largest error, round after round, until the mask is good.

The protocol of RITM (Sofiiuk et al., "Reviving Iterative Training with Mask Guidance for Interactive Segmentation",
ICIP 2022), with a SAM as its authors evaluate it: the first click gives three masks, of which the one with the best
score counts; later ones send all clicks so far and the low-resolution logits of the answer before, and give one mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from models.errors import DataError
from models.evaluation.bootstrap import Statistic, intervals, ratio_of
from models.evaluation.candidates import SamCandidate, Stopwatch
from models.evaluation.operations import Row
from models.evaluation.prompts import prompted_fruits
from models.evaluation.results import Interval
from models.evaluation.samples import EncodedSample, ImageSet
from models.metrics import mask_iou
from models.sam.clicks import centre_of_error
from models.types import BinaryMask, Mask, PixelClass, Point, Prompt

MOST_CLICKS: Final = 20
"""Clicks at which the field stops counting."""

CLICKS: Final = 5
LEVELS: Final = (0.85, 0.90)
"""IoUs whose number of clicks is counted."""

BEST_OF_THREE: Final = "best of three"
"""Measure: the mean IoU of the masks that the annotation would choose after the first click, an upper bound."""

Predict: TypeAlias = Callable[[Sequence[Prompt]], Sequence[Sequence[Mask]]]
"""Returns the masks of each prompt on one image, best score first."""


@dataclass(frozen=True, slots=True, eq=False)
class PlayedImage:
    """The IoUs of an image's objects.

    Attributes:
        ious: float64 (objects, clicks), after each click; that before if there was nothing left to click on.
        best_of_three: float64 (objects,), of the best mask of the first click by the annotation.
    """

    ious: NDArray[np.float64]
    best_of_three: NDArray[np.float64]


def iou_after(clicks: int) -> str:
    """Return the name of the measure "mean IoU over all objects after so many clicks"."""
    return f"IoU@{clicks}"


def play(predict: Predict, objects: Sequence[BinaryMask], counted: BinaryMask, clicks: int) -> PlayedImage:
    """Click on every object of an image, one object at a time as far as the model can tell.

    Args:
        predict: the model; it is called once for each round, with a prompt for each object that is not perfect yet.
        objects: bool (height, width) each, not empty and without pixels that do not count.
        counted: bool (height, width), pixels that count.
        clicks: most clicks on an object, at least 1.

    Raises:
        DataError: less than one click.
    """
    if clicks < 1:
        raise DataError(f"clicks must be at least 1, got {clicks}")
    ious = np.zeros((len(objects), clicks))
    best_of_three = np.zeros(len(objects))
    answers: list[Mask | None] = [None] * len(objects)
    clicked: list[tuple[Point, ...]] = [()] * len(objects)
    nothing = np.zeros_like(counted)
    for turn in range(clicks):
        if turn:
            ious[:, turn] = ious[:, turn - 1]
        asked: dict[int, Prompt] = {}
        for number, (truth, answer) in enumerate(zip(objects, answers, strict=True)):
            predicted = nothing if answer is None else answer.pixels
            click = centre_of_error(predicted, truth, counted, clicked[number])
            if click is None:
                continue
            clicked[number] += (click,)
            logits = None if answer is None else answer.logits
            asked[number] = Prompt(clicked[number], mask=logits, multimask=answer is None)
        for number, masks in zip(asked, predict(list(asked.values())) if asked else (), strict=True):
            found = [mask_iou(mask.pixels, objects[number], ignored=~counted) for mask in masks]
            answers[number], ious[number, turn] = masks[0], found[0]
            if turn == 0:
                best_of_three[number] = max(found)
    return PlayedImage(ious, best_of_three)


def clicks_until(ious: NDArray[np.float64], level: float) -> NDArray[np.int64]:
    """Return the number of clicks (NoC) until each object's IoU reaches a level; 0 where it never does.

    Args:
        ious: float64 (objects, clicks).
        level: 0 to 1.
    """
    reached = ious >= level
    return np.where(reached.any(axis=1), reached.argmax(axis=1) + 1, 0).astype(np.int64)


def rounds_measures(images: Sequence[PlayedImage], *, seed: int) -> dict[str, Interval]:
    """Return the measures of a set, each a mean over all objects.

    Args:
        images: at least one with an object; all with as many clicks.
        seed: of the bootstrap over the images.

    Returns:
        `IoU@1` to `IoU@n`; `BEST_OF_THREE`; `NoC@85` and `NoC@90`, clicks until that IoU, n where it is not reached;
        and `unreached@85` and `unreached@90`, the share of the objects in which it is not.
    """
    clicks = images[0].ious.shape[1]
    count = np.array([len(each.ious) for each in images], np.float64)

    def mean(of: Callable[[PlayedImage], NDArray[np.float64] | NDArray[np.int64]]) -> Statistic:
        return ratio_of(np.array([of(each).sum() for each in images], np.float64), count)

    def after(turn: int) -> Statistic:
        return mean(lambda image: image.ious[:, turn])

    def number(level: float) -> Statistic:
        def counted(image: PlayedImage) -> NDArray[np.int64]:
            found = clicks_until(image.ious, level)
            return np.where(found > 0, found, clicks)

        return mean(counted)

    def unreached(level: float) -> Statistic:
        return mean(lambda image: (clicks_until(image.ious, level) == 0).astype(np.int64))

    statistics = {iou_after(turn + 1): after(turn) for turn in range(clicks)}
    statistics[BEST_OF_THREE] = mean(lambda image: image.best_of_three)
    for level in LEVELS:
        statistics[f"NoC@{100 * level:.0f}"] = number(level)
        statistics[f"unreached@{100 * level:.0f}"] = unreached(level)
    return intervals(statistics, images=len(images), seed=seed)


def measure_rounds(
    sams: Sequence[SamCandidate], sets: Sequence[ImageSet], *, clicks: int, seed: int, progress: bool
) -> Iterator[Row]:
    """Measure every SAM on sets whose annotations separate objects; kinds of images are also measured apart.

    Args:
        sams: the models.
        sets: others are left out.
        clicks: most clicks on an object, 1 to `MOST_CLICKS`.
        seed: of the bootstrap.
        progress: show progress bars on a terminal.

    Yields:
        What was reached, set by set.

    Raises:
        DataError: an image can no longer be used.
        BackendError: a device failed.
    """
    for images in sets:
        if not images.has_instances:
            continue
        played: dict[tuple[str, str], list[PlayedImage]] = {}
        bar = tqdm(images, images.name, len(images.names), leave=False, disable=None if progress else True)
        for image in bar:
            for sam in sams:
                found = _played(sam, image, clicks)
                if len(found.ious):
                    for kind in dict.fromkeys(("", images.kind_of(image.sample.name))):
                        played.setdefault((kind, sam.setup.title), []).append(found)
        for (kind, title), some in sorted(played.items(), key=lambda each: each[0][0]):
            yield Row(
                "rounds",
                f"{images.title}: {kind}" if kind else images.title,
                len(some),
                sum(len(each.ious) for each in some),
                title,
                rounds_measures(some, seed=seed),
            )


def reached(measures: Mapping[str, Interval]) -> list[tuple[int, Interval]]:
    """Return the mean IoU after each click, in their order."""
    found = [(clicks, measures.get(iou_after(clicks))) for clicks in range(1, MOST_CLICKS + 1)]
    return [(clicks, each) for clicks, each in found if each is not None and math.isfinite(each.value)]


def _played(sam: SamCandidate, image: EncodedSample, clicks: int) -> PlayedImage:
    objects = [each.mask for each in prompted_fruits(image.sample, 0)]
    if not objects:
        return PlayedImage(np.zeros((0, clicks)), np.zeros(0))
    embedded, watch = sam.embed(image), Stopwatch()
    return play(
        lambda prompts: list(sam.masks(embedded, prompts, watch)),
        objects,
        image.sample.semantic != PixelClass.IGNORE,
        clicks,
    )
