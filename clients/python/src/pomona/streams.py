"""Streams of frames: several in flight, answered in order or as they finish.

What the sync stream (threads) and the async one (tasks) share comes first: which frame is sent next, and whose answer
is returned next.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, Final, Generic, TypeAlias, TypeVar

from pomona._requests import Frame
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

Frames: TypeAlias = Iterable[Frame | ImageSource] | AsyncIterable[Frame | ImageSource]

_END: Final = object()


@dataclass(frozen=True)
class FrameAnswer(Generic[T_co]):
    """The answer to a frame: either `result` or `error` is set.

    Attributes:
        frame: the frame; one without an id has got its number.
        result: of the request, or None.
        error: why there is no result, or None.
    """

    frame: Frame
    result: T_co | None = None
    error: PomonaError | None = None

    @property
    def frame_id(self) -> str:
        """The camera's id, or the frame's number in the stream, from 0."""
        return self.frame.frame_id or ""

    @property
    def trigger_id(self) -> str | None:
        """The id of the trigger."""
        return self.frame.trigger_id

    @property
    def late(self) -> bool:
        """Whether there was no answer in time: on a sorting line, reject."""
        return isinstance(self.error, TooLate)

    @property
    def dropped(self) -> bool:
        """Whether a newer frame was sent instead (`newest_first`)."""
        return isinstance(self.error, FrameDropped)

    def unwrap(self) -> T_co:
        """Return the result.

        Raises:
            PomonaError: the frame's error.
        """
        if self.error is not None or self.result is None:
            raise self.error or InvalidArgument("A frame's answer must have a result or an error, got neither.")
        return self.result


@dataclass(frozen=True)
class StreamOptions:
    """How a stream behaves.

    Attributes:
        in_flight: largest number of frames in flight.
        ordered: whether answers come in the order of the frames, or as they finish.
        newest_first: whether of the frames that arrive while as many are in flight only the newest waits.

    Raises:
        InvalidArgument: `in_flight` is below 1.
    """

    in_flight: int
    ordered: bool
    newest_first: bool

    def __post_init__(self) -> None:
        if self.in_flight < 1:
            raise InvalidArgument(f"in_flight must be at least 1, got {self.in_flight}.")

    @property
    def capacity(self) -> int:
        """Largest number of frames taken from the camera whose answers were not yet returned."""
        return 2 * self.in_flight + 1 if self.newest_first else self.in_flight


@dataclass(frozen=True)
class TakenFrame:
    """A frame that was taken from the camera.

    Attributes:
        number: from 0.
        frame: with an id.
        taken_at: by `time.monotonic`.
    """

    number: int
    frame: Frame
    taken_at: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, number: int, given: Frame | ImageSource) -> TakenFrame:
        """Take what the camera gave; a frame without an id gets its number."""
        frame = given if isinstance(given, Frame) else Frame(image=given)
        return cls(number, frame if frame.frame_id is not None else replace(frame, frame_id=str(number)))

    def time_left(self, deadline: float | None) -> float | None:
        """Return the seconds left of a deadline that counts from when the frame was taken.

        Raises:
            DeadlineExceeded: it has passed.
        """
        if deadline is None:
            return None
        left = deadline - (time.monotonic() - self.taken_at)
        if left <= 0 < deadline:
            raise DeadlineExceeded("The deadline passed before the frame could be sent.")
        return left

    def dropped(self) -> FrameAnswer[Any]:
        """Return the answer if a newer frame is sent instead."""
        return FrameAnswer(self.frame, error=FrameDropped("A newer frame was sent instead."))


class FrameSlots:
    """Sends a frame if fewer than the limit are in flight; of the others keeps the newest for the next free slot.

    Args:
        limit: of frames in flight.
        send: called with a frame that has got a slot.
        drop: called with a frame that will not get one.
    """

    def __init__(self, limit: int, send: Callable[[TakenFrame], None], drop: Callable[[TakenFrame], None]) -> None:
        self._free = limit
        self._send = send
        self._drop = drop
        self._waiting: TakenFrame | None = None
        self._lock = threading.Lock()

    def add(self, taken: TakenFrame) -> None:
        """Send a frame, or let it wait in place of the one that waited before."""
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

    def release(self) -> None:
        """Free a slot; must be called before the frame's answer is returned, which lets the camera's next frame in."""
        with self._lock:
            following, self._waiting = self._waiting, None
            if following is None:
                self._free += 1
        if following is not None:
            self._send(following)

    def stop(self) -> None:
        """Forget the frame that waits."""
        with self._lock:
            self._waiting = None


@dataclass
class AnswerBuffer(Generic[T]):
    """Holds answers until they can be returned: in the order of the frames, or at once.

    Attributes:
        ordered: whether they are returned in the order of the frames.
    """

    ordered: bool
    _pending: dict[int, Frame] = field(default_factory=dict)
    _finished: dict[int, FrameAnswer[T]] = field(default_factory=dict)
    _answered: int = 0

    def expect(self, taken: TakenFrame) -> None:
        """Add a frame that was taken."""
        self._pending[taken.number] = taken.frame

    def add(self, number: int, answer: FrameAnswer[T]) -> Iterator[FrameAnswer[T]]:
        """Add an answer, and return those that can be returned now.

        Raises:
            StreamBroken: the answer is that the connection failed.
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
        return self._ready()

    def _ready(self) -> Iterator[FrameAnswer[T]]:
        while self._finished:
            number = min(self._pending) if self.ordered else next(iter(self._finished))
            if number not in self._finished:
                return
            del self._pending[number]
            self._answered += 1
            yield self._finished.pop(number)


@dataclass(frozen=True)
class _Answered(Generic[T]):
    number: int
    answer: FrameAnswer[T]


@dataclass(frozen=True)
class _Ended:
    """No more frames come; where `at_once`, pending answers are not waited for."""

    error: BaseException | None = None
    at_once: bool = False


def stream_frames(
    frames: Iterable[Frame | ImageSource],
    answer: Callable[[TakenFrame], FrameAnswer[T]],
    options: StreamOptions,
    *,
    close: Callable[[], None],
) -> Iterator[FrameAnswer[T]]:
    """Answer frames: a thread takes them from the camera, and a thread for each sends it.

    Args:
        frames: the camera; it may block.
        answer: called from threads; what it raises is raised to the caller.
        options: how the stream behaves.
        close: called at the end, also if the caller leaves early.
    """
    events: queue.SimpleQueue[TakenFrame | _Answered[T] | _Ended] = queue.SimpleQueue()
    room = threading.Semaphore(options.capacity)
    leaving = threading.Event()

    def work(taken: TakenFrame) -> None:
        event: _Answered[T] | _Ended
        try:
            event = _Answered(taken.number, answer(taken))
        except BaseException as error:  # noqa: BLE001 (raised to the caller)
            event = _Ended(error, at_once=True)
        slots.release()
        events.put(event)

    def send(taken: TakenFrame) -> None:
        # Not a pool: its threads would keep a program that left the stream from ending.
        threading.Thread(target=work, args=(taken,), name="pomona-frame", daemon=True).start()

    slots = FrameSlots(options.in_flight, send, lambda taken: events.put(_Answered(taken.number, taken.dropped())))

    def feed() -> None:
        try:
            for number, given in enumerate(_until_leaving(frames, room, leaving)):
                taken = TakenFrame.of(number, given)
                events.put(taken)
                slots.add(taken)
            events.put(_Ended())
        except BaseException as error:  # noqa: BLE001 (raised to the caller)
            events.put(_Ended(error))

    threading.Thread(target=feed, name="pomona-frames", daemon=True).start()
    buffer = AnswerBuffer[T](options.ordered)
    ended: _Ended | None = None
    waiting = 0
    try:
        while ended is None or waiting:
            event = events.get()
            if isinstance(event, _Ended):
                ended = event
                if event.at_once and event.error is not None:
                    raise event.error
            elif isinstance(event, TakenFrame):
                buffer.expect(event)
                waiting += 1
            else:
                for ready in buffer.add(event.number, event.answer):
                    waiting -= 1
                    yield ready
                    room.release()
        if ended.error is not None:
            raise ended.error
    finally:
        leaving.set()
        slots.stop()
        room.release()
        close()


def _until_leaving(
    frames: Iterable[Frame | ImageSource], room: threading.Semaphore, leaving: threading.Event
) -> Iterator[Frame | ImageSource]:
    """Take the next frame each time that there is room for it."""
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


async def astream_frames(
    frames: Frames,
    answer: Callable[[TakenFrame], Awaitable[FrameAnswer[T]]],
    options: StreamOptions,
    *,
    close: Callable[[], Awaitable[None]],
) -> AsyncGenerator[FrameAnswer[T], None]:
    """Answer frames with tasks; see `stream_frames`. When the caller leaves, the frames in flight are cancelled."""
    events: asyncio.Queue[_Answered[T] | BaseException | None] = asyncio.Queue()
    room = asyncio.Semaphore(options.capacity)
    buffer = AnswerBuffer[T](options.ordered)
    tasks: set[asyncio.Task[None]] = set()
    waiting = 0

    async def work(taken: TakenFrame) -> None:
        event: _Answered[T] | BaseException
        try:
            event = _Answered(taken.number, await answer(taken))
        except Exception as error:  # noqa: BLE001 (raised to the caller)
            event = error
        slots.release()
        events.put_nowait(event)

    def send(taken: TakenFrame) -> None:
        task = asyncio.create_task(work(taken))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    slots = FrameSlots(
        options.in_flight, send, lambda taken: events.put_nowait(_Answered(taken.number, taken.dropped()))
    )

    async def feed() -> None:
        nonlocal waiting
        take = _taker(frames)
        for number in count():
            await room.acquire()
            given = await take()
            if given is _END:
                return
            taken = TakenFrame.of(number, given)
            buffer.expect(taken)
            waiting += 1
            slots.add(taken)

    feeder = asyncio.create_task(feed())
    feeder.add_done_callback(lambda _: events.put_nowait(None))
    try:
        while waiting or not feeder.done():
            event = await events.get()
            if isinstance(event, BaseException):
                raise event
            if event is not None:
                for ready in buffer.add(event.number, event.answer):
                    waiting -= 1
                    yield ready
                    room.release()
        feeder.result()
    finally:
        slots.stop()
        feeder.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.gather(feeder, *tasks, return_exceptions=True)
        await close()


def _taker(frames: Frames) -> Callable[[], Awaitable[Any]]:
    """Return a function that takes the next frame, or `_END`; a blocking iterator is waited for in a thread."""
    if isinstance(frames, AsyncIterable):
        camera = frames.__aiter__()

        async def take() -> Any:
            try:
                return await camera.__anext__()
            except StopAsyncIteration:
                return _END

        return take
    blocking = iter(frames)

    async def take_in_thread() -> Any:
        return await asyncio.to_thread(next, blocking, _END)

    return take_in_thread
