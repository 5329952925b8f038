"""The golden masks of everything in an image: images, grids, and the reference's masks."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from models.masks import Rle, decode_rle
from models.types import BinaryMask

FOLDER = Path(__file__).parent
GOLDEN = FOLDER / "automatic.json.gz"
NOTEBOOK_FOLDER = "POMONA_TEST_NOTEBOOK_IMAGES"
"""Variable with the folder of the photographs of segment-anything's notebook."""

NOTEBOOK = ("dog.jpg", "groceries.jpg", "truck.jpg")
IMAGES = {"crowded.jpg": 8, "oranges.jpg": 8, "groceries.jpg": 16, "dog.jpg": 16, "truck.jpg": 16}
"""Points per side of each image."""


@dataclass(frozen=True)
class AutomaticCase:
    """An image, its grid, and the reference's masks, best first."""

    image: str
    sha256: str
    points_per_side: int
    masks: tuple[BinaryMask, ...]


def path_of(name: str) -> Path | None:
    """Return where an image lies, or None if it is not there."""
    folders = [FOLDER / "images", FOLDER.parents[1] / "docs"]
    if given := os.environ.get(NOTEBOOK_FOLDER):
        folders.append(Path(given))
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def automatic_case(name: str) -> AutomaticCase:
    """Return the case of an image, whose file must be the one that the reference saw."""
    stored = json.loads(gzip.decompress(GOLDEN.read_bytes()))[name]
    path = path_of(name)
    if path is not None and hashlib.sha256(path.read_bytes()).hexdigest() != stored["sha256"]:
        raise ValueError(f"{path} must be the file that the golden masks were made of")
    size = (stored["size"][0], stored["size"][1])
    masks = tuple(decode_rle(Rle(size, mask["counts"])) for mask in stored["masks"])
    return AutomaticCase(name, stored["sha256"], stored["points_per_side"], masks)
