"""Find the image files of a folder, by the names that annotations give them."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

from models.errors import DataError

_ENDINGS = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".tif", ".tiff"})
_UPLOAD_PREFIX = re.compile(r"[0-9a-f]{8}-")  # Label Studio puts it before the name of an upload


def nfc(text: str) -> str:
    """Return a name in Unicode's composed form NFC. File systems of macOS decompose letters with accents (NFD)."""
    return unicodedata.normalize("NFC", text)


def list_images(folder: Path) -> list[Path]:
    """List the image files in a folder and below it, sorted, without hidden ones.

    Links to folders are followed. A folder that is there several times, by links or in a circle, is listed once, if
    possible where it really lies.

    Raises:
        DataError: the folder cannot be read.
    """
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    inside, linked = [folder], list[Path]()
    try:
        next(folder.iterdir(), None)  # so that an unreadable folder is an error, unlike one within it
        while inside or linked:
            current = inside.pop() if inside else linked.pop(0)
            status = current.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            for path in _visible(current):
                if path.is_dir():
                    (linked if path.is_symlink() else inside).append(path)
                elif path.suffix.lower() in _ENDINGS and path.is_file():
                    found.append(path)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from error
    return sorted(found)


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except PermissionError:  # such as lost+found on a disk with images
        return []


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
            composed, decomposed = nfc(path.name), unicodedata.normalize("NFD", path.name)
            # Of a decomposed letter, only the bare one is stored.
            for name in {composed, _stored_name(composed), _stored_name(decomposed)}:
                self._by_name[name].append(path)

    def find(self, reference: str) -> Path:
        """Find an image by its file's name, in any of Unicode's forms.

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
            found = self._by_name.get(nfc(name), [])
            if name == wanted.name:  # rather than one that Label Studio would have stored under this name
                found = [path for path in found if nfc(path.name) == nfc(name)] or found
            if len(found) > 1:
                exact = self.folder / wanted
                found = [exact] if exact in found else _closest(found, wanted)
            if len({nfc(path.name) for path in found}) == 1:
                found = [path for path in found if path.name == name] or found
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
        if nfc(one) != nfc(other):
            break
        count += 1
    return count
