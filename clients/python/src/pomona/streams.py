"""Frames in, answers out: what the sync and the async stream share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pomona.asks import Frame
from pomona.errors import (
    ConnectionFailed,
    DeadlineExceeded,
    FrameDropped,
    InvalidArgument,
    PomonaError,
    StreamBroken,
    TooLate,
)
from pomona.images import ImageSource

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class FrameAnswer(Generic[T_co]):
    """What became of a frame: exactly one of `result` and `error` is there.

    Attributes:
        frame: with its id, which was given to it where it had none.
        result: what was asked for, or None.
        error: why there is none, or None.
    """

    frame: Frame
    result: T_co | None = None
    error: PomonaError | None = None

    @property
    def frame_id(self) -> str:
        """The camera's, or the frame's number in the stream, from 0."""
        return self.frame.frame_id or ""

    @property
    def trigger_id(self) -> str | None:
        """Of what let the camera expose."""
        return self.frame.trigger_id

    @property
    def late(self) -> bool:
        """There is no result because there was no time: on a sorting line, reject."""
        return isinstance(self.error, TooLate)

    @property
    def dropped(self) -> bool:
        """There is no result because a newer frame took its turn, as `newest_first` asks."""
        return isinstance(self.error, FrameDropped)

    def unwrap(self) -> T_co:
        """The result.

        Raises:
            PomonaError: there is none, for this reason.
        """
        if self.error is not None or self.result is None:
            raise self.error or InvalidArgument("There is neither a result nor an error.")
        return self.result


def numbered(frame: Frame | ImageSource, number: int) -> Frame:
    """A frame with an id."""
    if not isinstance(frame, Frame):
        return Frame(image=frame, frame_id=str(number))
    if frame.frame_id is not None:
        return frame
    return Frame(
        image=frame.image, frame_id=str(number), trigger_id=frame.trigger_id, captured_at_ns=frame.captured_at_ns
    )


@dataclass(frozen=True)
class Taken:
    """A frame that was taken from the caller.

    Attributes:
        number: from 0.
        frame: with an id.
        at: when it was taken, by `time.monotonic`.
    """

    number: int
    frame: Frame
    at: float = field(default_factory=time.monotonic)

    def left(self, deadline: float | None) -> float | None:
        """Seconds that are left of a deadline that counts from when the frame was taken.

        Raises:
            DeadlineExceeded: none.
        """
        if deadline is None:
            return None
        left = deadline - (time.monotonic() - self.at)
        if left <= 0 < deadline:
            raise DeadlineExceeded("The deadline passed before the frame's turn came.")
        return left


@dataclass(frozen=True)
class StreamOptions:
    """How a stream behaves.

    Attributes:
        in_flight: most frames on their way.
        ordered: answers in the order of the frames, else as they come.
        newest_first: of the frames that come while as many are on their way only the newest waits for its turn.

    Raises:
        InvalidArgument: no frame on its way at all.
    """

    in_flight: int
    ordered: bool
    newest_first: bool

    def __post_init__(self) -> None:
        if self.in_flight < 1:
            raise InvalidArgument(f"in_flight is {self.in_flight}; at least 1 would be right.")

    @property
    def unseen(self) -> int:
        """Most frames that are taken and whose answers the caller has not looked at: who does not look gets no more."""
        return 2 * self.in_flight + 1 if self.newest_first else self.in_flight


class Turns:
    """Whose turn it is to be sent: at most so many at a time, and of the others the newest next.

    Args:
        most: that are on their way.
        send: called with a frame whose turn it is.
        drop: called with a frame whose turn will not come.
    """

    def __init__(self, most: int, send: Callable[[Taken], None], drop: Callable[[Taken], None]) -> None:
        self._free = most
        self._send = send
        self._drop = drop
        self._waiting: Taken | None = None
        self._lock = threading.Lock()

    def take(self, taken: Taken) -> None:
        """A frame comes."""
        with self._lock:
            free, dropped = self._free > 0, None
            if free:
                self._free -= 1
            else:
                dropped, self._waiting = self._waiting, taken
        if dropped is not None:
            self._drop(dropped)
        if free:
            self._send(taken)

    def leave(self) -> None:
        """A frame is no longer on its way; to be said before its answer is looked at, which lets the next one come."""
        with self._lock:
            following, self._waiting = self._waiting, None
            if following is None:
                self._free += 1
        if following is not None:
            self._send(following)

    def end(self) -> None:
        """Send none of those that wait."""
        with self._lock:
            self._waiting = None


def dropped(taken: Taken) -> FrameAnswer[T]:
    """The answer to a frame whose turn will not come."""
    return FrameAnswer(taken.frame, error=FrameDropped("A newer frame took its turn."))


@dataclass
class Outbox(Generic[T]):
    """Answers between the network and the caller: in the order of the frames, or as they come.

    Attributes:
        ordered: in the order of the frames.
    """

    ordered: bool
    _pending: dict[int, Frame] = field(default_factory=dict)
    _finished: dict[int, FrameAnswer[T]] = field(default_factory=dict)
    _answered: int = 0

    def taken(self, number: int, frame: Frame) -> None:
        """A frame was taken from the caller."""
        self._pending[number] = frame

    def put(self, number: int, answer: FrameAnswer[T]) -> None:
        """A frame was answered.

        Raises:
            StreamBroken: by this answer the service is gone.
        """
        if isinstance(answer.error, ConnectionFailed):
            waiting = [self._pending[each].frame_id or "" for each in sorted(self._pending)]
            raise StreamBroken(
                f"{answer.error.detail} {self._answered} frames were answered, {len(waiting)} were not: "
                f"{', '.join(waiting)}.",
                answered=self._answered,
                unanswered=waiting,
            ) from answer.error
        self._finished[number] = answer

    def ready(self) -> Iterator[FrameAnswer[T]]:
        """Answers whose turn it is; each that is taken counts as answered."""
        while self._finished:
            number = min(self._pending) if self.ordered else next(iter(self._finished))
            if number not in self._finished:
                return
            del self._pending[number]
            self._answered += 1
            yield self._finished.pop(number)
