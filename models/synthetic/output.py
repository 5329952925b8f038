"""Write rendered samples as files of a data set, and draw contact sheets of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import PIL.Image

from models.data.samples import Sample
from models.synthetic.painting import jpeg
from models.types import BinaryMask, PixelClass, Pixels

_QUALITY: Final = 92
_COLUMNS: Final = 5
_WIDTH: Final = 280
_FRUIT: Final = (0, 235, 255)
_LESION: Final = (255, 0, 220)


def encode_jpeg(sample: Sample, quality: int = _QUALITY) -> bytes:
    """Encode a sample's image as JPEG.

    Args:
        sample: the sample.
        quality: 1 to 100.
    """
    return jpeg(sample.pixels, quality)


def write_sample(folder: Path, sample: Sample) -> None:
    """Write `images/NAME.jpg`, `masks/NAME.png` and `instances/NAME.png`; files of the same name are overwritten.

    Args:
        folder: folder of the data set; missing folders are made.
        sample: written as JPEG of quality 92, its semantic map as 8-bit PNG (0 background, 1 healthy, 2 infected) and
            its instance map, if it has one, as 16-bit PNG (0 where there is no fruit).

    Raises:
        OSError: the files cannot be written.
    """
    for part in ("images", "masks", "instances"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "images" / f"{sample.name}.jpg").write_bytes(encode_jpeg(sample))
    PIL.Image.fromarray(sample.semantic).save(folder / "masks" / f"{sample.name}.png")
    if sample.instance_map is not None:
        PIL.Image.fromarray(sample.instance_map).save(folder / "instances" / f"{sample.name}.png")


def contact_sheet(samples: Sequence[Sample]) -> Pixels:
    """Tile samples of one size, five in a row: each as it is, and below it with the outlines of its masks.

    Args:
        samples: at least one sample.

    Returns:
        uint8 (height, 1400, 3), RGB. Outlines of fruits are cyan, those of lesions magenta.
    """
    cells = [_cell(sample) for sample in samples]
    cells += [np.zeros_like(cells[0])] * (-len(cells) % _COLUMNS)
    rows = [np.hstack(cells[first : first + _COLUMNS]) for first in range(0, len(cells), _COLUMNS)]
    return np.vstack(rows)


def _cell(sample: Sample) -> Pixels:
    height = max(1, round(sample.size.height * _WIDTH / sample.size.width))
    plain = np.asarray(cv2.resize(sample.pixels, (_WIDTH, height), interpolation=cv2.INTER_AREA), np.uint8)
    outlined = plain.copy()
    for instance in sample.instances:
        _outline(outlined, np.asarray(sample.instance_map) == instance.id, _FRUIT)
    _outline(outlined, sample.semantic == PixelClass.INFECTED, _LESION)
    return np.vstack([plain, outlined])


def _outline(image: Pixels, mask: BinaryMask, colour: tuple[int, int, int]) -> None:
    size = (image.shape[1], image.shape[0])
    small = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(small, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(image, contours, -1, colour, 1, cv2.LINE_8)
