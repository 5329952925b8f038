"""A request and a response over ASGI, with bounds on what is read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, TypeVar
from urllib.parse import parse_qsl

from service.api.context import RequestContext
from service.api.handler import CallerLeft
from service.errors import MalformedRequest, UploadTooLarge
from service.memory import Kind, MemoryBudget

T = TypeVar("T")

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

_MAX_QUERY_FIELDS: Final = 8
_OWN_BYTES: Final = 64 * 1024
"""Of a request beside its body."""

_SENT_AT_ONCE: Final = 64 * 1024
"""Bytes of an answer above which its memory counts until the caller took it."""

_PIECE: Final = 256 * 1024
"""Bytes of a large answer that are handed to the server at a time."""


@dataclass(slots=True)
class HttpRequest:
    """A request whose body may not be read yet.

    Attributes:
        method: in capitals.
        path: without the prefix of a proxy.
        headers: by name in lower case.
        query_string: as sent.
        receive: ASGI's.
        context: of the request.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    query_string: bytes
    receive: Receive
    context: RequestContext

    def query(self) -> dict[str, str]:
        """Return the query parameters.

        Raises:
            MalformedRequest: there are too many, or one is repeated.
        """
        try:
            pairs = parse_qsl(
                self.query_string.decode("latin-1"), keep_blank_values=True, max_num_fields=_MAX_QUERY_FIELDS
            )
        except ValueError as error:
            raise MalformedRequest(f"There must be at most {_MAX_QUERY_FIELDS} query parameters.") from error
        if len(dict(pairs)) < len(pairs):
            raise MalformedRequest("A query parameter must not be repeated.")
        return dict(pairs)

    async def chunks(self, max_bytes: int, *, copies: int = 1) -> AsyncGenerator[bytes, None]:
        """Yield the body as it arrives, once there is memory for all of it.

        Args:
            max_bytes: limit of the body.
            copies: how often what is read is held, until the answer.

        Raises:
            UploadTooLarge: as soon as the announced or the read bytes exceed the limit.
            CallerLeft: the caller left before the end.
            Overloaded, DeadlineExceeded: there was no memory for it in time.
        """
        given = self.headers.get("content-length", "")
        announced = int(given) if given.isdecimal() and len(given) < 20 else max_bytes
        if announced > max_bytes:
            raise _too_large(max_bytes)
        # Twice while the chunks are joined.
        held = await self.context.keep(Kind.INPUT, (copies + 1) * announced + _OWN_BYTES)
        read = 0
        more = True
        while more:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise CallerLeft
            chunk: bytes = message.get("body", b"")
            more = message.get("more_body", False)
            read += len(chunk)
            if read > max_bytes:
                raise _too_large(max_bytes)
            if chunk:
                yield chunk
        held.shrink((copies + 1) * read + _OWN_BYTES)

    async def body(self, max_bytes: int, *, copies: int = 1) -> bytes:
        """Return the whole body; see `chunks`."""
        # Joined once: a growing buffer would be copied again and again.
        whole = b"".join([chunk async for chunk in self.chunks(max_bytes, copies=copies)])
        self.joined(len(whole), copies)
        return whole

    def joined(self, nbytes: int, copies: int = 1) -> None:
        """Give back the memory of the chunks, once they are joined."""
        for held in self.context.held:
            held.shrink(copies * nbytes + _OWN_BYTES)

    async def while_connected(self, work: Coroutine[Any, Any, T]) -> T:
        """Do `work`, and cancel it when the caller leaves; the body must have been read.

        Raises:
            CallerLeft: the caller left first.
        """
        leaving = asyncio.ensure_future(self.receive())  # all that can follow the body is the disconnect
        working = asyncio.current_task()
        left = False

        def cancel(receiving: asyncio.Future[Any]) -> None:
            nonlocal left
            if not receiving.cancelled() and working is not None:
                left = True
                working.cancel()

        leaving.add_done_callback(cancel)
        try:
            return await work
        except asyncio.CancelledError:
            if left and working is not None and working.uncancel() == 0:
                raise CallerLeft from None
            raise
        finally:
            leaving.remove_done_callback(cancel)
            leaving.cancel()


@dataclass(slots=True)
class HttpResponse:
    """A response, in one piece or in several that were never joined.

    Answers are about one caller's images, and those to GET are of the moment: nothing on the way may keep them.
    """

    body: bytes | Sequence[bytes]
    status: int = 200
    media_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    cache_control: str = "no-store"

    @property
    def parts(self) -> Sequence[bytes]:
        """The pieces of the body."""
        return (self.body,) if isinstance(self.body, bytes) else self.body

    async def send(self, send: Send, memory: MemoryBudget | None = None) -> None:
        """Send it over ASGI; a large one counts in `memory` until the caller took it."""
        parts = self.parts
        length = sum(map(len, parts))
        headers = [
            (b"content-type", self.media_type.encode("latin-1")),
            *(() if self.status == 304 else ((b"content-length", b"%d" % length),)),  # the copy's, not that of no body
            (b"x-content-type-options", b"nosniff"),
            (b"cache-control", self.cache_control.encode("latin-1")),
            *((name.encode("latin-1"), value.encode("latin-1")) for name, value in self.headers.items()),
        ]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        if length <= _SENT_AT_ONCE:
            await send({"type": "http.response.body", "body": b"".join(parts)})
            return
        held = None if memory is None else memory.debit(length)
        try:
            for part in parts:
                # The server waits with each one until the one before has nearly gone: that alone is in its buffers.
                for start in range(0, len(part), _PIECE):
                    piece = part[start : start + _PIECE]
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            if held is not None:
                held.release()


def _too_large(max_bytes: int) -> UploadTooLarge:
    return UploadTooLarge(f"The request body must have at most {max_bytes / 2**20:g} MiB (POMONA_MAX_UPLOAD_MIB).")
