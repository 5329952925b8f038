"""Turns captures into what people label and models learn from: Label Studio's tasks, COCO, or training folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from models.data.exports import (
    LABELS,
    LabelTags,
    coco_annotations,
    coco_categories,
    label_studio_results,
    write_index_masks,
)
from models.errors import MaskError, PomonaError
from models.types import Size
from service.api import schema
from service.api.annotations import found_fruits
from service.capture.folder import CaptureFolderError, Kept
from service.capture.records import Capture, Reason

ExportFormat = Literal["label-studio", "coco", "folders"]

ANNOTATIONS: Final = "annotations.json"
IMAGES: Final = "images"


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """How captures are exported.

    Attributes:
        reasons: of those that are exported; empty for all.
        image_prefix: what Label Studio's tasks have before an image's name.
        from_name: name of the tag with the brush labels.
        to_name: name of the tag with the image.
    """

    reasons: Sequence[Reason] = ()
    image_prefix: str = ""
    from_name: str = "label"
    to_name: str = "image"


@dataclass(frozen=True, slots=True)
class Exported:
    """What was exported.

    Attributes:
        images: how many.
        without_answer: how many were left out, because nothing says what is in them.
    """

    images: int
    without_answer: int


class ExportError(PomonaError):
    """Captures cannot be exported."""


def export(captures: Sequence[Kept], to: ExportFormat, out: Path, options: ExportOptions) -> Exported:
    """Export captures into a new folder; their images go to its folder `images`.

    Args:
        captures: to export.
        to: what is written beside the images.
        out: the folder, which must not exist yet or must be empty.
        options: which captures, and names.

    Raises:
        ExportError: the folder is in use or cannot be written.
        CaptureFolderError: a capture cannot be read.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise ExportError(f"The folder to export to must be empty, {out} is not.")
        (out / IMAGES).mkdir()
        return _WRITERS[to](list(_chosen(captures, options)), out, options)
    except MaskError as error:
        raise ExportError(f"A capture's record is damaged: {error.detail}") from error
    except OSError as error:
        raise ExportError(f"{out} cannot be written: {error.strerror or error}.") from error


_Chosen = tuple[Kept, Capture]


def _chosen(captures: Sequence[Kept], options: ExportOptions) -> Iterator[_Chosen]:
    for kept in captures:
        capture = kept.read()
        if not options.reasons or set(options.reasons) & set(capture.reasons):
            yield kept, capture


def _copy_image(kept: Kept, capture: Capture, out: Path) -> str:
    """Copy an image, and return its name."""
    name = f"{kept.path.name}{Path(capture.file).suffix}"
    try:
        shutil.copyfile(kept.path / capture.file, out / IMAGES / name)
    except FileNotFoundError as error:
        raise CaptureFolderError(f"The capture {kept.path} has no {capture.file}.") from error
    return name


def _to_label_studio(chosen: Sequence[_Chosen], out: Path, options: ExportOptions) -> Exported:
    tags = LabelTags("brushlabels", options.from_name, options.to_name, LABELS)
    tasks = []
    for kept, capture in chosen:
        name = _copy_image(kept, capture, out)
        data = {
            "image": f"{options.image_prefix}{name}",
            "reasons": ", ".join(capture.reasons),
            "captured_at": capture.captured_at,
            "request_id": capture.request_id,
            **{key: value for key, value in capture.frame.model_dump().items() if value is not None},
        }
        task: dict[str, Any] = {"data": data}
        if capture.answer is not None:
            fruits = found_fruits(capture.answer.fruits)
            task["predictions"] = [
                {
                    "model_version": _version(capture.answer.models),
                    "score": min((fruit.score for fruit in fruits), default=0.0),
                    "result": label_studio_results(fruits, tags),
                }
            ]
        tasks.append(task)
    (out / ANNOTATIONS).write_text(json.dumps(tasks), "utf-8")
    return Exported(len(tasks), 0)


def _to_coco(chosen: Sequence[_Chosen], out: Path, _: ExportOptions) -> Exported:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (kept, capture, answer) in enumerate(_answered(chosen), start=1):
        name = _copy_image(kept, capture, out)
        images.append({"id": number, "file_name": name, "width": capture.image.width, "height": capture.image.height})
        fruits = found_fruits(answer.fruits)
        annotations += coco_annotations(fruits, image_id=number, first_id=len(annotations) + 1)
    content = {"images": images, "annotations": annotations, "categories": coco_categories()}
    (out / ANNOTATIONS).write_text(json.dumps(content), "utf-8")
    return Exported(len(images), len(chosen) - len(images))


def _to_folders(chosen: Sequence[_Chosen], out: Path, _: ExportOptions) -> Exported:
    images = 0
    for kept, capture, answer in _answered(chosen):
        name = _copy_image(kept, capture, out)
        size = Size(capture.image.height, capture.image.width)
        write_index_masks(out, Path(name).stem, found_fruits(answer.fruits), size)
        images += 1
    return Exported(images, len(chosen) - images)


def _answered(chosen: Sequence[_Chosen]) -> Iterator[tuple[Kept, Capture, schema.InspectResponse]]:
    """Yield the captures with an answer: as an image without annotations, the others would be ones without fruit."""
    for kept, capture in chosen:
        if capture.answer is not None:
            yield kept, capture, capture.answer


def _version(models: schema.InspectModels) -> str:
    """Name the models and revisions of an answer."""
    used = [model for model in (models.unet, models.sam, models.detector) if model is not None]
    return " ".join(f"{model.name}@{model.revision}" for model in used)


_WRITERS: Final[dict[ExportFormat, Callable[[Sequence[_Chosen], Path, ExportOptions], Exported]]] = {
    "label-studio": _to_label_studio,
    "coco": _to_coco,
    "folders": _to_folders,
}
