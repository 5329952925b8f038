"""Asks a SAM at many points of an image, in chunks, until all are answered or the time is up.

A chunk is what the device takes at once. Only two of a request's chunks are in the queue at a time, and each has come
when it was placed: the work of other requests gets its turn between them, urgent work at once.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from models.backends.base import Embedding
from models.letterbox import Letterbox
from models.types import Point, Prompt
from service.api.context import RequestContext
from service.errors import DeadlineExceeded, DeadlineUnreachable, Overloaded
from service.observability.tracing import Recording
from service.pipelines import costs
from service.runners.sam import Decoded, Reservation, SamRunner
from service.scheduler.queue import BatchResult

_T = TypeVar("_T")

AHEAD: Final = 2
"""Chunks in the queue: one runs, and the next waits for it."""

_LONGEST_WAIT_S: Final = 0.25
"""Between two attempts to place a chunk while others have the device."""

_RESERVE_S: Final = 0.5
"""Of the request timeout: an answer that comes after it is no answer."""

Points: TypeAlias = NDArray[np.float64]
Receiver: TypeAlias = Callable[[Points, Decoded], Awaitable[None]]
"""Receives the points of a chunk and what was decoded for them."""


class OutOfTime(Exception):
    """No more points can be asked in time."""


@dataclass(frozen=True, slots=True)
class _Turn:
    """A chunk as the scheduler sees it: it arrives when it is placed."""

    arrived: float
    urgency: int
    recording: Recording | None = None


@dataclass(frozen=True, slots=True)
class _Chunk:
    points: Points
    reservation: Reservation
    decoding: asyncio.Task[BatchResult[Decoded]]


class Sweep:
    """Asks for one request, for as many images (crops) as it has.

    Args:
        runner: of the SAM.
        context: of the request.
        until: returns when the last chunk must have ended, seconds on the context's clock.

    Attributes:
        done: points that were asked.
    """

    def __init__(self, runner: SamRunner, context: RequestContext, until: Callable[[], float]) -> None:
        self.done = 0
        self._runner = runner
        self._context = context
        self._until = until
        self._chunks: deque[_Chunk] = deque()
        self._ran = 0.0  # seconds of the last chunk on the device

    async def run(self, embedding: Embedding, letterbox: Letterbox, points: Points, receive: Receiver) -> None:
        """Ask at all points of one encoded image.

        Args:
            embedding: of the image.
            letterbox: how the image fits into the model's square.
            points: float64 (n, 2), x and y in pixels of the image, in the order in which they are asked.
            receive: called for one chunk after another.

        Raises:
            OutOfTime: not all could be asked; those that were have been received.
            Overloaded, DeadlineUnreachable, DeadlineExceeded: not even the first could be asked.
            BackendError: the device failed.
        """
        step = chunk_of(self._runner)
        try:
            for start in range(0, len(points), step):
                if len(self._chunks) == AHEAD:
                    await self._receive_oldest(receive)
                await self._place(embedding, letterbox, points[start : start + step], receive)
            while self._chunks:
                await self._receive_oldest(receive)
        finally:
            left = [chunk.decoding for chunk in self._chunks]
            for chunk in self._chunks:
                chunk.decoding.cancel()
                chunk.reservation.release()
            self._chunks.clear()
            await asyncio.gather(*left, return_exceptions=True)

    async def encode(self, letterbox: Letterbox, prepare: Callable[[], Awaitable[object]]) -> Embedding:
        """Encode a further image, such as a crop.

        Args:
            letterbox: how it fits into the model's square.
            prepare: makes the encoder's input.

        Raises:
            OutOfTime: there is no time for it.
            BackendError: the device failed.
        """
        context = self._context
        self._check_time()
        try:
            ticket = self._runner.reserve_encode(
                self._turn(), letterbox, deadline=self._deadline(), ready_by=context.clock()
            )
        except (Overloaded, DeadlineUnreachable) as error:
            raise OutOfTime from error
        try:
            result = await self._in_time(self._runner.encode(ticket, await prepare()))
        finally:
            ticket.release()
        context.timings.queue += result.queued
        context.timings.encode += result.ran
        return result.value

    async def _place(self, embedding: Embedding, letterbox: Letterbox, points: Points, receive: Receiver) -> None:
        prompts = [Prompt((Point(x, y),)) for x, y in points.tolist()]
        while True:
            self._check_time()
            try:
                reservation = self._runner.reserve(
                    self._turn(),
                    prompts,
                    letterbox,
                    deadline=self._deadline(),
                    encode=False,
                    ready_by=self._context.clock(),
                )
                break
            except DeadlineUnreachable as error:
                if not self._begun:
                    raise
                raise OutOfTime from error
            except Overloaded as error:
                if not self._begun:
                    raise
                if self._chunks:
                    await self._receive_oldest(receive)
                else:
                    await asyncio.sleep(min(error.retry_after, _LONGEST_WAIT_S))
        decoding = asyncio.create_task(self._runner.decode(reservation, embedding, prompts, letterbox))
        self._chunks.append(_Chunk(points, reservation, decoding))

    async def _receive_oldest(self, receive: Receiver) -> None:
        chunk = self._chunks[0]
        result = await self._in_time(chunk.decoding)
        self._chunks.popleft()
        timings = self._context.timings
        # A chunk waits for the one before it too, which is no time of others.
        timings.queue += max(0.0, result.queued - self._ran)
        timings.prompt += result.ran
        self._ran = result.ran
        self._context.batch.prompt = max(self._context.batch.prompt, result.batch_size)
        await receive(chunk.points, result.value)
        self.done += len(chunk.points)

    async def _in_time(self, work: Awaitable[BatchResult[_T]]) -> BatchResult[_T]:
        """Wait for work on the device until the time is up."""
        try:
            async with asyncio.timeout(max(0.0, self._until() - self._context.clock())):
                return await work
        except (TimeoutError, DeadlineExceeded) as error:
            if self.done:
                raise OutOfTime from error
            raise DeadlineExceeded("The deadline passed before anything was found.") from error

    @property
    def _begun(self) -> bool:
        return bool(self.done or self._chunks)

    def _check_time(self) -> None:
        if self._begun and self._context.clock() >= self._until():
            raise OutOfTime

    def _deadline(self) -> float | None:
        """Return when a chunk must end, for the scheduler: work without a deadline has none there either."""
        return None if self._context.deadline is None else self._until()

    def _turn(self) -> _Turn:
        return _Turn(self._context.clock(), self._context.urgency)


def chunk_of(runner: SamRunner) -> int:
    """Return the points of a chunk."""
    return min(runner.prompts_at_once, costs.MOST_AT_A_TIME)


def end_of_search(context: RequestContext, timeout_s: float, finishing: float) -> float:
    """Return until when a request may search, seconds on its clock.

    Args:
        context: of the request, with its deadline.
        timeout_s: seconds that a request may take at most, see `Settings.request_timeout_s`.
        finishing: seconds that the answer takes after the search.
    """
    due = context.due(before=finishing)
    return min(math.inf if due is None else due, context.received + timeout_s - finishing - _RESERVE_S)
