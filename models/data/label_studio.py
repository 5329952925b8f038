"""Read Label Studio's JSON export, full or JSON-MIN.

Polygons, brush masks, rectangles and ellipses are read, rotated ones too. Coordinates are percentages of the image as
the browser showed it: upright. A copy of another size therefore fits as long as its proportions are the same, but an
annotation made without applying the EXIF orientation of the file is rejected.

If an image has several annotations, the one marked as ground truth counts, otherwise the last one that was not
cancelled. Results that are not regions (choices, ratings, texts, relations) and predictions are skipped. An annotation
without any region means that there is no fruit. JSON-MIN does not say which results belong together, so only regions
that carry their class themselves are read from it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, FiniteFloat, PositiveFloat, PositiveInt, ValidationError

from models.data.brush import decode_brush
from models.data.dataset import ClassMap, Dataset, Item, Problem, name_items
from models.data.image_files import ImageFolder
from models.data.label_studio_tasks import Json, annotated_images, tags_of
from models.data.regions import Region, RegionFault, paint_readable, region_of_mask, region_of_rings
from models.data.samples import LabelMaps
from models.errors import DataError
from models.types import PixelClass, Size


@dataclass(frozen=True, slots=True)
class Results:
    """The results of one annotation, as they are in the file.

    Attributes:
        results: results with a `value`.
        classes: meaning of their labels.
    """

    results: Sequence[Json]
    classes: ClassMap

    def rasterise(self, size: Size) -> LabelMaps:
        """Rasterise the results; see `models.data.dataset.Annotation`."""
        return paint_readable(
            (
                (f"region {result.get('id') or number}", partial(region_of_result, result, self.classes, size))
                for number, result in enumerate(self.results, start=1)
            ),
            size,
        )

    def content(self) -> bytes:
        """Return the results as JSON with sorted keys."""
        return json.dumps(self.results, sort_keys=True).encode()


def open_label_studio(export: Path, tasks: Sequence[object], images: ImageFolder, classes: ClassMap) -> Dataset:
    """List what an export annotates.

    Args:
        export: the JSON file, named in problems.
        tasks: parsed content of the file.
        images: folder of the images.
        classes: meaning of the labels.

    Returns:
        The set, with each annotated image of a task of several. Tasks without an annotation, with only cancelled
        annotations, or without their image are problems, and so is a second task of the same image.
    """
    items: dict[Path, Item] = {}
    problems: list[Problem] = []
    tags = tags_of(tasks)
    for number, task in enumerate(tasks, start=1):
        identity = task.get("id", number) if isinstance(task, Mapping) else number
        try:
            annotated = annotated_images(task, tags, images)
        except DataError as error:
            problems.append(Problem(export, f"task {identity}: {error.detail}"))
            continue
        for references, results in annotated:
            try:
                path = _find(references, images)
            except DataError as error:
                problems.append(Problem(export, f"task {identity}: {error.detail}"))
                continue
            if path in items:
                problems.append(Problem(path, "is annotated by several tasks; only the first counts"))
            items.setdefault(path, Item(path, Results(results, classes)))
    return Dataset("label-studio", export, name_items(images.folder, items.values()), tuple(problems))


def _find(references: Sequence[str], images: ImageFolder) -> Path:
    for reference in references[:-1]:
        try:
            return images.find(reference)
        except DataError:
            continue
    return images.find(references[-1])


_HALF_COVERED: Final = 128
_ELLIPSE_VERTICES: Final = 720  # within 0.001 % of the radius


class _Polygon(BaseModel):
    points: list[tuple[FiniteFloat, FiniteFloat]] = Field(min_length=3)
    closed: Literal[True] = True


class _Rectangle(BaseModel):
    x: FiniteFloat
    y: FiniteFloat
    width: PositiveFloat
    height: PositiveFloat
    rotation: FiniteFloat = 0


class _Ellipse(BaseModel):
    x: FiniteFloat
    y: FiniteFloat
    radius_x: PositiveFloat = Field(alias="radiusX")
    radius_y: PositiveFloat = Field(alias="radiusY")
    rotation: FiniteFloat = 0


class _Brush(BaseModel):
    format: Literal["rle"]
    rle: list[Annotated[int, Field(ge=0, le=255)]]


class _Result(BaseModel):
    original_width: PositiveInt
    original_height: PositiveInt
    image_rotation: float | None = None
    value: dict[str, Any]


_Shape: TypeAlias = _Polygon | _Rectangle | _Ellipse | _Brush

# By a key that only this shape has.
_SHAPES: Final[Mapping[str, type[_Shape]]] = {
    "points": _Polygon,
    "rle": _Brush,
    "radiusX": _Ellipse,
    "height": _Rectangle,
}


def region_of_result(result: Mapping[str, Any], classes: ClassMap, size: Size) -> Region:
    """Rasterise one result.

    Args:
        result: result with `type`, `original_width`, `original_height` and `value`, as in the full export.
        classes: meaning of its label.
        size: size of the upright image.

    Raises:
        RegionFault: the result has no class or several, its shape is not supported or invalid, or it covers no pixel.
        DataError: the class is not listed, or the annotated image had other proportions.
    """
    try:
        checked = _Result.model_validate(result)
        kind = next((key for key in _SHAPES if key in checked.value), None)
        if kind is None:
            raise RegionFault(
                f"must be a polygon, brush mask, rectangle or ellipse, got {result.get('type', 'no type')}"
            )
        shape = _SHAPES[kind].model_validate(checked.value)
    except ValidationError as error:
        raise RegionFault(
            "; ".join(_fault(details["loc"], details["msg"]) for details in error.errors()[:3])
        ) from error
    if checked.image_rotation:
        raise DataError(f"was drawn on an image rotated by {checked.image_rotation:g} degrees; rotate it back first")
    meant = _classes_of(checked.value, classes)
    pixel_class = next(iter(meant.values())) if len(set(meant.values())) == 1 else PixelClass.IGNORE
    labelled = Size(checked.original_height, checked.original_width)
    check_proportions(labelled, size)
    region = _rasterise(shape, pixel_class, labelled, size)
    if not meant:
        raise RegionFault("has no class", region)
    if len(set(meant.values())) > 1:
        raise RegionFault(f"must have one class, has {', '.join(meant)}", region)
    return region


def _rasterise(shape: _Shape, pixel_class: PixelClass, labelled: Size, size: Size) -> Region:
    match shape:
        case _Brush():
            return region_of_mask(pixel_class, _brush_mask(bytes(shape.rle), labelled, size))
        case _Polygon():
            ring = np.array(shape.points) * _percent(size)
        case _Rectangle():
            ring = _rectangle(shape, size)
        case _Ellipse():
            ring = _ellipse(shape, size)
    return region_of_rings(pixel_class, [ring], size)


def check_proportions(labelled: Size, size: Size) -> None:
    """Reject an annotation that was made for an image of other proportions.

    Args:
        labelled: size of the image according to the annotation.
        size: size of the upright image.

    Raises:
        DataError: the proportions differ by more than rounding a copy to whole pixels explains.
    """
    if labelled == size:
        return
    turned = (labelled.height, labelled.width) == (size.width, size.height)
    off = abs(labelled.width * size.height - labelled.height * size.width)
    if turned or off > labelled.width + labelled.height:
        hint = "; it was annotated without applying its EXIF orientation" if turned else ""
        raise DataError(
            f"was annotated at {labelled.width} x {labelled.height} pixels, but the upright image has "
            f"{size.width} x {size.height}{hint}"
        )


def _fault(where: tuple[int | str, ...], what: str) -> str:
    return f"{'.'.join(map(str, where)) or 'value'}: {what}"


def _classes_of(value: Mapping[str, Any], classes: ClassMap) -> dict[str, PixelClass]:
    """Return the classes of a region by the names it has for them; one, unless the region is faulty."""
    names = [name for key, each in value.items() if key.endswith("labels") and isinstance(each, list) for name in each]
    return {str(name): classes.of_name(str(name)) for name in names}


def _percent(size: Size) -> NDArray[np.float64]:
    return np.array([size.width, size.height]) / 100


def _brush_mask(rle: bytes, labelled: Size, size: Size) -> NDArray[np.bool_]:
    alpha = decode_brush(rle, labelled)
    if labelled != size:
        alpha = np.asarray(cv2.resize(alpha, (size.width, size.height), interpolation=cv2.INTER_LINEAR), np.uint8)
    mask: NDArray[np.bool_] = alpha >= _HALF_COVERED
    return mask


def _rectangle(shape: _Rectangle, size: Size) -> NDArray[np.float64]:
    """Return the corners, rotated clockwise about the corner that was the upper left one."""
    corner = np.array([shape.x, shape.y]) * _percent(size)
    sides = np.array([[0, 0], [shape.width, 0], [shape.width, shape.height], [0, shape.height]]) * _percent(size)
    return corner + sides @ _rotation(shape.rotation)


def _ellipse(shape: _Ellipse, size: Size) -> NDArray[np.float64]:
    """Return points of the outline, rotated clockwise about the centre."""
    angles = np.linspace(0, 2 * np.pi, _ELLIPSE_VERTICES, endpoint=False)
    radii = np.array([shape.radius_x, shape.radius_y]) * _percent(size)
    around = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii
    return np.array([shape.x, shape.y]) * _percent(size) + around @ _rotation(shape.rotation)


def _rotation(degrees: float) -> NDArray[np.float64]:
    """Return the matrix that rotates row vectors [x, y], y down, clockwise."""
    angle = np.deg2rad(degrees)
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
