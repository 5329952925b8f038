"""Frames of a camera: at most so many at a time, answered as they are ready, whatever becomes of the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from itertools import count
from typing import Final, Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")


DEFAULT_IN_FLIGHT: Final = 8


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """How a stream behaves.

    Attributes:
        max_in_flight: most frames that are worked on at a time.
        newest_first: of the frames beyond these only the newest waits for its turn; else none is read.
    """

    max_in_flight: int = DEFAULT_IN_FLIGHT
    newest_first: bool = False

    @property
    def unanswered(self) -> int:
        """Most frames that are read and not answered: who takes no answers is not read from for ever."""
        return 2 * self.max_in_flight + 1 if self.newest_first else self.max_in_flight


class Turns:
    """Who may be worked on: at most so many at a time, and the newest of the others next."""

    def __init__(self, most: int) -> None:
        self._free = most
        self._waiting: asyncio.Future[bool] | None = None

    def take(self) -> asyncio.Future[bool]:
        """Ask for a turn; it is true when it comes, and false when somebody newer waits instead."""
        turn = asyncio.get_running_loop().create_future()
        if self._free:
            self._free -= 1
            turn.set_result(True)
            return turn
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(False)
        self._waiting = turn
        return turn

    def leave(self, turn: asyncio.Future[bool]) -> None:
        """Whoever asked is done, or does not want to wait any more."""
        if turn is self._waiting:
            self._waiting = None
        elif not turn.cancelled() and turn.result():
            if self._waiting is None or self._waiting.done():
                self._free += 1
            else:
                self._waiting.set_result(True)
            self._waiting = None


class FrameStream(Generic[Q, A]):
    """The frames of one stream.

    Args:
        settle: tells from the first message how the stream behaves, and which frame came with it, if any.
        answer: gives a frame its answer, once its turn comes where it has to wait for that; gets the frame, its number
            from 1 on, and the turn. It answers whatever goes wrong as well.
    """

    def __init__(
        self,
        settle: Callable[[Q], tuple[StreamOptions, Q | None]],
        answer: Callable[[Q, int, asyncio.Future[bool]], Awaitable[A]],
    ) -> None:
        self._settle = settle
        self._answer = answer
        self._turns = Turns(0)
        self._room = asyncio.Semaphore(0)
        self._outbox: asyncio.Queue[A | None] = asyncio.Queue()
        self._reading: asyncio.Task[None] | None = None
        self._failure: Exception | None = None
        self.halted = False

    def halt(self) -> None:
        """Read no more frames; those that were read are answered."""
        self.halted = True
        if self._reading is not None:
            self._reading.cancel()

    async def answers(self, frames: AsyncIterator[Q]) -> AsyncGenerator[A, None]:
        """Answer frames in the order in which they are ready.

        Raises:
            Exception: what `frames` raised, after all that came before was answered.
        """
        working = asyncio.create_task(self._work(frames))
        try:
            while (answer := await self._outbox.get()) is not None:
                yield answer
                self._room.release()
            await working
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
        if self._failure is not None:
            raise self._failure

    async def _work(self, frames: AsyncIterator[Q]) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                if not self.halted:
                    self._reading = group.create_task(self._read(frames, group))
        finally:
            self._outbox.put_nowait(None)

    async def _read(self, frames: AsyncIterator[Q], group: asyncio.TaskGroup) -> None:
        try:
            options, frame = self._settle(await anext(frames))
            self._turns, self._room = Turns(options.max_in_flight), asyncio.Semaphore(options.unanswered)
            for number in count(1):
                await self._room.acquire()
                if frame is None:
                    frame = await anext(frames)
                group.create_task(self._serve(frame, number, self._turns.take()))
                frame = None
        except StopAsyncIteration:
            return
        except Exception as failure:  # noqa: BLE001 (raised again once the frames before it are answered)
            self._failure = failure

    async def _serve(self, frame: Q, number: int, turn: asyncio.Future[bool]) -> None:
        try:
            self._outbox.put_nowait(await self._answer(frame, number, turn))
        finally:
            self._turns.leave(turn)
