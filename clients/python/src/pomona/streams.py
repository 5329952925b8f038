"""Frames in, answers out: what the sync and the async stream share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pomona.asks import Frame
from pomona.errors import ConnectionFailed, InvalidArgument, PomonaError, StreamBroken, TooLate
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


def checked_in_flight(in_flight: int) -> int:
    """How many frames may be on their way.

    Raises:
        InvalidArgument: none.
    """
    if in_flight < 1:
        raise InvalidArgument(f"in_flight is {in_flight}; at least 1 would be right.")
    return in_flight


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
