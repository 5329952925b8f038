"""A set of annotated images that loads them one at a time, its problems, and the files that annotations name."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

from tqdm import tqdm

from models import images
from models.data.samples import LabelMaps, Sample
from models.errors import DataError, ImageError, MaskError
from models.masks import MAX_PIXELS
from models.types import Image, PixelClass, Size

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
        names: meaning of class names in Label Studio and COCO; case-sensitive.
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
            The class map; whole numbers count as names and as values.

        Raises:
            DataError: a word is not a pixel class.
        """
        names, values = dict(_DEFAULT_NAMES), dict(_DEFAULT_VALUES)
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
            DataError: the name is not listed.
        """
        if name not in self.names:
            raise DataError(f"the class {name!r} is not in the class map ({', '.join(self.names)})")
        return self.names[name]


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
    """

    kind: str
    root: Path
    items: Mapping[str, Item]
    problems: tuple[Problem, ...]
    groups: Mapping[str, str] = field(default_factory=dict)

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
        """Load every image once, and collect the problems.

        Args:
            names: names of the images to load; None for all.
            progress: whether to show a progress bar on a terminal.

        Returns:
            All problems, those seen on opening first; empty if every listed image can be used.
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
            labels = item.annotation.rasterise(image.size)
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror or error})") from error
        except (ImageError, MaskError) as error:
            raise DataError(error.detail) from error
        return Sample(name, image.pixels, labels.semantic, labels.instances, labels.instance_map)


def name_items(root: Path, items: Iterable[Item]) -> dict[str, Item]:
    """Name items by their files, without the ending.

    Args:
        root: folder of all images.
        items: one item for each image.

    Returns:
        Items by file name; those whose file names are equal by their path below `root`, and with the ending if even
        those paths are equal.
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


_ENDINGS = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".tif", ".tiff"})
_UPLOAD_PREFIX = re.compile(r"[0-9a-f]{8}-")  # Label Studio puts it before the name of an upload


def list_images(folder: Path) -> list[Path]:
    """List the image files in a folder and below it, sorted, without hidden ones.

    Raises:
        DataError: the folder cannot be read.
    """
    try:
        found = [path for path in folder.rglob("*") if path.suffix.lower() in _ENDINGS and path.is_file()]
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from error
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


class ImageFolder:
    """The images of a folder, found by the names that annotation files give them.

    Args:
        folder: folder to search, with all folders below it.

    Raises:
        DataError: the folder cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._by_name: dict[str, list[Path]] = defaultdict(list)
        for path in list_images(folder):
            for name in {path.name, _stored_name(path.name)}:
                self._by_name[name].append(path)

    def find(self, reference: str) -> Path:
        """Find an image by its file's name.

        Args:
            reference: name, path or URL, such as Label Studio's `/data/upload/1/1a2b3c4d-name.jpg` or
                `/data/local-files/?d=folder/name.jpg`. Its folders only decide between files of the same name.

        Returns:
            The image's path.

        Raises:
            DataError: there is no such image, or several match equally well.
        """
        wanted = _path_of(reference)
        for name in (wanted.name, _UPLOAD_PREFIX.sub("", wanted.name, count=1)):
            found = self._by_name.get(name, [])
            if len(found) > 1:
                exact = self.folder / wanted
                found = [exact] if exact in found else _closest(found, wanted)
            if len(found) > 1:
                raise DataError(f"several images are called {name!r}: {', '.join(map(str, found))}")
            if found:
                return found[0]
        raise DataError(f"no image {wanted.name!r} in {self.folder}")


def names_image(reference: str) -> bool:
    """Tell whether a text can be the name, path or URL of a supported image."""
    return _path_of(reference).suffix.lower() in _ENDINGS


def _path_of(reference: str) -> PurePosixPath:
    try:
        url = urlsplit(reference.replace("\\", "/"))
    except ValueError:  # brackets that are not an address
        return PurePosixPath(reference)
    if len(url.scheme) < 2:  # a path: it may hold "?", "#" or "%", and begin with a Windows drive
        local = parse_qs(url.query).get("d") if url.path.rstrip("/").endswith("/data/local-files") else None
        return PurePosixPath(local[0] if local else _unquoted(reference.replace("\\", "/"), url.path))
    return PurePosixPath((parse_qs(url.query).get("d") or [unquote(url.path)])[0])


def _unquoted(reference: str, path: str) -> str:
    """Decode the path of an upload, which Label Studio writes as that of a URL; other tools write plain paths."""
    return unquote(path) if path.startswith("/data/") else reference


def _stored_name(name: str) -> str:
    """Return the name under which Django, hence Label Studio, stores an uploaded file."""
    return re.sub(r"[^-\w.]", "", name.strip().replace(" ", "_"))


def _closest(found: list[Path], wanted: PurePosixPath) -> list[Path]:
    """Return the paths that share the most folders with the wanted path, from the file upwards."""
    shared = [_shared_tail(path, wanted) for path in found]
    return [path for path, tail in zip(found, shared, strict=True) if tail == max(shared)]


def _shared_tail(path: Path, wanted: PurePosixPath) -> int:
    count = 0
    # Without the file name, which already matches with or without the prefix of an upload.
    for one, other in zip(reversed(path.parts[:-1]), reversed(wanted.parts[:-1]), strict=False):
        if one != other:
            break
        count += 1
    return count
