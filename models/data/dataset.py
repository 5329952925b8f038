"""A set of annotated images that loads them one at a time, the meaning of its classes, and its problems."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from tqdm import tqdm

from models import images
from models.data.image_files import nfc
from models.data.samples import LabelMaps, Sample
from models.errors import DataError, ImageError, MaskError
from models.masks import MAX_PIXELS
from models.types import Image, PixelClass, Size

_log = logging.getLogger("pomona.data")

_DEFAULT_NAMES: Final = {
    "Healthy": PixelClass.HEALTHY,
    "Infected": PixelClass.INFECTED,
    "Ignore": PixelClass.IGNORE,
}
_DEFAULT_VALUES: Final = {
    0: PixelClass.BACKGROUND,
    1: PixelClass.HEALTHY,
    2: PixelClass.INFECTED,
    255: PixelClass.IGNORE,
}


@dataclass(frozen=True, slots=True)
class ClassMap:
    """The pixel classes that the class names or mask values of an annotation mean.

    A class that is not listed makes its image a problem. List it as BACKGROUND to leave its regions out, or as IGNORE
    to neither train on nor count its pixels.

    Attributes:
        names: meaning of class names in Label Studio and COCO. Upper and lower case are the same, unless names that
            differ in nothing else have different meanings.
        values: meaning of the values of index masks, 0 to 65535.
    """

    names: Mapping[str, PixelClass] = field(default_factory=lambda: dict(_DEFAULT_NAMES))
    values: Mapping[int, PixelClass] = field(default_factory=lambda: dict(_DEFAULT_VALUES))

    @classmethod
    def of(cls, words: Mapping[str, str]) -> ClassMap:
        """Extend or change the default classes (Healthy, Infected, Ignore; 0, 1, 2, 255) by words, as in settings.

        Args:
            words: class names or mask values to "background", "healthy", "infected", "fruit" or "ignore";
                `{"Orange": "fruit"}` or `{"1": "fruit", "2": "fruit"}`.

        Returns:
            The class map; whole numbers count as names and as values. A name changes the default one that differs in
            case only.

        Raises:
            DataError: a word is not a pixel class.
        """
        changed = {key.casefold() for key in words}
        names = {name: meaning for name, meaning in _DEFAULT_NAMES.items() if name.casefold() not in changed}
        values = dict(_DEFAULT_VALUES)
        for key, word in words.items():
            if word.upper() not in PixelClass.__members__:
                known = ", ".join(each.name.lower() for each in PixelClass)
                raise DataError(f"class {key!r} must be mapped to one of {known}, got {word!r}.")
            names[key] = PixelClass[word.upper()]
            if key.isascii() and key.isdecimal():
                values[int(key)] = names[key]
        return cls(names, values)

    def of_name(self, name: str) -> PixelClass:
        """Return the pixel class of a class name.

        Raises:
            DataError: the name is not listed, or only in other cases with different meanings.
        """
        if name in self.names:
            return self.names[name]
        same = {each: meaning for each, meaning in self.names.items() if each.casefold() == name.casefold()}
        if not same:
            raise DataError(f"the class {name!r} is not in the class map ({', '.join(self.names)})")
        if len(set(same.values())) > 1:
            listed = ", ".join(f"{each}={meaning.name.lower()}" for each, meaning in same.items())
            raise DataError(f"the class {name!r} is ambiguous: the class map has {listed}")
        return next(iter(same.values()))


@dataclass(frozen=True, slots=True)
class Problem:
    """Why an image, or a whole file, cannot be used.

    Attributes:
        file: the image or the annotation file.
        message: what is wrong with it.
    """

    file: Path
    message: str

    def __str__(self) -> str:
        return f"{self.file}: {self.message}"


def unusable(root: Path, broken: Sequence[object]) -> DataError:
    """Make the error that lists all broken images of a set.

    Args:
        root: root of the set.
        broken: problems, one a line.
    """
    listed = "\n".join(f"  {each}" for each in broken)
    return DataError(f"{len(broken)} images of {root} cannot be used; fix or remove them:\n{listed}")


def log_warnings(root: Path, found: Sequence[Problem]) -> None:
    """Log the images of a set with faulty regions, one a line; nothing if there are none.

    Args:
        root: root of the set.
        found: faults by image.
    """
    if found:
        listed = "\n".join(f"  {each}" for each in found)
        _log.warning(
            "Warning: %d images of %s have faulty regions, which are left out, or ignored where their place is known "
            "(--strict refuses them):\n%s",
            len(found),
            root,
            listed,
        )


class Annotation(Protocol):
    """The annotation of one image, not yet rasterised."""

    def rasterise(self, size: Size) -> LabelMaps:
        """Rasterise it for an upright image of a size.

        Raises:
            DataError: the annotation is invalid, or was made for an image of another size.
            MaskError: an outline or a mask does not decode.
            OSError: a file cannot be read.
        """

    def content(self) -> bytes:
        """Return the content of the annotation as bytes; equal annotations give equal bytes.

        Raises:
            OSError: a file cannot be read.
        """


@dataclass(frozen=True, slots=True)
class Item:
    """An image and its annotation.

    Attributes:
        image: image file.
        annotation: annotation of it.
    """

    image: Path
    annotation: Annotation


@dataclass(frozen=True, slots=True)
class Dataset:
    """Annotated images, loaded one at a time; can be pickled to other processes.

    Attributes:
        kind: "label-studio", "coco" or "folders".
        root: folder or file that it was opened from.
        items: images by name.
        problems: problems seen on opening; `check` finds the others.
        groups: what an image shows, such as "tree" or "negative", by name, for those images where it is known.
        strict: whether a faulty region makes its image unusable; otherwise the others count, and the sample has a
            warning.
    """

    kind: str
    root: Path
    items: Mapping[str, Item]
    problems: tuple[Problem, ...]
    groups: Mapping[str, str] = field(default_factory=dict)
    strict: bool = False

    def __len__(self) -> int:
        return len(self.items)

    @property
    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        return tuple(sorted(self.items))

    def load(self, name: str) -> Sample:
        """Read an image and rasterise its annotation.

        Args:
            name: one of `names`.

        Returns:
            The sample.

        Raises:
            DataError: there is no such name, or the image or its annotation cannot be used.
        """
        if name not in self.items:
            raise DataError(f"{self.root}: no image {name!r} in this set.")
        try:
            return self._read(name)
        except DataError as error:
            raise DataError(f"{self.items[name].image}: {error.detail}") from error

    def grouped(self, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """Sort images by group; the group of those without one is the empty string.

        Args:
            names: names of images of this set.

        Returns:
            Sorted names by group, groups sorted.
        """
        found: dict[str, list[str]] = defaultdict(list)
        for name in sorted(names):
            found[self.groups.get(name, "")].append(name)
        return {group: tuple(found[group]) for group in sorted(found)}

    def check(self, names: Sequence[str] | None = None, *, progress: bool = True) -> tuple[Problem, ...]:
        """Load every image once, collect the problems, and log the warnings.

        Args:
            names: names of the images to load; None for all.
            progress: whether to show a progress bar on a terminal.

        Returns:
            All problems, those seen on opening first; empty if every listed image can be used.
        """
        found, warned = list(self.problems), list[Problem]()
        listed = self.names if names is None else names
        for name in tqdm(listed, desc="checking", unit="image", leave=False, disable=None if progress else True):
            try:
                warnings = self._read(name).warnings
            except DataError as error:
                found.append(Problem(self.items[name].image, error.detail))
                continue
            if warnings:
                warned.append(Problem(self.items[name].image, "; ".join(warnings)))
        log_warnings(self.root, warned)
        return tuple(found)

    def _read(self, name: str) -> Sample:
        item = self.items[name]
        try:
            image = _decode(item.image)
            labels = item.annotation.rasterise(image.size)
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror or error})") from error
        except (ImageError, MaskError) as error:
            raise DataError(error.detail) from error
        if self.strict and labels.warnings:
            raise DataError("; ".join(labels.warnings))
        return Sample(name, image.pixels, labels.semantic, labels.instances, labels.instance_map, labels.warnings)


def name_items(root: Path, items: Iterable[Item]) -> dict[str, Item]:
    """Name items by their files, without the ending.

    Args:
        root: folder of all images.
        items: one item for each image.

    Returns:
        Items by file name; those whose file names are equal by their path below `root`, and with the ending if even
        those paths are equal. Names are in Unicode's form NFC, but for paths that differ in nothing else.
    """
    paths = [(item.image.relative_to(root), item) for item in items]
    stems = Counter(nfc(path.stem) for path, _ in paths)
    bare = Counter(nfc(path.with_suffix("").as_posix()) for path, _ in paths)
    whole = Counter(nfc(path.as_posix()) for path, _ in paths)
    named: dict[str, Item] = {}
    for path, item in paths:
        stem, below, full = nfc(path.stem), nfc(path.with_suffix("").as_posix()), nfc(path.as_posix())
        if stems[stem] == 1:
            named[stem] = item
        elif bare[below] == 1:
            named[below] = item
        else:
            named[full if whole[full] == 1 else path.as_posix()] = item
    return named


def _decode(path: Path) -> Image:
    return images.decode(path.read_bytes(), max_pixels=MAX_PIXELS)
