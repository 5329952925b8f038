"""The drawn picture that the bench sends, and a point on its first fruit."""

from __future__ import annotations

import io
from dataclasses import dataclass

import PIL.Image

from models.data.render import render_oranges
from models.types import Point, Prompt, Size


@dataclass(frozen=True, slots=True)
class DrawnPicture:
    """An encoded picture.

    Attributes:
        name: width x height.
        data: JPEG.
        prompt: a point in the middle of a fruit.
    """

    name: str
    data: bytes
    prompt: Prompt


def draw(seed: int, size: Size) -> DrawnPicture:
    """Draw oranges on a belt, JPEG quality 90."""
    scene = render_oranges(seed, size)
    encoded = io.BytesIO()
    PIL.Image.fromarray(scene.pixels).save(encoded, "JPEG", quality=90)
    box = scene.fruit_box(scene.instances.max())
    middle = Point((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2)
    return DrawnPicture(f"{size.width} x {size.height}", encoded.getvalue(), Prompt((middle,)))
