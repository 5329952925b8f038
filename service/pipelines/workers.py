"""Threads for decoding and encoding, which take urgent work first.

A request may need many pieces of such work at once, one for each prompt. In the order in which they come, those of a
crowd would stand before an urgent image for seconds.
"""

from __future__ import annotations

import heapq
import itertools
import math
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from typing import Any, Final, ParamSpec, TypeAlias, TypeVar

from service.api.context import DEFAULT_URGENCY

P = ParamSpec("P")
T = TypeVar("T")

_Rank: TypeAlias = tuple[int, float]
"""Urgency and deadline, as in the scheduler's order."""

_RANK: Final[ContextVar[_Rank]] = ContextVar("rank of a request's work", default=(DEFAULT_URGENCY, math.inf))

_TURN: Final = 4
"""Every so many pieces the oldest goes first, whatever its rank, so that none starves."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """A rank that is in force until it is restored."""

    _token: Token[_Rank]

    def restore(self) -> None:
        """Put the rank before in force again."""
        _RANK.reset(self._token)


def rank_work(urgency: int, deadline: float | None) -> Ranking:
    """Rank all work that the current task and those it starts submit from now on.

    Args:
        urgency: RFC 9218, 0 to 7, less is more urgent.
        deadline: seconds on one clock for all, or None.
    """
    return Ranking(_RANK.set((urgency, math.inf if deadline is None else deadline)))


@dataclass(slots=True, order=True)
class _Piece:
    """A piece of work in its place: what to run and where the result goes, or None once a thread has it."""

    rank: _Rank
    number: int
    work: tuple[Future[Any], Callable[[], Any]] | None = field(compare=False)


class RankedThreads(Executor):
    """An executor on threads that runs the most urgent piece of work first, see `rank_work`; of equals the oldest."""

    def __init__(self, threads: int | None = None) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="pomona-worker")
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._best: list[_Piece] = []  # a heap
        self._oldest: deque[_Piece] = deque()
        self._ran = 0

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run `fn` in a thread, ranked as the current task is."""
        future: Future[T] = Future()
        with self._lock:
            piece = _Piece(_RANK.get(), next(self._numbers), (future, lambda: fn(*args, **kwargs)))
            heapq.heappush(self._best, piece)
            self._oldest.append(piece)
        self._threads.submit(self._run_next)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 (Executor's)
        """Finish what was submitted and end the threads."""
        self._threads.shutdown(wait=wait, cancel_futures=cancel_futures)

    def _run_next(self) -> None:
        future, call = self._take()
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 (whatever it is, it goes to the one who waits)
            future.set_exception(error)

    def _take(self) -> tuple[Future[Any], Callable[[], Any]]:
        """Return the work that is next; there is as much as there are calls of this method."""
        with self._lock:
            self._ran += 1
            turn = self._ran % _TURN == 0
            while True:
                piece = self._oldest.popleft() if turn else heapq.heappop(self._best)
                if piece.work is not None:
                    break
            work, piece.work = piece.work, None
            # The other list still has its place: places at the front of which nothing is left are removed.
            while self._oldest and self._oldest[0].work is None:
                self._oldest.popleft()
            while self._best and self._best[0].work is None:
                heapq.heappop(self._best)
        return work
