"""Masks of a result in the formats of other tools, and drawn over the image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import ImageDraw, ImageFont

from pomona.errors import InvalidArgument, MissingPackage
from pomona.masks import Mask, PixelBox

if TYPE_CHECKING:
    import supervision

CATEGORIES: Final = {"object": 1, "healthy": 2, "infected": 3}
"""Class ids, the same in every export."""

FIRST_OF_DETECTORS: Final = 101
"""Class id of the first class of a detector; the others follow in its order."""

PALETTE: Final = (
    (0, 114, 178),  # blue
    (204, 121, 167),  # reddish purple
    (240, 228, 66),  # yellow
    (86, 180, 233),  # sky blue
    (213, 94, 0),  # vermillion
    (0, 158, 115),  # bluish green
)
"""RGB of the masks, in order and again from the start. The colours are those of Okabe and Ito, "Color Universal Design"
(2008), which people with any common colour blindness tell apart; without orange, invisible on oranges, and black."""


def index_palette() -> list[int]:
    """Return 256 colours for the numbers of masks: black for 0, then those of `PALETTE`, again and again."""
    colours = [(0, 0, 0), *(PALETTE[number % len(PALETTE)] for number in range(255))]
    return [channel for colour in colours for channel in colour]


_CLASS_COLOURS: Final[Mapping[str, tuple[int, int, int]]] = {"healthy": PALETTE[0], "infected": PALETTE[1]}
_TINT: Final = 115  # opacity inside a mask's outline, of 255
_MAX_ANNOTATIONS: Final = 10_000  # of an image


@dataclass(frozen=True)
class LabelledMask:
    """A mask with its label, for drawings and exports.

    Attributes:
        mask: of the image's size.
        box: tight and half-open.
        area: pixels in the mask.
        label: object, healthy, infected, or the name of a detector's class.
        score: 0 to 1.
        attributes: kept beside it by tools that have a place for them.
        infected_mask: the infected part, which alone is tinted in drawings and labelled infected in annotations; None
            where the label is of all of the mask.
        detector_class: index of its class in a detector's output; None for labels of `CATEGORIES`.
    """

    mask: Mask
    box: PixelBox
    area: int
    label: str
    score: float
    attributes: Mapping[str, Any]
    infected_mask: Mask | None = None
    detector_class: int | None = None

    @property
    def class_id(self) -> int:
        """Its class id in exports."""
        return CATEGORIES[self.label] if self.detector_class is None else FIRST_OF_DETECTORS + self.detector_class


def _regions(masks: Sequence[LabelledMask]) -> Iterator[LabelledMask]:
    """Yield the regions of an annotation: an inspected fruit is a healthy region, with its infected part on top.

    Labelled as one infected region, a fruit with a spot would teach a model that all of it is rotten.
    """
    for number, each in enumerate(masks, start=1):
        if each.infected_mask is None:
            yield each
            continue
        yield replace(each, label="healthy")
        if lesion := each.infected_mask.area:
            yield LabelledMask(
                each.infected_mask, each.infected_mask.box, lesion, "infected", each.score, {"fruit": number}
            )


def to_coco(
    masks: Sequence[LabelledMask], size: tuple[int, int], *, file_name: str, image_number: int
) -> dict[str, Any]:
    """Return COCO's instances JSON (https://cocodataset.org/#format-data), masks as compressed RLE.

    A fruit's infected part is an annotation of its own, inside that of the fruit.
    """
    height, width = size
    annotations = [
        {
            "id": image_number * _MAX_ANNOTATIONS + number,
            "image_id": image_number,
            "category_id": each.class_id,
            "segmentation": {"size": list(each.mask.rle.size), "counts": each.mask.rle.counts},
            "bbox": [each.box.x0, each.box.y0, each.box.width, each.box.height],
            "area": each.area,
            "iscrowd": 0,
            "score": each.score,
            **each.attributes,
        }
        for number, each in enumerate(_regions(masks), start=1)
    ]
    categories = {number: name for name, number in CATEGORIES.items()} | {each.class_id: each.label for each in masks}
    return {
        "images": [{"id": image_number, "file_name": file_name, "width": width, "height": height}],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in sorted(categories.items())],
    }


def to_label_studio(
    masks: Sequence[LabelledMask], size: tuple[int, int], *, image: str, from_name: str, to_name: str
) -> dict[str, Any]:
    """Return a task with one prediction; labels start with a capital, as in Label Studio's own templates.

    A fruit's infected part is a region of its own, inside that of the fruit.
    """
    height, width = size
    results = [
        {
            "id": f"pomona-{number}",
            "type": "brushlabels",
            "from_name": from_name,
            "to_name": to_name,
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "score": each.score,
            "value": {
                "format": "rle",
                "rle": encode_brush(each.mask.array),
                "brushlabels": [each.label.capitalize()],
            },
        }
        for number, each in enumerate(_regions(masks), start=1)
    ]
    score = min((each.score for each in masks), default=0.0)
    return {"data": {"image": image}, "predictions": [{"model_version": "pomona", "score": score, "result": results}]}


def to_supervision(masks: Sequence[LabelledMask]) -> supervision.Detections:
    """Return `supervision.Detections`.

    Raises:
        MissingPackage: supervision is not installed.
    """
    try:
        import supervision as sv
    except ImportError as error:
        raise MissingPackage("supervision is not installed: pip install 'pomona-client[supervision]'.") from error
    if not masks:
        return sv.Detections.empty()
    attributes = {key: np.array([each.attributes[key] for each in masks]) for key in masks[0].attributes}
    return sv.Detections(
        xyxy=np.array([each.box for each in masks], np.float32),
        mask=np.stack([each.mask.array for each in masks]),
        confidence=np.array([each.score for each in masks], np.float32),
        class_id=np.array([each.class_id for each in masks], np.int64),
        data={"class_name": np.array([each.label for each in masks]), **attributes},
    )


# Label Studio's brush masks are RGBA images, row by row, packed as by @thi.ng/rle-pack
# (https://github.com/thi-ng/umbrella/tree/develop/packages/rle-pack): a stream of bits, highest first. The header has
# the number of words (32 bits), the bits of a word less 1 (5 bits) and four lengths less 1 of counts (4 bits each).
# Chunks follow: a bit that is 1 for a repeated word and 0 for a list of words, two bits for the length of the count,
# the count less 1, and the word or words.
_CHANNELS: Final = 4
_COUNT_BITS: Final = (4, 8, 12, 16)
_LONGEST_RUN: Final = 1 << _COUNT_BITS[-1]


def encode_brush(mask: NDArray[np.bool_]) -> list[int]:
    """Pack a mask for `value.rle`: opaque white inside, transparent black outside.

    Args:
        mask: bool (height, width).

    Returns:
        Bytes as numbers.
    """
    flat = mask.reshape(-1)
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    bounds = np.concatenate(([0], changes, [flat.size])) * _CHANNELS
    bits = [f"{flat.size * _CHANNELS:032b}", f"{7:05b}", *(f"{length - 1:04b}" for length in _COUNT_BITS)]
    value = bool(flat[0])
    for words in np.diff(bounds).tolist():
        word = "11111111" if value else "00000000"
        for begin in range(0, words, _LONGEST_RUN):
            count = min(words - begin, _LONGEST_RUN)
            choice = next(number for number, length in enumerate(_COUNT_BITS) if count <= 1 << length)
            bits.append(f"1{choice:02b}{count - 1:0{_COUNT_BITS[choice]}b}{word}")
        value = not value
    stream = "".join(bits)
    stream += "0" * (-len(stream) % 8)
    return list(int(stream, 2).to_bytes(len(stream) // 8, "big"))


def draw(image: PIL.Image.Image, masks: Sequence[LabelledMask]) -> PIL.Image.Image:
    """Outline and tint each mask, and write a fruit's grade at its upper left corner.

    Args:
        image: RGB, of the masks' size.
        masks: healthy and infected in their own colours, others by the palette in order.

    Raises:
        InvalidArgument: the masks have another size.
    """
    drawn = image.convert("RGB").copy()
    line = max(2, round(max(image.size) / 333))
    for number, each in enumerate(masks):
        height, width = each.mask.size
        if (width, height) != image.size:
            raise InvalidArgument(
                f"The image must have the masks' size of {width} x {height} pixels, got {image.width} x {image.height}."
            )
        if not each.area:
            continue
        x0, y0, x1, y1 = each.box
        colour = _CLASS_COLOURS.get(each.label, PALETTE[number % len(PALETTE)])
        inside = each.mask.array[y0:y1, x0:x1]
        tinted = inside if each.infected_mask is None else each.infected_mask.array[y0:y1, x0:x1]
        opacity = np.where(inside & ~_eroded(inside, line), 255, tinted * _TINT)
        drawn.paste(colour, (x0, y0), PIL.Image.fromarray(opacity.astype(np.uint8)))
    _write_grades(drawn, masks)
    return drawn


def _eroded(mask: NDArray[np.bool_], by: int) -> NDArray[np.bool_]:
    """Remove the pixels within `by` pixels of one outside, along rows or columns."""
    eroded = mask
    for _ in range(by):
        inner = np.zeros_like(eroded)
        inner[1:-1, 1:-1] = (
            eroded[1:-1, 1:-1] & eroded[:-2, 1:-1] & eroded[2:, 1:-1] & eroded[1:-1, :-2] & eroded[1:-1, 2:]
        )
        eroded = inner
    return eroded


def _write_grades(drawn: PIL.Image.Image, masks: Sequence[LabelledMask]) -> None:
    height = max(12, max(drawn.size) // 55)
    font = ImageFont.load_default(height)
    pen = ImageDraw.Draw(drawn)
    for each in masks:
        if "grade" not in each.attributes:
            continue
        text = f"{each.attributes['grade']} {each.attributes['infected_fraction']:.0%}"
        left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
        x = min(max(0, each.box.x0), drawn.width - (right - left) - 4)
        y = min(max(0, each.box.y0), drawn.height - (bottom - top) - 4)
        pen.rectangle((x, y, x + (right - left) + 4, y + (bottom - top) + 4), fill=(40, 40, 40))
        pen.text((x + 2 - left, y + 2 - top), text, font=font, fill=(255, 255, 255))
