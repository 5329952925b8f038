"""Work in idle time: it makes nothing late that was admitted, and gets hardly anything refused."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pytest

from models.errors import BackendError
from service.errors import DeadlineUnreachable, NotReady, Overloaded
from service.observability.observer import Observer, Stage
from service.runners.slices import Slices
from service.scheduler.latency import LatencyModel
from service.scheduler.policy import BatchPolicy, Limits, QueueOptions, WorkItem
from service.scheduler.queue import Background, BatchKey, DeviceQueue, ModelInstance
from tests.contract.reload_door import until
from tests.fakes import PATIENCE_S, FakeClock, FakeRequest

Policy = BatchPolicy[str, str]

RUN_S: Final = 0.03
"""Of a frame, and of the same frame by another revision."""
DECODE_S: Final = 0.005


def make_policy(clock: FakeClock) -> Policy:
    policy: Policy = BatchPolicy(lambda _: Limits(4, math.inf), LatencyModel(), clock=clock, options=QueueOptions())
    for key in ("live", "shadow"):
        for count in range(1, 5):
            policy.learn(key, count, count * RUN_S)
    return policy


def frame(clock: FakeClock, within: float | None, decode: float = 0.0) -> WorkItem[str, str]:
    deadline = None if within is None else clock() + within
    item: WorkItem[str, str] = WorkItem("live", FakeRequest(clock()), deadline=deadline, ready_by=clock() + decode)
    if not decode:
        item.payload = "pixels"
    return item


def idle(clock: FakeClock) -> WorkItem[str, str]:
    item: WorkItem[str, str] = WorkItem("shadow", Background(clock()), deadline=None)
    item.payload = "pixels"
    return item


# The policy.


def test_an_idle_device_takes_idle_work() -> None:
    clock = FakeClock()
    policy = make_policy(clock)
    assert policy.take_idle(idle(clock))
    assert policy.busy
    clock.leap(RUN_S)
    policy.finished(RUN_S)
    assert not policy.busy


def test_while_anything_waits_or_runs_it_does_not_even_what_is_not_prepared_yet() -> None:
    clock = FakeClock()
    policy = make_policy(clock)
    coming = frame(clock, 10.0, decode=DECODE_S)
    policy.admit(coming)
    assert not policy.take_idle(idle(clock))
    coming.payload = "pixels"
    clock.leap(DECODE_S)
    assert policy.take().items == [coming]
    assert not policy.take_idle(idle(clock))
    policy.finished(RUN_S)
    assert policy.take_idle(idle(clock))


def test_who_arrives_while_idle_work_runs_is_admitted_by_when_it_ends() -> None:
    clock = FakeClock()
    policy = make_policy(clock)
    assert policy.take_idle(idle(clock))
    with pytest.raises(DeadlineUnreachable):
        policy.admit(frame(clock, 1.5 * RUN_S))
    policy.admit(frame(clock, 3 * RUN_S))


@pytest.mark.parametrize(("within", "taken"), [(1.9 * RUN_S, False), (2.2 * RUN_S, True), (None, True)])
def test_it_takes_no_longer_than_what_came_lately_could_have_waited(within: float | None, taken: bool) -> None:
    clock = FakeClock()
    policy = make_policy(clock)
    policy.admit(frame(clock, within))
    policy.take()
    clock.leap(RUN_S)
    policy.finished(RUN_S)
    assert policy.take_idle(idle(clock)) == taken


def test_after_a_refusal_for_want_of_time_there_is_none_to_spare_until_it_is_long_ago() -> None:
    clock = FakeClock()
    policy = make_policy(clock)
    policy.admit(frame(clock, 10.0))
    policy.take()
    with pytest.raises(DeadlineUnreachable):
        policy.admit(frame(clock, 1.5 * RUN_S))
    clock.leap(RUN_S)
    policy.finished(RUN_S)
    assert not policy.take_idle(idle(clock))
    clock.leap(11)
    assert policy.take_idle(idle(clock))


def test_what_could_never_be_in_time_says_nothing() -> None:
    clock = FakeClock()
    policy = make_policy(clock)
    with pytest.raises(DeadlineUnreachable):
        policy.admit(frame(clock, 0.5 * RUN_S))
    assert policy.take_idle(idle(clock))


# A line's day.


@dataclass
class Day:
    """What became of the frames of a line, by number, and how often idle work ran."""

    refused: list[int] = field(default_factory=list)
    late: list[int] = field(default_factory=list)
    ended: dict[int, float] = field(default_factory=dict)
    idle: int = 0


def run_day(arrivals: Sequence[float], within: float, *, shadowed: bool) -> Day:
    """Run the real policy over a day; once for each frame, idle work is offered when no frame is in flight."""
    clock, day = FakeClock(0.0), Day()
    policy = make_policy(clock)
    number_of: dict[int, int] = {}
    items: dict[int, WorkItem[str, str]] = {}
    order, offered = itertools.count(), False
    events: list[tuple[float, int, str, Any]] = [(at, next(order), "frame", n) for n, at in enumerate(arrivals)]
    heapq.heapify(events)

    def then(after: float, what: str, value: Any) -> None:
        heapq.heappush(events, (clock() + after, next(order), what, value))

    def take() -> None:
        nonlocal offered
        if policy.busy:
            return
        batch = policy.take()
        for item in batch.late:
            day.late.append(number_of[id(item)])
            del items[id(item)]
        if batch.items:
            then(len(batch.items) * RUN_S, "done", batch.items)
        elif batch.hold_until is not None:
            then(max(1e-6, batch.hold_until - clock()), "look", None)
        elif shadowed and offered and not items and policy.take_idle(item := idle(clock)):
            offered = False
            day.idle += 1
            then(RUN_S, "done", [item])

    while events:
        at, _, what, value = heapq.heappop(events)
        clock.now = at
        if what == "frame":
            item = frame(clock, within, decode=DECODE_S)
            try:
                policy.admit(item)
            except (DeadlineUnreachable, Overloaded):
                day.refused.append(value)
                continue
            number_of[id(item)], items[id(item)] = value, item
            then(DECODE_S, "decoded", item)
        elif what == "decoded":
            value.payload = "pixels"
        elif what == "done":
            policy.finished(len(value) * RUN_S)
            for item in value:
                if items.pop(id(item), None) is not None:
                    day.ended[number_of[id(item)]] = at
                    offered = True
                    if at > item.due + 1e-9:
                        day.late.append(number_of[id(item)])
        take()
    return day


def regular(period: float, jitter: float = 0.0, seed: int = 1) -> list[float]:
    chance = random.Random(seed)
    return [number * period + chance.uniform(0, jitter) for number in range(1000)]


def random_arrivals(rate: float, seed: int) -> list[float]:
    chance = random.Random(seed)
    return list(itertools.accumulate(chance.expovariate(rate) for _ in range(1000)))


@pytest.mark.parametrize("jitter", [0.0, 0.02])
def test_a_regular_line_loses_nothing_to_idle_work(jitter: float) -> None:
    arrivals = regular(0.1, jitter)
    alone, beside = (run_day(arrivals, 0.09, shadowed=shadowed) for shadowed in (False, True))
    assert alone.refused == beside.refused == alone.late == beside.late == []
    assert beside.idle > 500


def test_a_line_without_time_to_spare_has_no_idle_work_beside_it() -> None:
    arrivals = regular(0.1)
    alone, beside = (run_day(arrivals, 0.045, shadowed=shadowed) for shadowed in (False, True))
    assert alone.refused == beside.refused == beside.late == []
    assert beside.idle <= 2  # before the first frame has shown how little time there is


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rate", [5, 15, 25])
def test_what_was_admitted_is_never_late_for_idle_work_whatever_arrives(rate: float, seed: int) -> None:
    arrivals = random_arrivals(rate, seed)
    alone, beside = (run_day(arrivals, 0.15, shadowed=shadowed) for shadowed in (False, True))
    assert beside.late == []
    assert len(beside.ended) + len(beside.refused) == len(arrivals)
    assert len(beside.refused) <= len(alone.refused) + 0.01 * len(arrivals)


# The queue.


class Counting(Observer):
    """Counts batches and failures, as metrics do."""

    def __init__(self) -> None:
        self.counted = 0

    def batch_ran(self, model: str, stage: Stage, size: int, seconds: float) -> None:
        del model, stage, size, seconds
        self.counted += 1

    def item_failed(self, model: str, stage: Stage) -> None:
        del model, stage
        self.counted += 1


def a_key(execute: Any = lambda key, payloads: [key.shape for _ in payloads]) -> BatchKey:
    return BatchKey(ModelInstance("peel-unet", lambda _: Limits(4, math.inf), execute), "infer", "shape")


def background(key: BatchKey) -> WorkItem[BatchKey, Any]:
    return WorkItem(key, Background(0.0), deadline=None)


async def test_the_queue_runs_idle_work_and_does_not_count_it_among_batches() -> None:
    observer = Counting()
    queue = DeviceQueue("fake", observer=observer)
    result = await queue.run_idle(background(a_key()), "pixels")
    assert result is not None
    assert result.value == "shape"

    def fail(key: BatchKey, payloads: Sequence[Any]) -> Sequence[Any]:
        raise BackendError("no")

    with pytest.raises(BackendError):
        await queue.run_idle(background(a_key(fail)), "pixels")
    assert observer.counted == 0
    await queue.close(PATIENCE_S)
    assert await queue.run_idle(background(a_key()), "pixels") is None


async def test_the_queue_finishes_idle_work_before_it_closes_and_runs_none_beside_other_work() -> None:
    queue, gate = DeviceQueue("fake"), threading.Event()

    def wait(key: BatchKey, payloads: Sequence[Any]) -> Sequence[Any]:
        assert gate.wait(PATIENCE_S)
        return [key.shape for _ in payloads]

    first = asyncio.create_task(queue.run_idle(background(a_key(wait)), "pixels"))
    await asyncio.sleep(0)
    assert await queue.run_idle(background(a_key()), "pixels") is None
    closing = asyncio.create_task(queue.close(PATIENCE_S))
    gate.set()
    result = await first
    assert result is not None
    await closing


# Slices.


async def test_a_slice_waits_while_other_work_does() -> None:
    queue, gate = DeviceQueue("fake"), threading.Event()
    ran: list[Any] = []

    def execute(key: BatchKey, payloads: Sequence[Any]) -> Sequence[Any]:
        assert gate.wait(PATIENCE_S)
        ran.extend(payloads)
        return payloads

    live = a_key(execute)
    slices = Slices(queue, "peel-unet")
    one, two = (queue.reserve(WorkItem(live, FakeRequest(queue.clock()), deadline=None))[0] for _ in range(2))
    running = asyncio.create_task(one.run("first"))
    await asyncio.sleep(0)
    slicing = asyncio.create_task(asyncio.to_thread(slices.run, lambda: ran.append("slice"), "infer", 60.0))
    await until(lambda: len(queue._tickets) == 3)
    waiting = asyncio.create_task(two.run("second"))
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(running, waiting, slicing)
    assert ran == ["first", "second", "slice"]
    await queue.close(PATIENCE_S)


async def test_a_slice_ends_where_the_queue_closes_and_raises_what_its_work_raised() -> None:
    queue = DeviceQueue("fake")
    slices = Slices(queue, "peel-unet")

    def fail() -> None:
        raise BackendError("no")

    with pytest.raises(BackendError):
        await asyncio.to_thread(slices.run, fail, "infer", 0.0)
    await queue.close(PATIENCE_S)
    with pytest.raises(NotReady):
        await asyncio.to_thread(slices.run, fail, "infer", 0.0)


def test_what_was_learned_of_a_model_is_forgotten_with_it() -> None:
    clock = FakeClock()
    policy = make_policy(clock)
    policy.forget(lambda known: known == "shadow")
    assert policy.predict("shadow", 1) == 0
    assert policy.predict("live", 1) == RUN_S
