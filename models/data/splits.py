"""Divides images into parts to train, validate and test on, which share no image.

A split by content looks at each image's bytes alone: it is the same on every machine, copies of an image under other
names fall into the same part, and an image that was in a part stays there when others are added. It knows nothing of
frames of the same scene: where there are such, write a split file that keeps them together.
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
        parts: names of images, sorted, by the part's name: "train", "val", "test", and others that a file adds.
        unused: names that are in no part.
    """

    parts: Mapping[str, tuple[str, ...]]
    unused: tuple[str, ...] = ()

    def of(self, part: str) -> tuple[str, ...]:
        """Names of one part.

        Raises:
            DataError: there is no such part, or nothing in it.
        """
        if not self.parts.get(part):
            raise DataError(f"The split has no images for {part!r}; it has them for {', '.join(self.parts)}.")
        return self.parts[part]


def split_by_content(dataset: Dataset, *, validation: float = 0.15, test: float = 0.15) -> Split:
    """Divide by the hash of each image's bytes.

    Args:
        dataset: the images.
        validation: share to validate on, 0 to 1; met only on average, as each image falls on its own.
        test: share to test on.

    Returns:
        The parts "train", "val" and "test".

    Raises:
        DataError: shares that leave nothing to train on, or an image that cannot be read.
    """
    if not (validation >= 0 and test >= 0 and validation + test < 1):
        raise DataError(f"Shares of {validation} to validate and {test} to test leave nothing to train on.")
    parts: dict[str, list[str]] = {TRAIN: [], VALIDATION: [], TEST: []}
    for name, digest in _digests(dataset).items():
        place = int(digest[:16], 16) / 16**16
        parts[TEST if place < test else VALIDATION if place < test + validation else TRAIN].append(name)
    return Split({part: tuple(names) for part, names in parts.items()})


def read_split(file: Path, dataset: Dataset) -> Split:
    """Read parts from a file.

    Args:
        file: JSON, an object of lists of names: `{"train": ["a", "b"], "val": ["c"], "test": ["d"]}`; any other parts
            too.
        dataset: the images that it divides.

    Returns:
        The parts.

    Raises:
        DataError: not such a file, a name that is not in the set, or an image that is in two parts, be it under two
            names.
    """
    try:
        listed = _FILE.validate_json(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}).") from error
    except ValidationError as error:
        raise DataError(f"{file}: a split is an object of lists of names, such as train, val and test.") from error
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
    """Name the data that a model learned from or was measured with, for its card.

    Args:
        dataset: the images.
        names: those that count; their order does not.

    Returns:
        64 hex digits of SHA-256 over the images' bytes and what their annotations say; not over names, nor over what
        the class map makes of it.

    Raises:
        DataError: a name that is not in the set, or a file that cannot be read.
    """
    chosen = sorted(set(names))
    missing = [name for name in chosen if name not in dataset.items]
    if missing:
        raise DataError(f"{dataset.root}: there is no image {missing[0]!r} in this set.")
    whole = hashlib.sha256()
    for digest in sorted(_annotated_digest(dataset.items[name]) for name in chosen):
        whole.update(digest)
    return whole.hexdigest()


def _annotated_digest(item: Item) -> bytes:
    try:
        said = hashlib.sha256(item.annotation.content()).hexdigest()
    except OSError as error:
        raise DataError(f"{item.image}: its annotation cannot be read ({error.strerror}).") from error
    return hashlib.sha256(f"{_digest(item)} {said}".encode()).digest()


def _digests(dataset: Dataset) -> dict[str, str]:
    with ThreadPoolExecutor(max_workers=4) as pool:  # the disk is what takes long
        return dict(zip(dataset.names, pool.map(_digest, (dataset.items[name] for name in dataset.names)), strict=True))


def _digest(item: Item) -> str:
    try:
        return sha256_of(item.image)
    except OSError as error:
        raise DataError(f"{item.image}: cannot be read ({error.strerror}).") from error
