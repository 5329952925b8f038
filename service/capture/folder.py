"""The folder of captures: each a folder of its own that is complete or not there, together within a number of bytes.

A capture is written to a folder with another name, which is then renamed; the name begins with the time, so that the
oldest sorts first, and ends with the fingerprint. Nothing is remembered between calls: captures may be deleted by hand,
and workers share the folder.
"""

from __future__ import annotations

import datetime
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from filelock import FileLock
from pydantic import ValidationError

from models.errors import PomonaError
from service.capture.fingerprint import Fingerprint
from service.capture.records import Capture

RECORD: Final = "capture.json"

_NAME: Final = re.compile(r"\d{8}T\d{12}Z-([0-9a-f]{16})")
_PART: Final = ".part-"
_LOCK: Final = ".lock"
_LOCK_WITHIN_S: Final = 10
_PROBE: Final = ".probe"

WriteFile = Callable[[Path, bytes], None]
"""Write a new file, all of it on disk when it returns."""


class CaptureFolderError(PomonaError):
    """The folder of captures cannot be used."""


def write_file(path: Path, data: bytes) -> None:
    """Write a new file that the service's user alone may read; see `WriteFile`."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@dataclass(frozen=True, slots=True)
class Kept:
    """A capture in the folder.

    Attributes:
        path: its own folder.
        nbytes: of its files.
    """

    path: Path
    nbytes: int

    @property
    def fingerprint(self) -> Fingerprint:
        """Of its image."""
        return Fingerprint.of_text(self.path.name[-16:])

    def read(self) -> Capture:
        """Read its record.

        Raises:
            CaptureFolderError: it cannot be read.
        """
        file = self.path / RECORD
        try:
            return Capture.model_validate_json(file.read_bytes())
        except OSError as error:
            raise CaptureFolderError(f"{file} cannot be read: {error.strerror}.") from error
        except ValidationError as error:
            problem = error.errors(include_input=False)[0]
            place = ".".join(map(str, problem["loc"]))
            raise CaptureFolderError(f"{file} is not the record of a capture: {place}: {problem['msg']}.") from error


class CaptureFolder:
    """See the module.

    Args:
        root: the folder.
        max_bytes: of all captures together.
        write: writes each file.
    """

    def __init__(self, root: Path, max_bytes: int, write: WriteFile = write_file) -> None:
        self.root = root
        self.max_bytes = max_bytes
        self._write = write

    def prepare(self) -> None:
        """Make the folder where there is none, and remove what a crash left in it.

        Raises:
            CaptureFolderError: nothing can be written there.
        """
        probe = self.root / f"{_PROBE}-{os.getpid()}"
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_file(probe, b"")
            probe.unlink()
            with self._locked():
                self._remove_parts()
        except OSError as error:
            raise CaptureFolderError(
                f"POMONA_CAPTURE_DIR must name a folder that the service can write to; {self.root} cannot be written: "
                f"{error.strerror or error}. Change its owner or mode, name another one, or unset it to capture "
                "nothing."
            ) from error

    def captures(self) -> list[Kept]:
        """Return all captures, the oldest first.

        Raises:
            OSError: the folder cannot be read.
        """
        found = []
        with os.scandir(self.root) as entries:
            for entry in entries:
                if _NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                    path = Path(entry.path)
                    found.append(Kept(path, sum(_sizes(path))))
        return sorted(found, key=lambda kept: kept.path.name)

    def keep(self, capture: Capture, image: bytes, fingerprint: Fingerprint) -> Sequence[Kept] | None:
        """Write a capture, after as many of the oldest were removed as it needs room.

        Returns:
            All captures that there are now; None where the folder is too small for this one.

        Raises:
            OSError: it cannot be written; nothing of it is left.
        """
        record = capture.model_dump_json(by_alias=True).encode()
        room = self.max_bytes - len(record) - len(image)
        if room < 0:
            return None
        with self._locked():
            self._remove_parts()
            kept = self.captures()
            total = sum(each.nbytes for each in kept)
            while total > room:
                oldest = kept.pop(0)
                self._remove(oldest.path)
                total -= oldest.nbytes
            written = self._add(capture, record, image, fingerprint)
        return [*kept, Kept(written, len(record) + len(image))]

    def remove(self, kept: Kept) -> None:
        """Remove a capture, all of it or nothing.

        Raises:
            OSError: it cannot be removed.
        """
        with self._locked():
            self._remove(kept.path)

    def _add(self, capture: Capture, record: bytes, image: bytes, fingerprint: Fingerprint) -> Path:
        at = datetime.datetime.fromisoformat(capture.captured_at)
        name = f"{at:%Y%m%dT%H%M%S%f}Z-{fingerprint}"
        part, final = self.root / f"{_PART}{name}", self.root / name
        part.mkdir(mode=0o700)
        try:
            self._write(part / capture.file, image)
            self._write(part / RECORD, record)
            _sync(part)
            part.rename(final)
            _sync(self.root)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        return final

    def _remove(self, path: Path) -> None:
        gone = path.with_name(f"{_PART}{path.name}")
        path.rename(gone)
        shutil.rmtree(gone)

    def _remove_parts(self) -> None:
        """Remove what will not be completed: no other process writes while the lock is held."""
        for part in self.root.glob(f"{_PART}*"):
            shutil.rmtree(part, ignore_errors=True)

    def _locked(self) -> FileLock:
        return FileLock(self.root / _LOCK, timeout=_LOCK_WITHIN_S, mode=0o600)


def _sizes(folder: Path) -> Iterator[int]:
    with os.scandir(folder) as files:
        for file in files:
            yield file.stat(follow_symlinks=False).st_size


def _sync(folder: Path) -> None:
    """Let the names in a folder survive a crash of the machine."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
