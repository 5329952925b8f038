"""The frames on their way over one gRPC stream, and who waits for them.

The service numbers frames in the order in which it reads them, which is that in which they were written.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc

from pomona.asks import Ask
from pomona.errors import ClientClosed, ConnectionFailed, PomonaError, UploadTooLarge
from pomona.grpc_answers import Reply, number_of, reply_of
from pomona.grpc_errors import Trailing, broken, largest

Waiter: TypeAlias = "Future[Reply]"


class Interrupted(PomonaError):
    """Another frame ended the stream: this one is to be sent again."""


@dataclass
class Line:
    """See the module.

    Attributes:
        ask: of every frame.
        ended: no more frames can be sent.
        left: the caller ended it.
    """

    ask: Ask[Any]
    ended: bool = False
    left: bool = False
    _waiting: dict[int, tuple[Waiter, int]] = field(default_factory=dict)
    _sent: int = 0

    @property
    def idle(self) -> bool:
        """Every frame was answered."""
        return not self._waiting

    def send(self, waiter: Waiter, size: int) -> None:
        """A frame of this many bytes is sent."""
        self._sent += 1
        self._waiting[self._sent] = (waiter, size)

    def told(self, data: bytes) -> None:
        """The service told what became of a frame.

        Raises:
            BadAnswer: it told what cannot be read.
        """
        reply = reply_of(self.ask, data)
        waiter, _ = self._waiting.pop(number_of(reply), (None, 0))
        if waiter is not None:
            waiter.set_result(reply)

    def end(self, reason: Callable[[int], PomonaError]) -> None:
        """No more will be told.

        Args:
            reason: makes the error for a frame of so many bytes, a new one each time.
        """
        self.ended = True
        for waiter, size in self._waiting.values():
            waiter.set_exception(ClientClosed("The stream was left.") if self.left else reason(size))
        self._waiting.clear()


def ending(status: grpc.StatusCode, words: str | None, trailing: Trailing) -> Callable[[int], PomonaError]:
    """Why frames that wait get no answer.

    One message that is too large ends the stream: then this is that frame's error and the others' are `Interrupted`.

    Args:
        status: of the stream.
        words: that came with it.
        trailing: metadata that came after the last answer.
    """
    limit = largest(words)

    def reason(size: int) -> PomonaError:
        if status is grpc.StatusCode.OK:
            return ConnectionFailed("The service ended the stream.")
        if limit is not None and size <= limit:
            return Interrupted("Another frame was too large.")
        return broken(status, words, trailing)

    return reason


def checked_size(size: int, limit: int | None) -> int:
    """The same size, where the service takes it.

    Raises:
        UploadTooLarge: the service said before that it does not.
    """
    if limit is not None and size > limit:
        raise UploadTooLarge(f"The frame has {size} bytes; the service takes at most {limit}.")
    return size
