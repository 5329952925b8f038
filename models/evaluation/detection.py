"""Measure what finds fruit in images: COCO's average precision of boxes, by pycocotools, and precision and recall.

python -m models.evaluation.detection --data FOLDER --classes 1=healthy,2=infected --part val --models-file FILE

A detector finds what its classes `orange` and `apple` are; a U-Net finds fruit as inspect does; both together, the
U-Net's fruits and those of the detector's that the U-Net missed, with pieces of one fruit joined by the detector's box.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from platformdirs import user_cache_path

from models.backends.load import ModelStore, choose_backend, load_detector, load_unet
from models.catalog import load_catalogue
from models.data.samples import Sample
from models.data.sources import add_data_arguments
from models.detector.classes import FRUIT
from models.detector.letterbox import detector_letterbox
from models.detector.nouns import find_class
from models.detector.postprocess import Thresholds, detections
from models.errors import PomonaError
from models.evaluation.samples import CannotEvaluate, data_sets
from models.inspection import inspect
from models.letterbox import resize
from models.types import BinaryMask, Box, PixelClass, Pixels, Size
from models.unet.letterbox import unet_letterbox

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


def _finders(options: argparse.Namespace) -> Mapping[str, Finder]:
    catalogue = load_catalogue(options.models_file)
    cache = options.cache or Path(os.environ.get("POMONA_CACHE_DIR") or user_cache_path("pomona"))
    store, backend = ModelStore(cache, options.weights, "auto"), choose_backend("auto")
    unet, area = load_unet(catalogue[options.unet], backend, store), catalogue[options.unet].input_area
    detector = load_detector(catalogue[options.detector], backend, store)
    numbers = [find_class(name, detector.classes) for name in options.classes_of_detector]
    wanted = [number for number in numbers if number is not None]
    if not wanted:
        raise CannotEvaluate(f"{options.detector} knows none of {', '.join(options.classes_of_detector)}")
    thresholds = replace(_FOR_AP, class_ids=wanted)

    def by_unet(pixels: Pixels) -> list[Found]:
        letterbox = unet_letterbox(Size(*pixels.shape[:2]), area)
        (output,) = unet.infer([unet.prepare(resize(pixels, letterbox), letterbox)])
        return [Found(Box(*map(float, each.box)), each.confidence) for each in inspect(output, letterbox).fruits]

    def by_detector(pixels: Pixels) -> list[Found]:
        letterbox = detector_letterbox(Size(*pixels.shape[:2]), detector.input_size)
        (output,) = detector.infer([detector.prepare(resize(pixels, letterbox), letterbox)])
        # One class of fruit: what is an orange and an apple at once is one box.
        found = detections(output, letterbox, replace(thresholds, nms=1.0, most=300))
        return _suppressed([Found(each.box, each.score) for each in found], _FOR_AP.nms)[: _FOR_AP.most]

    return {options.unet: by_unet, options.detector: by_detector}


def _suppressed(found: Sequence[Found], threshold: float) -> list[Found]:
    kept: list[Found] = []
    for each in found:
        if all(iou(each.box, other.box) <= threshold for other in kept):
            kept.append(each)
    return kept


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print a table per part of the data."""
    parser = argparse.ArgumentParser(prog="python -m models.evaluation.detection", description=__doc__.splitlines()[0])
    add_data_arguments(parser)
    parser.add_argument("--part", action="append", default=[], help="part of the data's split; repeatable (test)")
    parser.add_argument("--unet", default="unet-mobilenetv2-citrus", help="(%(default)s)")
    parser.add_argument("--detector", default="yolox-nano", help="(%(default)s)")
    parser.add_argument("--classes-of-detector", nargs="+", default=list(FRUIT), help="that are fruit (orange apple)")
    parser.add_argument("--score", type=float, default=0.3, help="least score of boxes that are counted (%(default)s)")
    parser.add_argument("--models-file", type=Path, help="adds your own models to the catalogue")
    parser.add_argument("--weights", type=Path, help="folder of checkpoints under their official names")
    parser.add_argument("--cache", type=Path, help="folder of downloads (POMONA_CACHE_DIR, or the user's cache)")
    options = parser.parse_args(arguments)
    try:
        sets = data_sets(options.data, options.part, progress=False)
        finders = _finders(options)
    except PomonaError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    for images in sets:
        truths: dict[str, list[Truth]] = {}
        found: dict[str, dict[str, list[list[Found]]]] = {}
        for name, encoded in zip(images.names, images, strict=True):
            truth = truth_of(encoded.sample)
            each = {finder: find(encoded.sample.pixels) for finder, find in finders.items()}
            unet, detector = each.values()
            sure = [one for one in detector if one.score >= options.score]
            each["both"] = together(unet, sure)
            for kind in dict.fromkeys(("all", images.kind_of(name) or "all")):
                truths.setdefault(kind, []).append(truth)
                for finder, boxes in each.items():
                    found.setdefault(kind, {}).setdefault(finder, []).append(counted(boxes, truth))
        _print(images.title, truths, found, options.score)
    return 0


def _print(
    title: str,
    truths: Mapping[str, Sequence[Truth]],
    found: Mapping[str, Mapping[str, Sequence[Sequence[Found]]]],
    least: float,
) -> None:
    write = sys.stdout.write
    write(f"\n{title}\n\n| images | finder | {' | '.join(_MEASURES)} | precision | recall | false per image |\n")
    write(f"|---|---|{'---:|' * (len(_MEASURES) + 3)}\n")
    for kind, of_kind in truths.items():
        for finder, boxes in found[kind].items():
            precisions = average_precision(of_kind, boxes)
            sure = [[one for one in some if one.score >= least] for some in boxes]
            right = sum(matched(truth, some) for truth, some in zip(of_kind, sure, strict=True))
            total, fruits = sum(map(len, sure)), sum(len(truth.boxes) for truth in of_kind)
            row = [f"{precisions[name]:.3f}" for name in _MEASURES]
            row += [
                f"{right / max(1, total):.3f}",
                f"{right / max(1, fruits):.3f}",
                f"{(total - right) / len(of_kind):.2f}",
            ]
            write(f"| {kind}, {len(of_kind)} | {finder} | {' | '.join(row)} |\n")


if __name__ == "__main__":
    sys.exit(main())
