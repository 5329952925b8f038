"""Fetches the images of tasks from Label Studio's own storage, with its token, and from nowhere else.

A task's data may name anything. What is fetched has the scheme, host and port of POMONA_LABEL_STUDIO_URL and a path
under which Label Studio serves the files of tasks; redirects are not followed. So a person who can create tasks cannot
make this service read another host, another part of Label Studio's API, or a file of this machine.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

import httpx

from service.errors import ImageNotFetched, MalformedRequest

FETCH_WITHIN_S: Final = 10.0
"""For all of an image, however slowly it comes."""

_PATHS: Final = re.compile(
    r"/data/upload/.+|/data/local-files/?|/storage-data/uploaded/?|/(tasks|projects)/\d+/(resolve|presign)/?"
)
"""Where Label Studio serves uploads, local files and connected storages."""

_AT_ONCE: Final = 2
_MAX_REFERENCE: Final = 4096
_MIB: Final = 1 << 20
_PORTS: Final[Mapping[str, int]] = {"http": 80, "https": 443}
_REFRESH: Final = "/api/token/refresh/"
_TOKEN_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class LabelStudio:
    """Where Label Studio is, and as whom its images are read.

    Attributes:
        url: of its first page, without a slash at the end.
        token: personal access token, or legacy token, of one of its users.
    """

    url: str
    token: str


class TaskImages:
    """See the module.

    Args:
        studio: whose images they are.
        max_bytes: of an image.
        within_s: for all of an image.
        transport: sends the requests; None for the network.

    Attributes:
        max_bytes: of an image.
        turns: to fetch, so that a slow Label Studio does not hold the memory of the lines' requests.
    """

    def __init__(
        self,
        studio: LabelStudio,
        max_bytes: int,
        *,
        within_s: float = FETCH_WITHIN_S,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.max_bytes = max_bytes
        self.turns = asyncio.Semaphore(_AT_ONCE)
        self._studio = studio
        self._base = urlsplit(studio.url)
        self._within_s = within_s
        self._transport = transport
        self._tls: ssl.SSLContext | None = None
        self._access = ""

    async def fetch(self, reference: object) -> bytes:
        """Fetch an image.

        Args:
            reference: what a task's data has for it.

        Raises:
            MalformedRequest: it is not one of Label Studio's own.
            ImageNotFetched: Label Studio does not answer with it, or not in time, or it is too large.
        """
        address = self.address(reference)
        try:
            async with asyncio.timeout(self._within_s):
                return await self._fetch(address)
        except TimeoutError as error:
            raise ImageNotFetched(
                f"{_shown(address)} did not come from Label Studio within {self._within_s:g} s."
            ) from error
        except httpx.HTTPError as error:
            raise ImageNotFetched(
                f"Label Studio cannot be reached at {self._studio.url}: {type(error).__name__}. "
                "POMONA_LABEL_STUDIO_URL must be its address as this service sees it."
            ) from error

    def address(self, reference: object) -> str:
        """Return the address of an image in Label Studio.

        Raises:
            MalformedRequest: it is not one of Label Studio's own.
        """
        if not isinstance(reference, str) or not reference or len(reference) > _MAX_REFERENCE:
            raise MalformedRequest(
                f"A task's image must be the address of one image, of at most {_MAX_REFERENCE} characters, got "
                f"{type(reference).__name__}."
            )
        parts = _split(reference)
        if parts is None or not self._is_ours(parts):
            raise MalformedRequest(
                f"Images are fetched from Label Studio at {self._studio.url} alone (POMONA_LABEL_STUDIO_URL), where it "
                f"serves the files of tasks; got {_shown(reference)!r}."
            )
        query = f"?{parts.query}" if parts.query else ""
        return f"{self._base.scheme}://{self._base.netloc}{parts.path}{query}"

    def _is_ours(self, parts: SplitResult) -> bool:
        if (parts.scheme or parts.netloc) and _origin(parts) != _origin(self._base):
            return False
        path = parts.path
        if not path.startswith(f"{self._base.path}/"):
            return False
        # Neither is needed by a file of Label Studio, and a server may read them as another path.
        decoded = unquote(unquote(path))
        if any(segment in (".", "..") for segment in decoded.split("/")) or "\\" in decoded or "//" in decoded:
            return False
        return _PATHS.fullmatch(path.removeprefix(self._base.path)) is not None

    async def _fetch(self, address: str) -> bytes:
        async with self._client() as client:
            for attempt in (1, 2):
                headers = {"authorization": await self._authorization(client), "accept-encoding": "identity"}
                async with client.stream("GET", address, headers=headers) as response:
                    if response.status_code == 401 and attempt == 1 and self._access:
                        self._access = ""  # it has expired
                        continue
                    _check(response, address)
                    return await _read(response, self.max_bytes, address)
        raise ImageNotFetched(f"Label Studio refused the token of POMONA_LABEL_STUDIO_TOKEN for {_shown(address)}.")

    async def _authorization(self, client: httpx.AsyncClient) -> str:
        """Return the header for a legacy token; for a personal access token that of a short-lived one."""
        token = self._studio.token
        if token.count(".") != 2:
            return f"Token {token}"
        if not self._access:
            async with client.stream("POST", f"{self._studio.url}{_REFRESH}", json={"refresh": token}) as response:
                if response.status_code != 200:
                    raise ImageNotFetched(
                        f"Label Studio refused the token of POMONA_LABEL_STUDIO_TOKEN with status "
                        f"{response.status_code}: make a new personal access token in its account settings."
                    )
                body = await _read(response, _TOKEN_BYTES, _REFRESH)
            self._access = _access_token(body)
        return f"Bearer {self._access}"

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[httpx.AsyncClient]:
        if self._tls is None:
            self._tls = ssl.create_default_context()
        async with httpx.AsyncClient(
            transport=self._transport,
            verify=self._tls,
            follow_redirects=False,
            trust_env=False,  # no proxy, and no credentials from a .netrc
            timeout=self._within_s,
        ) as client:
            yield client


def _split(reference: str) -> SplitResult | None:
    if any(character.isspace() or ord(character) < 32 for character in reference):
        return None
    try:
        parts = urlsplit(reference)
        _ = parts.port
    except ValueError:
        return None
    return None if parts.username is not None or parts.password is not None else parts


def _origin(parts: SplitResult) -> tuple[str, str | None, int | None]:
    return parts.scheme, parts.hostname, parts.port or _PORTS.get(parts.scheme)


def _check(response: httpx.Response, address: str) -> None:
    if response.is_redirect:
        raise ImageNotFetched(
            f"Label Studio redirects {_shown(address)} to another place, which is not followed. Let it serve the files "
            "of its storages itself: turn pre-signed URLs off in the storage's settings."
        )
    if response.status_code in (401, 403):
        raise ImageNotFetched(
            f"Label Studio refused {_shown(address)} with status {response.status_code}: the user of "
            "POMONA_LABEL_STUDIO_TOKEN must be a member of the project."
        )
    if response.status_code != 200:
        raise ImageNotFetched(f"Label Studio answered {_shown(address)} with status {response.status_code}.")
    if response.headers.get("content-encoding", "identity") != "identity":
        raise ImageNotFetched(f"Label Studio must send {_shown(address)} without a content encoding.")


async def _read(response: httpx.Response, max_bytes: int, address: str) -> bytes:
    chunks, read = [], 0
    async for chunk in response.aiter_raw():
        read += len(chunk)
        if read > max_bytes:
            raise ImageNotFetched(
                f"{_shown(address)} must have at most {max_bytes / _MIB:g} MiB (POMONA_MAX_UPLOAD_MIB)."
            )
        chunks.append(chunk)
    return b"".join(chunks)


def _access_token(body: bytes) -> str:
    found = re.search(rb'"access"\s*:\s*"([A-Za-z0-9_.-]+)"', body)
    if found is None:
        raise ImageNotFetched("Label Studio answered the exchange of its token with something else than a token.")
    return found[1].decode()


def _shown(reference: str) -> str:
    """Return a reference as messages have it: without its query, which may hold a signature."""
    shown = reference.partition("?")[0]
    return shown if len(shown) <= 200 else f"{shown[:200]}…"
