"""Write fruit that a model found as annotations: Label Studio's JSON, COCO's, or folders with index masks.

The readers in this package read them back, with the same areas. A fruit is a healthy region with its infected part as
a region on top; labelled as one infected region, a fruit with a spot would teach that all of it is rotten.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import PIL.Image

from models.data.brush import encode_brush
from models.masks import CroppedMask, rle_of
from models.polygons import outlines_of
from models.types import PixelClass, Size

Control = Literal["brushlabels", "polygonlabels", "rectanglelabels"]
"""Types of Label Studio's regions that a model's fruit can be."""

LABELS: Final[Mapping[PixelClass, str]] = {PixelClass.HEALTHY: "Healthy", PixelClass.INFECTED: "Infected"}
_CATEGORIES: Final[Mapping[PixelClass, int]] = {PixelClass.HEALTHY: 2, PixelClass.INFECTED: 3}
"""COCO's ids, as in the exports of the Python client."""


@dataclass(frozen=True, slots=True, eq=False)
class FoundFruit:
    """A fruit that a model found.

    Attributes:
        mask: its pixels.
        infected: its infected pixels, of the same image; may be empty.
        score: 0 to 1.
    """

    mask: CroppedMask
    infected: CroppedMask
    score: float

    def parts(self) -> Iterator[tuple[PixelClass, CroppedMask]]:
        """Yield its regions: all of it, then what is infected, where anything is."""
        yield PixelClass.HEALTHY, self.mask
        if self.infected.area:
            yield PixelClass.INFECTED, self.infected


@dataclass(frozen=True, slots=True)
class LabelTags:
    """Where regions belong in a labelling configuration of Label Studio.

    Attributes:
        control: type of the regions.
        from_name: name of the tag with the labels.
        to_name: name of the tag with the image.
        labels: its names of the classes; regions of others are left out.
    """

    control: Control
    from_name: str
    to_name: str
    labels: Mapping[PixelClass, str]


def label_studio_region(
    mask: CroppedMask, tags: LabelTags, label: str, score: float, region_id: str
) -> Iterator[dict[str, Any]]:
    """Yield the results of a prediction that show a mask: one, but for polygons one for each of its parts.

    Args:
        mask: not empty.
        tags: where it belongs.
        label: its label.
        score: 0 to 1.
        region_id: different from those of all other regions of an annotation.
    """
    size = mask.size
    for part, value in enumerate(_values(mask, tags.control), start=1):
        yield {
            "id": region_id if part == 1 else f"{region_id}-{part}",
            "type": tags.control,
            "from_name": tags.from_name,
            "to_name": tags.to_name,
            "original_width": size.width,
            "original_height": size.height,
            "image_rotation": 0,
            "score": score,
            "value": {**value, tags.control: [label]},
        }


def label_studio_results(fruits: Sequence[FoundFruit], tags: LabelTags, prefix: str = "pomona") -> list[dict[str, Any]]:
    """Return the results of a prediction: fruit and, on top, what is infected of it; their ids begin with `prefix`."""
    number = 0
    results: list[dict[str, Any]] = []
    for fruit in fruits:
        for pixel_class, mask in fruit.parts():
            number += 1
            if (label := tags.labels.get(pixel_class)) is not None:
                results += label_studio_region(mask, tags, label, fruit.score, f"{prefix}-{number}")
    return results


def coco_annotations(fruits: Sequence[FoundFruit], *, image_id: int, first_id: int) -> list[dict[str, Any]]:
    """Return COCO's annotations of an image, masks as compressed RLE.

    Args:
        fruits: in the image.
        image_id: of the image.
        first_id: of the annotations, which count up from it.
    """
    annotations = []
    parts = [(fruit, pixel_class, mask) for fruit in fruits for pixel_class, mask in fruit.parts()]
    for number, (fruit, pixel_class, mask) in enumerate(parts, start=first_id):
        rle, (x0, y0, x1, y1) = rle_of(mask), mask.tight().box
        annotations.append(
            {
                "id": number,
                "image_id": image_id,
                "category_id": _CATEGORIES[pixel_class],
                "segmentation": {"size": list(rle.size), "counts": rle.counts},
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": mask.area,
                "iscrowd": 0,
                "score": fruit.score,
            }
        )
    return annotations


def coco_categories() -> list[dict[str, Any]]:
    """Return COCO's categories of such annotations."""
    return [{"id": number, "name": LABELS[pixel_class].lower()} for pixel_class, number in _CATEGORIES.items()]


def write_index_masks(root: Path, name: str, fruits: Sequence[FoundFruit], size: Size) -> None:
    """Write the masks of an image into the folders that `models.data.folders` reads.

    Args:
        root: gets `masks/NAME.png` and `instances/NAME.png`.
        name: of the image, without its ending.
        fruits: in the image.
        size: of the image.

    Raises:
        OSError: they cannot be written.
    """
    classes, numbers = np.zeros((size.height, size.width), np.uint8), np.zeros((size.height, size.width), np.uint16)
    for number, fruit in enumerate(fruits, start=1):
        for pixel_class, mask in fruit.parts():
            x0, y0, x1, y1 = mask.box
            classes[y0:y1, x0:x1][mask.pixels] = pixel_class
            numbers[y0:y1, x0:x1][mask.pixels] = number
    for folder, values in (("masks", classes), ("instances", numbers)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(values).save(root / folder / f"{name}.png")


def _values(mask: CroppedMask, control: Control) -> Iterator[dict[str, Any]]:
    """Yield the geometry of a mask, in Label Studio's percent."""
    size = mask.size
    if control == "brushlabels":
        yield {"format": "rle", "rle": list(encode_brush(mask))}
    elif control == "rectanglelabels":
        x0, y0, x1, y1 = mask.tight().box
        yield {
            "x": 100 * x0 / size.width,
            "y": 100 * y0 / size.height,
            "width": 100 * (x1 - x0) / size.width,
            "height": 100 * (y1 - y0) / size.height,
            "rotation": 0,
        }
    else:
        for outline, *_ in outlines_of(mask):  # the format has no holes
            points = outline * (100 / size.width, 100 / size.height)
            yield {"points": points.tolist(), "closed": True}
