"""Open annotated images of any supported format, split them, and name them on the command line.

--data FOLDER --classes 1=fruit,2=fruit --data-weight 2,lesion=4 --data OTHER.json --images FOLDER
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from models.data.coco import open_coco
from models.data.dataset import ClassMap, Dataset, unusable
from models.data.folders import open_folders
from models.data.image_files import ImageFolder
from models.data.label_studio import open_label_studio
from models.data.splits import SPLIT_FILE, TRAIN, VALIDATION, Split, data_hash, read_split, split_by_content
from models.errors import DataError

_FORMATS: Final = (
    "Supported are a folder with images/ and masks/, Label Studio's JSON export and COCO's instances JSON; the images "
    "of a JSON file lie beside it or in the folder given as images."
)


def open_dataset(
    path: Path, *, classes: ClassMap | None = None, images: Path | None = None, strict: bool = False
) -> Dataset:
    """Detect the format of annotated images and list them; nothing is decoded yet.

    Args:
        path: a folder with `masks`, a JSON file of Label Studio or COCO, or a folder with one such file.
        classes: meaning of the annotation's classes; by default Healthy and Infected, 1 and 2.
        images: folder of the images; by default `images` for masks, and the JSON file's folder otherwise.
        strict: whether a faulty region makes its image unusable, see `Dataset.strict`.

    Returns:
        The set. What is wrong with single images is in its `problems`, or is found by its `check`.

    Raises:
        DataError: the format is not supported, or there are no images.
    """
    dataset = _open_dataset(path, classes or ClassMap(), images)
    if not dataset.items and not dataset.problems:
        raise DataError(f"{path}: contains no images.")
    return replace(dataset, strict=strict)


def _open_dataset(path: Path, classes: ClassMap, images: Path | None) -> Dataset:
    if (path / "masks").is_dir():
        folder = images or path / "images"
        if not folder.is_dir():
            raise DataError(f"{path}: has 'masks', but {folder} is not a folder of images.")
        return open_folders(path, folder, classes)
    file = _annotation_file(path)
    content = _read_json(file)
    folder = images or file.parent
    if not folder.is_dir():
        raise DataError(f"{folder}: is not a folder of images.")
    if isinstance(content, list):
        return open_label_studio(file, content, ImageFolder(folder), classes)
    if isinstance(content, Mapping) and {"images", "annotations"} <= content.keys():
        return open_coco(file, content, ImageFolder(folder), classes)
    raise DataError(
        f"{file}: is JSON of neither Label Studio (a list of tasks) nor COCO (images, annotations). {_FORMATS}"
    )


def _annotation_file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise DataError(f"{path}: there is no such file or folder. {_FORMATS}")
    found = sorted(each for each in path.glob("*.json") if each.name != SPLIT_FILE)
    if len(found) != 1:
        names = ", ".join(each.name for each in found) or "none"
        raise DataError(f"{path}: must have a folder 'masks' or exactly one JSON file, has {names}. {_FORMATS}")
    return found[0]


def _read_json(file: Path) -> object:
    try:
        content: object = json.loads(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: is not valid JSON: {error}. {_FORMATS}") from error
    return content


@dataclass(frozen=True, slots=True)
class DataSource:
    """A set of annotated images as the user names it.

    Attributes:
        path: folder or file, see `open_dataset`.
        classes: words of the class map, see `ClassMap.of`.
        images: folder of the images; None for the default of `open_dataset`.
        split: split file; None for split.json beside the annotations, or a split by content if there is none.
        weight: how often an epoch shows each image, on average; at least 0.
        group_weights: weights of groups of images that differ from it, see `Dataset.groups`.
        licence: licence and origin of the data, for the model card.
        strict: whether a faulty region makes its image unusable, see `Dataset.strict`.
    """

    path: Path
    classes: Mapping[str, str] = field(default_factory=dict)
    images: Path | None = None
    split: Path | None = None
    weight: float = 1.0
    group_weights: Mapping[str, float] = field(default_factory=dict)
    licence: str = ""
    strict: bool = False

    def open(self) -> Dataset:
        """Open the set; see `open_dataset`."""
        classes = ClassMap.of(self.classes)
        return open_dataset(self.path, classes=classes, images=self.images, strict=self.strict)


@dataclass(frozen=True, slots=True)
class OpenedSource:
    """A set, opened and split. It does not give access to the test part.

    Attributes:
        name: name of its folder or file, with a number if several are equal.
        source: the set as the user named it.
        dataset: all its images.
        train: names of the images to train on.
        validation: names of the images to validate on.
        divided_by: name of the split file, or a description of the split.
        digest: SHA-256 over the images and annotations of both parts.
    """

    name: str
    source: DataSource
    dataset: Dataset
    train: tuple[str, ...]
    validation: tuple[str, ...]
    divided_by: str
    digest: str

    @property
    def weighted(self) -> tuple[tuple[tuple[str, ...], float], ...]:
        """The images to train on by group, with how often an epoch shows each of them."""
        weights = self.source.group_weights
        return tuple(
            (names, weights.get(group, self.source.weight)) for group, names in self.dataset.grouped(self.train).items()
        )

    def record(self) -> dict[str, object]:
        """Return everything about the set that decides what is learned, without its path."""
        return {
            "classes": dict(self.source.classes),
            "weight": self.source.weight,
            **({"weights of groups": dict(self.source.group_weights)} if self.source.group_weights else {}),
            "train": len(self.train),
            "validation": len(self.validation),
            "divided_by": self.divided_by,
            "sha256": self.digest,
            "licence": self.source.licence,
        }


def open_sources(sources: Sequence[DataSource]) -> tuple[OpenedSource, ...]:
    """Open sets, split them, and check every image to train or to validate on.

    Args:
        sources: sets as the user named them.

    Returns:
        The sets in the same order.

    Raises:
        DataError: a set or a split cannot be used, a part to train or to validate on is empty, or a weight is out of
            range.
    """
    stems = [each.path.absolute().stem for each in sources]
    counts = Counter(stems)
    names = [
        stem if counts[stem] == 1 else f"{stem}-{stems[: place + 1].count(stem)}" for place, stem in enumerate(stems)
    ]
    return tuple(_open_source(name, source) for name, source in zip(names, sources, strict=True))


def _open_source(name: str, source: DataSource) -> OpenedSource:
    for weight in (source.weight, *source.group_weights.values()):
        if not 0 <= weight < 1e6:
            raise DataError(f"{source.path}: its weight must be at least 0 and below 1,000,000, got {weight}.")
    dataset = source.open()
    unknown = sorted(source.group_weights.keys() - set(dataset.groups.values()))
    if unknown:
        known = ", ".join(sorted(set(dataset.groups.values()))) or "none"
        raise DataError(f"{source.path}: has no images of the kind {unknown[0]!r} to weigh; its kinds are {known}.")
    split, divided_by = find_split(dataset, source)
    train, validation = split.of(TRAIN), split.of(VALIDATION)
    # All images now: a broken one would otherwise end a run in the middle of the night.
    broken = dataset.check((*train, *validation))
    if broken:
        raise unusable(dataset.root, broken)
    digest = data_hash(dataset, (*train, *validation))
    return OpenedSource(name, source, dataset, train, validation, divided_by, digest)


def find_split(dataset: Dataset, source: DataSource) -> tuple[Split, str]:
    """Read or compute the split of a set.

    Returns:
        The split, and the name of its file or a description.

    Raises:
        DataError: the split file cannot be used.
    """
    folder = source.path if source.path.is_dir() else source.path.parent
    file = source.split or folder / SPLIT_FILE
    if source.split is not None or file.is_file():
        return read_split(file, dataset), file.name
    return split_by_content(dataset), "the hash of each image's bytes"


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --data and the options that apply to the --data before them; `namespace.data` holds `DataSource`s."""
    group = parser.add_argument_group(
        "annotated images", "--data may be given several times; the options below apply to the --data before them."
    )
    group.add_argument(
        "--data", action=_AddSource, default=(), metavar="PATH", help="folder, Label Studio export or COCO JSON file"
    )
    group.add_argument(
        "--strict",
        action=_Strict,
        nargs=0,
        default=False,
        help="refuse images with a faulty region, in all --data; otherwise the region is named and the others count",
    )
    for option, attribute, metavar, description in (
        (
            "--classes",
            "classes",
            "NAME=CLASS,…",
            "meaning of its classes: background, healthy, infected, fruit, ignore",
        ),
        ("--images", "images", "FOLDER", "folder of its images, if they are not beside the annotations"),
        ("--split", "split", "FILE", "its split file (default: split.json beside it, otherwise by the images' hashes)"),
        (
            "--data-weight",
            "weights",
            "N,KIND=N,…",
            "how often an epoch shows each of its images, on average (default: 1), and those of a kind in meta.json",
        ),
        ("--data-licence", "licence", "TEXT", "its licence and origin, for the model card"),
    ):
        group.add_argument(
            option, action=_ChangeSource, field=attribute, metavar=metavar, help=description, dest=argparse.SUPPRESS
        )


class _Strict(argparse.Action):
    """Applies to every --data, wherever it stands."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002 the signature is argparse's
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,  # noqa: ARG002
        option_string: str | None = None,  # noqa: ARG002
    ) -> None:
        namespace.strict = True
        namespace.data = tuple(replace(each, strict=True) for each in namespace.data)


class _AddSource(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002 the signature is argparse's
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,  # noqa: ARG002
    ) -> None:
        namespace.data = (*namespace.data, DataSource(Path(str(values)), strict=namespace.strict))


class _ChangeSource(argparse.Action):
    def __init__(self, *, field: str, **options: Any) -> None:
        super().__init__(**options)
        self.field = field

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        if not namespace.data:
            parser.error(f"{option_string} must follow the --data that it applies to")
        try:
            changes = _PARSERS[self.field](str(values))
        except ValueError as error:
            parser.error(f"{option_string}: {error}")
        namespace.data = (*namespace.data[:-1], replace(namespace.data[-1], **changes))


def _parse_classes(text: str) -> dict[str, Any]:
    pairs = [pair.rpartition("=") for pair in text.split(",") if pair.strip()]
    if not pairs or not all(name.strip() and word.strip() for name, _, word in pairs):
        raise ValueError(f"must have the form NAME=CLASS,NAME=CLASS, got {text!r}")
    return {"classes": {name.strip(): word.strip() for name, _, word in pairs}}


def _parse_weights(text: str) -> dict[str, Any]:
    pairs = [pair.rpartition("=") for pair in text.split(",")]
    try:
        weights = {group.strip(): float(weight) for group, _, weight in pairs}
    except ValueError:
        raise ValueError(f"must be a number, or have the form N,KIND=N,KIND=N, got {text!r}") from None
    return {"weight": weights.pop("", 1.0), "group_weights": weights}


_PARSERS: Final[Mapping[str, Callable[[str], dict[str, Any]]]] = MappingProxyType(
    {
        "classes": _parse_classes,
        "images": lambda text: {"images": Path(text)},
        "split": lambda text: {"split": Path(text)},
        "weights": _parse_weights,
        "licence": lambda text: {"licence": text},
    }
)
