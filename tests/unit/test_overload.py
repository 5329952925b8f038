"""The batching policy under more than it can do: Poisson arrivals with deadlines on a fake clock."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass

import pytest

from service.errors import DeadlineUnreachable, Overloaded
from service.scheduler.latency import LatencyModel
from service.scheduler.policy import BatchPolicy, Limits, WorkItem
from tests.fakes import FakeClock, FakeRequest

pytestmark = pytest.mark.slow

SECONDS = 20.0


@dataclass(frozen=True)
class Machine:
    """A device whose batch of n items takes `fixed` + n `per_item` seconds, and the callers' deadline in seconds."""

    fixed: float
    per_item: float
    largest: int
    deadline: float

    @property
    def capacity(self) -> float:
        """Items per second in full batches."""
        return self.largest / (self.fixed + self.largest * self.per_item)


SLOW = Machine(fixed=0.040, per_item=0.005, largest=8, deadline=0.250)  # 100 items a second
FAST = Machine(fixed=0.004, per_item=0.00025, largest=16, deadline=0.100)  # 2,000 items a second


class Line:
    """A device whose times vary, and arrivals that do not wait for answers."""

    def __init__(self, jitter: float, machine: Machine = SLOW) -> None:
        self.clock = FakeClock()
        self.random = random.Random(0)
        self.jitter = jitter
        self.machine = machine
        self.in_time = self.admitted = self.dropped = 0
        self.batches: list[int] = []
        self.policy: BatchPolicy[str, str] = BatchPolicy(
            lambda _: Limits(1000, machine.largest), LatencyModel(), clock=self.clock
        )
        size = 1
        while size <= machine.largest:
            self.policy.learn("k", size, machine.fixed + size * machine.per_item)
            size *= 2
        self.ends: list[tuple[float, float, list[WorkItem[str, str]]]] = []

    def offer(self, load: float, seconds: float = SECONDS) -> float:
        """Return the goodput, per second, at `load` times the capacity."""
        start = due = self.clock.now
        while due < start + seconds:
            due += self.random.expovariate(load * self.machine.capacity)
            while self.ends and self.ends[0][0] <= due:
                self.end()
            self.clock.now = due
            self.arrive()
        while self.ends:
            self.end()
        return self.in_time / seconds

    def arrive(self) -> None:
        now = self.clock.now
        item: WorkItem[str, str] = WorkItem("k", FakeRequest(now), deadline=now + self.machine.deadline)
        item.payload = "x"
        try:
            self.policy.admit(item)
        except (DeadlineUnreachable, Overloaded):
            return
        self.admitted += 1
        self.start()

    def start(self) -> None:
        if self.policy.busy:
            return
        batch = self.policy.take()
        self.dropped += len(batch.late)
        if batch.items:
            seconds = self.machine.fixed + self.machine.per_item * len(batch.items)
            seconds *= 1 + self.jitter * self.random.random()
            self.batches.append(len(batch.items))
            heapq.heappush(self.ends, (self.clock.now + seconds, seconds, batch.items))

    def end(self) -> None:
        self.clock.now, seconds, items = heapq.heappop(self.ends)
        self.in_time += sum(self.clock.now <= item.due for item in items)
        self.policy.finished(seconds)
        self.start()


@pytest.mark.parametrize("load", [1.5, 2, 4])
def test_under_overload_goodput_stays_at_capacity_in_full_batches(load: float) -> None:
    line = Line(jitter=0)
    # Within 3 % of what the device can do at all; all but the first and last batches are full.
    assert line.offer(load) >= 0.97 * SLOW.capacity
    assert sum(line.batches) / len(line.batches) > 0.95 * SLOW.largest


@pytest.mark.parametrize("load", [0.5, 0.8, 1.5, 4])
def test_with_exact_times_every_admitted_item_is_in_time(load: float) -> None:
    line = Line(jitter=0)
    line.offer(load)
    assert line.in_time == line.admitted


@pytest.mark.parametrize("load", [0.3, 0.5])
def test_a_light_load_is_admitted_whole(load: float) -> None:
    line = Line(jitter=0)
    goodput = line.offer(load)
    assert line.in_time == line.admitted
    assert goodput == pytest.approx(load * SLOW.capacity, rel=0.1)


@pytest.mark.parametrize("load", [2, 4])
def test_times_that_vary_by_a_tenth_cost_no_more_than_a_tenth(load: float) -> None:
    line = Line(jitter=0.1)
    # A batch takes 5 % longer on average: that much less can be done.
    assert line.offer(load) >= 0.9 * SLOW.capacity / 1.05
    # Admitted items are answered: a late refusal is worse than an early one.
    assert line.dropped <= 0.002 * line.admitted


@pytest.mark.parametrize("jitter", [0, 0.1])
def test_a_device_for_2000_items_a_second_keeps_its_goodput_at_four_times_the_load(jitter: float) -> None:
    best = max(Line(jitter, FAST).offer(load, seconds=1) for load in (0.9, 1.2))
    assert Line(jitter, FAST).offer(4, seconds=1) >= 0.9 * max(best, FAST.capacity / (1 + jitter / 2))
