"""What one admission costs while many items wait, against the plain policy in the same process.

`python -m tests.unit.test_admission_cost` prints CPU milliseconds for each mix of requests and length of the queue.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import pytest

from service.scheduler.latency import LatencyModel
from service.scheduler.policy import BatchPolicy, Limits, QueueOptions, WorkItem
from tests.fakes import FakeClock, FakeRequest
from tests.unit import policy_oracle as plain

OPTIONS: Final = QueueOptions(max_queued=10_000, max_age=1e9)
PREPARED_IN: Final = 0.01
PER_ITEM: Final = 0.006
"""Seconds that an item of a mix takes on the device, at most."""

Piece = tuple[str, float, float | None]
"""An item's key, cost and seconds until its deadline."""


@dataclass(frozen=True)
class Mix:
    """Limits by key, and the items of one request, given a source of chance and the seconds that the queue takes."""

    limits: dict[str, Limits]
    request: Callable[[random.Random, float], list[Piece]]


def sam(chance: random.Random, seconds: float) -> list[Piece]:
    within = seconds * chance.uniform(1.5, 3)
    return [("encode", 1.0, within), ("decode", float(chance.choice((1, 1, 1, 2, 4))), within + 0.02)]


def sam_alike(chance: random.Random, seconds: float) -> list[Piece]:
    return [("encode", 1.0, seconds * 2), ("decode", float(chance.choice((1, 1, 1, 2, 4))), seconds * 2 + 0.02)]


SAM: Final = {"encode": Limits(1, math.inf), "decode": Limits(10**9, 16)}
MIXES: Final = {
    "one item a batch": Mix({"a": Limits(1, math.inf)}, lambda c, s: [("a", 1.0, s * c.uniform(1.5, 3))]),
    "16 items a batch": Mix({"a": Limits(16, 16)}, lambda c, s: [("a", 1.0, 0.1 + s * c.uniform(0.5, 1))]),
    "half with a deadline": Mix(
        {"a": Limits(1, math.inf), "b": Limits(16, 16)},
        lambda c, s: [(c.choice("ab"), 1.0, s * c.uniform(1.5, 3) if c.random() < 0.5 else None)],
    ),
    "no deadlines": Mix({"a": Limits(1, math.inf)}, lambda _c, _s: [("a", 1.0, None)]),
    "SAM, encode and decode": Mix(SAM, sam),
    "SAM, equal deadlines": Mix(SAM, sam_alike),
}


def new_items(pieces: list[Piece], now: float) -> list[WorkItem[str, int]]:
    return [
        WorkItem(
            key,
            FakeRequest(now),
            deadline=None if within is None else now + within,
            cost=cost,
            ready_by=now + PREPARED_IN,
        )
        for key, cost, within in pieces
    ]


def plain_items(pieces: list[Piece], now: float) -> list[plain.Item[str, int]]:
    return [
        plain.Item(
            plain.Piece(key, plain.Terms(now, None if within is None else now + within), cost, now + PREPARED_IN)
        )
        for key, cost, within in pieces
    ]


def new_ms(mix: Mix, waiting: int, repeat: int) -> float:
    """Return the median of admissions, in CPU milliseconds, while a batch runs and so many items wait."""
    clock, chance = FakeClock(), random.Random(1)
    policy: BatchPolicy[str, int] = BatchPolicy(mix.limits.__getitem__, LatencyModel(), clock=clock, options=OPTIONS)
    teach(policy.learn, mix)
    (first, *_) = new_items(mix.request(chance, 1e3), clock.now)
    first.payload = 0
    policy.admit(first)
    policy.take()
    spent: list[float] = []
    while policy.waiting < waiting or len(spent) < repeat:
        clock.now += 1e-6
        items = new_items(mix.request(chance, waiting * PER_ITEM + 0.1), clock.now)
        started = time.thread_time()
        policy.admit(*items)
        if policy.waiting > waiting:
            spent.append(time.thread_time() - started)
        for item in items:
            item.payload = 0
            if waiting < len(spent) <= repeat:
                policy.drop(item)
    return statistics.median(spent) * 1e3


def plain_ms(mix: Mix, waiting: int, repeat: int) -> float:
    """Return the same of the plain policy."""
    clock, chance = FakeClock(), random.Random(1)
    policy: plain.BatchPolicy[str, int] = plain.BatchPolicy(
        mix.limits.__getitem__, LatencyModel(), clock=clock, options=OPTIONS
    )
    teach(policy.learn, mix)
    (first, *_) = plain_items(mix.request(chance, 1e3), clock.now)
    first.payload = 0
    policy.admit(first)
    policy.take()
    while policy.waiting < waiting:
        # Without being admitted one by one, which would take minutes.
        items = plain_items(mix.request(chance, waiting * PER_ITEM + 0.1), clock.now)
        for item in items:
            item.payload = 0
        policy._waiting.extend(items)
    spent = []
    for _ in range(repeat):
        items = plain_items(mix.request(chance, waiting * PER_ITEM + 0.1), clock.now)
        started = time.thread_time()
        policy.admit(*items)
        spent.append(time.thread_time() - started)
    return statistics.median(spent) * 1e3


def teach(learn: Callable[[str, float, float], None], mix: Mix) -> None:
    for key in mix.limits:
        for cost in (1, 2, 4, 8, 16):
            learn(key, cost, 0.004 + 0.001 * cost)


@pytest.mark.parametrize("name", [name for name in MIXES if name != "no deadlines"])
def test_an_admission_costs_a_fraction_of_what_it_costs_the_plain_policy(name: str) -> None:
    # Measured: a twelfth to a hundredth, or a third where half the items have no deadline.
    assert new_ms(MIXES[name], 512, 31) < plain_ms(MIXES[name], 512, 3)


def test_without_deadlines_an_admission_does_not_grow_with_the_queue() -> None:
    mix = MIXES["no deadlines"]
    assert new_ms(mix, 512, 101) < 5 * new_ms(mix, 1, 101)


if __name__ == "__main__":
    for name, mix in MIXES.items():
        for waiting in (1, 128, 256, 512):
            print(
                f"{name:24} {waiting:4} waiting: {new_ms(mix, waiting, 101):7.3f} ms,"
                f" plain {plain_ms(mix, waiting, 5):7.3f} ms",
                flush=True,
            )
