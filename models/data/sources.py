"""Name annotated images on the command line, open them and split them.

--data FOLDER --classes 1=fruit,2=fruit --data-weight 2 --data OTHER.json --images FOLDER
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

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
    split, divided_by = find_split(dataset, source)
    train, validation = split.of(TRAIN), split.of(VALIDATION)
    # Now, and all of them: not one after the other in the middle of the night.
    broken = dataset.check((*train, *validation))
    if broken:
        raise unusable(dataset.root, broken)
    digest = data_hash(dataset, (*train, *validation))
    return OpenedSource(name, source, dataset, train, validation, divided_by, digest)


def find_split(dataset: Dataset, source: DataSource) -> tuple[Split, str]:
    """How a set is divided, and by what: the split file's name, or other words.

    Raises:
        DataError: the split file cannot be used.
    """
    folder = source.path if source.path.is_dir() else source.path.parent
    file = source.split or folder / SPLIT_FILE
    if source.split is not None or file.is_file():
        return read_split(file, dataset), file.name
    return split_by_content(dataset), "the hash of each image's bytes"


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --data, and the options that belong to the --data before them; `namespace.data` holds `DataSource`s."""
    group = parser.add_argument_group("annotated images", "--data may be given several times; what follows is its.")
    group.add_argument(
        "--data", action=_NextData, default=(), metavar="PATH", help="a folder, or Label Studio's or COCO's JSON file"
    )
    for option, attribute, metavar, said in (
        ("--classes", "classes", "NAME=CLASS,…", "what its classes mean: background, healthy, infected, fruit, ignore"),
        ("--images", "images", "FOLDER", "where its images lie, if not beside the annotations"),
        ("--split", "split", "FILE", "its split file (its own split.json; without one, by the images' hashes)"),
        ("--data-weight", "weight", "W", "how often an epoch shows each of its images, on average (1)"),
        ("--data-licence", "licence", "TEXT", "its licence and origin, for the model card"),
    ):
        group.add_argument(
            option, action=_OfLastData, field=attribute, metavar=metavar, help=said, dest=argparse.SUPPRESS
        )


class _NextData(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002 argparse's words
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,  # noqa: ARG002
    ) -> None:
        namespace.data = (*namespace.data, DataSource(Path(str(values))))


class _OfLastData(argparse.Action):
    def __init__(self, *, field: str, **given: Any) -> None:
        super().__init__(**given)
        self.field = field

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        if not namespace.data:
            parser.error(f"{option_string} belongs to the --data before it; there is none")
        try:
            value = _READ[self.field](str(values))
        except ValueError as error:
            parser.error(f"{option_string}: {error}")
        namespace.data = (*namespace.data[:-1], replace(namespace.data[-1], **{self.field: value}))


def _classes(text: str) -> dict[str, str]:
    pairs = [pair.rpartition("=") for pair in text.split(",") if pair.strip()]
    if not pairs or not all(name.strip() and word.strip() for name, _, word in pairs):
        raise ValueError(f"{text!r} is not of the form NAME=CLASS,NAME=CLASS")
    return {name.strip(): word.strip() for name, _, word in pairs}


_READ: dict[str, Any] = {"classes": _classes, "images": Path, "split": Path, "weight": float, "licence": str}
