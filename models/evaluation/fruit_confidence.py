"""What a U-Net says about its fruits, compared with the annotation: confidences, intervals of infected fractions."""

from __future__ import annotations

import math

import numpy as np

from models.data.samples import InstanceMap, Sample
from models.evaluation.candidates import Answer, PromptResult
from models.evaluation.matching import kept_predictions, match_objects, object_ious
from models.metrics import infected_fraction
from models.types import BinaryMask


def confident_fruits(answer: Answer, truth: InstanceMap, ignored: BinaryMask | None) -> tuple[PromptResult, ...]:
    """Return the confidence of each predicted fruit, and its IoU with the annotated one that it fits best.

    Args:
        answer: of a candidate; without confidences there are none.
        truth: uint16 (height, width), the id of the fruit, 0 for none.
        ignored: bool (height, width) or None; its pixels do not count, nor do fruits of which it has more than half.
    """
    if not answer.confidences:
        return ()
    kept = kept_predictions(answer.fruits, ignored)
    masks = [answer.fruits[number] if ignored is None else answer.fruits[number] & ~ignored for number in kept]
    ious = object_ious(masks, truth if ignored is None else np.where(ignored, truth.dtype.type(0), truth))
    best = ious.max(axis=1, initial=0.0).tolist()
    return tuple(PromptResult(answer.confidences[number], iou) for number, iou in zip(kept, best, strict=True))


def within_intervals(answer: Answer, sample: Sample) -> tuple[bool, ...]:
    """Return for each predicted fruit that matches an annotated one of known health whether its interval holds it."""
    if not answer.intervals or sample.instance_map is None:
        return ()
    ids = np.unique(sample.instance_map)
    ids = ids[ids > 0]
    held = []
    for number, place in match_objects(object_ious(answer.fruits, sample.instance_map)):
        fraction = infected_fraction(sample.semantic[sample.instance_map == ids[place]])
        low, high = answer.intervals[number]
        if not math.isnan(fraction):
            held.append(low <= fraction <= high)
    return tuple(held)
