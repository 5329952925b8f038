"""A light HTTP client for one server on this machine: connections that stay open, answers with the time they came."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import httptools


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back.

    Attributes:
        status: of HTTP.
        body: as it came.
        at: when its last byte came, seconds of `time.monotonic`: uvloop's own clock ticks in milliseconds.
    """

    status: int
    body: bytes
    at: float


class Pool:
    """As many connections as requests are in flight; the one used last is used next.

    Args:
        port: of the server, on 127.0.0.1.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[_Connection] = []

    async def ask(self, chunks: Iterable[bytes], give_up_s: float) -> Answer:
        """Send a request and wait for its answer.

        Raises:
            TimeoutError: none within `give_up_s`; the connection is closed.
            OSError: none will come.
        """
        async with asyncio.timeout(give_up_s):
            connection = await self._connection()
            try:
                answer = await connection.ask(chunks)
            except BaseException:
                connection.close()
                raise
        if connection.open:
            self._idle.append(connection)
        return answer

    def close(self) -> None:
        """Close what is open."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def _connection(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.open:
                return connection
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, "127.0.0.1", self._port)
        return connection


class _Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._waiting: asyncio.Future[Answer] | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []

    @property
    def open(self) -> bool:
        """Whether another request can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    async def ask(self, chunks: Iterable[bytes]) -> Answer:
        """See `Pool.ask`."""
        if self._transport is None:
            raise ConnectionError("the connection is closed")
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.writelines(chunks)
        return await self._waiting

    def close(self) -> None:
        """At once: nothing that is still to be sent is."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio's."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but name

    def connection_lost(self, exc: Exception | None) -> None:
        """Asyncio's."""
        self._transport = None
        self._fail(exc or ConnectionError("the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        """Asyncio's."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(ConnectionError(f"this is no HTTP: {error}"))
            self.close()

    def on_message_begin(self) -> None:
        """Of the parser: an answer begins."""
        self._body.clear()

    def on_body(self, part: bytes) -> None:
        """Of the parser: a part of the body."""
        self._body.append(part)

    def on_message_complete(self) -> None:
        """Of the parser: that was the last part."""
        if not self._parser.should_keep_alive() and self._transport is not None:
            self._transport.close()
        if self._waiting is not None and not self._waiting.done():
            answer = Answer(self._parser.get_status_code(), b"".join(self._body), time.monotonic())
            self._waiting.set_result(answer)

    def _fail(self, error: Exception) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(error)
