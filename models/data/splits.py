"""Split images into parts for training, validation and testing, which share no image.

A split by content depends only on the bytes of each image: it is the same on every machine, copies of an image under
other names fall into the same part, and an image stays in its part when others are added. It knows nothing of frames of
the same scene; if there are any, write a split file that keeps them together.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter, ValidationError

from models.data.dataset import Dataset, Item
from models.data.image_files import nfc
from models.errors import DataError
from models.weights.checkpoints import sha256_of

SPLIT_FILE: Final = "split.json"

TRAIN: Final = "train"
VALIDATION: Final = "val"
TEST: Final = "test"

_FILE = TypeAdapter(dict[str, list[str]])


@dataclass(frozen=True, slots=True)
class Split:
    """Parts of a set that share no image.

    Attributes:
        parts: sorted names of images by part: "train", "val", "test", and others that a file adds.
        unused: names of images in no part.
    """

    parts: Mapping[str, tuple[str, ...]]
    unused: tuple[str, ...] = ()

    def of(self, part: str) -> tuple[str, ...]:
        """Return the names of one part.

        Raises:
            DataError: there is no such part, or it is empty.
        """
        if not self.parts.get(part):
            raise DataError(f"The split has no images for {part!r}; its parts are {', '.join(self.parts)}.")
        return self.parts[part]


def split_by_content(dataset: Dataset, *, validation: float = 0.15, test: float = 0.15) -> Split:
    """Split by the hash of each image's bytes.

    Args:
        dataset: images to split.
        validation: share to validate on, 0 to 1; met only on average, because each image is assigned on its own.
        test: share to test on.

    Returns:
        The parts "train", "val" and "test".

    Raises:
        DataError: the shares leave nothing to train on, or an image cannot be read.
    """
    if not (validation >= 0 and test >= 0 and validation + test < 1):
        raise DataError(
            f"validation and test must be at least 0 and leave something to train on, got {validation} and {test}."
        )
    parts: dict[str, list[str]] = {TRAIN: [], VALIDATION: [], TEST: []}
    for name, digest in _digests(dataset).items():
        place = int(digest[:16], 16) / 16**16
        parts[TEST if place < test else VALIDATION if place < test + validation else TRAIN].append(name)
    return Split({part: tuple(names) for part, names in parts.items()})


def read_split(file: Path, dataset: Dataset) -> Split:
    """Read a split from a file.

    Args:
        file: JSON object of lists of names, `{"train": ["a", "b"], "val": ["c"], "test": ["d"]}`; other parts may be
            added.
        dataset: images that it splits.

    Raises:
        DataError: the file is not a split, a name is not in the set, or an image is in two parts, even under two names.
    """
    try:
        listed = _FILE.validate_json(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}).") from error
    except ValidationError as error:
        raise DataError(f"{file}: must be a JSON object of lists of names, such as train, val and test.") from error
    listed = {part: [name if name in dataset.items else nfc(name) for name in names] for part, names in listed.items()}
    unknown = sorted({name for names in listed.values() for name in names} - dataset.items.keys())
    if unknown:
        raise DataError(f"{file}: {len(unknown)} names are not in the set: {', '.join(unknown[:5])}.")
    digests = _digests(dataset)
    seen: dict[str, tuple[str, str]] = {}
    for part, names in listed.items():
        for name in names:
            other, first = seen.setdefault(digests[name], (part, name))
            if other != part:
                same = "" if first == name else f", the same image as {first!r},"
                raise DataError(f"{file}: {name!r}{same} is in {other!r} and in {part!r}; parts must share no image.")
    used = {name for _, name in seen.values()} | {name for names in listed.values() for name in names}
    parts = {part: tuple(sorted(set(names))) for part, names in listed.items()}
    return Split(parts, tuple(name for name in dataset.names if name not in used))


def write_split(file: Path, split: Split) -> None:
    """Write a split as `read_split` reads it.

    Raises:
        OSError: the file cannot be written.
    """
    file.write_text(json.dumps(split.parts, indent=1) + "\n", "utf-8")


def data_hash(dataset: Dataset, names: Iterable[str]) -> str:
    """Hash the data that a model was trained on or measured with.

    Args:
        dataset: images.
        names: names of the images that count, in any order.

    Returns:
        64 hex digits of SHA-256 over the bytes of the images and the contents of their annotations, but not over names
        or the class map.

    Raises:
        DataError: a name is not in the set, or a file cannot be read.
    """
    chosen = sorted(set(names))
    missing = [name for name in chosen if name not in dataset.items]
    if missing:
        raise DataError(f"{dataset.root}: no image {missing[0]!r} in this set.")
    whole = hashlib.sha256()
    for digest in sorted(_annotated_digest(dataset.items[name]) for name in chosen):
        whole.update(digest)
    return whole.hexdigest()


def _annotated_digest(item: Item) -> bytes:
    try:
        content = hashlib.sha256(item.annotation.content()).hexdigest()
    except OSError as error:
        raise DataError(f"{item.image}: its annotation cannot be read ({error.strerror}).") from error
    return hashlib.sha256(f"{_digest(item)} {content}".encode()).digest()


def _digests(dataset: Dataset) -> dict[str, str]:
    with ThreadPoolExecutor(max_workers=4) as pool:  # reading from disk takes longest
        return dict(zip(dataset.names, pool.map(_digest, (dataset.items[name] for name in dataset.names)), strict=True))


def _digest(item: Item) -> str:
    try:
        return sha256_of(item.image)
    except OSError as error:
        raise DataError(f"{item.image}: cannot be read ({error.strerror}).") from error
