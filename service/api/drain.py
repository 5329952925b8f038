"""The end of a server: from the signal on new work is refused, and what was admitted is finished within a limit."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

from service.errors import NotReady

UPLOAD_GRACE_S: Final = 2.0
"""Seconds that a body which is arriving when the server stops has to arrive completely."""


class Drain:
    """The state that all doors of a server share: whether it stops, and which requests it still has to answer.

    For one event loop.

    Args:
        limit_s: seconds from the signal that admitted work has.
        clock: seconds, monotonic; the event loop's.
    """

    def __init__(self, limit_s: float = 30.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit_s = limit_s
        self._clock = clock
        self._until = math.inf
        self._working = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._uploads: set[asyncio.Timeout] = set()
        self._listeners: list[Callable[[], None]] = []

    @property
    def stopping(self) -> bool:
        """Whether new work is refused."""
        return self._until < math.inf

    @property
    def in_progress(self) -> int:
        """Requests and streams that are being answered."""
        return self._working

    @property
    def remaining(self) -> float:
        """Seconds that admitted work still has; infinite until the server stops."""
        return max(0.0, self._until - self._clock())

    def on_begin(self, listener: Callable[[], None]) -> None:
        """Call `listener` at once when the server stops."""
        self._listeners.append(listener)

    def begin(self) -> None:
        """Refuse new work; harmless when repeated."""
        if self.stopping:
            return
        self._until = self._clock() + self.limit_s
        for upload in self._uploads:
            upload.reschedule(self._uploads_end())
        for listener in self._listeners:
            listener()

    def check(self) -> None:
        """Let new work in.

        Raises:
            NotReady: the server is stopping.
        """
        if self.stopping:
            raise NotReady("The server is stopping. Send the request to another one, or again later.")

    @contextmanager
    def working(self) -> Iterator[None]:
        """Count a request, which `finished` waits for."""
        self._working += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._working -= 1
            if not self._working:
                self._idle.set()

    @asynccontextmanager
    async def uploading(self) -> AsyncIterator[None]:
        """Read from a caller; a stopping server does not wait long for what is not sent.

        Raises:
            NotReady: the server is stopping.
        """
        try:
            async with asyncio.timeout_at(self._uploads_end() if self.stopping else None) as limit:
                self._uploads.add(limit)
                try:
                    yield
                finally:
                    self._uploads.discard(limit)
        except TimeoutError:
            self.check()
            raise

    async def finished(self) -> bool:
        """Wait until all requests are answered or the time is up; return whether they are."""
        try:
            async with asyncio.timeout(self.remaining):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def _uploads_end(self) -> float:
        return min(self._until, self._until - self.limit_s + UPLOAD_GRACE_S)
