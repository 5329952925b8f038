"""A crowd without deadlines beside one caller with a deadline, on a fake clock.

`python -m tests.unit.test_fairness` prints the figures that docs/reliability.md quotes.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from service.errors import DeadlineUnreachable, Overloaded
from service.scheduler.latency import LatencyModel
from service.scheduler.policy import BatchPolicy, Limits, WorkItem
from tests.fakes import FakeClock, FakeRequest

ENCODE, DECODE, INFER = 0.45, 0.16, 0.06
"""Seconds of MobileSAM's encoder, of its decoder for four prompts and of the U-Net on two cores."""

PREPARE = 0.1
"""Seconds in which an image is decoded and resized."""

CALLS = 14
EVERY = 1.3
"""Seconds from one call with a deadline to the next."""

Item = WorkItem[str, str]


@dataclass
class Device:
    """The policy of a device, on which callers come and go at exact times."""

    encode: float = ENCODE
    clock: FakeClock = field(default_factory=FakeClock)
    ran: dict[str, float] = field(default_factory=dict)
    """Seconds of the device, by key."""

    def __post_init__(self) -> None:
        self.seconds = {"encode": self.encode, "decode": DECODE, "infer": INFER}
        self.policy: BatchPolicy[str, str] = BatchPolicy(
            {"encode": Limits(1, 1), "decode": Limits(100, 1), "infer": Limits(4, 4)}.__getitem__,
            LatencyModel(),
            clock=self.clock,
        )
        for key, seconds in self.seconds.items():
            self.policy.learn(key, 1, seconds)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self.ends: dict[Item, Callable[[bool], None]] = {}

    def at(self, when: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), event))

    def run(self, until: float) -> None:
        while self._events and self._events[0][0] <= until:
            self.clock.now, _, event = heapq.heappop(self._events)
            event()
            self.pump()

    def pump(self) -> None:
        if self.policy.busy:
            return
        batch = self.policy.take()
        for item in batch.late:
            self.ends.pop(item)(False)
        if batch.items:
            key = batch.items[0].key
            seconds = self.seconds[key]
            self.ran[key] = self.ran.get(key, 0.0) + seconds
            self.at(self.clock.now + seconds, lambda: self._finish(batch.items, seconds))

    def _finish(self, items: list[Item], seconds: float) -> None:
        self.policy.finished(seconds)
        for item in items:
            self.ends.pop(item)(True)


@dataclass
class Caller:
    """Sends an image with some prompts, waits for the answer, and sends the next: as `segment` does."""

    device: Device
    groups: int
    answered: int = 0

    def call(self) -> None:
        device, now = self.device, self.device.clock.now
        request = FakeRequest(now)
        items: list[Item] = [
            WorkItem(key, request, deadline=None, ready_by=now + PREPARE)
            for key in ("encode", *["decode"] * self.groups)
        ]
        try:
            device.policy.admit(*items)
        except Overloaded:
            device.at(now + 1.0, self.call)
            return
        first, *rest = items
        left = len(rest)

        def encoded(_: bool) -> None:
            for item in rest:
                item.payload = "prompts"

        def decoded(_: bool) -> None:
            nonlocal left
            left -= 1
            if not left:
                self.answered += 1
                device.at(device.clock.now, self.call)

        device.ends |= {first: encoded} | dict.fromkeys(rest, decoded)
        device.at(now + PREPARE, lambda: setattr(first, "payload", "image"))


def in_time(device: Device, crowd: list[Caller], *, deadline: float, calls: int = CALLS) -> int:
    """Return how many of some images for the U-Net were answered in time beside a crowd that has waited for long."""
    for number, caller in enumerate(crowd):
        device.at(device.clock.now + number * 0.001, caller.call)
    start = device.clock.now + 60
    device.run(start)
    met = 0

    def call() -> None:
        now = device.clock.now
        item: Item = WorkItem("infer", FakeRequest(now), deadline=now + deadline, ready_by=now + PREPARE)
        try:
            device.policy.admit(item)
        except (DeadlineUnreachable, Overloaded):
            return

        def ended(ran: bool) -> None:
            nonlocal met
            met += ran and device.clock.now <= item.due

        device.ends[item] = ended
        device.at(now + PREPARE, lambda: setattr(item, "payload", "image"))

    for number in range(calls):
        device.at(start + number * EVERY, call)
    device.run(start + calls * EVERY + 5)
    return met


@pytest.mark.parametrize("groups", [1, 16], ids=["4 prompts", "64 prompts"])
@pytest.mark.parametrize("encode", [ENCODE, 0.8])
@pytest.mark.parametrize("callers", [1, 64])
def test_a_crowd_without_deadlines_leaves_every_answer_to_the_one_with_a_deadline(
    callers: int, encode: float, groups: int
) -> None:
    device = Device(encode)
    crowd = [Caller(device, groups) for _ in range(callers)]
    assert in_time(device, crowd, deadline=1.0) == CALLS


def test_the_crowd_is_served_meanwhile() -> None:
    alone, beside = Device(), Device()
    crowds = [[Caller(device, 1) for _ in range(64)] for device in (alone, beside)]
    in_time(alone, crowds[0], deadline=1.0, calls=0)
    alone.run(beside.clock.now + 60 + CALLS * EVERY + 5)
    assert in_time(beside, crowds[1], deadline=1.0) == CALLS
    served = [sum(caller.answered for caller in crowd) for crowd in crowds]
    # What the calls with a deadline took is what the crowd lost.
    lost = CALLS * INFER / (ENCODE + DECODE)
    assert served[0] - lost - 2 <= served[1] <= served[0]


if __name__ == "__main__":
    for encode in (0.2, 0.45, 0.8):
        for deadline in (0.3, 0.5, 1.0):
            for callers in (1, 8, 64):
                device = Device(encode)
                crowd = [Caller(device, 1) for _ in range(callers)]
                met = in_time(device, crowd, deadline=deadline)
                print(f"encoder {encode} s, {callers:2} callers, deadline {deadline} s: {met} of {CALLS}")
