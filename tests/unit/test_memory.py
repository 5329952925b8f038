"""The memory budget: who waits, who is refused, and that requests never wait for each other in a circle."""

from __future__ import annotations

import asyncio
import math
import random
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.context import RequestContext
from service.capture.captures import RESERVED_BYTES
from service.errors import DeadlineExceeded, Overloaded, TooMuchMemory
from service.memory import Claim, Holding, Kind, Ledger, MemoryBudget, memory_limit
from service.pipelines.costs import TooLittleMemory, budget
from service.pipelines.engine import Engine
from service.pipelines.workers import RankedThreads
from tests.fakes import FakeClock, make_settings

MIB: Final = 1 << 20
LARGEST: Final = {Kind.INPUT: 20, Kind.QUEUED: 20, Kind.WORK: 40}
TOTAL: Final = 100


def make(patience_s: float = 60.0) -> MemoryBudget:
    """A budget of 100 bytes, of which 20 are for reading, 40 for it and input, 60 with what is queued."""
    return MemoryBudget(Ledger(TOTAL, LARGEST), patience_s=patience_s)


async def waiting(budget: MemoryBudget, work: Coroutine[Any, Any, Holding]) -> asyncio.Task[Holding]:
    """Start a request that has to wait."""
    before = budget.ledger.waiting
    task = asyncio.create_task(work)
    for _ in range(3):
        await asyncio.sleep(0)
    assert budget.ledger.waiting == before + 1
    return task


async def settled() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


# The ledger


def test_what_comes_later_in_a_request_has_room_of_its_own() -> None:
    ledger = Ledger(TOTAL, LARGEST)
    assert ledger.ask(Claim(Kind.INPUT, 20))
    assert ledger.ask(Claim(Kind.INPUT, 20))
    assert not ledger.ask(Claim(Kind.INPUT, 1))
    assert ledger.ask(Claim(Kind.QUEUED, 20))
    assert not ledger.ask(Claim(Kind.QUEUED, 1))
    assert ledger.ask(Claim(Kind.WORK, 40))


def test_room_that_later_kinds_keep_free_is_used_by_them_alone() -> None:
    ledger = Ledger(TOTAL, LARGEST)
    works = [Claim(Kind.WORK, 40), Claim(Kind.WORK, 40)]
    assert all(map(ledger.ask, works))
    late = Claim(Kind.INPUT, 21)
    assert not ledger.ask(late)  # 101 bytes in all
    assert ledger.give(works[0]) == [late]


def test_a_large_claim_is_not_overtaken_by_small_ones() -> None:
    ledger = Ledger(TOTAL, LARGEST)
    first = Claim(Kind.INPUT, 30, (3, 0))
    large, small = Claim(Kind.INPUT, 20, (3, 1)), Claim(Kind.INPUT, 1, (3, 2))
    assert [ledger.ask(claim) for claim in (first, large, small)] == [True, False, False]
    assert ledger.give(first) == [large, small]


def test_the_more_urgent_goes_first() -> None:
    ledger = Ledger(TOTAL, LARGEST)
    first = Claim(Kind.INPUT, 40)
    relaxed, urgent = Claim(Kind.INPUT, 40, (7, 1)), Claim(Kind.INPUT, 40, (0, 2))
    assert [ledger.ask(claim) for claim in (first, relaxed, urgent)] == [True, False, False]
    assert ledger.give(first) == [urgent]
    assert ledger.give(urgent) == [relaxed]


def test_who_stops_waiting_lets_those_behind_pass() -> None:
    ledger = Ledger(TOTAL, LARGEST)
    ledger.ask(Claim(Kind.INPUT, 30))
    large, small = Claim(Kind.INPUT, 20, (0, 1)), Claim(Kind.INPUT, 10, (0, 2))
    assert [ledger.ask(claim) for claim in (large, small)] == [False, False]
    assert ledger.give(large) == [small]


def test_a_total_must_leave_something_for_reading() -> None:
    with pytest.raises(ValueError, match="more than the largest request's 80"):
        Ledger(80, LARGEST)


@given(st.integers(0, 2**32), st.integers(2, 40))
def test_requests_never_wait_for_each_other_in_a_circle_and_everything_comes_back(seed: int, count: int) -> None:
    """Each request takes some of every kind in turn, keeps the first three, and gives all back at its end."""
    dice, ledger = random.Random(seed), Ledger(TOTAL, LARGEST)
    most = ledger.largest
    requests = [
        [Claim(kind, dice.randint(1, most[kind]), (dice.randint(0, 7), 0)) for kind in Kind] for _ in range(count)
    ]
    steps = dict.fromkeys(range(count), 0)
    asked: set[int] = set()
    while steps:
        able = [number for number in steps if number not in asked or requests[number][steps[number]].granted]
        assert able, "all wait"
        number = dice.choice(able)
        claims, step = requests[number], steps[number]
        if number not in asked:
            asked.add(number)
            ledger.ask(claims[step])
        elif step + 1 < len(claims):
            steps[number] += 1
            ledger.ask(claims[step + 1])
        else:
            for claim in reversed(claims):
                ledger.give(claim)
            del steps[number]
        assert sum(ledger.used.values()) <= TOTAL
        assert ledger.used[Kind.READING] <= 20
    assert set(ledger.used.values()) == {0}


# The budget


async def test_a_request_waits_until_another_gives_back() -> None:
    budget = make()
    with await budget.take(Kind.INPUT, 20), await budget.take(Kind.INPUT, 20):
        task = await waiting(budget, budget.take(Kind.INPUT, 10))
    assert (await task).nbytes == 10
    assert budget.ledger.used[Kind.INPUT] == 10


async def test_a_request_with_a_deadline_waits_until_then() -> None:
    budget, clock = make(), FakeClock()
    with (
        await budget.take(Kind.INPUT, 20),
        await budget.take(Kind.INPUT, 20),
        pytest.raises(DeadlineExceeded, match="waited for memory"),
    ):
        await budget.take(Kind.INPUT, 1, deadline=clock() + 0.001, clock=clock)
    assert budget.ledger.waiting == 0
    assert budget.ledger.used[Kind.INPUT] == 0


async def test_a_request_without_a_deadline_is_overloaded_after_a_bounded_wait() -> None:
    budget = make(patience_s=0.001)
    with await budget.take(Kind.INPUT, 20), await budget.take(Kind.INPUT, 20), pytest.raises(Overloaded) as caught:
        await budget.take(Kind.INPUT, 1)
    assert caught.value.retry_after > 0


async def test_what_never_fits_is_refused_at_once() -> None:
    with pytest.raises(TooMuchMemory, match="POMONA_MEMORY_MIB"):
        await make().take(Kind.WORK, 41, deadline=math.inf)


async def test_a_request_that_is_cancelled_gives_way() -> None:
    budget = make()
    with await budget.take(Kind.INPUT, 20), await budget.take(Kind.INPUT, 20):
        first = await waiting(budget, budget.take(Kind.INPUT, 20))
        second = await waiting(budget, budget.take(Kind.INPUT, 20))
        first.cancel()
        await settled()
        assert budget.ledger.waiting == 1
    assert (await second).nbytes == 20
    assert budget.ledger.used[Kind.INPUT] == 20


async def test_memory_that_comes_the_moment_a_request_is_cancelled_is_not_lost() -> None:
    budget = make()
    with await budget.take(Kind.INPUT, 20):
        holding = await budget.take(Kind.INPUT, 20)
        task = await waiting(budget, budget.take(Kind.INPUT, 20))
        holding.release()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    assert budget.ledger.used[Kind.INPUT] == 0


async def test_what_is_not_needed_any_more_goes_to_others() -> None:
    budget = make()
    with await budget.take(Kind.INPUT, 20):
        holding = await budget.take(Kind.INPUT, 20)
        task = await waiting(budget, budget.take(Kind.INPUT, 15))
        holding.shrink(5)
        assert (await task).nbytes == 15
        holding.release()
        holding.release()
    assert budget.ledger.used[Kind.INPUT] == 15


async def test_memory_of_a_thread_that_cannot_be_stopped_is_held_until_it_is_done() -> None:
    budget, started, go_on = make(), threading.Event(), threading.Event()
    engine = Engine({}, {}, make_settings())
    context = RequestContext(memory=budget)

    def encode() -> None:
        started.set()
        assert go_on.wait(20)

    async def request() -> None:
        async with context.hold(Kind.WORK, 40):
            await engine.in_worker(encode)

    task = asyncio.create_task(request())
    assert await asyncio.to_thread(started.wait, 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert budget.ledger.used[Kind.WORK] == 40
    go_on.set()
    async with asyncio.timeout(20):
        while budget.ledger.used[Kind.WORK]:  # noqa: ASYNC110 (the budget reports nothing)
            await asyncio.sleep(0.01)


async def test_memory_of_work_that_no_thread_began_is_given_back_at_once() -> None:
    budget, go_on = make(), threading.Event()
    engine = Engine({}, {}, make_settings(), workers=RankedThreads(1))
    context = RequestContext(memory=budget)
    busy = asyncio.create_task(engine.in_worker(go_on.wait, 20))

    async def request() -> None:
        async with context.hold(Kind.WORK, 40):
            await engine.in_worker(str)

    task = asyncio.create_task(request())
    await settled()
    assert budget.ledger.used[Kind.WORK] == 40
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert budget.ledger.used[Kind.WORK] == 0
    go_on.set()
    assert await busy


async def test_an_answer_counts_until_it_is_sent_and_is_never_refused() -> None:
    budget = make()
    answer = budget.debit(1000)
    task = await waiting(budget, budget.take(Kind.INPUT, 1))
    answer.release()
    assert (await task).nbytes == 1


async def test_streams_leave_room_for_calls() -> None:
    budget = make()
    async with budget.place(5), budget.place(5):
        with pytest.raises(Overloaded, match="2 streams are open"):
            async with budget.place(5):
                pass
        assert (await budget.take(Kind.READING, 5)).nbytes == 5


# How much there is


def cgroup(root: Path, line: str, file: str, text: str) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(f"{line}\n")
    (root / "proc/meminfo").write_text("MemTotal:       16777216 kB\n")
    (root / file).parent.mkdir(parents=True)
    (root / file).write_text(f"{text}\n")
    return root


@pytest.mark.parametrize(
    ("line", "file"),
    [
        ("0::/", "sys/fs/cgroup/memory.max"),
        ("0::/kubepods/pod1", "sys/fs/cgroup/kubepods/memory.max"),
        ("4:memory:/docker/1", "sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes"),
        ("4:cpu,memory:/docker/1", "sys/fs/cgroup/memory/memory.limit_in_bytes"),
    ],
)
def test_the_limit_is_that_of_the_container(tmp_path: Path, line: str, file: str) -> None:
    assert memory_limit(cgroup(tmp_path, line, file, str(3 << 30))) == 3 << 30


@pytest.mark.parametrize("text", ["max", "9223372036854771712"])
def test_without_a_limit_it_is_the_memory_of_the_machine(tmp_path: Path, text: str) -> None:
    assert memory_limit(cgroup(tmp_path, "0::/", "sys/fs/cgroup/memory.max", text)) == 16 << 30


def test_what_capturing_takes_is_not_for_requests(tmp_path: Path) -> None:
    without, _ = budget(make_settings(), limit=4 << 30, resident=1300 * MIB, workers=1)
    capturing, _ = budget(make_settings(capture_dir=tmp_path), limit=4 << 30, resident=1300 * MIB, workers=1)
    assert without - capturing == RESERVED_BYTES == 128 * MIB


def test_requests_get_what_models_and_cache_leave() -> None:
    settings = make_settings(embedding_cache_mib=512)
    total, largest = budget(settings, limit=3 << 30, resident=1300 * MIB, workers=1)
    assert total == pytest.approx(0.95 * (3 << 30) - (1300 + 512) * MIB, abs=1)
    assert sum(largest.values()) < total
    half, _ = budget(make_settings(embedding_cache_mib=0), limit=8 << 30, resident=1300 * MIB, workers=2)
    assert half == pytest.approx(0.95 * (4 << 30) - 1300 * MIB, abs=1)


def test_the_setting_goes_before_the_limit() -> None:
    total, _ = budget(make_settings(memory_mib=2000), limit=3 << 30, resident=1300 * MIB, workers=1)
    assert total == 2000 * MIB


def test_too_little_for_the_largest_request_says_what_to_change() -> None:
    with pytest.raises(TooLittleMemory, match="POMONA_MAX_MEGAPIXELS"):
        budget(make_settings(), limit=2 << 30, resident=1300 * MIB, workers=1)
    fewer = make_settings(max_megapixels=12, max_upload_mib=8, embedding_cache_mib=256)
    total, _ = budget(fewer, limit=2 << 30, resident=1300 * MIB, workers=1)
    assert total > 0
