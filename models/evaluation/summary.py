"""Measures of single images -> named measures of a set, with confidence intervals.

Each name tells what it is a mean of. `…_per_image`: measured in each image, then the mean over the images where it
counts, so an image weighs the same whatever its size. `…_over_pixels`: from the pixels of all images together, so
large fruit weighs more. `object_…`: over all fruits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from models.data.samples import Sample
from models.errors import DataError
from models.evaluation.bootstrap import Estimate, Statistic, estimate
from models.evaluation.boundaries import TOLERANCE, boundary_fit
from models.evaluation.objects import ObjectCounts, count_objects
from models.metrics import (
    Confusion,
    class_confusion,
    dice,
    fruit_confusion,
    infected_fraction_error,
    iou,
    is_fruit,
    mean_counted,
    ratio,
)
from models.types import CLASSES, BinaryMask, PixelClass, SemanticMap

_NAMES: Final = tuple(each.name.lower() for each in CLASSES)
_OUTLINED: Final = ("healthy", "infected", "fruit")

_Index: TypeAlias = Callable[[NDArray[np.float64]], NDArray[np.float64]]  # of confusions, one for each image


@dataclass(frozen=True, slots=True, eq=False)
class ImageMeasure:
    """What was measured in one image.

    Attributes:
        name: of the sample.
        classes: int64 (3, 3), pixels by class; all 0 for an image with FRUIT pixels, of whose classes nobody knows.
        fruit: int64 (2, 2), pixels as background or fruit.
        boundary_f: of healthy, infected and fruit, 0 to 1; NaN where it does not count.
        infected_fraction_error: predicted less true; NaN where it does not count.
        objects: fruits found; None where fruits were not told apart in the annotation or the prediction.
    """

    name: str
    classes: Confusion
    fruit: Confusion
    boundary_f: Mapping[str, float]
    infected_fraction_error: float
    objects: ObjectCounts | None


def measure(
    predicted: SemanticMap,
    sample: Sample,
    *,
    objects: Sequence[BinaryMask] | None = None,
    tolerance: float = TOLERANCE,
) -> ImageMeasure:
    """Measure a prediction for one image.

    Args:
        predicted: uint8 (height, width): BACKGROUND, HEALTHY and INFECTED; or BACKGROUND and FRUIT from a model that
            knows no more, whose classes are then not measured.
        sample: the annotated image.
        objects: predicted fruits, bool (height, width) each; None when the model tells none apart.
        tolerance: for outlines, as a share of the image's diagonal.

    Returns:
        The measures.

    Raises:
        DataError: maps of another size than the image, or classes that cannot be predicted.
    """
    truth = sample.semantic
    fruit = fruit_confusion(predicted, truth)
    if not np.isin(predicted, (*CLASSES, PixelClass.FRUIT)).all():
        raise DataError("A prediction holds background, healthy, infected and fruit only.")
    known = not any((each == PixelClass.FRUIT).any() for each in (predicted, truth))
    ignored = truth == PixelClass.IGNORE if (truth == PixelClass.IGNORE).any() else None
    counts = None
    if objects is not None and sample.instance_map is not None:
        counts = count_objects(objects, sample.instance_map, ignored=ignored)
    boundary_f = dict.fromkeys(_OUTLINED, float("nan"))
    for name in _OUTLINED if known else ("fruit",):
        pair = [is_fruit(each) if name == "fruit" else each == PixelClass[name.upper()] for each in (predicted, truth)]
        boundary_f[name] = boundary_fit(pair[0], pair[1], tolerance=tolerance, ignored=ignored).f
    return ImageMeasure(
        name=sample.name,
        classes=class_confusion(predicted, truth) if known else np.zeros((3, 3), np.int64),
        fruit=fruit,
        boundary_f=boundary_f,
        infected_fraction_error=infected_fraction_error(predicted, truth) if known else float("nan"),
        objects=counts,
    )


def summarise(
    measures: Sequence[ImageMeasure], *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> dict[str, Estimate]:
    """Measure a set.

    Args:
        measures: of its images.
        resamples: of the bootstrap over images.
        confidence: of the intervals, 0 to 1.
        seed: of the bootstrap.

    Returns:
        By name, without those that no image counts for: for background, healthy, infected (and fruit, against
        background) `…_iou_per_image`, `…_iou_over_pixels`, `…_dice_per_image`, `…_dice_over_pixels`; for the last three
        `…_boundary_f_per_image`; over the three classes `mean_iou_per_image`, `mean_iou_over_pixels`,
        `mean_dice_per_image`, `mean_dice_over_pixels`; `object_precision`, `object_recall`, `object_iou` (of matched
        pairs); `infected_fraction_error_per_image` (absolute) and `infected_fraction_bias_per_image`.

    Raises:
        DataError: no images.
    """
    if not measures:
        raise DataError("There are no images to measure.")
    statistics = {**_pixel_statistics(measures), **_object_statistics(measures)}
    for name in _OUTLINED:
        values = np.array([each.boundary_f[name] for each in measures])
        statistics[f"{name}_boundary_f_per_image"] = _mean_of(values)
    errors = np.array([each.infected_fraction_error for each in measures])
    statistics["infected_fraction_error_per_image"] = _mean_of(np.abs(errors))
    statistics["infected_fraction_bias_per_image"] = _mean_of(errors)
    return {
        name: estimate(
            statistic,
            images=len(measures),
            counted=counted,
            resamples=resamples,
            confidence=confidence,
            seed=seed,
        )
        for name, (statistic, counted) in statistics.items()
        if counted
    }


def _pixel_statistics(measures: Sequence[ImageMeasure]) -> dict[str, tuple[Statistic, int]]:
    statistics: dict[str, tuple[Statistic, int]] = {}
    classes = np.stack([each.classes for each in measures])
    fruit = np.stack([each.fruit for each in measures])
    for title, index in (("iou", iou), ("dice", dice)):
        picks = {name: (classes, _class_at(index, place)) for place, name in enumerate(_NAMES)}
        picks["fruit"] = (fruit, _class_at(index, 1))
        picks["mean"] = (classes, _mean_at(index))
        for name, (confusions, pick) in picks.items():
            per_image = _mean_of(pick(confusions.astype(np.float64)))
            statistics[f"{name}_{title}_per_image"] = per_image
            statistics[f"{name}_{title}_over_pixels"] = _over_pixels(confusions, pick), per_image[1]
    return statistics


def _class_at(index: _Index, place: int) -> _Index:
    return lambda confusions: index(confusions)[:, place]


def _mean_at(index: _Index) -> _Index:
    return lambda confusions: mean_counted(index(confusions))


def _over_pixels(confusions: Confusion, pick: _Index) -> Statistic:
    size = confusions.shape[-1]
    flat = confusions.reshape(len(confusions), -1).astype(np.float64)
    return lambda weights: pick((weights @ flat).reshape(-1, size, size))


def _object_statistics(measures: Sequence[ImageMeasure]) -> dict[str, tuple[Statistic, int]]:
    counts = np.array(
        [
            (each.objects.found, each.objects.false, each.objects.missed, sum(each.objects.ious))
            if each.objects
            else (0, 0, 0, 0)
            for each in measures
        ],
        np.float64,
    )
    found, false, missed, ious = counts.T
    return {
        "object_precision": _ratio_of(found, found + false),
        "object_recall": _ratio_of(found, found + missed),
        "object_iou": _ratio_of(ious, found),
    }


def _mean_of(values: NDArray[np.float64]) -> tuple[Statistic, int]:
    counted = ~np.isnan(values)
    return _ratio_of(np.where(counted, values, 0), counted.astype(np.float64))


def _ratio_of(above: NDArray[np.float64], below: NDArray[np.float64]) -> tuple[Statistic, int]:
    return lambda weights: ratio(weights @ above, weights @ below), int(np.count_nonzero(below))
