"""A camera's frames over one gRPC stream: to the client it is a transport like any other, each frame a call.

The stream is opened by the first frame, and again by the next one where it broke. Leaving it cancels what is on its
way, in the service too.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import grpc

from pomona.asks import Ask, Attempt, Call
from pomona.errors import BadAnswer, ClientClosed, PomonaError
from pomona.grpc_answers import Reply, frame_answer_of
from pomona.grpc_errors import largest
from pomona.grpc_line import Interrupted, Line, checked_size, ending
from pomona.grpc_messages import Metadata, frame_of
from pomona.transport import too_late

T = TypeVar("T")

_FAREWELL_S: Final = 0.5
"""How long to wait for the service to see that a stream is over whose frames are all answered."""


@dataclass
class _Opened:
    line: Line
    outgoing: queue.SimpleQueue[bytes | None] = field(default_factory=queue.SimpleQueue)
    call: Any = None
    reader: threading.Thread | None = None


class FrameStream:
    """Sync; frames are sent from several threads.

    Args:
        start: begins a stream of messages with metadata.
        ask: of every frame.
        settings: the stream's first message.
        closed: whether the transport was closed.
    """

    def __init__(
        self,
        start: Callable[[Iterator[bytes], Metadata], Any],
        ask: Ask[Any],
        settings: bytes,
        closed: Callable[[], bool],
    ) -> None:
        self._start = start
        self._ask = ask
        self._settings = settings
        self._closed = closed
        self._left = False
        self._limit: int | None = None
        self._current: _Opened | None = None
        self._lock = threading.Lock()

    def call(self, call: Call[T], attempt: Attempt) -> T:
        """See `pomona.transport.Transport`."""
        message, until = frame_of(call, attempt), time.monotonic() + attempt.seconds
        while True:
            waiter = self.send(message)
            try:
                reply = waiter.result(max(0.0, until - time.monotonic()))
            except Interrupted:
                continue
            except futures.TimeoutError:
                raise too_late(attempt) from None
            return frame_answer_of(call, reply)

    def close(self) -> None:
        """See `pomona.transport.Transport`."""
        with self._lock:
            self._left = True
            current = self._current
            if current is None:
                return
            current.line.left = True
            idle = current.line.idle
            current.outgoing.put(None)
        if idle and current.reader is not None:
            current.reader.join(_FAREWELL_S)
        current.call.cancel()

    def send(self, message: bytes) -> futures.Future[Reply]:
        """Send a frame, without waiting for what becomes of it.

        Raises:
            ClientClosed: the transport was closed, or the stream left.
            UploadTooLarge: the service said of another frame what it takes, and this is more.
        """
        waiter: futures.Future[Reply] = futures.Future()
        waiter.set_running_or_notify_cancel()  # who leaves does not take the place of the reader, who tells it
        with self._lock:
            if self._left or self._closed():
                raise ClientClosed("The client was closed, or the stream left.")
            size = checked_size(len(message), self._limit)
            if self._current is None or self._current.line.ended:
                self._current = self._open()
            self._current.line.send(waiter, size)
            self._current.outgoing.put(message)
        return waiter

    def _open(self) -> _Opened:
        opened = _Opened(Line(self._ask))
        opened.outgoing.put(self._settings)
        try:
            opened.call = self._start(iter(opened.outgoing.get, None), _named())
        except ValueError as error:
            raise ClientClosed("The client was closed.") from error
        opened.reader = threading.Thread(target=self._read, args=(opened,), name="pomona-replies", daemon=True)
        opened.reader.start()
        return opened

    def _read(self, opened: _Opened) -> None:
        call, line = opened.call, opened.line
        reason: Callable[[int], PomonaError] | None = None
        try:
            for data in call:
                with self._lock:
                    line.told(data)
        except grpc.RpcError:
            pass  # told below, as is the end without an error
        except BadAnswer as bad:
            call.cancel()
            reason = _same(bad)
        status, words = call.code(), call.details()
        with self._lock:
            self._limit = largest(words) or self._limit
            line.end(reason or ending(status, words, call.trailing_metadata()))
        opened.outgoing.put(None)  # lets go of the thread that takes messages


class AsyncFrameStream:
    """Async, for one event loop.

    Args:
        frames: what sends them.
    """

    def __init__(self, frames: FrameStream) -> None:
        self._frames = frames

    async def acall(self, call: Call[T], attempt: Attempt) -> T:
        """See `pomona.transport.AsyncTransport`."""
        message, until = frame_of(call, attempt), time.monotonic() + attempt.seconds
        while True:
            waiter = asyncio.wrap_future(self._frames.send(message))
            try:
                reply = await asyncio.wait_for(waiter, max(0.0, until - time.monotonic()))
            except Interrupted:
                continue
            except asyncio.TimeoutError:
                raise too_late(attempt) from None
            return frame_answer_of(call, reply)

    async def aclose(self) -> None:
        """See `pomona.transport.AsyncTransport`."""
        await asyncio.to_thread(self._frames.close)


def _named() -> Metadata:
    return (("x-request-id", uuid.uuid4().hex),)


def _same(bad: BadAnswer) -> Callable[[int], PomonaError]:
    return lambda size: BadAnswer(bad.detail, request_id=bad.request_id)  # noqa: ARG005
