"""The names, titles and definitions of all measures, as the report shows them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from models.evaluation.matching import TOLERANCE
from models.evaluation.results import CandidateResult, Interval

FRUIT_IOU: Final = "fruit_iou_per_image"
"""The measure that every candidate has."""

PROMPTED_IOU: Final = "prompted_iou_per_fruit"
"""The measure of candidates that are prompted from the annotation."""

MAIN: Final = (
    FRUIT_IOU,
    "fruit_boundary_f_per_image",
    "object_precision",
    "object_recall",
    "fruit_count_accuracy_per_image",
    "touching_fruit_count_accuracy_per_image",
    "healthy_iou_per_image",
    "infected_iou_per_image",
    "infected_fraction_error_per_image",
    "infected_auroc_per_fruit",
    "infected_fraction_error_per_fruit",
    "false_fruit_images",
    "false_fruit_pixels",
    "false_infected_pixels",
)
"""The columns of the main table, as far as a group has them."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A measure, as the report describes it.

    Attributes:
        name: key in the results.
        title: column heading.
        definition: what is divided by what, and averaged over what.
        sign: 1 where higher is better, -1 where lower is, 0 where 0 is best and values may be negative.
    """

    name: str
    title: str
    definition: str
    sign: int = 1

    @property
    def direction(self) -> str:
        """Which values are good."""
        return {1: "higher is better", -1: "lower is better"}.get(self.sign, "0 is best")


def describe(name: str) -> Measure:
    """Return the measure of a name; one that is not known is described by its name only."""
    return MEASURES.get(name) or Measure(name, name.replace("_", " "), "", sign=0)


def measured(results: Iterable[CandidateResult]) -> tuple[Measure, ...]:
    """Return what at least one candidate was measured by: those of the main table first, unknown ones last."""
    names = {name for each in results for name, value in each.measures.items() if math.isfinite(value.value)}
    known = (measure for name, measure in MEASURES.items() if name in names)
    return (*known, *(describe(name) for name in sorted(names - MEASURES.keys())))


def main_measures(results: Sequence[CandidateResult]) -> tuple[Measure, ...]:
    """Return the columns of a group's main table, the first of which is the IoU of fruit."""
    names = {measure.name for measure in measured(results)}
    return tuple(describe(name) for name in MAIN if name in names or name == FRUIT_IOU)


def interval_of(result: CandidateResult, name: str) -> Interval:
    """Return a candidate's measure; NaN where it was not measured."""
    return result.measures.get(name, Interval(math.nan, math.nan, math.nan))


def best(results: Iterable[CandidateResult], name: str) -> CandidateResult | None:
    """Return the candidate with the best value of a measure, or None where it was not measured."""
    sign = describe(name).sign
    known = [(interval_of(each, name).value, each) for each in results]
    known = [pair for pair in known if math.isfinite(pair[0])]
    return max(known, key=lambda pair: sign * pair[0] if sign else -abs(pair[0]))[1] if known else None


_REGIONS: Final = {
    "fruit": "fruit (healthy, infected or unspecified)",
    "healthy": "healthy fruit",
    "infected": "infected fruit",
    "background": "background",
}
_OVERLAPS: Final = {
    "iou": ("IoU", "Intersection over union: pixels that are {} in both prediction and annotation, divided by those "
                   "that are so in either."),
    "dice": ("Dice", "Twice the pixels that are {} in both prediction and annotation, divided by the sum of those "
                     "predicted and those annotated."),
}  # fmt: skip
_AVERAGES: Final = {
    "per_image": ("per image", "Measured in each image, then the mean over the images in which the class is predicted "
                               "or annotated; every image weighs the same."),
    "over_pixels": ("over pixels", "Counted over the pixels of all images together; large fruit weighs more."),
}  # fmt: skip


def _pixel_measures() -> Iterator[Measure]:
    for average, (over, averaged) in _AVERAGES.items():
        for overlap, (title, definition) in _OVERLAPS.items():
            for region, words in _REGIONS.items():
                yield Measure(
                    f"{region}_{overlap}_{average}",
                    f"{region.capitalize()} {title} {over}",
                    f"{definition.format(words)} {averaged}",
                )
            yield Measure(
                f"mean_{overlap}_{average}",
                f"Class mean {title} {over}",
                f"The mean {title} of background, healthy and infected, of those that are predicted or annotated. "
                + ("Measured in each image, then the mean over the images." if average == "per_image" else averaged),
            )


def _boundary_measures() -> Iterator[Measure]:
    for region in ("fruit", "healthy", "infected"):
        yield Measure(
            f"{region}_boundary_f_per_image",
            f"{region.capitalize()} boundary F per image",
            f"How well outlines of {_REGIONS[region]} fit: the harmonic mean of the shares of the predicted and of the "
            f"annotated outline that lie within {TOLERANCE:.2%} of the image's diagonal of the other. Measured in each "
            "image, 0 where only one of the two has an outline, then the mean over the images with an outline.",
        )


_MATCH: Final = "A predicted and an annotated fruit match at an IoU of 0.5 or more, one to one."
_FRUIT_MEASURES: Final = (
    Measure("object_precision", "Object precision",
            f"Predicted fruits with a match, divided by all predicted fruits of all images. {_MATCH}"),
    Measure("object_recall", "Object recall",
            f"Annotated fruits with a match, divided by all annotated fruits of all images. {_MATCH}"),
    Measure("object_iou", "IoU of matched fruits", f"The mean IoU over the matched pairs of all images. {_MATCH}"),
    Measure(PROMPTED_IOU, "Prompted IoU per fruit",
            "IoU of a prompt's mask with the fruit that the prompt was made from, the mean over the fruits of all "
            "images. Only for candidates that are prompted from the annotation."),
    Measure("fruit_count_accuracy_per_image", "Fruit count accuracy",
            "Share of the images in which as many fruits are found as are annotated. Only for candidates that find "
            "fruits by themselves."),
    Measure("touching_fruit_count_accuracy_per_image", "Touching fruit count accuracy",
            "The same share of the images in which annotated fruits touch."),
    Measure("fruit_count_error_per_image", "Fruit count error per image",
            "Absolute difference of the numbers of fruits found and annotated, the mean over the images. Only for "
            "candidates that find fruits by themselves.", sign=-1),
    Measure("infected_fraction_error_per_image", "Infected fraction error",
            "The infected fraction is the infected share of an image's fruit pixels, 0 to 1, and 0 where no fruit is "
            "predicted. Absolute difference of the predicted and the annotated one, the mean over the images with "
            "annotated fruit.", sign=-1),
    Measure("infected_fraction_bias_per_image", "Infected fraction bias",
            "The predicted minus the annotated infected fraction, the mean over the images; above 0 where too much is "
            "called infected.", sign=0),
    Measure("infected_auroc_per_fruit", "Infected or healthy, AUROC",
            "Area under the ROC curve of the predicted infected fraction of each annotated fruit of known health: the "
            "share of all pairs of a fruit with infected pixels and one without in which the first has the higher "
            "fraction; equal ones count half."),
    Measure("infected_fraction_error_per_fruit", "Infected fraction error per fruit",
            "Absolute difference of the predicted and the annotated infected fraction of a fruit, 0 predicted where it "
            "is not found, the mean over the fruits of known health of all images.", sign=-1),
    Measure("infected_fraction_covered_per_fruit", "Infected fraction within its interval",
            "Share of the found fruits of known health whose annotated infected fraction lies in the interval that is "
            "predicted for it, of all images; the intervals are made for 0.9. Only for calibrated models.", sign=0),
    Measure("false_fruit_images", "Images with false fruit",
            "Share of the images without fruit in which any pixel is called fruit.", sign=-1),
    Measure("false_fruit_pixels", "False fruit pixels",
            "Share of the pixels of all images without fruit that are called fruit.", sign=-1),
    Measure("false_infected_pixels", "False infected pixels",
            "Share of the pixels of healthy fruit that are called infected, over the images without infected pixels.",
            sign=-1),
)  # fmt: skip

_ALL: Final = {each.name: each for each in (*_pixel_measures(), *_boundary_measures(), *_FRUIT_MEASURES)}
MEASURES: Final[Mapping[str, Measure]] = {name: _ALL[name] for name in MAIN} | _ALL
"""All measures by name, those of the main table first."""
