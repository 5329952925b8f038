"""Gathers a subject's answers image by image, and sums them up."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.data.samples import InstanceMap, Sample
from models.evaluation import calibration, results
from models.evaluation.answers import Answer
from models.evaluation.bootstrap import estimate
from models.evaluation.results import CalibrationBin, ImageScore, Interval, Measured, Subject
from models.evaluation.summary import ImageMeasure, measure, summarise
from models.metrics import dice, iou, mean_counted, ratio

TOTAL: Final = "total"

_BINS: Final = 10
_RESAMPLES: Final = 2000


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """What is kept of one image."""

    measure: ImageMeasure
    answer_ious: tuple[float, ...]
    answer_scores: tuple[float, ...]
    milliseconds: Mapping[str, float]
    touching: bool
    finds: bool


@dataclass(slots=True)
class Tally:
    """One subject on one set of images.

    Args:
        subject: whose answers they are.
    """

    subject: Subject
    _seen: list[_Seen] = field(default_factory=list, init=False)

    def add(self, sample: Sample, answer: Answer) -> float:
        """Measure an answer.

        Returns:
            The IoU of fruit, NaN where there is none.

        Raises:
            DataError: an answer of another size than the image.
        """
        prompted = answer.prompted or ()
        seen = _Seen(
            measure=measure(answer.classes, sample, objects=answer.fruits),
            answer_ious=tuple(each.iou for each in prompted),
            answer_scores=tuple(each.score for each in prompted),
            milliseconds={**answer.milliseconds, TOTAL: sum(answer.milliseconds.values())},
            touching=sample.instance_map is not None and fruits_touch(sample.instance_map),
            finds=answer.prompted is None,
        )
        self._seen.append(seen)
        return float(iou(seen.measure.fruit)[1])

    def measured(self, seed: int) -> Measured:
        """Sum up.

        Args:
            seed: of the bootstrap.

        Raises:
            DataError: nothing was added.
        """
        seen = self._seen
        summary = summarise([each.measure for each in seen], resamples=_RESAMPLES, seed=seed)
        measures = {name: Interval(each.value, each.low, each.high) for name, each in summary.items()}
        stages = list(dict.fromkeys(stage for each in seen for stage in each.milliseconds))
        # The total stands last, where some images lack a stage too.
        stages.sort(key=lambda stage: stage == TOTAL)
        return Measured(
            subject=self.subject,
            measures={**measures, **_more(seen, seed)},
            milliseconds={
                stage: float(np.median([each.milliseconds.get(stage, 0.0) for each in seen])) for stage in stages
            },
            per_image=tuple(_score(each) for each in seen),
            # An oracle's choice says nothing of the scores that the model chooses by.
            score_calibration=None if self.subject.oracle else _calibration(seen),
        )


def fruits_touch(instances: InstanceMap) -> bool:
    """Whether pixels of two fruits lie beside or below one another.

    Args:
        instances: uint16 (height, width), 0 where there is no fruit.
    """
    pairs = ((instances[:, 1:], instances[:, :-1]), (instances[1:], instances[:-1]))
    return any(bool(((one != other) & (one > 0) & (other > 0)).any()) for one, other in pairs)


def _more(seen: Sequence[_Seen], seed: int) -> dict[str, Interval]:
    """The measures that `models.evaluation.results` adds to those of the summary."""
    found = {
        "prompted_iou_per_fruit": (
            np.array([sum(each.answer_ious) for each in seen]),
            np.array([len(each.answer_ious) for each in seen], np.float64),
        )
    }
    off = np.array([_count_error(each) for each in seen])
    known = ~np.isnan(off)
    touching = known & np.array([each.touching for each in seen])
    found["fruit_count_right_per_image"] = ((off == 0) & known, known)
    found["touching_fruit_count_right_per_image"] = ((off == 0) & touching, touching)
    found["fruit_count_error_per_image"] = (np.where(known, np.abs(off), 0.0), known)
    return {
        name: _interval(above.astype(np.float64), below.astype(np.float64), seed)
        for name, (above, below) in found.items()
        if below.any()
    }


def _interval(above: NDArray[np.float64], below: NDArray[np.float64], seed: int) -> Interval:
    found = estimate(
        lambda weights: ratio(weights @ above, weights @ below), images=len(above), resamples=_RESAMPLES, seed=seed
    )
    return Interval(found.value, found.low, found.high)


def _count_error(seen: _Seen) -> float:
    """Fruits found less fruits annotated; NaN where a subject was told of the fruits, or nobody told them apart."""
    objects = seen.measure.objects
    return float(objects.false - objects.missed) if seen.finds and objects is not None else math.nan


def _score(seen: _Seen) -> ImageScore:
    one = seen.measure
    names = ("background", "healthy", "infected")
    found = {
        "fruit_dice": float(dice(one.fruit)[1]),
        "fruit_boundary_f": one.boundary_f["fruit"],
        **{f"{name}_iou": value for name, value in zip(names, iou(one.classes).tolist(), strict=True)},
        "mean_iou": float(mean_counted(iou(one.classes))),
        "infected_fraction_error": one.infected_fraction_error,
        "prompted_iou": float(np.mean(seen.answer_ious)) if seen.answer_ious else math.nan,
    }
    if one.objects is not None:
        found["object_precision"] = one.objects.precision
        found["object_recall"] = one.objects.recall
        found["fruits"] = float(one.objects.found + one.objects.missed)
        found["fruits_found"] = float(one.objects.found + one.objects.false)
    counted = {name: value for name, value in found.items() if not math.isnan(value)}
    return ImageScore(one.name, float(iou(one.fruit)[1]), counted)


def _calibration(seen: Sequence[_Seen]) -> results.Calibration | None:
    scores = np.array([score for each in seen for score in each.answer_scores], np.float64)
    ious = np.array([one for each in seen for one in each.answer_ious], np.float64)
    if not scores.size:
        return None
    found = calibration.calibrate(scores, ious, bins=_BINS)
    return results.Calibration(
        bins=tuple(_bin(each) for each in found.bins),
        count=found.count,
        ece=found.expected_calibration_error,
        mean_abs_error=found.mean_absolute_error,
        bias=found.bias,
        correlation=found.correlation,
    )


def _bin(found: calibration.ScoreBin) -> CalibrationBin:
    # A mean lies in the bin of its scores, but for rounding; scores beyond 0 to 1 are in the outer bins.
    place = min(max(int(found.score * _BINS + 1e-9), 0), _BINS - 1)
    return CalibrationBin(place / _BINS, (place + 1) / _BINS, found.score, found.iou, found.count)
