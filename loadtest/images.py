"""The images that are sent: rendered fruit on a belt or JPEG files of a folder, with prompts that fit them."""

from __future__ import annotations

import io
import struct
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import PIL.Image

from models.data.samples import Instance, Sample
from models.errors import PomonaError
from models.images import decode
from models.synthetic import Background, Layout, RenderOptions, encode_jpeg, render
from models.types import Point, Prompt, Size

IMAGE: Final = Size(1200, 1800)
"""Size of the image in most benchmarks."""

_LINE: Final = RenderOptions(background=Background.BELT, fruits=5, layout=Layout.APART, infected_share=0.2)
_JPEG_QUALITY: Final = 90
_RENDERED: Final = 4
_MAX_PIXELS: Final = 200_000_000
_COMMENT: Final = b"\xff\xfe"
_START_OF_IMAGE: Final = b"\xff\xd8"


@dataclass(frozen=True, slots=True)
class RenderedImage:
    """A rendered image with a prompt.

    Attributes:
        name: width x height.
        data: JPEG.
        prompt: one point in the middle of a fruit.
    """

    name: str
    data: bytes
    prompt: Prompt

    @property
    def point(self) -> Point:
        """The prompt's point."""
        return self.prompt.points[0]


@dataclass(frozen=True, slots=True)
class PromptedImage:
    """A JPEG with prompts as /v1/segment takes them, each a point or a box."""

    jpeg: bytes
    prompts: tuple[dict[str, Any], ...]

    def unseen(self) -> PromptedImage:
        """Return the same image under a new hash, see `unique`."""
        return PromptedImage(unique(self.jpeg), self.prompts)


def render_line(seed: int, size: Size) -> Sample:
    """Render five citrus fruits, apart from one another, on a belt."""
    return render(seed, size, options=_LINE)


def render_image(seed: int, size: Size) -> RenderedImage:
    """Render fruit on a belt and encode it as JPEG of quality 90, with a point on one fruit."""
    sample = render_line(seed, size)
    x0, y0, x1, y1 = sample.instances[-1].box
    middle = Point((x0 + x1) / 2, (y0 + y1) / 2)
    return RenderedImage(f"{size.width} x {size.height}", encode_jpeg(sample, _JPEG_QUALITY), Prompt((middle,)))


def rendered_images(size: Size) -> tuple[PromptedImage, ...]:
    """Render some images, with a point in each visible fruit and a box around it."""
    return tuple(_with_prompts(render_line(seed, size)) for seed in range(_RENDERED))


def images_of_folder(folder: Path) -> tuple[PromptedImage, ...]:
    """Read the JPEG files of a folder, with a point in the middle and a box around the middle half.

    Raises:
        ValueError: a file is not an intact JPEG.
    """
    return tuple(_image_of_file(path) for path in jpeg_files(folder))


def jpeg_files(folder: Path) -> list[Path]:
    """Return the files of a folder whose names say JPEG."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in {".jpg", ".jpeg"})


def unique(jpeg: bytes) -> bytes:
    """Return the same image under a new hash, by a comment at its front, so that its embedding is not cached."""
    comment = uuid.uuid4().bytes
    return b"".join([_START_OF_IMAGE, _COMMENT, struct.pack(">H", len(comment) + 2), comment, jpeg[2:]])


def padded_jpeg(size: Size, length: int) -> bytes:
    """Return a grey JPEG of `length` bytes: it is padded with zeros, which decoders do not read.

    Raises:
        ValueError: the JPEG itself is longer.
    """
    encoded = io.BytesIO()
    PIL.Image.new("RGB", (size.width, size.height), (128, 128, 128)).save(encoded, "JPEG")
    data = encoded.getvalue()
    if len(data) > length:
        raise ValueError(f"length must be at least {len(data)}, the bytes of a JPEG of {size}, got {length}")
    return data.ljust(length, b"\0")


def _with_prompts(sample: Sample) -> PromptedImage:
    prompts: list[dict[str, Any]] = []
    for fruit in sample.instances:
        prompts += [_point(*_deepest(sample, fruit)), _box(*fruit.box)]
    return PromptedImage(encode_jpeg(sample, _JPEG_QUALITY), tuple(prompts))


def _image_of_file(path: Path) -> PromptedImage:
    jpeg = path.read_bytes()
    if not jpeg.startswith(_START_OF_IMAGE):
        raise ValueError(f"{path} is not a JPEG.")
    try:
        size = decode(jpeg, max_pixels=_MAX_PIXELS).size
    except PomonaError as error:
        raise ValueError(f"{path}: {error}") from error
    width, height = size.width, size.height
    box = _box(width / 4, height / 4, width * 3 / 4, height * 3 / 4)
    return PromptedImage(jpeg, (_point(width / 2, height / 2), box))


def _deepest(sample: Sample, fruit: Instance) -> tuple[float, float]:
    """Return the pixel of a fruit that is farthest from its edge: on it even where others cover its centre."""
    inside = np.pad((np.asarray(sample.instance_map) == fruit.id).astype(np.uint8), 1)
    depth = cv2.distanceTransform(inside, cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return float(x), float(y)


def _point(x: float, y: float) -> dict[str, Any]:
    return {"points": [[x, y]]}


def _box(x0: float, y0: float, x1: float, y1: float) -> dict[str, Any]:
    return {"box": [x0, y0, x1, y1], "multimask": False}
