"""Best and worst images of each candidate: left the outlines of the annotation, right those of the prediction."""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from typing import Final, Literal

import cv2
import numpy as np
import PIL.Image
from numpy.typing import NDArray

from models.data.samples import Sample
from models.errors import DataError
from models.evaluation.candidates import Answer
from models.metrics import is_fruit
from models.types import BinaryMask, PixelClass, Pixels

KEPT: Final = 3
"""Best images of each candidate, and worst."""

HEIGHT: Final = 360
WIDTH: Final = 480
"""Most pixels of each of the two sides."""

MAX_BYTES: Final = 2_550_000
"""Of all images of a report together: a third more in base64, which makes a page of about 4 MB at most."""

SHEET_KEPT: Final = 2
"""Worst images of each group in a contact sheet."""

SHEET_COLUMNS: Final = 3

_TILE: Final = (430, 200)
"""Most pixels of an image in a contact sheet, width and height."""

_QUALITY: Final = 80
_SMALLER_QUALITY: Final = 75

_FRUIT: Final = (86, 180, 233)  # sky blue
_INFECTED: Final = (204, 121, 167)  # reddish purple
_DARK: Final = (20, 20, 20)
_GAP: Final = 4
_LINE: Final = np.ones((2, 2), np.uint8)
_AROUND: Final = np.ones((3, 3), np.uint8)
_DATA_URI: Final = "data:image/jpeg;base64,"


@dataclass(frozen=True, slots=True, eq=False)
class GalleryImage:
    """One image of the gallery; the report holds it, `results.json` does not.

    Attributes:
        group: name of the group.
        candidate: name of the candidate.
        name: of the image.
        kind: whether it is one of the candidate's best or worst.
        fruit_iou: of the candidate on it, 0 to 1.
        jpeg: the file.
    """

    group: str
    candidate: str
    name: str
    kind: Literal["best", "worst"]
    fruit_iou: float
    jpeg: bytes = field(repr=False)

    @property
    def uri(self) -> str:
        """The file as a data URI."""
        return _DATA_URI + base64.b64encode(self.jpeg).decode("ascii")


@dataclass(slots=True)
class Gallery:
    """The best and worst images so far of one candidate on one group; no others stay in memory."""

    group: str
    candidate: str
    _best: list[GalleryImage] = field(default_factory=list, init=False)
    _worst: list[GalleryImage] = field(default_factory=list, init=False)

    def offer(self, sample: Sample, answer: Answer, fruit_iou: float) -> None:
        """Draw the image where it is among the best or worst so far; of equal ones the first stays."""
        if math.isnan(fruit_iou):
            return
        among_best = len(self._best) < KEPT or fruit_iou > self._best[-1].fruit_iou
        among_worst = len(self._worst) < KEPT or fruit_iou < self._worst[-1].fruit_iou
        if not (among_best or among_worst):
            return
        jpeg = side_by_side(sample, answer)
        image = GalleryImage(self.group, self.candidate, sample.name, "best", fruit_iou, jpeg)
        if among_best:
            self._best = sorted([*self._best, image], key=lambda each: -each.fruit_iou)[:KEPT]
        if among_worst:
            self._worst = sorted([*self._worst, replace(image, kind="worst")], key=lambda each: each.fruit_iou)[:KEPT]

    def images(self) -> list[GalleryImage]:
        """Return the best images, best first, then the worst, worst first; no image twice."""
        names = {each.name for each in self._best}
        # Of few images, the better half are the best.
        both = [*self._best, *(each for each in self._worst if each.name not in names)]
        both.sort(key=lambda each: -each.fruit_iou)
        best = both[: min(KEPT, math.ceil(len(both) / 2))]
        worst = both[len(best) :][::-1][:KEPT]
        return [*best, *(replace(each, kind="worst") for each in worst)]


def side_by_side(sample: Sample, answer: Answer) -> bytes:
    """Draw the outlines of the annotation, and beside them those of the prediction: fruit in blue, infected in purple.

    Returns:
        A JPEG file, at most `HEIGHT` high and twice `WIDTH` plus a gap wide.
    """
    size = sample.size
    scale = min(1.0, HEIGHT / size.height, WIDTH / size.width)
    shape = (max(1, round(size.width * scale)), max(1, round(size.height * scale)))
    small = np.asarray(cv2.resize(sample.pixels, shape, interpolation=cv2.INTER_AREA), np.uint8)
    annotated = is_fruit(sample.semantic) if sample.instance_map is None else sample.instance_map
    predicted = np.zeros((size.height, size.width), np.uint16)
    for number, mask in enumerate(answer.fruits, start=1):
        predicted[mask] = number
    # Specks that belong to no fruit are fruit all the same.
    predicted[(predicted == 0) & is_fruit(answer.classes)] = len(answer.fruits) + 1
    sides = [
        _outlined(small, _shrunk(labels, shape), _shrunk(classes == PixelClass.INFECTED, shape) > 0)
        for labels, classes in ((annotated, sample.semantic), (predicted, answer.classes))
    ]
    gap = np.full((shape[1], _GAP, 3), 255, np.uint8)
    return _jpeg(PIL.Image.fromarray(np.hstack([sides[0], gap, sides[1]])), _QUALITY)


def fit_gallery(images: Sequence[GalleryImage]) -> list[GalleryImage]:
    """Make images smaller, so that all of them together have at most `MAX_BYTES`.

    Raises:
        DataError: a file that is not a JPEG.
    """
    most = MAX_BYTES // max(1, len(images))
    return [replace(each, jpeg=_fitted(each, most)) for each in images]


def read_gallery(report: str) -> list[GalleryImage]:
    """Return the gallery of an earlier report, for a report of the same results.

    Args:
        report: HTML that `models.evaluation.report` wrote.

    Raises:
        DataError: an image of the gallery cannot be read.
    """
    parser = _GalleryParser()
    parser.feed(report)
    parser.close()
    return parser.images


def contact_sheet(images: Sequence[GalleryImage]) -> bytes:
    """Tile the worst images of the first candidate, `SHEET_KEPT` of each group, `SHEET_COLUMNS` in a row.

    Args:
        images: of a report, at least one of which is a worst one.

    Returns:
        A JPEG file.

    Raises:
        DataError: there is no such image, or a file that is not a JPEG.
    """
    first = images[0].candidate if images else ""
    worst: dict[str, list[GalleryImage]] = {}
    for each in images:
        if each.candidate == first and each.kind == "worst":
            worst.setdefault(each.group, []).append(each)
    shown = [each for group in worst.values() for each in group[:SHEET_KEPT]]
    if not shown:
        raise DataError("the report has no worst images to show")
    tiles = [_opened(each) for each in shown]
    for tile in tiles:
        tile.thumbnail(_TILE, PIL.Image.Resampling.LANCZOS)
    columns = min(SHEET_COLUMNS, len(tiles))
    width, height = _TILE[0] + _GAP, _TILE[1] + _GAP
    sheet = PIL.Image.new("RGB", (columns * width, -(-len(tiles) // columns) * height), (255, 255, 255))
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        sheet.paste(tile, (column * width + (width - tile.width) // 2, row * height + (height - tile.height) // 2))
    return _jpeg(sheet, _SMALLER_QUALITY)


class _GalleryParser(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.images: list[GalleryImage] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag != "img" or "data-kind" not in values:
            return
        try:
            self.images.append(
                GalleryImage(
                    group=values["data-group"],
                    candidate=values["data-candidate"],
                    name=values["data-image"],
                    kind="best" if values["data-kind"] == "best" else "worst",
                    fruit_iou=float(values["data-fruit-iou"]),
                    jpeg=base64.b64decode(values["src"].removeprefix(_DATA_URI), validate=True),
                )
            )
        except (KeyError, ValueError, binascii.Error) as error:
            raise DataError(f"an image of the earlier report cannot be read: {error!r}") from error


def _opened(image: GalleryImage) -> PIL.Image.Image:
    try:
        with PIL.Image.open(io.BytesIO(image.jpeg), formats=("JPEG",)) as opened:
            return opened.convert("RGB")
    except (OSError, PIL.Image.DecompressionBombError) as error:
        raise DataError(f"{image.name}: an image of the gallery must be a JPEG") from error


def _fitted(image: GalleryImage, most: int) -> bytes:
    pixels = _opened(image)
    size = pixels.size
    if len(image.jpeg) <= most:
        return image.jpeg
    while True:
        file = _jpeg(pixels.resize(size, PIL.Image.Resampling.LANCZOS), _SMALLER_QUALITY)
        if len(file) <= most or max(size) < 32:
            return file
        smaller = min((most / len(file)) ** 0.5, 0.95)
        size = max(1, round(size[0] * smaller)), max(1, round(size[1] * smaller))


def _jpeg(image: PIL.Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def _shrunk(labels: NDArray[np.generic], shape: tuple[int, int]) -> NDArray[np.uint16]:
    return np.asarray(cv2.resize(labels.astype(np.uint16), shape, interpolation=cv2.INTER_NEAREST_EXACT), np.uint16)


def _outlined(pixels: Pixels, labels: NDArray[np.uint16], infected: BinaryMask) -> Pixels:
    drawn = pixels.copy()
    fruit = _edges(labels)
    # Dark beside the line makes it visible on any image; not around lesions, which it would hide.
    drawn[cv2.dilate(fruit.astype(np.uint8), _AROUND) > 0] = _DARK
    drawn[fruit] = _FRUIT
    drawn[_edges(infected.astype(np.uint16))] = _INFECTED
    return drawn


def _edges(labels: NDArray[np.uint16]) -> BinaryMask:
    """Return lines two pixels wide, the resolution of colour in a JPEG, between pixels of different labels."""
    edges = np.zeros(labels.shape, np.uint8)
    edges[:, :-1] |= labels[:, 1:] != labels[:, :-1]
    edges[:-1] |= labels[1:] != labels[:-1]
    return np.asarray(cv2.dilate(edges, _LINE) > 0)
