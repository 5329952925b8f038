"""Read COCO's instances JSON (https://cocodataset.org/#format-data).

Outlines are filled by pixel centres, which may differ from pycocotools by a pixel along the edge. Groups (`iscrowd`)
are IGNORE, as in COCO's own evaluation, and so is the box of an object whose outline cannot be read. Coordinates are
pixels, so the upright image must have the stated size.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from pydantic import BaseModel, FiniteFloat, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError

from models.data.dataset import ClassMap, Dataset, Item, Problem, name_items
from models.data.image_files import ImageFolder
from models.data.regions import Region, RegionFault, paint_readable, region_of_mask, region_of_rings
from models.data.samples import LabelMaps
from models.errors import DataError, MaskError
from models.masks import MAX_PIXELS, Rle, decode_rle
from models.types import BinaryMask, PixelClass, Size

_Json: TypeAlias = Mapping[str, Any]


class _Image(BaseModel):
    id: int | str
    file_name: str
    width: PositiveInt
    height: PositiveInt


class _Category(BaseModel):
    id: int | str
    name: str


class _Runs(BaseModel):
    size: tuple[PositiveInt, PositiveInt]
    counts: str | list[NonNegativeInt]


class _Object(BaseModel):
    category_id: int | str
    segmentation: list[list[FiniteFloat]] | _Runs
    iscrowd: bool = False


class _Boxed(BaseModel):
    bbox: tuple[FiniteFloat, FiniteFloat, PositiveFloat, PositiveFloat]


@dataclass(frozen=True, slots=True)
class Objects:
    """The annotations of one image, as they are in the file.

    Attributes:
        size: size of the image, as the file states.
        objects: annotations.
        categories: category names by id.
        classes: meaning of the names.
    """

    size: Size
    objects: Sequence[_Json]
    categories: Mapping[int | str, str]
    classes: ClassMap

    def rasterise(self, size: Size) -> LabelMaps:
        """Rasterise the objects; see `models.data.dataset.Annotation`."""
        if size != self.size:
            raise DataError(
                f"was annotated at {self.size.width} x {self.size.height} pixels, but the upright image has "
                f"{size.width} x {size.height}"
            )
        return paint_readable(
            (
                (f"annotation {each.get('id', number)}", partial(self._region, each))
                for number, each in enumerate(self.objects, start=1)
            ),
            size,
        )

    def content(self) -> bytes:
        """Return the outlines with their class names as JSON with sorted keys."""
        content = [
            {
                "category": self.categories.get(each.get("category_id", "")),
                "segmentation": each.get("segmentation"),
                "iscrowd": each.get("iscrowd", 0),
            }
            for each in self.objects
        ]
        return json.dumps(content, sort_keys=True).encode()

    def _region(self, annotation: _Json) -> Region:
        category = annotation.get("category_id")
        name = self.categories.get(category) if isinstance(category, int | str) else None
        pixel_class = PixelClass.IGNORE if name is None else self.classes.of_name(name)
        try:
            checked = _Object.model_validate(annotation)
            region = self._shape(checked, PixelClass.IGNORE if checked.iscrowd else pixel_class)
        except ValidationError as error:
            raise RegionFault(_faults(error), self._box(annotation)) from error
        except RegionFault as fault:
            if fault.rest is None:
                raise RegionFault(fault.detail, self._box(annotation)) from fault
            raise
        if name is None:
            raise RegionFault(f"has category {category}, which the file does not list", region)
        return region

    def _shape(self, checked: _Object, pixel_class: PixelClass) -> Region:
        if isinstance(checked.segmentation, _Runs):
            return region_of_mask(pixel_class, _decode(checked.segmentation, self.size))
        if not checked.segmentation:
            raise RegionFault("has only a box; outlines or RLE are required")
        if any(len(ring) % 2 for ring in checked.segmentation):
            raise RegionFault("has an outline with an odd number of coordinates")
        rings = [np.array(ring, np.float64).reshape(-1, 2) for ring in checked.segmentation]
        return region_of_rings(pixel_class, rings, self.size)

    def _box(self, annotation: _Json) -> Region | None:
        """Return the box of an object whose outline is not known, as IGNORE; None without a box in the image."""
        try:
            x, y, width, height = _Boxed.model_validate(annotation).bbox
            corners = np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]])
            return region_of_rings(PixelClass.IGNORE, [corners], self.size)
        except (ValidationError, RegionFault):
            return None


def open_coco(file: Path, content: _Json, images: ImageFolder, classes: ClassMap) -> Dataset:
    """List what a COCO file annotates.

    Args:
        file: the JSON file, named in problems.
        content: parsed content of the file.
        images: folder of the images.
        classes: meaning of the category names.

    Returns:
        The set of all listed images; those without annotations are images without fruit. Missing images and annotations
        of images that are not listed are problems.

    Raises:
        DataError: a list of images, annotations or categories is missing, or a category is invalid.
    """
    lists = [content.get(key) for key in ("images", "annotations", "categories")]
    if not all(isinstance(each, list) for each in lists):
        raise DataError(f"{file}: must have the lists 'images', 'annotations' and 'categories' of COCO's format.")
    listed, annotations, named = (each or [] for each in lists)
    categories = _categories(file, named)
    problems: list[Problem] = []
    of_image: dict[int | str, list[_Json]] = defaultdict(list)
    for number, each in enumerate(annotations, start=1):
        if isinstance(each, Mapping) and isinstance(each.get("image_id"), int | str):
            of_image[each["image_id"]].append(each)
        else:
            problems.append(Problem(file, f"annotation number {number} has no 'image_id'"))
    items: dict[Path, Item] = {}
    seen = set()
    for number, each in enumerate(listed, start=1):
        try:
            image = _Image.model_validate(each)
            seen.add(image.id)
            path = images.find(image.file_name)
        except ValidationError as error:
            problems.append(Problem(file, f"image number {number}: {_faults(error)}"))
        except DataError as error:
            problems.append(Problem(file, f"image number {number}: {error.detail}"))
        else:
            if path in items:
                problems.append(Problem(path, "is listed several times; only the first counts"))
            size = Size(image.height, image.width)
            items.setdefault(path, Item(path, Objects(size, of_image[image.id], categories, classes)))
    unlisted = of_image.keys() - seen
    problems += [Problem(file, f"image {each} is annotated, but not listed") for each in sorted(map(str, unlisted))]
    return Dataset("coco", file, name_items(images.folder, items.values()), tuple(problems))


def _categories(file: Path, named: list[object]) -> dict[int | str, str]:
    try:
        checked = [_Category.model_validate(each) for each in named]
    except ValidationError as error:
        raise DataError(f"{file}: categories: {_faults(error)}") from error
    return {each.id: each.name for each in checked}


def _decode(runs: _Runs, size: Size) -> BinaryMask:
    if runs.size != (size.height, size.width):
        raise RegionFault(f"must have RLE of size {[size.height, size.width]}, has {list(runs.size)}")
    if isinstance(runs.counts, str):
        try:
            return decode_rle(Rle(runs.size, runs.counts), max_pixels=MAX_PIXELS)
        except MaskError as error:
            raise RegionFault(error.detail) from error
    # Compared before summing as numpy's integers: JSON's have no limit.
    if sum(runs.counts) != size.pixels:
        raise RegionFault(f"has RLE counts that do not add up to {size.pixels} pixels")
    values = np.arange(len(runs.counts)) % 2 == 1
    return np.repeat(values, runs.counts).reshape(size.width, size.height).T


def _faults(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, each['loc'])) or 'it'}: {each['msg']}" for each in error.errors()[:3])
