"""How well healthy and infected fruits are separated by the predicted infected fraction of each annotated fruit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.data.samples import Sample
from models.evaluation.bootstrap import Statistic, ratio_of
from models.metrics import Confusion, infected_fraction, ratio
from models.types import PixelClass, SemanticMap


@dataclass(frozen=True, slots=True)
class FruitHealth:
    """One annotated fruit of known health.

    Attributes:
        annotated: its infected fraction, 0 to 1.
        predicted: the predicted one of its pixels of known health, 0 to 1; 0 if it was not found.
    """

    annotated: float
    predicted: float


def knows_health(semantic: SemanticMap) -> bool:
    """Return whether any pixel is annotated as healthy or infected."""
    return bool(((semantic == PixelClass.HEALTHY) | (semantic == PixelClass.INFECTED)).any())


def fruit_health(predicted: SemanticMap, sample: Sample) -> tuple[FruitHealth, ...]:
    """Compare the infected fraction of each fruit with the annotation.

    Args:
        predicted: uint8 (height, width) of BACKGROUND, HEALTHY and INFECTED.
        sample: the image; without an instance map it has no fruits.

    Returns:
        The fruits that are not of the class FRUIT.
    """
    if sample.instance_map is None:
        return ()
    fruits = []
    for instance in sample.instances:
        x0, y0, x1, y1 = instance.box
        inside = sample.instance_map[y0:y1, x0:x1] == instance.id
        truth = sample.semantic[y0:y1, x0:x1][inside]
        known = (truth == PixelClass.HEALTHY) | (truth == PixelClass.INFECTED)
        if instance.pixel_class is PixelClass.FRUIT or not known.any():
            continue
        guess = infected_fraction(predicted[y0:y1, x0:x1][inside][known])
        fruits.append(FruitHealth(infected_fraction(truth), 0.0 if np.isnan(guess) else guess))
    return tuple(fruits)


def false_infected(classes: Confusion) -> tuple[int, int]:
    """Return the pixels of healthy fruit that are called infected, and all of them; 0 where something is infected."""
    if classes[PixelClass.INFECTED].any():
        return 0, 0
    healthy = classes[PixelClass.HEALTHY]
    return int(healthy[PixelClass.INFECTED]), int(healthy.sum())


def health_statistics(images: Sequence[Sequence[FruitHealth]]) -> dict[str, Statistic]:
    """Return the statistics over the fruits of some images.

    Args:
        images: fruits of each image.

    Returns:
        `infected_auroc_per_fruit` and `infected_fraction_error_per_fruit`.
    """
    errors = [[abs(each.predicted - each.annotated) for each in fruits] for fruits in images]
    return {
        "infected_auroc_per_fruit": _auroc(images),
        "infected_fraction_error_per_fruit": ratio_of(
            np.array([sum(each) for each in errors], np.float64), np.array([len(each) for each in errors], np.float64)
        ),
    }


def _auroc(images: Sequence[Sequence[FruitHealth]]) -> Statistic:
    """Return the area under the ROC curve: the share of pairs of an infected and a healthy fruit that are in order.

    Hanley and McNeil, Radiology 1982; equal predictions count half. NaN without both kinds of fruit.
    """
    infected = [np.array([each.predicted for each in fruits if each.annotated > 0]) for fruits in images]
    healthy = [np.array([each.predicted for each in fruits if each.annotated == 0]) for fruits in images]
    right = np.array([[_in_order(one, other) for other in healthy] for one in infected])
    pairs = np.outer([len(each) for each in infected], [len(each) for each in healthy]).astype(np.float64)
    return lambda weights: ratio(
        np.einsum("ri,ij,rj->r", weights, right, weights, optimize=True),
        np.einsum("ri,ij,rj->r", weights, pairs, weights, optimize=True),
    )


def _in_order(infected: NDArray[np.float64], healthy: NDArray[np.float64]) -> float:
    above = infected[:, None] > healthy[None, :]
    equal = infected[:, None] == healthy[None, :]
    return float(np.count_nonzero(above) + 0.5 * np.count_nonzero(equal))
