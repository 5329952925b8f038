"""How far a U-Net in int8 answers as it does in float32, and whether that is enough to serve it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.metrics import class_confusion, fruit_confusion, iou, mean_counted
from models.types import PixelClass, SemanticMap
from models.unet.instances import fruit_labels
from models.unet.letterbox import UNetLetterbox
from models.unet.postprocess import class_map

LEAST_IOU: Final = 0.98
"""Of the masks of fruit and of infected pixels, int8 against float32."""

_DECIDES: Final = ("fruit", "infected")


class Answer(NamedTuple):
    """What a network says of one image: the class of each pixel, and how many fruits it tells apart."""

    classes: SemanticMap
    fruits: int

    @classmethod
    def of(cls, output: NDArray[np.float32], letterbox: UNetLetterbox) -> Answer:
        """From the output of `UNetBackend.infer`."""
        return cls(class_map(output, letterbox), int(fruit_labels(output, letterbox).max(initial=0)))


@dataclass(frozen=True, slots=True)
class Agreement:
    """Two networks' answers to the same images, compared.

    Intersection over union is of the pixels that each network gives a class, or calls fruit (healthy or infected);
    0 to 1, NaN where neither finds any.

    Attributes:
        images: how many.
        iou: by "fruit" and each class, over the pixels of all images together.
        iou_per_image: the same in each image, and the mean over those in which either network finds any.
        equal_counts: share of the images in which both tell apart equally many fruits.
    """

    images: int
    iou: Mapping[str, float]
    iou_per_image: Mapping[str, float]
    equal_counts: float

    @classmethod
    def between(cls, some: Sequence[Answer], others: Sequence[Answer]) -> Agreement:
        """Compare answers to the same images in the same order, at least one."""
        pairs = list(zip(some, others, strict=True))
        classes = np.stack([class_confusion(one.classes, other.classes) for one, other in pairs])
        fruit = np.stack([fruit_confusion(one.classes, other.classes) for one, other in pairs])
        return cls(
            images=len(pairs),
            iou=_named(iou(fruit.sum(axis=0)), iou(classes.sum(axis=0))),
            iou_per_image=_named(mean_counted(iou(fruit).T), mean_counted(iou(classes).T)),
            equal_counts=float(np.mean([one.fruits == other.fruits for one, other in pairs])),
        )


def unjudgeable(agreement: Agreement) -> str | None:
    """Which masks are empty everywhere, so that nothing can be said of them; one line, or None."""
    empty = [name for name in _DECIDES if math.isnan(agreement.iou[name])]
    return f"no {' and no '.join(empty)} pixel was found to compare" if empty else None


def too_different(agreement: Agreement, least_iou: float = LEAST_IOU) -> str | None:
    """In which masks the networks differ too much.

    Args:
        agreement: of int8 with float32.
        least_iou: that the masks of fruit and of infected pixels must have, each over the pixels of all images.

    Returns:
        One line, or None where both have it.
    """
    low = [name for name in _DECIDES if not agreement.iou[name] >= least_iou]
    told = ", ".join(f"{agreement.iou[name]:.4f} of {name}" for name in low)
    return f"IoU {told}: below {least_iou:g}" if low else None


def _named(fruit: NDArray[np.float64], classes: NDArray[np.float64]) -> dict[str, float]:
    by_class = {each.name.lower(): float(classes[each]) for each in (PixelClass.HEALTHY, PixelClass.INFECTED)}
    return {"fruit": float(fruit[1]), **by_class}
