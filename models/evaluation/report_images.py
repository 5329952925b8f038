"""Images that travel inside the page, and so must be small."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Final
from xml.etree.ElementTree import Element

import PIL.Image

from models.errors import DataError
from models.evaluation.report_markup import element
from models.evaluation.report_numbers import share
from models.evaluation.results import ImageFile, Subject

ALL_IMAGES: Final = 2_550_000
"""Bytes that the images of a page have between them; base64 makes four thirds of it, which leaves room for the rest
of a page of less than 4 MB."""

_QUALITY: Final = 75
_KINDS: Final = ("best", "worst")


def gallery(subject: Subject, images: Sequence[ImageFile], *, most: int) -> Element:
    """A subject's best and worst images, side by side.

    Args:
        subject: whose they are.
        images: of that subject in one group.
        most: bytes that each may have.

    Returns:
        Two columns that follow one another where there is no room.

    Raises:
        DataError: an image is no JPEG.
    """
    columns = []
    for kind in _KINDS:
        shown = [each for each in images if each.kind == kind]
        figures = [_figure(each, subject, most=most) for each in sorted(shown, key=lambda each: each.fruit_iou)]
        if kind == "best":
            figures.reverse()
        heading = element("h5", f"{kind.capitalize()} by fruit IoU")
        columns.append(element("div", heading, figures or element("p", "None.", class_="quiet")))
    return element("div", columns, class_="gallery")


def fitted(pil_image: ImageFile, *, most: int) -> tuple[bytes, tuple[int, int]]:
    """Make an image's file small enough.

    Args:
        pil_image: its JPEG stays as it is when it has no more than `most` bytes, and shrinks until then otherwise.
        most: bytes; an image of a few thousand always fits, one of a few hundred may not.

    Returns:
        The file, and its width and height.

    Raises:
        DataError: it is no JPEG.
    """
    try:
        with PIL.Image.open(io.BytesIO(pil_image.jpeg), formats=("JPEG",)) as opened:
            size = opened.size
            if len(pil_image.jpeg) <= most:
                return pil_image.jpeg, size
            pixels = opened.convert("RGB")
    except (OSError, PIL.Image.DecompressionBombError) as error:
        raise DataError(f"{pil_image.name}: its image for the report is no JPEG.") from error
    while True:
        buffer = io.BytesIO()
        pixels.resize(size, PIL.Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=_QUALITY, optimize=True)
        file = buffer.getvalue()
        if len(file) <= most or max(size) < 32:
            return file, size
        smaller = min((most / len(file)) ** 0.5, 0.95)
        size = max(1, round(size[0] * smaller)), max(1, round(size[1] * smaller))


def _figure(pil_image: ImageFile, subject: Subject, *, most: int) -> Element:
    file, (width, height) = fitted(pil_image, most=most)
    image = element(
        "img",
        src=f"data:image/jpeg;base64,{base64.b64encode(file).decode('ascii')}",
        alt=f"{pil_image.name}: outlines of the annotation and of {subject.title}, side by side",
        width=width,
        height=height,
    )
    told = element("span", f"fruit IoU {share(pil_image.fruit_iou)}", class_="figure-number")
    return element("figure", image, element("figcaption", element("span", pil_image.name, class_="name"), told))
