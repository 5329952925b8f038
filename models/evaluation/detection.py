"""Measure what finds fruit in images: COCO's average precision of boxes, by pycocotools, and precision and recall.

A detector finds what its classes `orange` and `apple` are; a U-Net finds fruit as inspect does; both together, the
U-Net's fruits and those of the detector's that the U-Net missed, with pieces of one fruit joined by the detector's box.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import numpy as np
from tqdm import tqdm

from models.backends.base import DetectorBackend, UNetBackend
from models.data.samples import Sample
from models.detector.classes import FRUIT
from models.detector.letterbox import detector_letterbox
from models.detector.nouns import find_class
from models.detector.postprocess import Thresholds, detections
from models.evaluation.operations import Row, without_intervals
from models.evaluation.samples import CannotEvaluate, ImageSet
from models.inspection import inspect
from models.letterbox import resize
from models.types import BinaryMask, Box, PixelClass, Pixels, Size
from models.unet.letterbox import unet_letterbox

LEAST_SCORE: Final = 0.3
"""Of boxes that count for precision and recall: the service's default."""

BOTH: Final = "both"
"""Method: a U-Net and a detector together."""

_FOR_AP: Final = Thresholds(score=0.01, nms=0.65, most=100)
"""YOLOX's own for COCO's measure, which takes boxes of any score."""

_MATCH: Final = 0.5
_PIECE: Final = 0.6
"""Share of a U-Net's fruit that must lie in a detector's box for the box to join it with others."""

_MEASURES: Final = ("AP", "AP50", "AP75", "AP small", "AP medium", "AP large")


@dataclass(frozen=True, slots=True)
class Found:
    """A box with its score, 0 to 1."""

    box: Box
    score: float


Finder: TypeAlias = Callable[[Pixels], list[Found]]


@dataclass(frozen=True, slots=True)
class Truth:
    """The fruit of an image.

    Attributes:
        size: of the image.
        boxes: of the fruits.
        areas: pixels of each, which decide COCO's sizes.
        ignored: bool (height, width), where it is not known whether there is fruit; None for nowhere.
    """

    size: Size
    boxes: tuple[Box, ...]
    areas: tuple[int, ...]
    ignored: BinaryMask | None = None


def truth_of(sample: Sample) -> Truth:
    """Return the fruit of an annotated image."""
    numbers = np.asarray(sample.instance_map)
    areas = np.bincount(numbers.ravel())
    ignored = (sample.semantic == PixelClass.IGNORE) & (numbers == 0)
    return Truth(
        sample.size,
        tuple(Box(*map(float, each.box)) for each in sample.instances),
        tuple(int(areas[each.id]) for each in sample.instances),
        ignored if ignored.any() else None,
    )


def counted(found: Sequence[Found], truth: Truth) -> list[Found]:
    """Return the boxes of which at most half lies where it is not known whether there is fruit."""
    if truth.ignored is None:
        return list(found)
    kept = []
    for each in found:
        x0, y0, x1, y1 = (round(side) for side in (each.box.x0, each.box.y0, each.box.x1, each.box.y1))
        inside = truth.ignored[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)]
        if inside.size and inside.mean() <= 0.5:
            kept.append(each)
    return kept


def average_precision(truths: Sequence[Truth], found: Sequence[Sequence[Found]]) -> dict[str, float]:
    """Return COCO's average precisions of boxes of one class, by pycocotools; -1 for sizes that do not occur."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [
                {"id": number, "width": truth.size.width, "height": truth.size.height}
                for number, truth in enumerate(truths, start=1)
            ],
            "categories": [{"id": 1, "name": "fruit"}],
            "annotations": [
                {**annotation, "id": number}
                for number, annotation in enumerate(
                    (
                        {"image_id": image, "category_id": 1, "bbox": _xywh(box), "area": area, "iscrowd": 0}
                        for image, truth in enumerate(truths, start=1)
                        for box, area in zip(truth.boxes, truth.areas, strict=True)
                    ),
                    start=1,
                )
            ],
        }
        coco.createIndex()
        results: list[dict[str, Any]] = [
            {"image_id": image, "category_id": 1, "bbox": _xywh(each.box), "score": each.score}
            for image, boxes in enumerate(found, start=1)
            for each in boxes
        ]
        if not any(truth.boxes for truth in truths):
            return dict.fromkeys(_MEASURES, -1.0)
        if not results:
            return dict.fromkeys(_MEASURES, 0.0)
        measured = COCOeval(coco, coco.loadRes(results), "bbox")
        measured.evaluate()
        measured.accumulate()
        measured.summarize()
    return {name: float(value) for name, value in zip(_MEASURES, measured.stats[:6], strict=True)}


def matched(truth: Truth, found: Sequence[Found]) -> int:
    """Return how many fruits a box matches at an IoU of a half, each box one fruit, better boxes first."""
    free = set(range(len(truth.boxes)))
    for each in sorted(found, key=lambda one: -one.score):
        best = max(free, key=lambda number: iou(each.box, truth.boxes[number]), default=None)
        if best is not None and iou(each.box, truth.boxes[best]) >= _MATCH:
            free.discard(best)
    return len(truth.boxes) - len(free)


def iou(one: Box, other: Box) -> float:
    """Return the IoU of two boxes."""
    shared = _shared(one, other)
    return shared / max(_area(one) + _area(other) - shared, 1e-9)


def together(unet: Sequence[Found], detector: Sequence[Found]) -> list[Found]:
    """Return what a U-Net and a detector find together; see the module."""
    left = list(unet)
    added = []
    for each in detector:
        inside = [one for one in left if _shared(one.box, each.box) >= _PIECE * _area(one.box)]
        if any(iou(one.box, each.box) >= _MATCH for one in left) and len(inside) < 2:
            continue
        if not inside and any(_shared(one.box, each.box) >= _PIECE * _area(each.box) for one in left):
            continue  # a part of what the U-Net found
        left = [one for one in left if one not in inside]
        added.append(each)
    return [*left, *added]


def _xywh(box: Box) -> list[float]:
    return [box.x0, box.y0, box.x1 - box.x0, box.y1 - box.y0]


def _area(box: Box) -> float:
    return (box.x1 - box.x0) * (box.y1 - box.y0)


def _shared(one: Box, other: Box) -> float:
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return max(0.0, width) * max(0.0, height)


def detector_finder(detector: DetectorBackend, classes: Sequence[str] = FRUIT) -> Finder:
    """Return what finds fruit as a detector's classes, with boxes of any score.

    Raises:
        CannotEvaluate: the detector has none of the classes.
    """
    numbers = [find_class(name, detector.classes) for name in classes]
    wanted = [number for number in numbers if number is not None]
    if not wanted:
        known = ", ".join(detector.classes)
        raise CannotEvaluate(f"the detector must know one of {', '.join(classes)}; its classes are {known}")
    # One class of fruit: what is an orange and an apple at once is one box.
    thresholds = replace(_FOR_AP, class_ids=wanted, nms=1.0, most=300)

    def find(pixels: Pixels) -> list[Found]:
        letterbox = detector_letterbox(Size(*pixels.shape[:2]), detector.input_size)
        (output,) = detector.infer([detector.prepare(resize(pixels, letterbox), letterbox)])
        found = detections(output, letterbox, thresholds)
        return _suppressed([Found(each.box, each.score) for each in found], _FOR_AP.nms)[: _FOR_AP.most]

    return find


def unet_finder(unet: UNetBackend, area: int) -> Finder:
    """Return what finds fruit as `inspect` does without a SAM, with its confidence as the score."""

    def find(pixels: Pixels) -> list[Found]:
        letterbox = unet_letterbox(Size(*pixels.shape[:2]), area)
        (output,) = unet.infer([unet.prepare(resize(pixels, letterbox), letterbox)])
        return [Found(Box(*map(float, each.box)), each.confidence) for each in inspect(output, letterbox).fruits]

    return find


def measure_detection(
    detectors: Mapping[str, Finder],
    unets: Mapping[str, Finder],
    sets: Sequence[ImageSet],
    *,
    least: float = LEAST_SCORE,
    progress: bool,
) -> Iterator[Row]:
    """Measure what finds fruit, and the first U-Net and the first detector together; kinds of images also apart.

    Args:
        detectors: by name.
        unets: by name.
        sets: those whose annotations separate fruits; others are left out.
        least: score of boxes that count for precision and recall.
        progress: show progress bars on a terminal.

    Yields:
        What was measured, set by set.

    Raises:
        DataError: an image can no longer be used.
        BackendError: a device failed.
    """
    finders = {**unets, **detectors}
    for images in sets:
        if not images.has_instances:
            continue
        truths: dict[str, list[Truth]] = {}
        found: dict[str, dict[str, list[list[Found]]]] = {}
        bar = tqdm(images, images.name, len(images.names), leave=False, disable=None if progress else True)
        for image in bar:
            truth = truth_of(image.sample)
            boxes = {name: find(image.sample.pixels) for name, find in finders.items()}
            if unets and detectors:
                sure = [one for one in boxes[next(iter(detectors))] if one.score >= least]
                boxes[BOTH] = together(boxes[next(iter(unets))], sure)
            for kind in dict.fromkeys(("", images.kind_of(image.sample.name))):
                truths.setdefault(kind, []).append(truth)
                for name, some in boxes.items():
                    found.setdefault(kind, {}).setdefault(name, []).append(counted(some, truth))
        for kind, of_kind in sorted(truths.items()):
            title = f"{images.title}: {kind}" if kind else images.title
            objects = sum(len(truth.boxes) for truth in of_kind)
            for name, each in found[kind].items():
                measures = without_intervals(box_measures(of_kind, each, least))
                yield Row("detection", title, len(of_kind), objects, name, measures)


def box_measures(truths: Sequence[Truth], found: Sequence[Sequence[Found]], least: float) -> dict[str, float]:
    """Return COCO's average precisions, and precision, recall and false boxes per image; NaN for what is undefined.

    Args:
        truths: of each image, at least one.
        found: boxes of each image.
        least: score of boxes that count for the last three.
    """
    measures = {name: value if value >= 0 else math.nan for name, value in average_precision(truths, found).items()}
    sure = [[one for one in some if one.score >= least] for some in found]
    right = sum(matched(truth, some) for truth, some in zip(truths, sure, strict=True))
    total, fruits = sum(map(len, sure)), sum(len(truth.boxes) for truth in truths)
    measures["precision"] = right / total if total else math.nan
    measures["recall"] = right / fruits if fruits else math.nan
    measures["false per image"] = (total - right) / len(truths)
    return measures


def _suppressed(found: Sequence[Found], threshold: float) -> list[Found]:
    kept: list[Found] = []
    for each in found:
        if all(iou(each.box, other.box) <= threshold for other in kept):
            kept.append(each)
    return kept
