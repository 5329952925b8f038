"""A camera's frames over one gRPC stream, as a transport of which each frame is a call.

The first frame opens the stream, and the next one opens it again after it broke. Closing it cancels the frames in
flight, in the service too.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.message import Message

from pomona._requests import Attempt, Call, Request
from pomona.errors import BadAnswer, ClientClosed, ConnectionFailed, PomonaError, UploadTooLarge
from pomona.grpc_codec import (
    Metadata,
    Trailing,
    encode_frame,
    encode_settings,
    message_limit,
    parse_reply,
    result_of_reply,
    status_error,
)
from pomona.transports import too_late

T = TypeVar("T")

_CLOSE_TIMEOUT_S: Final = 0.5
"""How long to wait for the service to end a stream whose frames are all answered."""


class _Interrupted(PomonaError):
    """Another frame ended the stream: send this one again."""


@dataclass
class _Stream:
    """One stream while it is open, and the frames in flight on it.

    The service numbers frames in the order in which it reads them, which is that in which they were written.
    """

    outgoing: queue.SimpleQueue[bytes | None] = field(default_factory=queue.SimpleQueue)
    pending: dict[int, tuple[Future[Message], int]] = field(default_factory=dict)
    sent: int = 0
    ended: bool = False
    closed: bool = False
    call: Any = None
    reader: threading.Thread | None = None

    def send(self, message: bytes) -> Future[Message]:
        reply: Future[Message] = Future()
        reply.set_running_or_notify_cancel()  # a caller that leaves cannot cancel what the reader will set
        self.sent += 1
        self.pending[self.sent] = (reply, len(message))
        self.outgoing.put(message)
        return reply

    def receive(self, number: int, message: Message) -> None:
        reply, _ = self.pending.pop(number, (None, 0))
        if reply is not None:
            reply.set_result(message)

    def end(self, reason: Callable[[int], PomonaError]) -> None:
        """Fail the frames in flight.

        Args:
            reason: returns a new error for a frame of so many bytes.
        """
        self.ended = True
        for reply, size in self.pending.values():
            reply.set_exception(ClientClosed("The stream was closed.") if self.closed else reason(size))
        self.pending.clear()
        self.outgoing.put(None)  # ends the thread that reads outgoing messages


class FrameStream:
    """Sends frames from several threads or from one event loop; implements `Transport` and `AsyncTransport`.

    Args:
        start: begins a stream of messages with metadata.
        request: for every frame.
        in_flight: largest number of frames in flight.
        is_closed: whether the transport was closed.
    """

    def __init__(
        self,
        start: Callable[[Iterator[bytes], Metadata], Any],
        request: Request[Any],
        in_flight: int,
        is_closed: Callable[[], bool],
    ) -> None:
        self._start = start
        self._request = request
        self._settings = encode_settings(request, in_flight)
        self._is_closed = is_closed
        self._closed = False
        self._limit: int | None = None
        self._stream: _Stream | None = None
        self._lock = threading.Lock()

    def send(self, call: Call[T], attempt: Attempt) -> T:
        """Send a frame; see `pomona.transports.Transport`."""
        message, until = encode_frame(call, attempt), time.monotonic() + attempt.timeout
        while True:
            try:
                reply = self._write(message).result(max(0.0, until - time.monotonic()))
            except _Interrupted:
                continue
            except futures.TimeoutError:
                raise too_late(attempt) from None
            return result_of_reply(call, reply)

    async def asend(self, call: Call[T], attempt: Attempt) -> T:
        """Send a frame; see `pomona.transports.AsyncTransport`."""
        message, until = encode_frame(call, attempt), time.monotonic() + attempt.timeout
        while True:
            try:
                waiting = asyncio.wrap_future(self._write(message))
                reply = await asyncio.wait_for(waiting, max(0.0, until - time.monotonic()))
            except _Interrupted:
                continue
            except asyncio.TimeoutError:
                raise too_late(attempt) from None
            return result_of_reply(call, reply)

    def close(self) -> None:
        """End the stream, and cancel the frames in flight."""
        with self._lock:
            self._closed = True
            stream = self._stream
            if stream is None:
                return
            stream.closed = True
            idle = not stream.pending
            stream.outgoing.put(None)
        if idle and stream.reader is not None:
            stream.reader.join(_CLOSE_TIMEOUT_S)
        stream.call.cancel()

    async def aclose(self) -> None:
        """End the stream, and cancel the frames in flight."""
        await asyncio.to_thread(self.close)

    def _write(self, message: bytes) -> Future[Message]:
        """Send a message without waiting for the reply.

        Raises:
            ClientClosed: the transport or this stream was closed.
            UploadTooLarge: the service said of an earlier frame what it accepts, and this one is larger.
        """
        with self._lock:
            if self._closed or self._is_closed():
                raise ClientClosed("The client or the stream was closed.")
            if self._limit is not None and len(message) > self._limit:
                raise UploadTooLarge(f"A frame must have at most {self._limit} bytes, got {len(message)}.")
            if self._stream is None or self._stream.ended:
                self._stream = self._open()
            return self._stream.send(message)

    def _open(self) -> _Stream:
        stream = _Stream()
        stream.outgoing.put(self._settings)
        try:
            stream.call = self._start(iter(stream.outgoing.get, None), (("x-request-id", uuid.uuid4().hex),))
        except ValueError as error:
            raise ClientClosed("The client was closed.") from error
        stream.reader = threading.Thread(target=self._read, args=(stream,), name="pomona-replies", daemon=True)
        stream.reader.start()
        return stream

    def _read(self, stream: _Stream) -> None:
        call = stream.call
        bad: BadAnswer | None = None
        try:
            for data in call:
                number, reply = parse_reply(self._request, data)
                with self._lock:
                    stream.receive(number, reply)
        except grpc.RpcError:
            pass  # its status is read below, as is that of a stream without an error
        except BadAnswer as error:
            call.cancel()
            bad = error
        status, details, trailing = call.code(), call.details(), call.trailing_metadata()
        with self._lock:
            self._limit = message_limit(details) or self._limit
            stream.end(lambda size: BadAnswer(bad.detail) if bad else _end_error(size, status, details, trailing))


def _end_error(size: int, status: grpc.StatusCode, details: str | None, trailing: Trailing) -> PomonaError:
    """Return the error of a frame in flight, of so many bytes, when its stream ended.

    One message that is too large ends the stream: it is that frame's error, and the others are sent again.
    """
    if status is grpc.StatusCode.OK:
        return ConnectionFailed("The service ended the stream.")
    limit = message_limit(details)
    if limit is not None and size <= limit:
        return _Interrupted("Another frame was too large.")
    return status_error(status, details, trailing)
