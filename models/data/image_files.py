"""Finds the images that annotation files name."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

from models.errors import DataError

_ENDINGS = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".tif", ".tiff"})
_UPLOAD_PREFIX = re.compile(r"[0-9a-f]{8}-")  # Label Studio puts it before the name of an uploaded file


def list_images(folder: Path) -> list[Path]:
    """All files in a folder and below it whose ending is that of an image, sorted; hidden ones left out.

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
        folder: searched with all folders below it.

    Raises:
        DataError: it cannot be read.
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
            reference: a name, a path, or a URL, such as Label Studio's `/data/upload/1/1a2b3c4d-name.jpg` or
                `/data/local-files/?d=folder/name.jpg`. Folders in it only decide between files of the same name.

        Returns:
            The image's path.

        Raises:
            DataError: there is no such image, or several that fit as well.
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
        raise DataError(f"there is no image {wanted.name!r} in {self.folder}")


def names_image(reference: str) -> bool:
    """Whether a text can be the name, path or URL of an image that is read here."""
    return _path_of(reference).suffix.lower() in _ENDINGS


def _path_of(reference: str) -> PurePosixPath:
    try:
        url = urlsplit(reference.replace("\\", "/"))
    except ValueError:  # brackets that are no address
        return PurePosixPath(reference)
    if len(url.scheme) < 2:  # a path: it may hold "?", "#" or "%", and begin with a Windows drive
        local = parse_qs(url.query).get("d") if url.path.rstrip("/").endswith("/data/local-files") else None
        return PurePosixPath(local[0] if local else _unquoted(reference.replace("\\", "/"), url.path))
    return PurePosixPath((parse_qs(url.query).get("d") or [unquote(url.path)])[0])


def _unquoted(reference: str, path: str) -> str:
    """Label Studio writes the path of an upload as a URL's, other tools write plain paths."""
    return unquote(path) if path.startswith("/data/") else reference


def _stored_name(name: str) -> str:
    """How Django, hence Label Studio, stores an uploaded file of that name."""
    return re.sub(r"[^-\w.]", "", name.strip().replace(" ", "_"))


def _closest(found: list[Path], wanted: PurePosixPath) -> list[Path]:
    """Those that share the most folders with the wanted path, from the file upwards."""
    shared = [_shared_tail(path, wanted) for path in found]
    return [path for path, tail in zip(found, shared, strict=True) if tail == max(shared)]


def _shared_tail(path: Path, wanted: PurePosixPath) -> int:
    count = 0
    # Without the file: its name already fits, with or without the prefix of an upload.
    for one, other in zip(reversed(path.parts[:-1]), reversed(wanted.parts[:-1]), strict=False):
        if one != other:
            break
        count += 1
    return count
