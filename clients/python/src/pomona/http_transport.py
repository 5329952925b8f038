"""Calls over HTTP, by httpx: connections are kept and used again."""

from __future__ import annotations

import functools
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import httpx

from pomona.asks import Attempt, Call
from pomona.errors import (
    BadAnswer,
    ClientClosed,
    ConnectionFailed,
    DeadlineExceeded,
    InvalidArgument,
    TooLate,
)
from pomona.http_answers import answer_of
from pomona.http_messages import HttpRequest, request_of
from pomona.transport import too_late

T = TypeVar("T")

_LIMITS: Final = httpx.Limits(max_connections=256, max_keepalive_connections=256, keepalive_expiry=60)


@functools.cache
def _usual_tls() -> ssl.SSLContext:
    """Reading all authorities takes longer than a call: once is enough."""
    return httpx.create_ssl_context()


class HttpTransport:
    """Sync.

    Args:
        url: of the service, `http://` or `https://`; a path in it goes before those of the API.
        headers: sent with every request, for what stands between (a proxy's token).
        tls: for a certificate authority of your own, or None for the usual ones.
        through: an httpx transport instead of the network.

    Raises:
        InvalidArgument: an address that is none.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
        through: httpx.BaseTransport | None = None,
    ) -> None:
        self._http = httpx.Client(
            base_url=checked_url(url),
            headers=dict(headers or {}),
            verify=tls or _usual_tls(),
            limits=_LIMITS,
            transport=through,
        )

    def call(self, call: Call[T], attempt: Attempt) -> T:
        """See `pomona.transport.Transport`."""
        if self._http.is_closed:
            raise ClientClosed("The client was closed.")
        left = _TimeLeft(attempt)
        request = _build(self._http, request_of(call, attempt), left)
        with _translated(self._http, left):
            response = self._http.send(request, stream=True)
            try:
                body = b"".join(left.checked(chunk) for chunk in response.iter_bytes())
            finally:
                response.close()
        return answer_of(call, response.status_code, response.headers, body)

    def close(self) -> None:
        """See `pomona.transport.Transport`."""
        self._http.close()


class AsyncHttpTransport:
    """Async; see `HttpTransport`."""

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
        through: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._http = httpx.AsyncClient(
            base_url=checked_url(url),
            headers=dict(headers or {}),
            verify=tls or _usual_tls(),
            limits=_LIMITS,
            transport=through,
        )

    async def acall(self, call: Call[T], attempt: Attempt) -> T:
        """See `pomona.transport.AsyncTransport`."""
        if self._http.is_closed:
            raise ClientClosed("The client was closed.")
        left = _TimeLeft(attempt)
        request = _build(self._http, request_of(call, attempt), left)
        with _translated(self._http, left):
            response = await self._http.send(request, stream=True)
            try:
                body = b"".join([left.checked(chunk) async for chunk in response.aiter_bytes()])
            finally:
                await response.aclose()
        return answer_of(call, response.status_code, response.headers, body)

    async def aclose(self) -> None:
        """See `pomona.transport.AsyncTransport`."""
        await self._http.aclose()


class _TimeLeft(dict[str, float]):
    """httpx's timeouts of one request, which shrink as time passes.

    httpx looks a timeout up at the start of each phase (wait for a connection, connect, write, read) and knows none for
    the whole; so each phase gets what is left of the whole.
    """

    def __init__(self, attempt: Attempt) -> None:
        super().__init__(dict.fromkeys(("pool", "connect", "write", "read"), attempt.seconds))
        self._attempt = attempt
        self._until = time.monotonic() + attempt.seconds

    def get(self, phase: str, default: Any = None) -> Any:  # noqa: ARG002 (as dict has it)
        left = max(self._until - time.monotonic(), 1e-3)  # 0 would mean not to wait at all
        return min(left, self._attempt.connect) if phase == "connect" else left

    def checked(self, chunk: bytes) -> bytes:
        """The same chunk, where it came in time."""
        if time.monotonic() > self._until:
            raise self.late()
        return chunk

    def late(self) -> TooLate:
        """Which limit it was that passed."""
        return too_late(self._attempt)


def checked_url(url: str) -> str:
    """The address, where it is one of HTTP.

    Raises:
        InvalidArgument: it is not.
    """
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        right = False
    if not right:
        raise InvalidArgument(f"{url!r} is no address of HTTP; http://localhost:3000 would be right.")
    return url


def _build(http: httpx.Client | httpx.AsyncClient, request: HttpRequest, left: _TimeLeft) -> httpx.Request:
    try:
        return http.build_request(
            request.method,
            request.path,
            params=request.params or None,
            headers=request.headers,
            content=request.content,
            files=request.parts or None,
            extensions={"timeout": left},
        )
    except (httpx.InvalidURL, ValueError, TypeError) as error:
        raise InvalidArgument(f"The request cannot be built: {error}.") from error


@contextmanager
def _translated(http: httpx.Client | httpx.AsyncClient, left: _TimeLeft) -> Iterator[None]:
    """Turn what httpx raises into what this package raises."""
    try:
        yield
    except RuntimeError as error:
        if http.is_closed:
            raise ClientClosed("The client was closed.") from error
        raise
    except httpx.ConnectTimeout as error:
        late = left.late()
        if isinstance(late, DeadlineExceeded) and left.get("read") <= 1e-3:
            raise late from error
        raise ConnectionFailed("No connection to the service in time.") from error
    except httpx.TimeoutException as error:
        raise left.late() from error
    except (httpx.DecodingError, httpx.TooManyRedirects) as error:
        raise BadAnswer(f"The answer cannot be read: {error}.") from error
    except (httpx.UnsupportedProtocol, httpx.LocalProtocolError, httpx.InvalidURL) as error:
        raise InvalidArgument(f"The request cannot be sent: {error}.") from error
    except httpx.HTTPError as error:
        raise ConnectionFailed(f"The service cannot be reached: {error or type(error).__name__}.") from error
