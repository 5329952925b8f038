"""The images that are sent: drawn oranges or JPEG files of a folder, each time other bytes with the same pixels."""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np

from loadtest.drawn import JPEG_QUALITY, render_line
from models.data.samples import Instance, Sample
from models.errors import PomonaError
from models.images import decode
from models.synthetic import encode_jpeg
from models.types import Size

_DRAWN: Final = 4
_MAX_PIXELS: Final = 200_000_000
_COMMENT: Final = b"\xff\xfe"
_START_OF_IMAGE: Final = b"\xff\xd8"


@dataclass(frozen=True, slots=True)
class Image:
    """An image with prompts that fit it.

    Attributes:
        jpeg: the encoded image.
        prompts: as the service takes them, each a point or a box.
    """

    jpeg: bytes
    prompts: tuple[dict[str, Any], ...]

    def anew(self) -> Image:
        """The same image as the service has not seen it."""
        return Image(unique(self.jpeg), self.prompts)


def drawn(size: Size) -> tuple[Image, ...]:
    """Some images of oranges, with a point in each visible fruit and a box around it."""
    return tuple(_image_of(render_line(seed, size)) for seed in range(_DRAWN))


def of_folder(folder: Path) -> tuple[Image, ...]:
    """The JPEG files of a folder as they are, with a point in the middle and a box around the middle half.

    Raises:
        ValueError: one of them is not a sound JPEG.
    """
    return tuple(_image_of_file(path) for path in jpeg_files(folder))


def jpeg_files(folder: Path) -> list[Path]:
    """The files of a folder that are JPEG by their names."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in {".jpg", ".jpeg"})


def unique(jpeg: bytes) -> bytes:
    """The same image under a new hash, so that no embedding is at hand for it: a comment is put at its front."""
    comment = uuid.uuid4().bytes
    return b"".join([_START_OF_IMAGE, _COMMENT, struct.pack(">H", len(comment) + 2), comment, jpeg[2:]])


def _image_of(sample: Sample) -> Image:
    prompts: list[dict[str, Any]] = []
    for fruit in sample.instances:
        prompts += [_point(*_deepest(sample, fruit)), _box(*fruit.box)]
    return Image(encode_jpeg(sample, JPEG_QUALITY), tuple(prompts))


def _image_of_file(path: Path) -> Image:
    jpeg = path.read_bytes()
    if not jpeg.startswith(_START_OF_IMAGE):
        raise ValueError(f"{path} is no JPEG.")
    try:
        size = decode(jpeg, max_pixels=_MAX_PIXELS).size
    except PomonaError as error:
        raise ValueError(f"{path}: {error}") from error
    width, height = size.width, size.height
    return Image(jpeg, (_point(width / 2, height / 2), _box(width / 4, height / 4, width * 3 / 4, height * 3 / 4)))


def _deepest(sample: Sample, fruit: Instance) -> tuple[float, float]:
    """The pixel of a fruit that is farthest from its edge: in it even where others cover its centre."""
    inside = np.pad((np.asarray(sample.instance_map) == fruit.id).astype(np.uint8), 1)
    depth = cv2.distanceTransform(inside, cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return float(x), float(y)


def _point(x: float, y: float) -> dict[str, Any]:
    return {"points": [[x, y]]}


def _box(x0: float, y0: float, x1: float, y1: float) -> dict[str, Any]:
    return {"box": [x0, y0, x1, y1], "multimask": False}
