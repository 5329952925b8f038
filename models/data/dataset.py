"""A set of annotated images that loads them one at a time, and what is wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from tqdm import tqdm

from models import images
from models.data.regions import Drawn
from models.data.samples import Sample
from models.errors import DataError, ImageError, MaskError
from models.masks import MAX_PIXELS
from models.types import Image, PixelClass, Size

_STUDY_NAMES: Final = {"Healthy": PixelClass.HEALTHY, "Infected": PixelClass.INFECTED}
_STUDY_VALUES: Final = {0: PixelClass.BACKGROUND, 1: PixelClass.HEALTHY, 2: PixelClass.INFECTED}


@dataclass(frozen=True, slots=True)
class ClassMap:
    """What the classes of an annotation mean.

    A class that is not listed makes its image a problem; list it as BACKGROUND to leave its regions out, or as
    IGNORE to neither train on nor count its pixels.

    Attributes:
        names: of class names, as Label Studio and COCO write them; upper and lower case differ.
        values: of the values of index masks, 0 to 65535.
    """

    names: Mapping[str, PixelClass] = field(default_factory=lambda: dict(_STUDY_NAMES))
    values: Mapping[int, PixelClass] = field(default_factory=lambda: dict(_STUDY_VALUES))

    @classmethod
    def of(cls, words: Mapping[str, str]) -> ClassMap:
        """Add to the study's classes, or change them, by words as settings hold them.

        Args:
            words: class names or mask values to "background", "healthy", "infected", "fruit" or "ignore";
                `{"Orange": "fruit"}` or `{"1": "fruit", "2": "fruit"}`.

        Returns:
            The map; whole numbers count as names and as values.

        Raises:
            DataError: a word that is no pixel class.
        """
        names, values = dict(_STUDY_NAMES), dict(_STUDY_VALUES)
        for key, word in words.items():
            if word.upper() not in PixelClass.__members__:
                known = ", ".join(each.name.lower() for each in PixelClass)
                raise DataError(f"The class {key!r} is mapped to {word!r}; what pixels may show is {known}.")
            names[key] = PixelClass[word.upper()]
            if key.isascii() and key.isdecimal():
                values[int(key)] = names[key]
        return cls(names, values)

    def of_name(self, name: str) -> PixelClass:
        """What a class name means.

        Raises:
            DataError: it is not listed.
        """
        if name not in self.names:
            raise DataError(f"the class {name!r} is not in the class map ({', '.join(self.names)})")
        return self.names[name]


@dataclass(frozen=True, slots=True)
class Problem:
    """Why an image, or a whole file, cannot be used.

    Attributes:
        file: the image or the annotation file.
        what: what is wrong with it.
    """

    file: Path
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


def unusable(root: Path, broken: Sequence[object]) -> DataError:
    """The error that names all of a set's broken images.

    Args:
        root: of the set.
        broken: what is wrong, a line each.
    """
    listed = "\n".join(f"  {each}" for each in broken)
    return DataError(f"{len(broken)} images of {root} cannot be used; mend them or leave them out:\n{listed}")


class Annotation(Protocol):
    """What somebody said about one image, not yet drawn."""

    def draw(self, size: Size) -> Drawn:
        """Draw it for an upright image of that size.

        Raises:
            DataError: it cannot be drawn, or is for an image of another size.
            MaskError: an outline or a mask of it does not decode.
            OSError: a file of it cannot be read.
        """

    def content(self) -> bytes:
        """What was said, the same bytes whenever the same was said.

        Raises:
            OSError: a file of it cannot be read.
        """


@dataclass(frozen=True, slots=True)
class Item:
    """An image and its annotation.

    Attributes:
        image: its file.
        annotation: what somebody said about it.
    """

    image: Path
    annotation: Annotation


@dataclass(frozen=True, slots=True)
class Dataset:
    """Annotated images, loaded one at a time; can be sent to other processes.

    Attributes:
        kind: "label-studio", "coco" or "folders".
        root: what it was opened from.
        items: by name.
        problems: those seen on opening; `check` finds the others.
    """

    kind: str
    root: Path
    items: Mapping[str, Item]
    problems: tuple[Problem, ...]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        return tuple(sorted(self.items))

    def load(self, name: str) -> Sample:
        """Read one image and draw its annotation.

        Args:
            name: one of `names`.

        Returns:
            The sample.

        Raises:
            DataError: no such name, or the image or its annotation cannot be used.
        """
        if name not in self.items:
            raise DataError(f"{self.root}: there is no image {name!r} in this set.")
        try:
            return self._read(name)
        except DataError as error:
            raise DataError(f"{self.items[name].image}: {error.detail}") from error

    def check(self, names: Sequence[str] | None = None, *, progress: bool = True) -> tuple[Problem, ...]:
        """Load every image once.

        Args:
            names: of these images; None for all.
            progress: draw a bar on a terminal.

        Returns:
            All problems, those seen on opening first; none when every listed image can be used.
        """
        found = list(self.problems)
        listed = self.names if names is None else names
        for name in tqdm(listed, desc="checking", unit="image", leave=False, disable=None if progress else True):
            try:
                self._read(name)
            except DataError as error:
                found.append(Problem(self.items[name].image, error.detail))
        return tuple(found)

    def _read(self, name: str) -> Sample:
        item = self.items[name]
        try:
            image = _decode(item.image)
            drawn = item.annotation.draw(image.size)
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror or error})") from error
        except (ImageError, MaskError) as error:
            raise DataError(error.detail) from error
        return Sample(name, image.pixels, drawn.semantic, drawn.instances, drawn.instance_map)


def name_items(root: Path, items: Iterable[Item]) -> dict[str, Item]:
    """Name items by their files, without the ending.

    Args:
        root: the folder of all images.
        items: one for each image.

    Returns:
        Items by the file's name; where several have the same, those by their path below `root`, with the ending where
        even that is the same without it.
    """
    paths = [(item.image.relative_to(root), item) for item in items]
    stems = Counter(path.stem for path, _ in paths)
    bare = Counter(path.with_suffix("") for path, _ in paths)
    named: dict[str, Item] = {}
    for path, item in paths:
        if stems[path.stem] == 1:
            named[path.stem] = item
        else:
            named[(path.with_suffix("") if bare[path.with_suffix("")] == 1 else path).as_posix()] = item
    return named


def _decode(path: Path) -> Image:
    return images.decode(path.read_bytes(), max_pixels=MAX_PIXELS)
