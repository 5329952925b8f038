"""The batching policy decides exactly what the plain policy decides: admissions, refusals, probes, batches, drops.

Nothing is excepted: ties and the figures in the messages of refusals are equal too.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.errors import DeadlineUnreachable, Overloaded
from service.scheduler.latency import LatencyModel
from service.scheduler.policy import BatchPolicy, Limits, QueueOptions, WorkItem
from tests.fakes import FakeClock, FakeRequest
from tests.unit import policy_oracle as plain

TICK = 1 / 64
"""Seconds; sums of such fractions are exact, so that both policies see the same ties."""


@dataclass
class Pair:
    """The same item for both policies."""

    new: WorkItem[str, int]
    old: plain.Item[str, int]


class Both:
    """Both policies, fed the same."""

    def __init__(self, limits: dict[str, Limits], max_queued: int, max_age: float) -> None:
        self.clock = FakeClock()
        options = QueueOptions(max_queued=max_queued, max_age=max_age, probe_after=1.0)
        self.new: BatchPolicy[str, int] = BatchPolicy(
            limits.__getitem__, LatencyModel(), clock=self.clock, options=options, family=lambda key: key[0]
        )
        self.old: plain.BatchPolicy[str, int] = plain.BatchPolicy(
            limits.__getitem__, LatencyModel(), clock=self.clock, options=options, family=lambda key: key[0]
        )
        self.waiting: list[Pair] = []
        self.running: list[Pair] = []
        self.admitted = 0

    def learn(self, key: str, cost: float, ticks: int) -> None:
        for policy in (self.new, self.old):
            policy.learn(key, cost, ticks * TICK)

    def admit(
        self,
        chain: list[tuple[str, float, int | None, int, int, bool]],
        age: int,
        urgency: int,
        *,
        may_probe: bool,
    ) -> None:
        now = self.clock.now
        request = FakeRequest(now - age * TICK, urgency)
        pairs = []
        for key, cost, within, ready_in, margin, prepared in chain:
            deadline = None if within is None else now + within * TICK
            ready_by = now + ready_in * TICK if ready_in else -math.inf
            item: WorkItem[str, int] = WorkItem(
                key, request, deadline=deadline, cost=cost, ready_by=ready_by, margin=margin * TICK
            )
            terms = plain.Terms(request.arrived, deadline, urgency, margin * TICK, request)
            old: plain.Item[str, int] = plain.Item(plain.Piece(key, terms, cost, ready_by))
            if prepared:
                item.payload = old.payload = self.admitted
            pairs.append(Pair(item, old))
            self.admitted += 1
        outcomes: list[type[Exception] | None] = []
        messages = []
        for policy in (self.new, self.old):
            try:
                if policy is self.new:
                    self.new.admit(*(pair.new for pair in pairs), may_probe=may_probe)
                else:
                    self.old.admit(*(pair.old for pair in pairs), may_probe=may_probe)
            except (DeadlineUnreachable, Overloaded) as refusal:
                outcomes.append(type(refusal))
                messages.append(refusal.detail.replace("work items", "pieces of work"))
            else:
                outcomes.append(None)
        assert outcomes[0] == outcomes[1], (outcomes, messages)
        assert messages[:1] == messages[1:], messages
        assert [pair.new.probe for pair in pairs] == [pair.old.probe for pair in pairs]
        if outcomes[0] is None:
            self.waiting += pairs

    def prepare(self, index: int) -> None:
        pair = self.waiting[index]
        pair.new.payload = pair.old.payload = index

    def drop(self, index: int) -> None:
        pair = self.waiting.pop(index)
        assert self.new.drop(pair.new) == self.old.drop(pair.old)

    def take(self) -> None:
        if self.old.busy:
            return
        assert self.new.expects_better() == self.old.expects_better()
        new, old = self.new.take(), self.old.take()
        of = {id(pair.new): pair for pair in self.waiting}
        for got, wanted in ((new.items, old.batch), (new.late, old.late)):
            assert [of[id(item)].old for item in got] == wanted
        gone = {id(item) for item in (*new.items, *new.late)}
        self.waiting = [pair for pair in self.waiting if id(pair.new) not in gone]

    def finish(self, ticks: int | None) -> None:
        for policy in (self.new, self.old):
            policy.finished(None if ticks is None else ticks * TICK)

    def check(self) -> None:
        assert self.new.waiting == self.old.waiting
        assert self.new.busy == self.old.busy


Step = tuple[Any, ...]
"""The name of a method of `Both`, and its arguments."""

KEYS = ["a1", "a2", "b1", "c1"]
LIMITS = st.builds(Limits, st.sampled_from([1, 1, 2, 3, 4, 1000]), st.sampled_from([2.0, 4.0, math.inf]))
ITEMS = st.tuples(
    st.sampled_from(KEYS),
    st.sampled_from([1.0, 1.0, 1.0, 0.5, 2.0, 0.0]),
    st.one_of(st.none(), st.integers(1, 40), st.integers(1, 400)),
    st.sampled_from([0, 0, 0, 1, 4, 30]),
    st.sampled_from([0, 0, 0, 3]),
    st.booleans(),
)
STEPS = st.one_of(
    st.tuples(
        st.just("admit"),
        st.lists(ITEMS, min_size=1, max_size=3),
        st.sampled_from([0, 0, 0, 5, 100]),
        st.sampled_from([3, 3, 3, 0, 7]),
        st.booleans(),
    ),
    st.tuples(st.just("admit"), st.lists(ITEMS, min_size=1, max_size=1), st.just(0), st.just(3), st.just(True)),
    st.tuples(st.sampled_from(["prepare", "drop"]), st.integers(0, 1000)),
    st.tuples(st.just("take")),
    st.tuples(st.just("finish"), st.one_of(st.none(), st.integers(0, 12))),
    st.tuples(st.just("learn"), st.sampled_from(KEYS), st.sampled_from([1.0, 2.0, 4.0]), st.integers(0, 12)),
    st.tuples(st.just("wait"), st.integers(0, 20)),
)


def replay(both: Both, steps: Iterable[Step]) -> None:
    for name, *arguments in steps:
        if name == "admit":
            chain, age, urgency, may_probe = arguments
            both.admit(chain, age, urgency, may_probe=may_probe)
        elif name in ("prepare", "drop"):
            if both.waiting:
                getattr(both, name)(arguments[0] % len(both.waiting))
        elif name == "wait":
            both.clock.now += arguments[0] * TICK
        else:
            getattr(both, name)(*arguments)
        both.check()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.fixed_dictionaries(dict.fromkeys(KEYS, LIMITS)),
    st.sampled_from([6, 1000]),
    st.sampled_from([1.0, 1e9]),
    st.booleans(),
    st.lists(STEPS, max_size=60),
)
def test_the_policy_decides_what_the_plain_policy_decides(
    limits: dict[str, Limits], max_queued: int, max_age: float, learned: bool, steps: list[Step]
) -> None:
    both = Both(limits, max_queued, max_age)
    if learned:
        for number, key in enumerate(KEYS):
            for cost in (1, 2, 4):
                both.learn(key, cost, 1 + number + cost)
    replay(both, steps)


@pytest.mark.parametrize("seed", range(10))
def test_the_policy_decides_what_the_plain_policy_decides_in_long_queues(seed: int) -> None:
    for number in range(20):
        chance = random.Random(100 * seed + number)
        limits = {
            key: Limits(chance.choice([1, 1, 2, 3, 4, 16, 1000]), chance.choice([2.0, 4.0, 16.0, math.inf]))
            for key in KEYS
        }
        both = Both(limits, chance.choice([6, 1000, 1000]), chance.choice([0.5, 1e9, 1e9]))
        replay(both, long_run(chance))


def long_run(chance: random.Random) -> Iterator[Step]:
    """Generate steps under which the queue grows, with costs, deadlines and preparations of one kind each."""
    keys = chance.sample(KEYS, chance.choice([1, 2, 4]))
    costs = chance.choice([[1.0], [1.0, 0.5, 2.0, 0.0], [1.0, 3.0]])
    ready_in = chance.choice([[0], [0, 0, 0, 1, 4, 30], [0, 5, 50]])
    deadline_sets: list[list[int | None]] = [
        [None, 20, 40, 100, 400],
        [200],
        [None, None, None, None, 50],
        list(range(50, 1000, 7)),
    ]
    deadlines = chance.choice(deadline_sets)
    others = ["prepare", "prepare", "drop", "take", "take", "finish", "finish", "learn", "wait", "wait"]
    names = ["admit"] * chance.choice([2, 6, 12]) + others
    if chance.random() < 0.8:
        for key in KEYS:
            fixed, each = chance.choice([0, 1, 2, 3, 5]), chance.choice([0, 1, 2])
            yield from (("learn", key, cost, fixed + cost * each) for cost in (1, 2, 4))
    for _ in range(chance.choice([40, 120])):
        name = chance.choice(names)
        if name == "admit":
            chain = [
                (
                    chance.choice(keys),
                    chance.choice(costs),
                    chance.choice(deadlines),
                    chance.choice(ready_in),
                    chance.choice([0, 0, 0, 3]),
                    chance.random() < 0.5,
                )
                for _ in range(chance.choice([1, 1, 2, 2, 3]))
            ]
            yield "admit", chain, chance.choice([0, 0, 0, 5, 40]), chance.choice([3, 3, 3, 0, 7]), chance.random() < 0.5
        elif name in ("prepare", "drop"):
            yield name, chance.randint(0, 1000)
        elif name == "take":
            yield ("take",)
        elif name == "finish":
            yield "finish", chance.choice([None, 0, 1, 2, 5, 9])
        elif name == "learn":
            yield "learn", chance.choice(KEYS), chance.choice([1.0, 2.0, 4.0]), chance.randint(0, 12)
        else:
            yield "wait", chance.choice([0, 1, 1, 3, 10])
