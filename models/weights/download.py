"""Downloads files over HTTP, resuming where an earlier download stopped, and verifies their digests."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import requests
import urllib3
from tqdm import tqdm

from models.errors import WeightsError, WrongHash

_LOG = logging.getLogger("pomona.weights")

TIMEOUT: Final = (10.0, 30.0)
"""Most seconds to connect, and most seconds without a byte."""

_CHUNK: Final = 1 << 20
_ATTEMPTS: Final = 5  # per call, and only while each one brings bytes


class SourceError(WeightsError):
    """One source of a checkpoint failed; another may succeed."""


class _ConnectionBrokenError(SourceError):
    """The connection broke within the body; the bytes received so far are kept."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file to download, with the size and digests that it must have.

    Attributes:
        url: http or https.
        size: bytes, or None if unknown.
        digests: hex digits by hashlib name; empty if unknown.
        auth: user and password, or None.
    """

    url: str
    size: int | None
    digests: Mapping[str, str]
    auth: tuple[str, str] | None = field(default=None, repr=False)

    @property
    def shown(self) -> str:
        """The URL without user, password and query, for logs."""
        return without_secrets(self.url)


def without_secrets(url: str) -> str:
    """Remove user, password and query from a URL."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def open_session(ca_bundle: str | None = None) -> requests.Session:
    """Open an HTTP session that trusts the certificates configured in the environment.

    Args:
        ca_bundle: file of certificates; default PIP_CERT. REQUESTS_CA_BUNDLE takes precedence over both.
    """
    session = requests.Session()
    session.verify = ca_bundle or os.environ.get("PIP_CERT") or True
    # Bytes as stored on the server: ranges, lengths and digests refer to those.
    session.headers["Accept-Encoding"] = "identity"
    return session


def download(session: requests.Session, remote: RemoteFile, part: Path) -> None:
    """Download into a part file, continuing where an earlier call stopped, and verify it.

    Args:
        session: session from `open_session`.
        remote: file to download.
        part: file for the bytes received; complete and verified on return.

    Raises:
        SourceError: the server cannot be reached, or its response is not the file.
        WrongHash: the file arrived with another digest; the part is deleted.
        OSError: the part cannot be written.
    """
    resumed = _size_of(part) > 0
    _complete(session, remote, part)
    if _fits(remote, part):
        return
    part.unlink()
    if resumed:
        # The earlier part may be at fault, not the server.
        _LOG.warning("%s: the resumed file has a wrong hash; starting again", remote.shown)
        _complete(session, remote, part)
        if _fits(remote, part):
            return
        part.unlink()
    raise WrongHash(f"{remote.shown}: the file has a wrong hash")


def _fits(remote: RemoteFile, part: Path) -> bool:
    for name, digits in remote.digests.items():
        with part.open("rb") as file:
            if hashlib.file_digest(file, name).hexdigest() != digits:
                return False
    return True


def _size_of(part: Path) -> int:
    try:
        return part.stat().st_size
    except FileNotFoundError:
        return 0


def _complete(session: requests.Session, remote: RemoteFile, part: Path) -> None:
    for _ in range(_ATTEMPTS):
        before = _size_of(part)
        try:
            _request(session, remote, part)
        except _ConnectionBrokenError as error:
            if _size_of(part) <= before:
                raise
            _LOG.warning("%s; continuing at byte %d", error.detail, _size_of(part))
        else:
            return
    raise SourceError(f"{remote.shown}: the connection broke {_ATTEMPTS} times")


def _request(session: requests.Session, remote: RemoteFile, part: Path) -> None:
    """Request the missing bytes and append them to the part."""
    start = _size_of(part)
    if remote.size is not None and start == remote.size:
        return
    if remote.size is not None and start > remote.size:
        part.unlink()
        start = 0
    headers = {"Range": f"bytes={start}-"} if start else {}
    try:
        response = session.get(remote.url, headers=headers, auth=remote.auth, stream=True, timeout=TIMEOUT)
    # OSError and ValueError: requests raises some for certificate files and malformed URLs.
    except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        raise SourceError(f"{remote.shown}: {reason(error)}") from error
    with response:
        if response.status_code == requests.codes.requested_range_not_satisfiable and start:
            part.unlink()
            _request(session, remote, part)
            return
        if response.status_code == requests.codes.ok:
            start = 0  # a server without ranges sends everything again
        elif response.status_code != requests.codes.partial:
            raise SourceError(f"{remote.shown}: responded {response.status_code} {response.reason}")
        elif _range_start(response) != start:
            raise SourceError(f"{remote.shown}: responded with another range than requested")
        _receive(response, remote, part, start)


def _receive(response: requests.Response, remote: RemoteFile, part: Path, start: int) -> None:
    length = response.headers.get("Content-Length", "")
    total = start + int(length) if length.isdecimal() else None
    if remote.size is not None and total not in (None, remote.size):
        raise SourceError(f"{remote.shown}: the file must have {remote.size} bytes, the server offers {total}")
    total = total or remote.size
    name = Path(urlsplit(remote.url).path).name
    _LOG.info("downloading %s (%s bytes, %d received before) from %s", name, total, start, remote.shown)
    bar = tqdm(desc=name, total=total, initial=start, unit="B", unit_scale=True, disable=None, leave=False)
    with bar, part.open("ab" if start else "wb") as file:
        try:
            # Raw: a .tar.gz that the server labels as gzip-encoded must not be decompressed.
            for chunk in response.raw.stream(_CHUNK, decode_content=False):
                file.write(chunk)
                bar.update(len(chunk))
                if remote.size is not None and file.tell() > remote.size:
                    break
        except urllib3.exceptions.HTTPError as error:
            raise _ConnectionBrokenError(f"{remote.shown}: the connection broke ({reason(error)})") from error
    if remote.size is not None and _size_of(part) > remote.size:
        part.unlink()
        raise SourceError(f"{remote.shown}: the file must have {remote.size} bytes, the server sent more")


def _range_start(response: requests.Response) -> int | None:
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def reason(error: BaseException) -> str:
    """Describe briefly why a request failed, without the URL that requests repeats."""
    match error:
        case requests.exceptions.SSLError():
            return "its certificate is not trusted; set REQUESTS_CA_BUNDLE to a file of trusted ones"
        case requests.exceptions.ProxyError():
            return "the proxy refused or cannot be reached"
        case requests.Timeout():
            return f"no response within {TIMEOUT[0]:.0f} s to connect and {TIMEOUT[1]:.0f} s to read"
        case requests.ConnectionError():
            return "cannot be reached"
        case urllib3.exceptions.HTTPError() | requests.RequestException():
            return type(error).__name__
    return str(error)
