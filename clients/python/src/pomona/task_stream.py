"""The async stream: a task takes frames, a task for each answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable
from typing import Any, Final, TypeAlias, TypeVar

from pomona.asks import Frame
from pomona.images import ImageSource
from pomona.streams import FrameAnswer, Outbox, numbered

T = TypeVar("T")

Frames: TypeAlias = Iterable[Frame | ImageSource] | AsyncIterable[Frame | ImageSource]

_END: Final = object()


async def streamed(
    frames: Frames,
    answer: Callable[[Frame], Awaitable[FrameAnswer[T]]],
    in_flight: int,
    outbox: Outbox[T],
) -> AsyncGenerator[FrameAnswer[T], None]:
    """Answer frames while the caller looks at answers; see `pomona.thread_stream.streamed`.

    When the caller leaves, frames on their way are cancelled.
    """
    slots = asyncio.Semaphore(in_flight)
    finished: asyncio.Queue[tuple[int, FrameAnswer[T]] | BaseException | None] = asyncio.Queue()
    tasks: set[asyncio.Task[None]] = set()
    waiting = 0

    async def work(number: int, frame: Frame) -> None:
        try:
            finished.put_nowait((number, await answer(frame)))
        except Exception as error:  # noqa: BLE001 (raised where the caller is)
            finished.put_nowait(error)

    async def feed() -> None:
        nonlocal waiting
        source = _next_of(frames)
        number = 0
        while True:
            await slots.acquire()
            given = await source()
            if given is _END:
                return
            frame = numbered(given, number)
            outbox.taken(number, frame)
            waiting += 1
            task = asyncio.create_task(work(number, frame))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            number += 1

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
                    slots.release()
        feeder.result()
    finally:
        feeder.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.gather(feeder, *tasks, return_exceptions=True)


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
