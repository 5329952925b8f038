"""A connection of uvicorn's that ends when its caller is too slow, and that lets a caller see why it is refused."""

from __future__ import annotations

import asyncio
import weakref
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import uvicorn
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.server import ServerState

from service.api.context import request_id_of
from service.api.drain import Drain
from service.api.handler import refusal_of
from service.errors import MalformedRequest
from service.http.app import PROBES_ONLY, problem_response
from service.http.protocol import BoundedProtocol

_LEAST_TAKEN: Final = 256 * 1024
"""Bytes that a caller must take in `write_s`."""

_LINGER_S: Final = 15.0
_LINGER_QUIET_S: Final = 3.0
"""Seconds, in all and without a byte, that the rest of a refused body is read and discarded: a caller whose bytes are
not read gets a reset, which may destroy the answer before it is seen."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds that a caller has.

    Attributes:
        header_s: for all headers of a request, from the connection or from their first byte.
        idle_s: between two requests.
        write_s: to take 256 KiB of an answer, or the rest of it.
    """

    header_s: float = 10.0
    idle_s: float = 75.0
    write_s: float = 20.0


Waiting: TypeAlias = "dict[Connection, float]"
"""Connections that wait for a request, those that have waited longest first, and since when on the loop's clock."""


class Connection(BoundedProtocol):
    """See the module. `check` must be called about once a second, as no timers are set for single requests.

    Args:
        config: of the server.
        server_state: of the server.
        app_state: of its lifespan.
        drain: of the server.
        patience: with the caller.
        waiting: it is among these while it waits for a request.
        reserved: it is kept for probes.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        *,
        drain: Drain,
        patience: Patience,
        waiting: Waiting,
        reserved: bool = False,
    ) -> None:
        super().__init__(config, server_state, app_state)
        self._drain = drain
        self._patience = patience
        self._reserved = reserved
        self.timeout_keep_alive = patience.idle_s  # type: ignore[assignment]  # uvicorn hands it to `call_later`
        self._waiting = waiting
        self._counted: set[Connection] = set()
        self._lost = self._ended = False
        self._head_since: float | None = None
        self._written = 0
        self._taken = 0
        self._taken_at: float | None = None
        self._lingers_until: float | None = None
        self._heard_at = 0.0

    def check(self, now: float) -> None:
        """Close the connection if its caller has been too slow.

        Args:
            now: seconds on the event loop's clock.
        """
        if self._ended:
            return
        if self._lingers_until is not None:
            if now >= self._lingers_until or now - self._heard_at >= _LINGER_QUIET_S:
                self.end()
            return
        if self._head_since is not None and now - self._head_since >= self._patience.header_s:
            self.shutdown()
        unsent = self.transport.get_write_buffer_size()
        taken = self._written - unsent
        if not unsent:
            self._taken_at = None
        elif self._taken_at is None or taken >= self._taken + _LEAST_TAKEN:
            self._taken, self._taken_at = taken, now
        elif now - self._taken_at >= self._patience.write_s:
            self.end()

    def counted(self, connections: set[Connection]) -> None:
        """Be one of `connections` until the end."""
        if not self._lost:
            self._counted = connections
            connections.add(self)

    def end(self) -> None:
        """End at once."""
        self._waiting.pop(self, None)
        self._ended = True
        self.transport.abort()

    # What uvicorn calls, and what it calls of its transport.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request."""
        super().connection_made(transport)
        self._head_since = self._waiting[self] = self.loop.time()

    def connection_lost(self, exc: Exception | None) -> None:
        """Count no more."""
        self._lost = True
        self._waiting.pop(self, None)
        self._counted.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes from the caller."""
        if self._lingers_until is not None:
            self._heard_at = self.loop.time()
            return
        if self._head_since is None and self in self._waiting:
            self._head_since = self.loop.time()
        super().data_received(data)

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        if self._reserved:
            self.scope[PROBES_ONLY] = "full"  # type: ignore[typeddict-unknown-key]

    def on_headers_complete(self) -> None:
        """Start to answer it."""
        self._head_since = None
        self._waiting.pop(self, None)
        super().on_headers_complete()
        self.cycle.transport = _Lingering(self, self.cycle)  # type: ignore[assignment]
        if self._drain.stopping or self._reserved:
            self.cycle.keep_alive = False

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        if self._lingers_until is not None:
            return
        super().on_response_complete()
        if self.cycle.response_complete and not self.transport.is_closing():
            self._waiting[self] = self.loop.time()  # else another one that was sent ahead is answered now

    def shutdown(self) -> None:
        """Close once the request in progress is answered; harmless when repeated, which closing a transport is not."""
        if not self.transport.is_closing():
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP, as a problem."""
        refusal = refusal_of(MalformedRequest(f"{msg} It must be HTTP/1.1."))
        request_id = request_id_of("")
        response = problem_response(refusal, request_id)
        body = b"".join(response.parts)
        head = (
            f"HTTP/1.1 400 Bad Request\r\ncontent-type: {response.media_type}\r\n"
            f"x-request-id: {request_id}\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.linger()

    def write(self, data: bytes) -> None:
        """Send a part of an answer, unless the connection was lost: only the newest request learns of that."""
        if not self._lost:
            self._written += len(data)
            self.transport.write(data)

    def linger(self) -> None:
        """Close, once the caller has sent what it is sending or the patience with that ends."""
        now = self.loop.time()
        self._lingers_until, self._heard_at = now + _LINGER_S, now
        self._head_since, self._waiting[self] = None, now
        self.flow.resume_reading()

    def stop_lingering(self) -> None:
        """Close, if that is still to come."""
        if self._lingers_until is not None:
            self.end()


class _Lingering:
    """The transport as a request of uvicorn sees it."""

    def __init__(self, connection: Connection, cycle: RequestResponseCycle) -> None:
        self._connection = connection
        self._cycle = weakref.proxy(cycle)
        self.is_closing = connection.transport.is_closing

    def write(self, data: bytes) -> None:
        """Send, and count what was sent."""
        self._connection.write(data)

    def close(self) -> None:
        """Close after an answer."""
        if self._cycle.more_body and not self._connection.transport.is_closing():
            self._connection.linger()
        else:
            self._connection.transport.close()
