"""The batching policy under more than it can do: Poisson arrivals with deadlines on a fake clock."""

from __future__ import annotations

import heapq
import random
from collections.abc import Hashable

import pytest

from service.errors import DeadlineUnreachable, Overloaded
from service.scheduler.policy import BatchPolicy, Item, Limits, Piece, Terms
from tests.fakes import FakeClock

FIXED, PER_ITEM, LARGEST = 0.040, 0.005, 8
CAPACITY = LARGEST / (FIXED + LARGEST * PER_ITEM)  # 100 items a second
DEADLINE = 0.250
SECONDS = 20.0


class Line:
    """A device whose batch of n takes 40 + 5 n ms, give or take, and arrivals that wait for nobody."""

    def __init__(self, jitter: float) -> None:
        self.clock = FakeClock()
        self.random = random.Random(0)
        self.jitter = jitter
        self.in_time = self.admitted = self.dropped = 0
        self.batches: list[int] = []
        self.policy: BatchPolicy[str, str] = BatchPolicy(self.limits, ServiceTimes(), clock=self.clock)
        for size in (1, 2, 4, LARGEST):
            self.policy.learn("k", size, FIXED + size * PER_ITEM)
        self.ends: list[tuple[float, float, list[Item[str, str]]]] = []

    def limits(self, _: Hashable) -> Limits:
        return Limits(1000, LARGEST)

    def offer(self, load: float) -> float:
        """Goodput, per second, at `load` times the capacity."""
        start = due = self.clock.now
        while due < start + SECONDS:
            due += self.random.expovariate(load * CAPACITY)
            while self.ends and self.ends[0][0] <= due:
                self.end()
            self.clock.now = due
            self.arrive()
        while self.ends:
            self.end()
        return self.in_time / SECONDS

    def arrive(self) -> None:
        item = Item(Piece("k", Terms(self.clock.now, self.clock.now + DEADLINE)), "x")
        try:
            self.policy.admit(item)
        except (DeadlineUnreachable, Overloaded):
            return
        self.admitted += 1
        self.start()

    def start(self) -> None:
        if self.policy.busy:
            return
        taken = self.policy.take()
        self.dropped += len(taken.late)
        if batch := taken.batch:
            seconds = (FIXED + PER_ITEM * len(batch)) * (1 + self.jitter * self.random.random())
            self.batches.append(len(batch))
            heapq.heappush(self.ends, (self.clock.now + seconds, seconds, batch))

    def end(self) -> None:
        self.clock.now, seconds, batch = heapq.heappop(self.ends)
        self.in_time += sum(self.clock.now <= (item.terms.deadline or 0) for item in batch)
        self.policy.finished(seconds)
        self.start()


@pytest.mark.parametrize("load", [1.5, 2, 4])
def test_under_overload_goodput_stays_at_capacity_in_full_batches(load: float) -> None:
    line = Line(jitter=0)
    goodput = line.offer(load)
    # Within 3 % of what the device can do at all; all but the first and last batches are full.
    assert goodput >= 0.97 * CAPACITY
    assert sum(line.batches) / len(line.batches) > 0.95 * LARGEST


@pytest.mark.parametrize("load", [0.5, 0.8, 1.5, 4])
def test_with_exact_times_everyone_admitted_is_in_time(load: float) -> None:
    line = Line(jitter=0)
    line.offer(load)
    assert line.in_time == line.admitted


@pytest.mark.parametrize("load", [0.3, 0.5])
def test_a_light_load_is_admitted_whole(load: float) -> None:
    line = Line(jitter=0)
    goodput = line.offer(load)
    assert line.in_time == line.admitted
    assert goodput == pytest.approx(load * CAPACITY, rel=0.1)


@pytest.mark.parametrize("load", [2, 4])
def test_times_that_vary_by_a_tenth_cost_no_more_than_a_tenth(load: float) -> None:
    line = Line(jitter=0.1)
    # A batch takes 5 % longer on average: that much less can be done.
    assert line.offer(load) >= 0.9 * CAPACITY / 1.05
    # Who is admitted is answered: refused late is refused badly.
    assert line.dropped <= 0.002 * line.admitted


def test_nothing_is_expected_of_few_arrivals_and_less_the_longer_it_is_silent() -> None:
    arrivals = Arrivals()
    for number in range(7):
        arrivals.note("k", 1, number * 0.01)
    assert arrivals.expected("k", 0.07, 0.17) == 0
    arrivals.note("k", 1, 0.07)
    assert arrivals.expected("k", 0.08, 0.18) == pytest.approx(10)
    assert arrivals.expected("k", 0.8, 0.9) == pytest.approx(1)
    assert arrivals.expected("other", 0.08, 0.18) == 0
    assert arrivals.expected("k", 0.08, 0.08) == 0
