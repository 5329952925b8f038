"""What each measure is called on the report, and exactly what it is the mean of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from models.evaluation.boundaries import TOLERANCE

FRUIT_IOU: Final = "fruit_iou_per_image"
"""The measure that every subject has."""

PROMPTED_IOU: Final = "prompted_iou_per_fruit"
"""The measure that only subjects have whose prompts come from the annotation."""

MAIN: Final = (
    FRUIT_IOU,
    "fruit_boundary_f_per_image",
    "object_precision",
    "object_recall",
    "fruit_count_right_per_image",
    "touching_fruit_count_right_per_image",
    "healthy_iou_per_image",
    "infected_iou_per_image",
    "infected_fraction_error_per_image",
)
"""The measures of the main table, as far as a group has them."""


@dataclass(frozen=True, slots=True)
class Measure:
    """How a measure is told.

    Attributes:
        name: its key in the results.
        title: for a table's heading.
        text: what is divided by what, and averaged over what.
        sign: 1 when more is better, -1 when less is, 0 when the best is 0 and it may be negative.
    """

    name: str
    title: str
    text: str
    sign: int = 1

    @property
    def direction(self) -> str:
        """Which values are good, in two or three words."""
        return {1: "higher is better", -1: "lower is better"}.get(self.sign, "0 is best")


def described(name: str) -> Measure:
    """Tell of a measure by its key.

    Args:
        name: of a measure of `models.evaluation.results`; another one is told by its name alone.

    Returns:
        The measure.
    """
    return _CATALOGUE.get(name) or Measure(name, name.replace("_", " "), "", sign=0)


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Names of measures, each once: those of the main table first, unknown ones last."""
    given = set(names)
    return (*(name for name in _CATALOGUE if name in given), *sorted(given - _CATALOGUE.keys()))


_REGIONS: Final[Mapping[str, str]] = {
    "fruit": "fruit (healthy, infected or not told which)",
    "healthy": "healthy fruit",
    "infected": "infected fruit",
    "background": "background",
}
_OVERLAPS: Final[Mapping[str, tuple[str, str]]] = {
    "iou": ("IoU", "Intersection over union: pixels that are {0} in both the prediction and the annotation, divided by "
                   "pixels that are so in either"),
    "dice": ("Dice", "Twice the pixels that are {0} in both the prediction and the annotation, divided by the sum of "
                     "those predicted and those annotated"),
}  # fmt: skip
_AVERAGED: Final[Mapping[str, tuple[str, str]]] = {
    "per_image": ("per image", "Measured in each image, then the mean over the images in which the class is "
                               "predicted or annotated; every image weighs the same."),
    "over_pixels": ("over pixels", "Counted over the pixels of all images together; large fruit weighs more."),
}  # fmt: skip


def _of_pixels() -> Iterable[Measure]:
    for average, (manner, averaged) in _AVERAGED.items():
        for overlap, (title, text) in _OVERLAPS.items():
            for region, words in _REGIONS.items():
                yield Measure(
                    f"{region}_{overlap}_{average}",
                    f"{region.capitalize()} {title} {manner}",
                    f"{text.format(words)}. {averaged}",
                )
            within = "of each image" if average == "per_image" else "over the pixels of all images together"
            then = ", then the mean over the images" if average == "per_image" else ""
            yield Measure(
                f"mean_{overlap}_{average}",
                f"Class mean {title} {manner}",
                f"The {title} of background, healthy and infected {within}, the mean over those of the three classes "
                f"that are predicted or annotated{then}.",
            )


def _of_outlines() -> Iterable[Measure]:
    for region in ("fruit", "healthy", "infected"):
        yield Measure(
            f"{region}_boundary_f_per_image",
            f"{region.capitalize()} boundary F per image",
            f"How well outlines of {_REGIONS[region]} fit: the harmonic mean of the shares of the predicted and of the "
            f"annotated outline that pass within {100 * TOLERANCE:.2f} % of the image's diagonal of the other. "
            "Measured in each image, 0 where only one of both has such an outline, then the mean over the images "
            "in which at least one has.",
        )


_MATCHED: Final = "A predicted fruit matches an annotated one when their IoU is at least 0.5, one to one."
_OF_FRUITS: Final = (
    Measure("object_precision", "Object precision",
            f"Predicted fruits that match an annotated one, divided by all predicted in all images. {_MATCHED}"),
    Measure("object_recall", "Object recall",
            f"Annotated fruits that a predicted one matches, divided by all annotated in all images. {_MATCHED}"),
    Measure("object_iou", "IoU of matched fruits",
            f"The mean IoU over all matched pairs of fruits of all images. {_MATCHED}"),
    Measure(PROMPTED_IOU, "Prompted IoU per fruit",
            "The IoU of the mask that a prompt gave with the fruit that the prompt was made from, the mean over the "
            "fruits of all images. Only of subjects whose prompts come from the annotation."),
    Measure("fruit_count_right_per_image", "Fruit count right",
            "Share of the images in which as many fruits are found as are annotated. Only of subjects that find "
            "fruits by themselves."),
    Measure("touching_fruit_count_right_per_image", "Touching fruit count right",
            "The same share of the images in which annotated fruits touch."),
    Measure("fruit_count_error_per_image", "Fruit count error per image",
            "Number of fruits found less number annotated, without its sign, the mean over the images. Only of "
            "subjects that find fruits by themselves.", sign=-1),
    Measure("infected_fraction_error_per_image", "Infected fraction error",
            "The infected fraction is the infected share of an image's fruit pixels, 0 to 1. The predicted less the "
            "annotated one, without its sign, the mean over the images with annotated fruit; where no fruit is "
            "predicted, its fraction is 0.", sign=-1),
    Measure("infected_fraction_bias_per_image", "Infected fraction bias",
            "The predicted less the annotated infected fraction, with its sign, the mean over the images; above 0 "
            "where too much is called infected.", sign=0),
)  # fmt: skip

_ALL: Final = {each.name: each for each in (*_of_pixels(), *_of_outlines(), *_OF_FRUITS)}
_CATALOGUE: Final[Mapping[str, Measure]] = {name: _ALL[name] for name in MAIN} | _ALL
