"""Learned times after a bad time, on a fake clock: how soon a device is trusted again, and what trying costs.

`python -m tests.unit.test_healing` prints the figures that docs/reliability.md quotes.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from service.errors import DeadlineUnreachable, Overloaded
from service.scheduler.latency import RETRY, LatencyModel
from service.scheduler.policy import BatchPolicy, Limits, WorkItem
from tests.fakes import FakeClock, FakeRequest

QUICK, SLOW = 0.4, 3.0
"""Seconds of a batch of cost 1 in good times and in bad ones; a batch takes time by its cost."""

BAD = 60.0
"""Seconds that the bad time lasts."""


@dataclass
class Found:
    """What became of one request a second.

    Attributes:
        recovered: seconds from the end of the bad time until a request was answered in time again, or None.
        tried: fraction of the device's time that went to requests which came late, from the bad time's begin.
        in_time: fraction of the requests after the recovery that were answered in time.
    """

    recovered: float | None
    tried: float
    in_time: float


class Line:
    """A device whose speed changes, with other work on it or none."""

    def __init__(self, *, warm_up: float, others: bool) -> None:
        self.clock = FakeClock()
        self.policy: BatchPolicy[str, float] = BatchPolicy(
            lambda _: Limits(1, 1), LatencyModel(), clock=self.clock, family=lambda key: key[0]
        )
        for cost in (1.0, 0.25):
            self.policy.learn("sam", cost, cost * warm_up)
        self.policy.learn("other", 1.0, 0.1)
        self.others = others

    def admit(self, key: str, cost: float, within: float | None, *, may_probe: bool = True) -> WorkItem[str, float]:
        now = self.clock.now
        item: WorkItem[str, float] = WorkItem(
            key, FakeRequest(now), deadline=None if within is None else now + within, cost=cost
        )
        item.payload = cost
        self.policy.admit(item, may_probe=may_probe)
        return item

    def run(self, seconds_of: float) -> list[WorkItem[str, float]]:
        """Run all that waits; return what ran in time."""
        in_time = []
        while (batch := self.policy.take()).items:
            (item,) = batch.items
            seconds = 0.1 if item.key == "other" else seconds_of * item.cost
            self.clock.now += seconds
            self.policy.finished(seconds)
            if self.clock.now <= item.due:
                in_time.append(item)
        return in_time


def simulate(
    deadline: float,
    *,
    others: bool,
    cost: float = 1.0,
    bad: float = BAD,
    after: float = 120.0,
    warm_up: float = QUICK,
) -> Found:
    """Send a request a second with a deadline, during a bad time and after it."""
    line = Line(warm_up=warm_up, others=others)
    begin = line.clock.now
    recovered, wasted, asked, met = None, 0.0, 0, 0
    for _ in range(4):  # the bad time is noticed: callers without deadlines are served anyway
        line.admit("sam", cost, None)
        line.run(SLOW if bad else QUICK)
    while (now := line.clock.now) < begin + bad + after:
        if others:
            line.admit("other", 1.0, 0.5)
            line.run(SLOW)
        seconds_of = SLOW if line.clock.now < begin + bad else QUICK
        started = line.clock.now
        try:
            item = line.admit("sam", cost, deadline)
        except (DeadlineUnreachable, Overloaded):
            ran = []
        else:
            ran = line.run(seconds_of)
            if item not in ran:
                wasted += line.clock.now - started
        if ran and recovered is None and now >= begin + bad:
            recovered = line.clock.now - begin - bad
        if recovered is not None:
            asked, met = asked + 1, met + len(ran)
        line.clock.now = max(line.clock.now, now + 1.0)
    return Found(recovered, wasted / (line.clock.now - begin), met / asked if asked else 0.0)


@pytest.mark.parametrize("others", [False, True], ids=["idle", "with other work"])
@pytest.mark.parametrize(("cost", "deadline"), [(1.0, 1.0), (0.25, 0.5)])
def test_a_device_that_is_quick_again_is_trusted_again(cost: float, deadline: float, *, others: bool) -> None:
    found = simulate(deadline, others=others, cost=cost)
    assert found.recovered is not None
    assert found.recovered <= RETRY * SLOW + 2
    assert found.in_time == 1.0


@pytest.mark.parametrize("others", [False, True], ids=["idle", "with other work"])
def test_a_device_that_stays_slow_is_tried_for_a_fifth_of_its_time_at_most(*, others: bool) -> None:
    found = simulate(1.0, others=others, bad=600.0, after=0.0)
    assert 0.05 < found.tried <= 1 / (RETRY + 1)


def test_a_warm_up_in_a_bad_moment_refuses_nobody_for_ever() -> None:
    found = simulate(1.0, others=False, bad=0.0, warm_up=SLOW)
    assert found.recovered is not None
    assert found.in_time == 1.0


def test_a_cost_that_did_not_run_is_taken_to_be_as_slow_as_the_one_that_did() -> None:
    model = LatencyModel()
    for cost in (1.0, 0.5):
        model.learn("sam", cost, 0.4 * cost, now=0)
        model.learn("sam", cost, 40 * cost, now=1)
    for now in range(2, 300):
        model.learn("sam", 0.5, 0.8 * 0.5, now=now)  # twice as slow as at its best
        model.heal(now)
    assert model.predict("sam", 1.0) == pytest.approx(0.8)


def test_times_that_do_not_change_do_not_heal() -> None:
    model = LatencyModel()
    model.learn("sam", 1.0, 0.4, now=0)
    version = model.curve("sam").version
    for now in range(1000):
        model.heal(now)
    assert model.predict("sam", 1.0) == 0.4
    assert model.curve("sam").version - version <= 1000 / 2 + 1


if __name__ == "__main__":
    for others in (False, True):
        for deadline in (0.5, 1.0, 2.0):
            healed = simulate(deadline, others=others)
            slow = simulate(deadline, others=others, bad=600.0, after=0.0)
            print(
                f"{'other work' if others else 'idle':10} deadline {deadline:3} s: in time again after"
                f" {healed.recovered} s; while it stays slow {slow.tried:.1%} of the device"
            )
