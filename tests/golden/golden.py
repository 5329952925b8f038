"""The golden cases: images, prompts and the reference's masks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
from matplotlib import cbook
from numpy.typing import NDArray

from models.masks import Rle, decode_rle
from models.types import BinaryMask, Box, Point, Prompt

FOLDER = Path(__file__).parent
GOLDEN = FOLDER / "golden.json"


@dataclass(frozen=True)
class GoldenCase:
    """One prompt on one image, with the reference's masks in the order of the decoder's tokens."""

    image: str
    prompt: Prompt
    masks: tuple[BinaryMask, ...]
    scores: tuple[float, ...]


def read_image(name: str) -> NDArray[np.uint8]:
    """RGB pixels of a stored image, or of the portrait that matplotlib carries."""
    stored = FOLDER / "images" / name
    path = stored if stored.exists() else cbook.get_sample_data(name, asfileobj=False)
    with PIL.Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def golden_cases() -> list[GoldenCase]:
    """All of them."""
    return [
        GoldenCase(
            case["image"],
            Prompt(
                points=tuple(
                    Point(x, y, label)
                    for (x, y), label in zip(case["prompt"]["points"], case["prompt"]["labels"], strict=True)
                ),
                box=None if case["prompt"]["box"] is None else Box(*case["prompt"]["box"]),
                multimask=case["prompt"]["multimask"],
            ),
            tuple(decode_rle(Rle((case["size"][0], case["size"][1]), counts)) for counts in case["counts"]),
            tuple(case["scores"]),
        )
        for case in json.loads(GOLDEN.read_text())
    ]
