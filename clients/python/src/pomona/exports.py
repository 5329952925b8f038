"""What was found, in the formats of other tools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pomona.brush import encode_brush
from pomona.errors import MissingPackage
from pomona.facts import ImageInfo, Labelled

if TYPE_CHECKING:
    import supervision

CATEGORIES: Final = {"object": 1, "healthy": 2, "infected": 3}
"""Class ids, the same in every export."""

_MOST_OF_A_PICTURE: Final = 10_000


def coco(image: ImageInfo, found: Sequence[Labelled], *, file_name: str, image_number: int) -> dict[str, Any]:
    """COCO's instances JSON (https://cocodataset.org/#format-data), masks as compressed RLE."""
    annotations = [
        {
            "id": image_number * _MOST_OF_A_PICTURE + number,
            "image_id": image_number,
            "category_id": CATEGORIES[each.label],
            "segmentation": {"size": list(each.mask.rle.size), "counts": each.mask.rle.counts},
            "bbox": [each.box.x0, each.box.y0, each.box.width, each.box.height],
            "area": each.area,
            "iscrowd": 0,
            "score": each.score,
            **each.facts,
        }
        for number, each in enumerate(found, start=1)
    ]
    picture = {"id": image_number, "file_name": file_name, "width": image.width, "height": image.height}
    categories = [{"id": number, "name": name} for name, number in CATEGORIES.items()]
    return {"images": [picture], "annotations": annotations, "categories": categories}


def label_studio(
    image_info: ImageInfo, found: Sequence[Labelled], *, image: str, from_name: str, to_name: str
) -> dict[str, Any]:
    """A task with one prediction; labels start with a capital, as Label Studio's own templates have them."""
    results = [
        {
            "id": f"pomona-{number}",
            "type": "brushlabels",
            "from_name": from_name,
            "to_name": to_name,
            "original_width": image_info.width,
            "original_height": image_info.height,
            "image_rotation": 0,
            "score": each.score,
            "value": {
                "format": "rle",
                "rle": encode_brush(each.mask.array),
                "brushlabels": [each.label.capitalize()],
            },
        }
        for number, each in enumerate(found, start=1)
    ]
    score = min((each.score for each in found), default=0.0)
    return {"data": {"image": image}, "predictions": [{"model_version": "pomona", "score": score, "result": results}]}


def to_supervision(found: Sequence[Labelled]) -> supervision.Detections:
    """`supervision.Detections`.

    Raises:
        MissingPackage: supervision is not installed.
    """
    try:
        import supervision as sv
    except ImportError as error:
        raise MissingPackage("supervision is not installed: pip install 'pomona-client[supervision]'.") from error
    if not found:
        return sv.Detections.empty()
    facts = {key: np.array([each.facts[key] for each in found]) for key in found[0].facts}
    return sv.Detections(
        xyxy=np.array([each.box for each in found], np.float32),
        mask=np.stack([each.mask.array for each in found]),
        confidence=np.array([each.score for each in found], np.float32),
        class_id=np.array([CATEGORIES[each.label] for each in found], np.int64),
        data={"class_name": np.array([each.label for each in found]), **facts},
    )
