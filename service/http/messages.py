"""A request and a response over ASGI, with bounds on what is read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, TypeVar
from urllib.parse import parse_qsl

from service.api.context import RequestContext
from service.api.handler import CallerLeft
from service.errors import MalformedRequest, UploadTooLarge

T = TypeVar("T")

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

_MAX_QUERY_FIELDS: Final = 8


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

    async def chunks(self, max_bytes: int) -> AsyncGenerator[bytes, None]:
        """Yield the body as it arrives.

        Raises:
            UploadTooLarge: as soon as the announced or the read bytes exceed the limit.
            CallerLeft: the caller left before the end.
        """
        announced = self.headers.get("content-length", "")
        read = int(announced) if announced.isdecimal() and len(announced) < 20 else 0
        if read > max_bytes:
            raise _too_large(max_bytes)
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

    async def body(self, max_bytes: int) -> bytes:
        """Return the whole body; see `chunks`."""
        # Joined once: a growing buffer would be copied again and again.
        return b"".join([chunk async for chunk in self.chunks(max_bytes)])

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
    """A response, sent in one piece.

    Answers are about one caller's images, and those to GET are of the moment: nothing on the way may keep them.
    """

    body: bytes
    status: int = 200
    media_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    cache_control: str = "no-store"

    async def send(self, send: Send) -> None:
        """Send it over ASGI."""
        headers = [
            (b"content-type", self.media_type.encode("latin-1")),
            (b"content-length", b"%d" % len(self.body)),
            (b"x-content-type-options", b"nosniff"),
            (b"cache-control", self.cache_control.encode("latin-1")),
            *((name.encode("latin-1"), value.encode("latin-1")) for name, value in self.headers.items()),
        ]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


def _too_large(max_bytes: int) -> UploadTooLarge:
    return UploadTooLarge(f"The request body must have at most {max_bytes / 2**20:g} MiB (POMONA_MAX_UPLOAD_MIB).")
