"""An evaluation as the report gets it, with numbers that nobody measured."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import cv2
import numpy as np
import PIL.Image
from numpy.typing import NDArray

from models.evaluation.calibration import calibrate
from models.evaluation.results import (
    Calibration,
    CalibrationBin,
    Group,
    ImageFile,
    ImageScore,
    Interval,
    Measured,
    Results,
    Subject,
)
from models.synthetic import RenderOptions, render
from models.types import Size

NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Kind:
    """A subject, and about how well it does."""

    subject: Subject
    skill: float
    milliseconds: Mapping[str, float]


def _sam(
    name: str, title: str, skill: float, *, prompted: str, oracle: bool = False, infer: float = 0, pixels: int = 1024
) -> Kind:
    subject = Subject(
        name=name,
        title=title,
        family="sam",
        description=f"It is prompted by {prompted}.",
        revision="6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
        settings={"backend": "openvino", "input size": str(pixels)},
        oracle=oracle,
    )
    times = {"decode": 24.0, "encode": 0.43 * pixels, "prompt": 55.0, "postprocess": 9.0}
    if infer:
        times["infer"] = infer
    return Kind(subject, skill, times)


def _unet(name: str, title: str, skill: float, infer: float) -> Kind:
    description = "It sees the whole image at 448 x 224 and needs no prompt."
    subject = Subject(name, title, "unet", description, "3f" * 32, {"backend": "openvino", "precision": "int8"})
    return Kind(subject, skill, {"decode": 23.0, "infer": infer, "postprocess": 6.4})


KINDS: Sequence[Kind] = (
    _unet("unet-resnet18-citrus", "U-Net ResNet-18", 0.93, 17.2),
    _unet(
        "unet-mobilenet",
        "U-Net MobileNetV2, trained on the packing house's own images of November, second attempt",
        0.945,
        11.8,
    ),
    _sam("mobile-sam-box", "MobileSAM, box", 0.955, prompted="the annotated box with jitter"),
    _sam("mobile-sam-box-unet", "MobileSAM, box of U-Net", 0.915, prompted="boxes of the fruits of U-Net", infer=17.2),
    _sam("mobile-sam-point", "MobileSAM, point", 0.74, prompted="one click at the centre"),
    _sam("mobile-sam-point-oracle", "MobileSAM, point, best of three", 0.86, prompted="one click", oracle=True),
    _sam("fine-tuned-box", "Fine-tuned, box", 0.965, prompted="the annotated box with jitter", pixels=512),
)


def invented_group(
    name: str, title: str, *, images: int, classes: bool, seed: int, kinds: Sequence[Kind] = KINDS
) -> Group:
    return Group(
        name=name,
        title=title,
        description="Oranges and mandarins; healthy and infected told apart." if classes else "Photographs of oranges.",
        images=images,
        fruits=images * 3 if classes else 0,
        measured=tuple(
            _measured(kind, images=images, classes=classes, rng=np.random.default_rng([seed, place]))
            for place, kind in enumerate(kinds)
        ),
    )


def invented_results(groups: Sequence[Group], *, notes: tuple[str, ...] = ()) -> Results:
    return Results(
        groups=tuple(groups),
        machine={"processor": "A processor of two cores", "threads": "2", "openvino": "2026.4.1"},
        commit="0123456-dirty",
        made_at="2026-11-22T20:00:00Z",
        seed=7,
        options={"data": "fruit", "split": "test", "rendered": "100"},
        notes=notes,
    )


def full_results() -> Results:
    """Seven subjects on three groups."""
    return invented_results(
        [
            invented_group("fruit-test", "Real photographs, test part", images=63, classes=False, seed=1),
            invented_group("fruit-extra", "Real photographs of other places", images=9, classes=False, seed=2),
            invented_group("rendered", "Rendered scenes", images=100, classes=True, seed=3),
        ],
        notes=("SAM ViT-B was left out: its weights cannot be had here.",),
    )


def invented_images(results: Results, *, height: int = 360) -> list[ImageFile]:
    """Three best and three worst of every subject and group: rendered fruit with its true outlines, twice."""
    strips = [_strip(seed, height) for seed in range(3)]
    made = []
    for group in results.groups:
        for each in group.measured:
            ranked = sorted(each.per_image, key=lambda score: score.fruit_iou)
            chosen: list[tuple[Literal["best", "worst"], Sequence[ImageScore]]] = [
                ("worst", ranked[:3]),
                ("best", ranked[-3:]),
            ]
            for kind, scores in chosen:
                for strip, score in zip(strips, scores, strict=True):
                    made.append(ImageFile(group.name, each.subject.name, score.name, score.fruit_iou, kind, strip))
    return made


def _measured(kind: Kind, *, images: int, classes: bool, rng: np.random.Generator) -> Measured:
    ious = np.clip(1 - rng.gamma(1.2, (1 - kind.skill) / 1.2, images), 0.02, 1)
    prompted = kind.subject.family == "sam" and not kind.subject.name.endswith("-unet")
    measures = {
        "fruit_iou_per_image": _interval(ious, rng),
        "fruit_iou_over_pixels": _interval(ious**0.9, rng),
        "fruit_boundary_f_per_image": _interval(ious**3, rng),
    }
    if classes:
        measures["object_precision"] = _interval(ious**0.3, rng)
        measures["object_recall"] = _interval(ious**0.2, rng)
    if prompted:
        measures["prompted_iou_per_fruit"] = _interval(ious, rng)
    elif classes:
        measures["fruit_count_right_per_image"] = _interval(ious**0.5, rng)
    if classes and kind.subject.family == "unet":
        measures["healthy_iou_per_image"] = _interval(ious**1.2, rng)
        measures["infected_iou_per_image"] = _interval(ious**2, rng)
        measures["infected_fraction_error_per_image"] = _interval((1 - ious) / 3, rng)
        measures["infected_fraction_bias_per_image"] = _interval((0.9 - ious) / 30, rng)
    return Measured(
        subject=kind.subject,
        measures=measures,
        milliseconds={**kind.milliseconds, "total": sum(kind.milliseconds.values()) + 1.5},
        per_image=tuple(
            ImageScore(f"IMG_20261104_{number:06d}_orchard_row_{number % 7}.jpg", float(iou), {"fruit_iou": iou})
            for number, iou in enumerate(ious)
        ),
        score_calibration=_calibration(ious, rng) if prompted else None,
    )


def _interval(values: NDArray[np.float64], rng: np.random.Generator) -> Interval:
    means = rng.choice(values, (500, values.size)).mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(float(values.mean()), float(low), float(high))


def _calibration(ious: NDArray[np.float64], rng: np.random.Generator) -> Calibration:
    found = calibrate(np.clip(ious * 0.7 + 0.3 + rng.normal(0, 0.03, ious.size), 0, 1.04), ious)
    bins = tuple(
        CalibrationBin(low, low + 0.1, each.score, each.iou, each.count)
        for each in found.bins
        for low in [min(int(each.score * 10), 9) / 10]
    )
    return Calibration(
        bins=bins,
        count=found.count,
        ece=found.expected_calibration_error,
        mean_abs_error=found.mean_absolute_error,
        bias=found.bias,
        correlation=found.correlation,
    )


@cache
def _strip(seed: int, height: int) -> bytes:
    sample = render(seed, Size(height, height * 4 // 3), options=RenderOptions())
    drawn = sample.pixels.copy()
    outlines, _ = cv2.findContours((sample.semantic > 0).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(drawn, outlines, -1, (0, 114, 178), 2)
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.hstack([drawn, drawn])).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
