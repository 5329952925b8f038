"""The images of a sorting line that the load tests and the bench send."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from models.data.samples import Sample
from models.synthetic import Background, Layout, RenderOptions, encode_jpeg, render
from models.types import Point, Prompt, Size

JPEG_QUALITY: Final = 90

_LINE: Final = RenderOptions(background=Background.BELT, fruits=5, layout=Layout.APART, infected_share=0.2)


@dataclass(frozen=True, slots=True)
class DrawnImage:
    """An encoded image.

    Attributes:
        name: width x height.
        data: JPEG.
        prompt: a point in the middle of a fruit.
    """

    name: str
    data: bytes
    prompt: Prompt


def render_line(seed: int, size: Size) -> Sample:
    """Render five citrus fruits, apart from one another, on a belt."""
    return render(seed, size, options=_LINE)


def draw(seed: int, size: Size) -> DrawnImage:
    """Render fruit on a belt, JPEG quality 90, with a point on one of them."""
    sample = render_line(seed, size)
    x0, y0, x1, y1 = sample.instances[-1].box
    middle = Point((x0 + x1) / 2, (y0 + y1) / 2)
    return DrawnImage(f"{size.width} x {size.height}", encode_jpeg(sample, JPEG_QUALITY), Prompt((middle,)))
