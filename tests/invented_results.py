"""Results of an evaluation for the tests of the report, with invented numbers."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from models.evaluation.calibration import calibrate
from models.evaluation.gallery import GalleryImage
from models.evaluation.results import Candidate, CandidateResult, Group, ImageScore, Interval, Results


@dataclass(frozen=True, slots=True)
class Kind:
    """A candidate, and about how well it does."""

    candidate: Candidate
    skill: float
    timing_ms: Mapping[str, float]


def _sam(name: str, title: str, skill: float, *, oracle: bool = False, infer: float = 0) -> Kind:
    candidate = Candidate(name, title, "sam", "Prompted.", "6d" * 32, {"backend": "openvino"}, oracle=oracle)
    timing = {"decode": 24.0, "encode": 440.0, "prompt": 55.0, "postprocess": 9.0}
    return Kind(candidate, skill, {**timing, "infer": infer} if infer else timing)


def _unet(name: str, title: str, skill: float) -> Kind:
    candidate = Candidate(name, title, "unet", "Needs no prompt.", "3f" * 32, {"backend": "openvino"})
    return Kind(candidate, skill, {"decode": 23.0, "infer": 17.2, "postprocess": 6.4})


KINDS: Sequence[Kind] = (
    _unet("unet-resnet18", "U-Net ResNet-18", 0.93),
    _unet("unet-mobilenet", "U-Net MobileNetV2, trained on the packing house's own images of November", 0.945),
    _sam("mobile-sam-box", "MobileSAM, box", 0.955),
    _sam("mobile-sam-box-unet", "MobileSAM, box of U-Net", 0.915, infer=17.2),
    _sam("mobile-sam-point", "MobileSAM, point", 0.74),
    _sam("mobile-sam-point-oracle", "MobileSAM, point, best of three", 0.86, oracle=True),
    _sam("fine-tuned-box", "Fine-tuned, box", 0.965),
)


def invented_group(
    name: str, title: str, *, images: int, classes: bool, seed: int, kinds: Sequence[Kind] = KINDS
) -> Group:
    return Group(
        name=name,
        title=title,
        description="Photographs of oranges.",
        images=images,
        fruits=images * 3 if classes else 0,
        results=tuple(
            _result(kind, images=images, classes=classes, rng=np.random.default_rng([seed, place]))
            for place, kind in enumerate(kinds)
        ),
    )


def invented_results(groups: Sequence[Group], *, notes: tuple[str, ...] = ()) -> Results:
    return Results(
        groups=tuple(groups),
        machine={"processor": "A processor of two cores", "openvino": "2026.4.1"},
        commit="0123456-dirty",
        created_at="2026-11-22T20:00:00Z",
        seed=7,
        options={"data": "fruit", "rendered": "100"},
        notes=notes,
    )


@cache
def full_results() -> Results:
    """Return seven candidates on two groups."""
    return invented_results(
        [
            invented_group("fruit-test", "Real photographs, test part", images=63, classes=False, seed=1),
            invented_group("rendered", "Rendered scenes", images=100, classes=True, seed=3),
        ],
        notes=("SAM ViT-B was left out: its weights are not available.",),
    )


def invented_gallery(results: Results, *, height: int = 360) -> list[GalleryImage]:
    """Return three best and three worst images of every candidate and group, worst first."""
    made = []
    for group in results.groups:
        for each in group.results:
            ranked = sorted(each.per_image, key=lambda score: score.fruit_iou)
            kinds: list[tuple[Literal["best", "worst"], Sequence[ImageScore]]] = [
                ("worst", ranked[:3]),
                ("best", ranked[-3:]),
            ]
            for kind, scores in kinds:
                for number, score in enumerate(scores):
                    jpeg = _noise(number, height)
                    made.append(GalleryImage(group.name, each.candidate.name, score.name, kind, score.fruit_iou, jpeg))
    return made


def _result(kind: Kind, *, images: int, classes: bool, rng: np.random.Generator) -> CandidateResult:
    ious = np.clip(1 - rng.gamma(1.2, (1 - kind.skill) / 1.2, images), 0.02, 1)
    prompted = kind.candidate.family == "sam" and not kind.candidate.name.endswith("-unet")
    measures = {"fruit_iou_per_image": _interval(ious), "fruit_boundary_f_per_image": _interval(ious**3)}
    if prompted:
        measures["prompted_iou_per_fruit"] = _interval(ious)
    if classes:
        measures["object_recall"] = _interval(ious**0.2)
    if classes and kind.candidate.family == "unet":
        measures["infected_iou_per_image"] = _interval(ious**2)
        measures["infected_fraction_bias_per_image"] = _interval((0.9 - ious) / 30)
    scores = np.clip(ious * 0.7 + 0.3 + rng.normal(0, 0.03, ious.size), 0, 1.04)
    return CandidateResult(
        candidate=kind.candidate,
        measures=measures,
        timing_ms={**kind.timing_ms, "total": sum(kind.timing_ms.values()) + 1.5},
        per_image=tuple(ImageScore(f"IMG_{number:06d}", float(iou), {}) for number, iou in enumerate(ious)),
        score_calibration=calibrate(scores, ious) if prompted else None,
    )


def _interval(values: NDArray[np.float64]) -> Interval:
    mean, error = float(values.mean()), float(values.std() / values.size**0.5)
    return Interval(mean, mean - 2 * error, mean + 2 * error)


@cache
def _noise(seed: int, height: int) -> bytes:
    small = np.random.default_rng(seed).integers(0, 255, (height // 4, height * 2 // 3, 3), np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(small).resize((height * 8 // 3, height)).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
