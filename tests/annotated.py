"""Writes small annotated sets for the tests of the readers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray
from PIL import ExifTags

YOLOX_NANO = Path(__file__).resolve().parents[2] / "shared" / "models" / "yolox_nano.onnx"
"""A YOLOX-Nano with COCO's classes."""

needs_yolox_nano = pytest.mark.skipif(
    not YOLOX_NANO.is_file(), reason="the detector ../shared/models/yolox_nano.onnx is not beside this checkout"
)

FRUIT = Path(__file__).resolve().parents[2] / "shared" / "data" / "fruit"
"""Real photographs with masks, which are not part of the project."""

needs_real_fruit = pytest.mark.skipif(
    not FRUIT.is_dir(), reason="the photographs of ../shared/data/fruit are not beside this checkout"
)


def write_image(path: Path, width: int = 80, height: int = 40, *, seed: int = 0, orientation: int = 1) -> Path:
    """A JPEG or PNG of noise; `width` and `height` as they lie in the file, before turning."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    exif = PIL.Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    PIL.Image.fromarray(noise).save(path, exif=exif)
    return path


def write_index(path: Path, values: NDArray[np.integer]) -> Path:
    """An index PNG of 8 or 16 bits, as the array has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(values).save(path)
    return path


def write_json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), "utf-8")
    return path


def result(
    kind: str, label: str, value: Mapping[str, object], *, size: tuple[int, int] = (80, 40), **more: object
) -> dict[str, object]:
    """A region as Label Studio writes it; `size` is width and height of the image."""
    return {
        "type": kind,
        "id": "r1",
        "original_width": size[0],
        "original_height": size[1],
        "image_rotation": 0,
        "value": {**value, kind: [label]},
        **more,
    }


def polygon(label: str, points: Sequence[tuple[float, float]], **more: object) -> dict[str, object]:
    """A polygon in percent."""
    size = more.pop("size", (80, 40))
    assert isinstance(size, tuple)
    return result(
        "polygonlabels", label, {"points": [list(each) for each in points], "closed": True}, size=size, **more
    )


def square(label: str, x0: float, y0: float, x1: float, y1: float, **more: object) -> dict[str, object]:
    """An upright rectangle as a polygon, in percent."""
    return polygon(label, [(x0, y0), (x1, y0), (x1, y1), (x0, y1)], **more)


def task(image: str, results: Sequence[Mapping[str, object]], **more: object) -> dict[str, object]:
    """A task with one annotation."""
    return {"id": 1, "data": {"image": image}, "annotations": [{"id": 5, "result": list(results)}], **more}
