"""HTTP downloads that resume where they stopped and trust nothing before its digest fits."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import requests
import urllib3
from tqdm import tqdm

from models.errors import WeightsError, WrongHash
from models.weights.digests import digest_of

_log = logging.getLogger("pomona.weights")

TIMEOUT = (10.0, 30.0)
"""Seconds to connect, and seconds without a byte."""

_CHUNK = 1 << 20
_ATTEMPTS = 5  # per call, and only while each one brings bytes


class SourceError(WeightsError):
    """One source of a checkpoint failed; another may do."""


class _ConnectionBrokenError(SourceError):
    """The connection broke within the body; what arrived is kept."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file to download, and what it must turn out to be.

    Attributes:
        url: http or https.
        size: bytes, or None where unknown.
        digests: hex digits by hashlib name; empty where nobody says.
        auth: user and password, or None.
    """

    url: str
    size: int | None
    digests: Mapping[str, str]
    auth: tuple[str, str] | None = field(default=None, repr=False)

    @property
    def shown(self) -> str:
        """The address without user, password and query, fit for logs."""
        return without_secrets(self.url)


def without_secrets(url: str) -> str:
    """Take user, password and query out of an address, to show it."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def open_session(ca_bundle: str | None = None) -> requests.Session:
    """Open an HTTP session that trusts what the environment trusts.

    Args:
        ca_bundle: file of certificates; else PIP_CERT. REQUESTS_CA_BUNDLE wins over both.
    """
    session = requests.Session()
    session.verify = ca_bundle or os.environ.get("PIP_CERT") or True
    # Bytes as they lie on the server: ranges, lengths and digests count those.
    session.headers["Accept-Encoding"] = "identity"
    return session


def download(session: requests.Session, remote: RemoteFile, part: Path) -> None:
    """Download into a part file, going on where an earlier call stopped, and verify it.

    Args:
        session: from `open_session`.
        remote: what to download.
        part: file that holds what has arrived; complete and verified on return.

    Raises:
        SourceError: the server cannot be reached or answers with something else.
        WrongHash: the file arrived and is not the one expected; the part is deleted.
        OSError: the part cannot be written.
    """
    resumed = _size_of(part) > 0
    _complete(session, remote, part)
    if _fits(remote, part):
        return
    part.unlink()
    if resumed:
        # The older piece may be at fault, not the server.
        _log.warning("%s: the resumed file has a wrong hash; starting afresh", remote.shown)
        _complete(session, remote, part)
        if _fits(remote, part):
            return
        part.unlink()
    raise WrongHash(f"{remote.shown}: the file there has a wrong hash")


def _fits(remote: RemoteFile, part: Path) -> bool:
    return all(digest_of(part, name) == digits for name, digits in remote.digests.items())


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
            _log.warning("%s; going on at byte %d", error.detail, _size_of(part))
        else:
            return
    raise SourceError(f"{remote.shown}: the connection broke {_ATTEMPTS} times")


def _request(session: requests.Session, remote: RemoteFile, part: Path) -> None:
    """Ask for what is missing and append it to the part."""
    start = _size_of(part)
    if remote.size is not None and start == remote.size:
        return
    if remote.size is not None and start > remote.size:
        part.unlink()
        start = 0
    headers = {"Range": f"bytes={start}-"} if start else {}
    try:
        response = session.get(remote.url, headers=headers, auth=remote.auth, stream=True, timeout=TIMEOUT)
    # OSError and ValueError: requests lets some through for certificate files and odd addresses.
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
            raise SourceError(f"{remote.shown}: answered {response.status_code} {response.reason}")
        elif _range_start(response) != start:
            raise SourceError(f"{remote.shown}: answered with another range than asked for")
        _receive(response, remote, part, start)


def _receive(response: requests.Response, remote: RemoteFile, part: Path, start: int) -> None:
    length = response.headers.get("Content-Length", "")
    total = start + int(length) if length.isdecimal() else None
    if remote.size is not None and total not in (None, remote.size):
        raise SourceError(f"{remote.shown}: offers {total} bytes where {remote.size} are right")
    total = total or remote.size
    name = Path(urlsplit(remote.url).path).name
    _log.info("downloading %s (%s bytes, %d here) from %s", name, total, start, remote.shown)
    bar = tqdm(desc=name, total=total, initial=start, unit="B", unit_scale=True, disable=None, leave=False)
    with bar, part.open("ab" if start else "wb") as file:
        try:
            # Raw: a server that labels a .tar.gz as gzip-encoded must not have it unpacked here.
            for chunk in response.raw.stream(_CHUNK, decode_content=False):
                file.write(chunk)
                bar.update(len(chunk))
                if remote.size is not None and file.tell() > remote.size:
                    break
        except urllib3.exceptions.HTTPError as error:
            raise _ConnectionBrokenError(f"{remote.shown}: the connection broke ({reason(error)})") from error
    if remote.size is not None and _size_of(part) > remote.size:
        part.unlink()
        raise SourceError(f"{remote.shown}: sent more than the {remote.size} bytes that are right")


def _range_start(response: requests.Response) -> int | None:
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def reason(error: BaseException) -> str:
    """Say in a few words why a request failed, without the address that requests repeats."""
    match error:
        case requests.exceptions.SSLError():
            return "its certificate is not trusted; REQUESTS_CA_BUNDLE names the trusted ones"
        case requests.exceptions.ProxyError():
            return "the proxy refused or cannot be reached"
        case requests.Timeout():
            return f"no answer within {TIMEOUT[0]:.0f} s to connect and {TIMEOUT[1]:.0f} s to read"
        case requests.ConnectionError():
            return "cannot be reached"
        case urllib3.exceptions.HTTPError() | requests.RequestException():
            return type(error).__name__
    return str(error)
