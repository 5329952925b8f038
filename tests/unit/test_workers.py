"""Threads that take urgent work first."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager

import pytest

from service.pipelines.workers import RankedThreads, rank_work
from tests.fakes import PATIENCE_S


class Bench:
    """One thread, busy until `let_go`, and the order in which it did what was submitted meanwhile."""

    def __init__(self) -> None:
        self.threads = RankedThreads(1)
        self.order: list[str] = []
        self.free = threading.Event()
        self.busy = self.threads.submit(self.free.wait, PATIENCE_S)

    def submit(self, name: str) -> Future[None]:
        return self.threads.submit(self.order.append, name)

    def let_go(self) -> str:
        self.free.set()
        self.threads.shutdown()
        return "".join(self.order)


@pytest.fixture
def bench() -> Iterator[Bench]:
    opened = Bench()
    yield opened
    opened.let_go()


@contextmanager
def ranked(urgency: int = 3, deadline: float | None = None) -> Iterator[None]:
    ranking = rank_work(urgency, deadline)
    yield
    ranking.restore()


def test_the_more_urgent_goes_first_then_the_earlier_deadline_then_the_first_come(bench: Bench) -> None:
    for name, urgency, deadline in [("a", 7, None), ("b", 3, None), ("c", 3, 9.0), ("d", 3, 5.0), ("e", 0, None)]:
        with ranked(urgency, deadline):
            bench.submit(name)
    # The fourth piece that a thread takes is the oldest there is; the first was the one that kept it busy.
    assert bench.let_go() == "edacb"


def test_a_deadline_does_not_wait_for_the_pieces_of_a_crowd(bench: Bench) -> None:
    for _ in range(64 * 64):
        bench.submit("c")
    with ranked(deadline=1.0):
        for _ in range(8):
            bench.submit("d")
    # But for every fourth piece, so that the crowd does not starve.
    assert bench.let_go().rindex("d") < 8 * 4 / 3


def test_the_oldest_work_is_done_although_urgent_work_never_ends(bench: Bench) -> None:
    bench.submit("o")
    with ranked(urgency=0):
        for _ in range(100):
            bench.submit("u")
    assert bench.let_go().index("o") < 4


def test_results_and_errors_reach_the_one_who_waits_and_what_was_cancelled_never_runs(bench: Bench) -> None:
    divided, failed = bench.threads.submit(divmod, 7, 2), bench.threads.submit(divmod, 7, 0)
    cancelled = bench.submit("x")
    assert cancelled.cancel()
    assert bench.let_go() == ""
    assert divided.result() == (3, 1)
    with pytest.raises(ZeroDivisionError):
        failed.result()


async def test_a_rank_holds_for_the_task_that_sets_it_and_for_those_it_starts(bench: Bench) -> None:
    async def submit(name: str) -> None:
        bench.submit(name)

    async def urgent() -> None:
        with ranked(urgency=0):
            await asyncio.create_task(submit("u"))

    bench.submit("a")
    await asyncio.create_task(urgent())
    bench.submit("b")
    assert bench.let_go() == "uab"
