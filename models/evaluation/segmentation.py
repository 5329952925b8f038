"""The segmentation protocol: every candidate segments every image, and answers are compared with the annotation.

Names of measures say what they are a mean of. `…_per_image`: measured in each image, then the mean over the images, so
that every image weighs the same. `…_over_pixels`: over the pixels of all images together, so that large fruit weighs
more. `object_…` and `…_per_fruit`: over all fruits. `models.evaluation.measures` describes each of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from models.data.samples import Sample
from models.errors import DataError
from models.evaluation.bootstrap import Statistic, intervals, mean_of, ratio_of
from models.evaluation.calibration import calibrate
from models.evaluation.candidates import Answer, Candidates, PromptResult
from models.evaluation.fruit_confidence import confident_fruits, within_intervals
from models.evaluation.gallery import Gallery, GalleryImage
from models.evaluation.health import FruitHealth, false_infected, fruit_health, health_statistics, knows_health
from models.evaluation.matching import ObjectCounts, boundary_fit, count_objects, fruits_touch
from models.evaluation.results import TOTAL, Calibration, Candidate, CandidateResult, Group, ImageScore
from models.evaluation.samples import ImageSet
from models.metrics import (
    Confusion,
    class_confusion,
    dice,
    fruit_confusion,
    infected_fraction_error,
    iou,
    is_fruit,
    mean_counted,
)
from models.types import CLASSES, PixelClass

_CLASS_NAMES: Final = tuple(each.name.lower() for each in CLASSES)
_OUTLINED: Final = ("healthy", "infected", "fruit")

_Index: TypeAlias = Callable[[NDArray[np.float64]], NDArray[np.float64]]  # of confusions, one for each image


@dataclass(frozen=True, slots=True, eq=False)
class ImageMeasures:
    """The measures of one answer.

    Attributes:
        name: of the image.
        classes: int64 (3, 3), pixels by class; all 0 where healthy and infected are not distinguished.
        fruit: int64 (2, 2), pixels as background or fruit.
        boundary_f: of healthy, infected and fruit, 0 to 1; NaN where undefined.
        infected_fraction_error: predicted minus annotated; NaN where undefined.
        objects: matched and unmatched fruits; None where the annotation does not separate fruits.
        touching: whether annotated fruits touch.
        health: annotated fruits of known health, empty where healthy and infected are not distinguished.
        prompted: see `Answer`.
        confident: confidence of each predicted fruit, and its IoU with the annotated one that it fits best.
        within: of predicted fruits that match one of known health: whether its fraction is in the predicted interval.
        timing_ms: milliseconds by stage, with their total.
    """

    name: str
    classes: Confusion
    fruit: Confusion
    boundary_f: Mapping[str, float]
    infected_fraction_error: float
    objects: ObjectCounts | None
    touching: bool
    health: tuple[FruitHealth, ...]
    prompted: tuple[PromptResult, ...] | None
    confident: tuple[PromptResult, ...]
    within: tuple[bool, ...]
    timing_ms: Mapping[str, float]

    @property
    def fruit_iou(self) -> float:
        """IoU of fruit, 0 to 1; NaN without fruit."""
        return float(iou(self.fruit)[1])

    @property
    def count_error(self) -> float:
        """Number of fruits found minus number annotated; NaN unless the candidate finds fruits by itself."""
        if self.objects is None or self.prompted is not None:
            return math.nan
        return float(self.objects.false - self.objects.missed)

    def score(self) -> ImageScore:
        """Return the measures of the image as they stand in the results."""
        values = {
            "fruit_dice": float(dice(self.fruit)[1]),
            "fruit_boundary_f": self.boundary_f["fruit"],
            **{f"{name}_iou": each for name, each in zip(_CLASS_NAMES, iou(self.classes).tolist(), strict=True)},
            "mean_iou": float(mean_counted(iou(self.classes))),
            "infected_fraction_error": self.infected_fraction_error,
            "prompted_iou": float(np.mean([each.iou for each in self.prompted])) if self.prompted else math.nan,
        }
        if self.objects is not None:
            values["object_precision"] = self.objects.precision
            values["object_recall"] = self.objects.recall
            values["fruits"] = float(self.objects.found + self.objects.missed)
            values["fruits_found"] = float(self.objects.found + self.objects.false)
        return ImageScore(
            self.name, self.fruit_iou, {name: value for name, value in values.items() if not math.isnan(value)}
        )


def measure(answer: Answer, sample: Sample) -> ImageMeasures:
    """Compare an answer with the annotation of its image.

    Raises:
        DataError: maps of another size than the image, or classes that cannot be predicted.
    """
    predicted, truth = answer.classes, sample.semantic
    fruit = fruit_confusion(predicted, truth)
    if not np.isin(predicted, (*CLASSES, PixelClass.FRUIT)).all():
        raise DataError("predicted classes must be background, healthy, infected or fruit")
    unknown = truth == PixelClass.FRUIT
    has_classes = not (predicted == PixelClass.FRUIT).any() and (knows_health(truth) or not unknown.any())
    ignored = truth == PixelClass.IGNORE if (truth == PixelClass.IGNORE).any() else None
    boundary_f = dict.fromkeys(_OUTLINED, math.nan)
    for name in _OUTLINED if has_classes else ("fruit",):
        pair = [is_fruit(each) if name == "fruit" else each == PixelClass[name.upper()] for each in (predicted, truth)]
        left_out = ignored if name == "fruit" or not unknown.any() else unknown | (truth == PixelClass.IGNORE)
        boundary_f[name] = boundary_fit(pair[0], pair[1], ignored=left_out).f
    instances = sample.instance_map
    return ImageMeasures(
        name=sample.name,
        classes=class_confusion(predicted, truth) if has_classes else np.zeros((3, 3), np.int64),
        fruit=fruit,
        boundary_f=boundary_f,
        infected_fraction_error=infected_fraction_error(predicted, truth) if has_classes else math.nan,
        objects=None if instances is None else count_objects(answer.fruits, instances, ignored=ignored),
        touching=instances is not None and fruits_touch(instances),
        health=fruit_health(predicted, sample) if has_classes else (),
        prompted=answer.prompted,
        confident=() if instances is None else confident_fruits(answer, instances, ignored),
        within=within_intervals(answer, sample) if has_classes else (),
        timing_ms={**answer.timing_ms, TOTAL: sum(answer.timing_ms.values())},
    )


@dataclass(slots=True)
class Aggregate:
    """The measures of one candidate on a set of images.

    Args:
        candidate: whose answers they are.
    """

    candidate: Candidate
    _images: list[ImageMeasures] = field(default_factory=list, init=False)

    def add(self, sample: Sample, answer: Answer) -> float:
        """Measure an answer.

        Returns:
            The IoU of fruit, NaN without fruit.

        Raises:
            DataError: an answer that does not fit the image.
        """
        self._images.append(measure(answer, sample))
        return self._images[-1].fruit_iou

    def result(self, seed: int) -> CandidateResult:
        """Return the measures over all images.

        Args:
            seed: of the bootstrap.

        Raises:
            DataError: nothing was added.
        """
        images = self._images
        if not images:
            raise DataError("there are no images to measure")
        stages = dict.fromkeys(stage for each in images for stage in each.timing_ms if stage != TOTAL)
        timing = {
            stage: float(np.median([each.timing_ms.get(stage, 0.0) for each in images])) for stage in (*stages, TOTAL)
        }
        return CandidateResult(
            candidate=self.candidate,
            measures=intervals(_statistics(images), images=len(images), seed=seed),
            timing_ms=timing,
            per_image=tuple(each.score() for each in images),
            # The choice of an oracle says nothing about scores.
            score_calibration=None if self.candidate.oracle else _calibration(images),
        )


@dataclass(slots=True)
class _Collected:
    """What was measured on one group of images so far."""

    name: str
    names: list[str] = field(default_factory=list)
    fruits: int = 0
    aggregates: dict[str, Aggregate] = field(default_factory=dict)
    galleries: dict[str, Gallery] = field(default_factory=dict)

    def add(self, sample: Sample, candidate: Candidate, answer: Answer) -> None:
        fruit_iou = self.aggregates.setdefault(candidate.name, Aggregate(candidate)).add(sample, answer)
        self.galleries.setdefault(candidate.name, Gallery(self.name, candidate.name)).offer(sample, answer, fruit_iou)


def measure_set(
    candidates: Candidates, images: ImageSet, *, seed: int, progress: bool
) -> tuple[list[Group], list[GalleryImage]]:
    """Measure all candidates on one set of images.

    Args:
        candidates: the models.
        images: where these do not all separate fruits, no prompts are made from the annotation.
        seed: of box jitter and bootstrap.
        progress: show a progress bar on a terminal.

    Returns:
        The results in the order of the candidates, of all images and of each kind, and the best and worst images of
        each candidate; of images with kinds, only those of each kind.

    Raises:
        DataError: an image can no longer be used.
        BackendError: a device failed.
    """
    kinds = sorted({kind for kind in map(images.kind_of, images.names) if kind})
    collected = {kind: _Collected(f"{images.name}-{kind}" if kind else images.name) for kind in ("", *kinds)}
    bar = tqdm(images, desc=images.title, total=len(images.names), unit="image", disable=None if progress else True)
    for number, loaded in enumerate(bar):
        image = loaded if images.has_instances else loaded.without_instances()
        if number == 0:
            # The first calls of a model compile and allocate: they are not timed.
            for _ in candidates.answers(image, seed):
                pass
        groups = [collected[kind] for kind in {"", images.kind_of(image.sample.name)}]
        for group in groups:
            group.names.append(image.sample.name)
            group.fruits += len(image.sample.instances)
        for candidate, answer in candidates.answers(image, seed):
            for group in groups:
                group.add(image.sample, candidate, answer)
    shown = [each for kind, each in collected.items() if kind or not kinds]
    return (
        [_group(images, kind, each, seed) for kind, each in collected.items()],
        [image for each in shown for gallery in each.galleries.values() for image in gallery.images()],
    )


def _group(images: ImageSet, kind: str, collected: _Collected, seed: int) -> Group:
    return Group(
        name=collected.name,
        title=f"{images.title}: {kind}" if kind else images.title,
        description=f"Those of the kind {kind!r}. {images.description}" if kind else images.description,
        images=len(collected.names),
        fruits=collected.fruits,
        results=tuple(each.result(seed) for each in collected.aggregates.values()),
    )


def _statistics(images: Sequence[ImageMeasures]) -> dict[str, Statistic]:
    bias = np.array([each.infected_fraction_error for each in images])
    outlines = {
        f"{name}_boundary_f_per_image": mean_of(np.array([each.boundary_f[name] for each in images]))
        for name in _OUTLINED
    }
    return {
        **_pixel_statistics(images),
        **_object_statistics(images),
        **outlines,
        "infected_fraction_error_per_image": mean_of(np.abs(bias)),
        "infected_fraction_bias_per_image": mean_of(bias),
        **_fruit_statistics(images),
        **_false_statistics(images),
        **health_statistics([each.health for each in images]),
        "infected_fraction_covered_per_fruit": ratio_of(
            np.array([sum(each.within) for each in images], np.float64),
            np.array([len(each.within) for each in images], np.float64),
        ),
    }


def _pixel_statistics(images: Sequence[ImageMeasures]) -> dict[str, Statistic]:
    statistics: dict[str, Statistic] = {}
    classes = np.stack([each.classes for each in images]).astype(np.float64)
    fruit = np.stack([each.fruit for each in images]).astype(np.float64)
    for title, index in (("iou", iou), ("dice", dice)):
        indices = {name: (classes, _of_class(index, place)) for place, name in enumerate(_CLASS_NAMES)}
        indices["fruit"] = (fruit, _of_class(index, 1))
        indices["mean"] = (classes, _of_mean(index))
        for name, (confusions, each) in indices.items():
            statistics[f"{name}_{title}_per_image"] = mean_of(each(confusions))
            statistics[f"{name}_{title}_over_pixels"] = _over_pixels(confusions, each)
    return statistics


def _of_class(index: _Index, place: int) -> _Index:
    return lambda confusions: index(confusions)[:, place]


def _of_mean(index: _Index) -> _Index:
    return lambda confusions: mean_counted(index(confusions))


def _over_pixels(confusions: NDArray[np.float64], index: _Index) -> Statistic:
    size = confusions.shape[-1]
    flat = confusions.reshape(len(confusions), -1)
    return lambda weights: index((weights @ flat).reshape(-1, size, size))


def _object_statistics(images: Sequence[ImageMeasures]) -> dict[str, Statistic]:
    nothing = ObjectCounts(0, 0, 0, ())
    counts = [each.objects or nothing for each in images]
    found, false, missed, ious = np.array(
        [(each.found, each.false, each.missed, sum(each.ious)) for each in counts], np.float64
    ).T
    return {
        "object_precision": ratio_of(found, found + false),
        "object_recall": ratio_of(found, found + missed),
        "object_iou": ratio_of(ious, found),
    }


def _fruit_statistics(images: Sequence[ImageMeasures]) -> dict[str, Statistic]:
    prompted = [[result.iou for result in each.prompted or ()] for each in images]
    error = np.array([each.count_error for each in images])
    right = np.where(np.isnan(error), np.nan, error == 0)
    touching = np.where([each.touching for each in images], right, np.nan)
    return {
        "prompted_iou_per_fruit": ratio_of(
            np.array([sum(each) for each in prompted], np.float64),
            np.array([len(each) for each in prompted], np.float64),
        ),
        "fruit_count_accuracy_per_image": mean_of(right),
        "touching_fruit_count_accuracy_per_image": mean_of(touching),
        "fruit_count_error_per_image": mean_of(np.abs(error)),
    }


def _false_statistics(images: Sequence[ImageMeasures]) -> dict[str, Statistic]:
    """Return how much is called fruit where there is none, and infected where nothing is."""
    found = np.array([bool(each.fruit[:, 1].any()) for each in images])
    empty = np.array([not each.fruit[1].any() for each in images])
    background, false = np.array([each.fruit[0].tolist() for each in images], np.float64).T
    wrong, healthy = np.array([false_infected(each.classes) for each in images], np.float64).T
    return {
        "false_fruit_images": mean_of(np.where(empty, found, np.nan)),
        "false_fruit_pixels": ratio_of(false * empty, (background + false) * empty),
        "false_infected_pixels": ratio_of(wrong, healthy),
    }


def _calibration(images: Sequence[ImageMeasures]) -> Calibration | None:
    scored = [result for each in images for result in each.prompted or each.confident]
    if not scored:
        return None
    return calibrate(np.array([each.score for each in scored]), np.array([each.iou for each in scored]))
