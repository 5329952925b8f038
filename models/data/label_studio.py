"""Label Studio's JSON export, full or JSON-MIN -> items.

Read are polygons, brush masks, rectangles and ellipses, turned ones too. Coordinates are percent of the image as the
browser showed it: upright. So a copy of another size will do, as long as its proportions are the same; but an
annotation for the image as it lies in a file that asks to be turned is refused.

Of several annotations of an image the one marked as ground truth counts, else the last that was not cancelled. Results
that are no regions (choices, ratings, texts, relations) and predictions are not read. An annotation without any region
says that there is no fruit. JSON-MIN does not tell which results belong together, so there only regions that carry
their class themselves are read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from models.data.dataset import ClassMap, Dataset, Item, Problem, name_items
from models.data.image_files import ImageFolder, names_image
from models.data.regions import Drawn, paint
from models.data.shapes import draw_result
from models.errors import DataError
from models.types import Size

_Json: TypeAlias = Mapping[str, Any]

_REGIONS: Final = frozenset({"polygon", "brush", "rectangle", "ellipse", "keypoint", "vector", "bitmask"})


@dataclass(frozen=True, slots=True)
class Results:
    """The results of one annotation, as they are in the file.

    Attributes:
        results: those with a `value`.
        classes: what their labels mean.
    """

    results: Sequence[_Json]
    classes: ClassMap

    def draw(self, size: Size) -> Drawn:
        """Draw them; see `models.data.dataset.Annotation`."""
        regions = []
        for number, result in enumerate(self.results, start=1):
            try:
                regions.append(draw_result(result, self.classes, size))
            except DataError as error:
                raise DataError(f"region {result.get('id') or number}: {error.detail}") from error
        return paint(regions, size)

    def content(self) -> bytes:
        """The results as JSON, keys sorted."""
        return json.dumps(self.results, sort_keys=True).encode()


def open_label_studio(export: Path, tasks: Sequence[object], images: ImageFolder, classes: ClassMap) -> Dataset:
    """List what an export annotates.

    Args:
        export: the JSON file, to name it in problems.
        tasks: what it holds.
        images: where the images are.
        classes: what the labels mean.

    Returns:
        The set. A task without annotation, with cancelled ones only, or without its image is a problem, and so is a
        second one of the same image.
    """
    items: dict[Path, Item] = {}
    problems: list[Problem] = []
    for number, task in enumerate(tasks, start=1):
        try:
            item = _item(task, images, classes)
        except DataError as error:
            identity = task.get("id", number) if isinstance(task, Mapping) else number
            problems.append(Problem(export, f"task {identity}: {error.detail}"))
            continue
        if item.image in items:
            problems.append(Problem(item.image, "is annotated by several tasks; the first counts"))
        items.setdefault(item.image, item)
    return Dataset("label-studio", export, name_items(images.folder, items.values()), tuple(problems))


def _item(task: object, images: ImageFolder, classes: ClassMap) -> Item:
    if not isinstance(task, Mapping):
        raise DataError("is not an object")
    results = _results(task)
    return Item(_image(task, images), Results(results, classes))


def _image(task: _Json, images: ImageFolder) -> Path:
    data = task.get("data", task)  # JSON-MIN has the data's keys at the top
    references = [task.get("file_upload"), data.get("image") if isinstance(data, Mapping) else None]
    if isinstance(data, Mapping):
        references += data.values()
    named = [each for each in references if isinstance(each, str) and names_image(each)]
    if not named:
        raise DataError("names no image; a URL or path that ends like one, such as .jpg, is right")
    for reference in named[:-1]:
        try:
            return images.find(reference)
        except DataError:
            continue
    return images.find(named[-1])


def _results(task: _Json) -> list[_Json]:
    if "annotations" not in task:
        return list(_minimal_results(task))
    annotations = task["annotations"]
    if not isinstance(annotations, list) or not all(isinstance(each, Mapping) for each in annotations):
        raise DataError("has 'annotations' that are no list of objects")
    if not annotations:
        raise DataError("is not annotated")
    kept = [each for each in annotations if not each.get("was_cancelled")]
    if not kept:
        raise DataError("was skipped by its annotator")
    chosen = next((each for each in kept if each.get("ground_truth")), None)
    # Written as ISO 8601 in one time zone, so they sort as text; of equal ones the last.
    chosen = chosen or max(reversed(kept), key=lambda each: str(each.get("updated_at") or each.get("created_at") or ""))
    results = chosen.get("result")
    if not isinstance(results, list) or not all(isinstance(each, Mapping) for each in results):
        raise DataError("has an annotation whose 'result' is no list of objects")
    return list(_regions(results))


def _minimal_results(task: _Json) -> Iterator[_Json]:
    """Results as the full export has them: JSON-MIN writes `value` and the size into one object."""
    if task.get("annotation_id") is None:
        raise DataError("is not annotated")
    for key, values in task.items():
        if not isinstance(values, list):
            continue
        for value in values:
            if isinstance(value, Mapping) and any(name.endswith("labels") for name in value):
                yield {**value, "type": key, "value": value}


def _regions(results: Sequence[_Json]) -> Iterator[_Json]:
    """The regions with their class; the shape alone that some projects write as well is left out."""
    labelled = {each.get("id") for each in results if _has_labels(each)}
    for result in results:
        if _has_labels(result) or (result.get("type") in _REGIONS and result.get("id") not in labelled):
            yield result


def _has_labels(result: _Json) -> bool:
    return str(result.get("type", "")).endswith("labels")
