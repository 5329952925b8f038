"""The sync stream: a thread takes frames, a thread for each answers, the caller's own hands out."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from pomona.asks import Frame
from pomona.images import ImageSource
from pomona.streams import FrameAnswer, Outbox, StreamOptions, Taken, Turns, dropped, numbered

T = TypeVar("T")


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
    answer: Callable[[Taken], FrameAnswer[T]],
    options: StreamOptions,
    *,
    leave: Callable[[], None],
) -> Iterator[FrameAnswer[T]]:
    """Answer frames while the caller looks at answers.

    Args:
        frames: from anywhere; it may block.
        answer: called from threads; what it raises is raised where the caller is.
        options: how the stream behaves.
        leave: called at the end, also where the caller leaves early.
    """
    # All that passes between the threads.
    events: queue.SimpleQueue[Taken | _Answered[T] | _Ended] = queue.SimpleQueue()
    room = threading.Semaphore(options.unseen)
    leaving = threading.Event()

    def work(taken: Taken) -> None:
        event: _Answered[T] | _Ended
        try:
            event = _Answered(taken.number, answer(taken))
        except BaseException as error:  # noqa: BLE001 (raised where the caller is)
            event = _Ended(error, at_once=True)
        turns.leave()
        events.put(event)

    def send(taken: Taken) -> None:
        # Not a pool: its threads would keep a program from ending that left the stream.
        threading.Thread(target=work, args=(taken,), name="pomona-frame", daemon=True).start()

    turns = Turns(options.in_flight, send, lambda taken: events.put(_Answered(taken.number, dropped(taken))))

    def feed() -> None:
        try:
            for number, given in enumerate(_while_wanted(frames, room, leaving)):
                taken = Taken(number, numbered(given, number))
                events.put(taken)
                turns.take(taken)
            events.put(_Ended())
        except BaseException as error:  # noqa: BLE001 (raised where the caller is)
            events.put(_Ended(error))

    threading.Thread(target=feed, name="pomona-frames", daemon=True).start()
    outbox = Outbox[T](options.ordered)
    ended: _Ended | None = None
    waiting = 0
    try:
        while ended is None or waiting:
            event = events.get()
            if isinstance(event, _Ended):
                ended = event
                if event.at_once and event.error is not None:
                    raise event.error
            elif isinstance(event, Taken):
                outbox.taken(event.number, event.frame)
                waiting += 1
            else:
                outbox.put(event.number, event.answer)
                for ready in outbox.ready():
                    waiting -= 1
                    yield ready
                    room.release()
        if ended.error is not None:
            raise ended.error
    finally:
        leaving.set()
        turns.end()
        room.release()
        leave()


def _while_wanted(
    frames: Iterable[Frame | ImageSource], room: threading.Semaphore, leaving: threading.Event
) -> Iterator[Frame | ImageSource]:
    """The next frame, each time that there is a place for it."""
    source = iter(frames)
    while True:
        room.acquire()
        if leaving.is_set():
            return
        try:
            frame = next(source)
        except StopIteration:
            return
        if leaving.is_set():
            return
        yield frame
