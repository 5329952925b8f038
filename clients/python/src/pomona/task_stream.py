"""The async stream: a task takes frames, a task for each answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable
from itertools import count
from typing import Any, Final, TypeAlias, TypeVar

from pomona.asks import Frame
from pomona.images import ImageSource
from pomona.streams import FrameAnswer, Outbox, StreamOptions, Taken, Turns, dropped, numbered

T = TypeVar("T")

Frames: TypeAlias = Iterable[Frame | ImageSource] | AsyncIterable[Frame | ImageSource]

_END: Final = object()


async def streamed(
    frames: Frames,
    answer: Callable[[Taken], Awaitable[FrameAnswer[T]]],
    options: StreamOptions,
    *,
    leave: Callable[[], Awaitable[None]],
) -> AsyncGenerator[FrameAnswer[T], None]:
    """Answer frames while the caller looks at answers; see `pomona.thread_stream.streamed`.

    When the caller leaves, frames on their way are cancelled.
    """
    room = asyncio.Semaphore(options.unseen)
    finished: asyncio.Queue[tuple[int, FrameAnswer[T]] | BaseException | None] = asyncio.Queue()
    outbox = Outbox[T](options.ordered)
    tasks: set[asyncio.Task[None]] = set()
    waiting = 0

    async def work(taken: Taken) -> None:
        event: tuple[int, FrameAnswer[T]] | BaseException
        try:
            event = (taken.number, await answer(taken))
        except Exception as error:  # noqa: BLE001 (raised where the caller is)
            event = error
        turns.leave()
        finished.put_nowait(event)

    def send(taken: Taken) -> None:
        task = asyncio.create_task(work(taken))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    turns = Turns(options.in_flight, send, lambda taken: finished.put_nowait((taken.number, dropped(taken))))

    async def feed() -> None:
        nonlocal waiting
        source = _next_of(frames)
        for number in count():
            await room.acquire()
            given = await source()
            if given is _END:
                return
            taken = Taken(number, numbered(given, number))
            outbox.taken(number, taken.frame)
            waiting += 1
            turns.take(taken)

    feeder = asyncio.create_task(feed())
    feeder.add_done_callback(lambda _: finished.put_nowait(None))
    try:
        while waiting or not feeder.done():
            event = await finished.get()
            if isinstance(event, BaseException):
                raise event
            if event is not None:
                outbox.put(*event)
                for ready in outbox.ready():
                    waiting -= 1
                    yield ready
                    room.release()
        feeder.result()
    finally:
        turns.end()
        feeder.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.gather(feeder, *tasks, return_exceptions=True)
        await leave()


def _next_of(frames: Frames) -> Callable[[], Awaitable[Any]]:
    """How to get the next frame, or `_END`; one that comes from a blocking iterator is waited for in a thread."""
    if isinstance(frames, AsyncIterable):
        later = frames.__aiter__()

        async def from_async() -> Any:
            try:
                return await later.__anext__()
            except StopAsyncIteration:
                return _END

        return from_async
    now = iter(frames)

    async def from_sync() -> Any:
        return await asyncio.to_thread(next, now, _END)

    return from_sync
