"""The annotated images that a user names to train with, opened and divided."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from models.data.dataset import ClassMap, Dataset, unusable
from models.data.opening import open_dataset
from models.data.splits import SPLIT_FILE, TRAIN, VALIDATION, Split, data_hash, read_split, split_by_content
from models.errors import DataError


@dataclass(frozen=True, slots=True)
class DataSource:
    """One set of annotated images.

    Attributes:
        path: what `models.data.opening.open_dataset` opens.
        classes: words of the class map, as `ClassMap.of` takes them.
        images: the folder of images, None for beside the annotations.
        split: the split file; None for the set's own split.json, or by content where it has none.
        weight: how often each image is seen in an epoch, on average; at least 0.
        licence: what the user says about the licence and origin of the data, for the model card.
    """

    path: Path
    classes: Mapping[str, str] = field(default_factory=dict)
    images: Path | None = None
    split: Path | None = None
    weight: float = 1.0
    licence: str = ""


@dataclass(frozen=True, slots=True)
class OpenedSource:
    """One set, opened and divided. Nothing here gives its test part.

    Attributes:
        name: of its folder or file, with a number where several have the same.
        source: what was asked for.
        dataset: all its images.
        train: names of images to train on.
        validation: names of images to validate on.
        divided_by: the split file's name, or how else.
        digest: SHA-256 over the images and annotations of both parts.
    """

    name: str
    source: DataSource
    dataset: Dataset
    train: tuple[str, ...]
    validation: tuple[str, ...]
    divided_by: str
    digest: str

    def record(self) -> dict[str, object]:
        """What a run folder keeps of it: all that decides what is learned, but not where it lies."""
        return {
            "classes": dict(self.source.classes),
            "weight": self.source.weight,
            "train": len(self.train),
            "validation": len(self.validation),
            "divided_by": self.divided_by,
            "sha256": self.digest,
            "licence": self.source.licence,
        }


def open_sources(sources: Sequence[DataSource]) -> tuple[OpenedSource, ...]:
    """Open sets and divide them.

    Args:
        sources: in the user's order.

    Returns:
        The sets, in that order.

    Raises:
        DataError: a set or a split cannot be used, a part to train or to validate on is empty, or a weight is no
            number from 0 on.
    """
    stems = [each.path.absolute().stem for each in sources]
    counts = Counter(stems)
    names = [
        stem if counts[stem] == 1 else f"{stem}-{stems[: place + 1].count(stem)}" for place, stem in enumerate(stems)
    ]
    return tuple(_open(name, source) for name, source in zip(names, sources, strict=True))


def _open(name: str, source: DataSource) -> OpenedSource:
    if not 0 <= source.weight < 1e6:
        raise DataError(f"{source.path}: a weight of {source.weight} is none; 1 shows each image once an epoch.")
    dataset = open_dataset(source.path, classes=ClassMap.of(source.classes), images=source.images)
    split, divided_by = divided(dataset, source)
    train, validation = split.of(TRAIN), split.of(VALIDATION)
    # Now, and all of them: not one after the other in the middle of the night.
    broken = dataset.check((*train, *validation))
    if broken:
        raise unusable(dataset.root, broken)
    digest = data_hash(dataset, (*train, *validation))
    return OpenedSource(name, source, dataset, train, validation, divided_by, digest)


def divided(dataset: Dataset, source: DataSource) -> tuple[Split, str]:
    """How a set is divided, and by what: the split file's name, or other words.

    Raises:
        DataError: the split file cannot be used.
    """
    folder = source.path if source.path.is_dir() else source.path.parent
    file = source.split or folder / SPLIT_FILE
    if source.split is not None or file.is_file():
        return read_split(file, dataset), file.name
    return split_by_content(dataset), "the hash of each image's bytes"
