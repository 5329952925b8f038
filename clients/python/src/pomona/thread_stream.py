"""The sync stream: a thread takes frames, a thread for each answers, the caller's own hands out."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from pomona.asks import Frame
from pomona.images import ImageSource
from pomona.streams import FrameAnswer, Outbox, numbered

T = TypeVar("T")


@dataclass(frozen=True)
class _Taken:
    number: int
    frame: Frame


@dataclass(frozen=True)
class _Answered(Generic[T]):
    number: int
    answer: FrameAnswer[T]


@dataclass(frozen=True)
class _Ended:
    error: BaseException | None = None
    at_once: bool = False


def streamed(
    frames: Iterable[Frame | ImageSource],
    answer: Callable[[Frame], FrameAnswer[T]],
    in_flight: int,
    outbox: Outbox[T],
) -> Iterator[FrameAnswer[T]]:
    """Answer frames while the caller looks at answers.

    Args:
        frames: from anywhere; it may block.
        answer: called from threads; what it raises is raised where the caller is.
        in_flight: most frames that were taken and whose answers the caller has not looked at.
        outbox: empty.
    """
    # All that passes between the threads.
    events: queue.SimpleQueue[_Taken | _Answered[T] | _Ended] = queue.SimpleQueue()
    slots = threading.Semaphore(in_flight)
    leaving = threading.Event()

    def work(number: int, frame: Frame) -> None:
        try:
            events.put(_Answered(number, answer(frame)))
        except BaseException as error:  # noqa: BLE001 (raised where the caller is)
            events.put(_Ended(error, at_once=True))

    def feed() -> None:
        try:
            for number, given in enumerate(_while_wanted(frames, slots, leaving)):
                frame = numbered(given, number)
                events.put(_Taken(number, frame))
                # Not a pool: its threads would keep a program from ending that left the stream.
                threading.Thread(target=work, args=(number, frame), name="pomona-frame", daemon=True).start()
            events.put(_Ended())
        except BaseException as error:  # noqa: BLE001 (raised where the caller is)
            events.put(_Ended(error))

    threading.Thread(target=feed, name="pomona-frames", daemon=True).start()
    ended: _Ended | None = None
    waiting = 0
    try:
        while ended is None or waiting:
            event = events.get()
            if isinstance(event, _Ended):
                ended = event
                if event.at_once and event.error is not None:
                    raise event.error
            elif isinstance(event, _Taken):
                outbox.taken(event.number, event.frame)
                waiting += 1
            else:
                outbox.put(event.number, event.answer)
                for ready in outbox.ready():
                    waiting -= 1
                    yield ready
                    slots.release()
        if ended.error is not None:
            raise ended.error
    finally:
        leaving.set()
        slots.release()


def _while_wanted(
    frames: Iterable[Frame | ImageSource], slots: threading.Semaphore, leaving: threading.Event
) -> Iterator[Frame | ImageSource]:
    """The next frame, each time that there is a place for it."""
    source = iter(frames)
    while True:
        slots.acquire()
        if leaving.is_set():
            return
        try:
            frame = next(source)
        except StopIteration:
            return
        if leaving.is_set():
            return
        yield frame
