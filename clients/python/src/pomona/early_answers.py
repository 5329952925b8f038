"""The connections of the async HTTP transport, which read while they write.

A service that refuses an upload by its size answers, and closes with the rest of the upload unread, which resets the
connection. asyncio reads nothing while a caller only writes, and then throws away what has come. So connections here
read while they write, and stop writing once an answer has come; what asyncio had no time to read is read after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import urllib.request
from collections.abc import AsyncIterator, Iterable
from typing import Any, Final

import httpcore
import httpx

from pomona.transports import parse_url

_WATCHED: Final = 1 << 16  # bytes; what is shorter fits into the buffers of the connection
_LONGEST_ANSWER: Final = 1 << 20  # bytes of an early answer
_QUIET_S: Final = 0.05
"""How long to wait for more of an early answer, which may come in several pieces."""


_TURNS_TO_READ: Final = 3
"""Turns of the event loop: the reader starts, the loop looks at the socket, the reader gets what came."""


class EarlyAnswerTransport(httpx.AsyncBaseTransport):
    """Sends requests of httpx over connections on which an answer may come early.

    Args:
        tls: for `https://`.
        limits: of connections.
    """

    def __init__(self, tls: ssl.SSLContext, limits: httpx.Limits) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls,
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            network_backend=_Backend(),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; errors are those of httpx."""
        url = request.url
        sent = httpcore.Request(
            request.method,
            httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        try:
            response = await self._pool.handle_async_request(sent)
        except Exception as error:
            raise _as_httpx(error, request) from error
        return httpx.Response(
            response.status,
            headers=response.headers,
            stream=_Body(response.stream, request),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        """Close connections."""
        await self._pool.aclose()


def goes_through_proxy(url: str) -> bool:
    """Return whether the environment names a proxy for a URL; it then answers itself, in httpx's own connections."""
    parts = parse_url(url, ("http", "https"))
    proxies = urllib.request.getproxies()
    named = parts.scheme in proxies or "all" in proxies
    return named and not urllib.request.proxy_bypass(parts.hostname or "")


def _as_httpx(error: Exception, request: httpx.Request) -> Exception:
    """Return the error of httpx that stands for one of httpcore: it has the same name."""
    if not type(error).__module__.startswith("httpcore"):
        return error
    cls = getattr(httpx, type(error).__name__, httpx.TransportError)
    translated: Exception = cls(str(error), request=request)
    return translated


class _Body(httpx.AsyncByteStream):
    def __init__(self, stream: Any, request: httpx.Request) -> None:
        self._stream = stream
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._stream:
                yield chunk
        except Exception as error:
            raise _as_httpx(error, self._request) from error

    async def aclose(self) -> None:
        await self._stream.aclose()


class _Backend(httpcore.AnyIOBackend):
    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        return _Connection(await super().connect_tcp(host, port, timeout, local_address, socket_options))


class _Connection(httpcore.AsyncNetworkStream):
    """A connection that reads while it writes.

    Attributes:
        _early: what came while something was written.
        _ended: whether the other side has ended the connection after that.
    """

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self._early = bytearray()
        self._ended = False

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._early or self._ended:
            early = bytes(self._early[:max_bytes])
            del self._early[:max_bytes]
            return early
        return await self._stream.read(max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Write, or raise `httpcore.WriteError` once an answer came: httpcore then reads it."""
        if len(buffer) < _WATCHED:
            await self._stream.write(buffer, timeout)
            return
        spare = self._duplicate()
        try:
            await self._write_and_read(buffer, timeout, spare)
        finally:
            if spare is not None:
                spare.close()

    async def _write_and_read(self, buffer: bytes, timeout: float | None, spare: socket.socket | None) -> None:
        reading = asyncio.ensure_future(self._read_early())
        writing: asyncio.Future[None] | None = None
        try:
            # An answer to the headers alone is read before the first byte of the body could reset the connection.
            for _ in range(_TURNS_TO_READ):
                await asyncio.sleep(0)
            if not (reading.done() or self._early):
                writing = asyncio.ensure_future(self._stream.write(buffer, timeout))
                await asyncio.wait((writing, reading), return_when=asyncio.FIRST_COMPLETED)
            if writing is None or not writing.done() or writing.exception() is not None:
                await asyncio.wait((reading,), timeout=2 * _QUIET_S)
                if spare is not None and reading.done():
                    self._read_rest(spare)
        finally:
            tasks = [each for each in (writing, reading) if each is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if writing is None or writing.cancelled():
            raise httpcore.WriteError("An answer came before the request was written.")
        writing.result()

    async def _read_early(self) -> None:
        timeout = None
        while len(self._early) < _LONGEST_ANSWER:
            try:
                piece = await self._stream.read(_WATCHED, timeout)
            except (httpcore.NetworkError, httpcore.TimeoutException):
                return
            self._early += piece
            if not piece:
                self._ended = True
                return
            timeout = _QUIET_S

    def _duplicate(self) -> socket.socket | None:
        """Return the socket once more: one that asyncio closes because a write failed can still be read then."""
        if self._stream.get_extra_info("ssl_object") is not None:
            return None  # only the connection itself could decrypt what it reads
        try:
            duplicate: socket.socket = self._stream.get_extra_info("socket").dup()
        except (AttributeError, OSError):
            return None
        return duplicate

    def _read_rest(self, spare: socket.socket) -> None:
        """Read what the connection has received and did not read before it was closed."""
        with contextlib.suppress(OSError):  # nothing more, or it was reset
            while len(self._early) < _LONGEST_ANSWER and (piece := spare.recv(_WATCHED)):
                self._early += piece

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        return _Connection(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
