"""Calls over gRPC, by grpcio: one connection, kept and used again; needs the extra `grpc`.

The async transport is over the same channel as the sync one, and not over `grpc.aio`: that tells a stream's end as an
internal error where it comes while a frame is being written, and wants to be alone with its event loop in a process.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Mapping
from typing import Any, Final, TypeVar, cast

import grpc

from pomona.asks import Ask, Attempt, Call, Ready
from pomona.errors import ClientClosed, NotReady
from pomona.grpc_answers import answer_of
from pomona.grpc_channel import address_of, metadata_of_headers, options
from pomona.grpc_errors import failure
from pomona.grpc_messages import metadata_of, request_of, settings_of, stream_of
from pomona.grpc_streams import AsyncFrameStream, FrameStream

T = TypeVar("T")

CONNECT_WITHIN_S: Final = 5.0


class _Wire:
    """The channel, and what the sync and the async transport do alike."""

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
        connect: float = CONNECT_WITHIN_S,
    ) -> None:
        address = address_of(url, tls)
        self._headers = metadata_of_headers(headers)
        self._channel = (
            grpc.insecure_channel(address.target, options(connect))
            if address.credentials is None
            else grpc.secure_channel(address.target, address.credentials, options(connect))
        )
        self._methods: dict[str, Any] = {}
        self._closed = False

    def _begin(self, call: Call[Any], attempt: Attempt) -> Any:
        """Send a call; it waits, can be cancelled, and tells how it ended."""
        request, metadata = request_of(call), (*self._headers, *metadata_of(attempt))
        try:
            method = self._methods.get(request.method)
            if method is None:
                method = self._methods[request.method] = self._channel.unary_unary(request.method)
            return method.future(request.data, timeout=attempt.seconds, metadata=metadata)
        except ValueError as error:
            if self._closed:
                raise ClientClosed("The client was closed.") from error
            raise

    def _ended(self, call: Call[T], attempt: Attempt, rpc: Any) -> T:
        """The answer of a call that is over."""
        status = rpc.code()
        if status is grpc.StatusCode.OK:
            return answer_of(call, rpc.result())
        if self._closed:
            raise ClientClosed("The client was closed.")
        error = failure(status, rpc.details(), rpc.trailing_metadata(), attempt)
        if isinstance(call.ask, Ready) and isinstance(error, NotReady):
            return cast("T", False)  # noqa: FBT003 (not to be ready is an answer to that)
        raise error

    def _frames(self, ask: Ask[Any], in_flight: int) -> FrameStream | None:
        path = stream_of(ask)
        if path is None:
            return None
        method: Any = self._channel.stream_stream(path)
        return FrameStream(
            lambda messages, told: method(messages, metadata=(*self._headers, *told)),
            ask,
            settings_of(ask, in_flight),
            lambda: self._closed,
        )

    def _close(self) -> None:
        self._closed = True
        self._channel.close()


class GrpcTransport(_Wire):
    """Sync.

    Args:
        url: of the service, `grpc://host:port`, or `grpcs://` for TLS.
        headers: metadata sent with every call, for what stands between (a proxy's token).
        tls: for certificate authorities of your own, or None for the usual ones; no more of it is used.
        connect: seconds in which a connection must be made. It is the channel's, so this holds here instead of
            `Attempt.connect`.

    Raises:
        InvalidArgument: an address that is none, or authorities that gRPC cannot take.
    """

    def call(self, call: Call[T], attempt: Attempt) -> T:
        """See `pomona.transport.Transport`."""
        rpc = self._begin(call, attempt)
        try:
            rpc.code()  # waits
        except BaseException:
            rpc.cancel()
            raise
        return self._ended(call, attempt, rpc)

    def stream(self, ask: Ask[Any], in_flight: int) -> FrameStream | None:
        """See `pomona.transport.StreamingTransport`."""
        return self._frames(ask, in_flight)

    def close(self) -> None:
        """See `pomona.transport.Transport`."""
        self._close()


class AsyncGrpcTransport(_Wire):
    """Async; see `GrpcTransport`."""

    async def acall(self, call: Call[T], attempt: Attempt) -> T:
        """See `pomona.transport.AsyncTransport`."""
        rpc = self._begin(call, attempt)
        loop = asyncio.get_running_loop()
        over = asyncio.Event()

        def wake(_: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits
                loop.call_soon_threadsafe(over.set)

        rpc.add_done_callback(wake)
        try:
            await over.wait()
        except asyncio.CancelledError:
            rpc.cancel()
            raise
        return self._ended(call, attempt, rpc)

    def astream(self, ask: Ask[Any], in_flight: int) -> AsyncFrameStream | None:
        """See `pomona.transport.AsyncStreamingTransport`."""
        frames = self._frames(ask, in_flight)
        return None if frames is None else AsyncFrameStream(frames)

    async def aclose(self) -> None:
        """See `pomona.transport.AsyncTransport`."""
        self._close()
