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

from pomona import _checks as checks
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

MOST_UNRETURNED: Final = 10_000
"""Frames taken with `newest_first` whose answers were not yet returned: nearly all were dropped, and are small. In the
longest time that a frame can be in flight by default, a camera of 80 frames a second gives fewer."""

_MOST_IN_FLIGHT: Final = 256
_OLDEST_S: Final = 3600.0  # a time of capture further back is of another clock
_END: Final = object()


@dataclass(frozen=True)
class FrameAnswer(Generic[T_co]):
    """The answer to a frame: either `result` or `error` is set.

    Attributes:
        frame: the frame; one without an id has got its number, and one that was dropped here lost its image (`b""`).
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
        in_flight: largest number of frames in flight or with answers that were not yet returned, 1 to 256.
        ordered: whether answers come in the order of the frames, or as they finish.
        newest_first: whether of the frames that arrive while there is no place only the newest waits.
        deadline: seconds from when a frame was captured after which its answer is too late, or None.
        capture_clock: returns the camera's time in nanoseconds; None if deadlines count from when frames are taken.

    Raises:
        InvalidArgument: an option is not as described.
    """

    in_flight: int
    ordered: bool = True
    newest_first: bool = False
    deadline: float | None = None
    capture_clock: Callable[[], int] | None = time.time_ns

    def __post_init__(self) -> None:
        checks.whole(self.in_flight, "in_flight", low=1, high=_MOST_IN_FLIGHT)
        checks.flag(self.ordered, "ordered")
        checks.flag(self.newest_first, "newest_first")
        if self.deadline is not None:
            checks.seconds(self.deadline, "deadline")
        if self.capture_clock is not None and not callable(self.capture_clock):
            raise InvalidArgument(f"capture_clock must be a function or None, got {self.capture_clock!r}.")

    @property
    def most_unreturned(self) -> int:
        """Largest number of frames taken from the camera whose answers were not yet returned.

        Frames that were dropped wait only to be reported, without their images.
        """
        return MOST_UNRETURNED if self.newest_first else self.in_flight


@dataclass(frozen=True)
class TakenFrame:
    """A frame that was taken from the camera.

    Attributes:
        number: from 0.
        frame: with an id.
        began: when it was captured, or else taken, by `time.monotonic`.
        outdated: returns whether a newer frame waits for this one's place.
    """

    number: int
    frame: Frame
    began: float
    outdated: Callable[[], bool]

    @property
    def frame_id(self) -> str:
        """The frame's id."""
        return str(self.frame.frame_id)

    @classmethod
    def of(
        cls, number: int, given: Frame | ImageSource, options: StreamOptions, outdated: Callable[[], bool]
    ) -> TakenFrame:
        """Take what the camera gave; a frame without an id gets its number."""
        frame = given if isinstance(given, Frame) else Frame(image=given)
        began = time.monotonic() - _age(frame.captured_at_ns, options.capture_clock)
        if frame.frame_id is None:
            frame = replace(frame, frame_id=str(number))
        return cls(number, frame, began, outdated)

    def time_left(self, deadline: float | None) -> float | None:
        """Return the seconds left of a deadline.

        Raises:
            DeadlineExceeded: it has passed.
        """
        if deadline is None:
            return None
        left = deadline - (time.monotonic() - self.began)
        if left <= 0:
            raise DeadlineExceeded("The deadline passed before the frame could be sent.")
        return left

    def dropped(self) -> FrameAnswer[Any]:
        """Return the answer if a newer frame is sent instead; it does not keep the image."""
        return FrameAnswer(replace(self.frame, image=b""), error=FrameDropped("A newer frame was sent instead."))


def _age(captured_at_ns: int | None, clock: Callable[[], int] | None) -> float:
    """Return the seconds since a frame was captured; 0 if the time cannot be one of this clock."""
    if clock is None or not isinstance(captured_at_ns, int):
        return 0.0
    age = (clock() - captured_at_ns) / 1e9
    return age if 0 <= age <= _OLDEST_S else 0.0


def failed(taken: TakenFrame, error: PomonaError) -> FrameAnswer[Any]:
    """Return a frame's answer if it failed.

    Raises:
        ConnectionFailed: no connection could be made, so that the next frame would fail too.
    """
    if isinstance(error, ConnectionFailed) and not error.connected:
        raise error
    return FrameAnswer(taken.frame, error=error)


class FrameSlots:
    """Sends a frame if there is a place; of the others keeps the newest for the next place that becomes free.

    Args:
        places: largest number of frames that were sent and whose answers were not yet returned.
        send: called with a frame that has got a place.
        drop: called with a frame that will not get one.
    """

    def __init__(self, places: int, send: Callable[[TakenFrame], None], drop: Callable[[TakenFrame], None]) -> None:
        self._free = places
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
        """Free a place."""
        with self._lock:
            following, self._waiting = self._waiting, None
            if following is None:
                self._free += 1
        if following is not None:
            self._send(following)

    def newer_waits(self) -> bool:
        """Return whether a frame waits for a place."""
        return self._waiting is not None

    def stop(self) -> None:
        """Forget the frame that waits."""
        with self._lock:
            self._waiting = None


@dataclass(frozen=True)
class _Taken:
    """A frame was taken; without its image, as these may be many."""

    number: int
    frame_id: str


@dataclass(frozen=True)
class _Answered(Generic[T]):
    """A frame has its answer, and had a place unless it was dropped here."""

    number: int
    answer: FrameAnswer[T]
    had_place: bool = True


@dataclass(frozen=True)
class _Ended:
    """No more frames come; where `at_once`, pending answers are not waited for."""

    error: BaseException | None = None
    at_once: bool = False


@dataclass
class AnswerBuffer(Generic[T]):
    """Holds answers until they can be returned: in the order of the frames, or at once.

    Attributes:
        ordered: whether they are returned in the order of the frames.
    """

    ordered: bool
    _pending: dict[int, str] = field(default_factory=dict)
    _finished: dict[int, _Answered[T]] = field(default_factory=dict)
    _returned: int = 0

    @property
    def empty(self) -> bool:
        """Whether every frame's answer was returned."""
        return not self._pending

    def expect(self, number: int, frame_id: str) -> None:
        """Add a frame that was taken; numbers count from 0."""
        self._pending[number] = frame_id

    def add(self, answered: _Answered[T]) -> Iterator[_Answered[T]]:
        """Add an answer, and yield those that can be returned now."""
        self._finished[answered.number] = answered
        while self._finished:
            number = self._returned if self.ordered else next(iter(self._finished))
            if number not in self._finished:
                return
            del self._pending[number]
            self._returned += 1
            yield self._finished.pop(number)

    def broken(self, error: ConnectionFailed) -> StreamBroken:
        """Return the error of a stream whose service cannot be reached."""
        dropped = {number for number, each in self._finished.items() if not each.had_place}
        waiting = [frame_id for number, frame_id in self._pending.items() if number not in dropped]
        return StreamBroken(
            f"{error.detail} {self._returned} frames were answered, {len(waiting)} were not: {', '.join(waiting)}.",
            answered=self._returned,
            unanswered=waiting,
        )


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
        answer: called from threads; what it raises is raised to the caller, `ConnectionFailed` as `StreamBroken`.
        options: how the stream behaves.
        close: called at the end, also if the caller leaves early.
    """
    events: queue.SimpleQueue[_Taken | _Answered[T] | _Ended] = queue.SimpleQueue()
    room = threading.Semaphore(options.most_unreturned)
    leaving = threading.Event()

    def work(taken: TakenFrame) -> None:
        event: _Answered[T] | _Ended
        try:
            event = _Answered(taken.number, answer(taken))
        except BaseException as error:  # noqa: BLE001 (raised to the caller)
            event = _Ended(error, at_once=True)
        events.put(event)

    def send(taken: TakenFrame) -> None:
        # Not a pool: its threads would keep a program that left the stream from ending.
        threading.Thread(target=work, args=(taken,), name="pomona-frame", daemon=True).start()

    def drop(taken: TakenFrame) -> None:
        events.put(_Answered(taken.number, taken.dropped(), had_place=False))

    slots = FrameSlots(options.in_flight, send, drop)

    def feed() -> None:
        try:
            for number, given in enumerate(_until_leaving(frames, room, leaving)):
                taken = TakenFrame.of(number, given, options, slots.newer_waits)
                events.put(_Taken(number, taken.frame_id))
                slots.add(taken)
            events.put(_Ended())
        except BaseException as error:  # noqa: BLE001 (raised to the caller)
            events.put(_Ended(error))

    threading.Thread(target=feed, name="pomona-frames", daemon=True).start()
    buffer = AnswerBuffer[T](options.ordered)
    ended: _Ended | None = None
    try:
        while ended is None or not buffer.empty:
            event = events.get()
            if isinstance(event, _Ended):
                ended = event
                if event.at_once and event.error is not None:
                    raise _raised(event.error, buffer)
            elif isinstance(event, _Taken):
                buffer.expect(event.number, event.frame_id)
            else:
                for ready in buffer.add(event):
                    yield ready.answer
                    if ready.had_place:
                        slots.release()
                    room.release()
        if ended.error is not None:
            raise ended.error
    finally:
        leaving.set()
        slots.stop()
        room.release()
        close()


def _raised(error: BaseException, buffer: AnswerBuffer[Any]) -> BaseException:
    """Return what the caller gets for an error of sending a frame."""
    if not isinstance(error, ConnectionFailed):
        return error
    broken = buffer.broken(error)
    broken.__cause__ = error
    return broken


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
    room = asyncio.Semaphore(options.most_unreturned)
    buffer = AnswerBuffer[T](options.ordered)
    tasks: set[asyncio.Task[None]] = set()

    async def work(taken: TakenFrame) -> None:
        event: _Answered[T] | BaseException
        try:
            event = _Answered(taken.number, await answer(taken))
        except Exception as error:  # noqa: BLE001 (raised to the caller)
            event = error
        events.put_nowait(event)

    def send(taken: TakenFrame) -> None:
        task = asyncio.create_task(work(taken))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def drop(taken: TakenFrame) -> None:
        events.put_nowait(_Answered(taken.number, taken.dropped(), had_place=False))

    slots = FrameSlots(options.in_flight, send, drop)

    async def feed() -> None:
        take = _taker(frames)
        for number in count():
            await room.acquire()
            given = await take()
            if given is _END:
                return
            taken = TakenFrame.of(number, given, options, slots.newer_waits)
            buffer.expect(number, taken.frame_id)
            slots.add(taken)
            await asyncio.sleep(0)  # a camera that never waits must not keep answers from their caller

    feeder = asyncio.create_task(feed())
    feeder.add_done_callback(lambda _: events.put_nowait(None))
    try:
        while not (buffer.empty and feeder.done()):
            event = await events.get()
            if isinstance(event, BaseException):
                raise _raised(event, buffer)
            if event is not None:
                for ready in buffer.add(event):
                    yield ready.answer
                    if ready.had_place:
                        slots.release()
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
