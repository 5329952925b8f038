"""The device's queue on an event loop: batches, callers who leave, failures, the end."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence

import pytest
from service.device_queue import DeviceQueue, Place
from service.keys import Key, Owner
from service.work import DEFAULT_URGENCY, Limits, Piece, Terms

from models.errors import BackendError, DeviceBroken
from service.errors import DeadlineExceeded, NotReady
from tests.fakes import FakeClock


class Device:
    """Doubles numbers; holds each batch until it is let go on, where a gate is set."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate: threading.Event | None = None
        self.entered = threading.Event()
        self.fails: dict[int, Exception] = {}
        self.owner = Owner("doubles", lambda _: Limits(4, 4), self.run)

    def piece(self, terms: Terms, kind: str = "k") -> Piece[Key]:
        return Piece(Key(self.owner, "infer", kind), terms)

    def run(self, _key: Key, payloads: Sequence[int]) -> list[int]:
        self.batches.append(list(payloads))
        self.entered.set()
        if self.gate is not None and not self.gate.wait(10):
            raise AssertionError("the test never opened the gate")
        for number in payloads:
            if number in self.fails:
                raise self.fails[number]
        return [2 * number for number in payloads]


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture
async def queue(device: Device) -> AsyncIterator[DeviceQueue]:
    opened = DeviceQueue("fake:0")
    yield opened
    if device.gate is not None:
        device.gate.set()
    await opened.close(10)


def place(
    queue: DeviceQueue, device: Device, *, within: float | None = None, urgency: int = DEFAULT_URGENCY, kind: str = "k"
) -> Place:
    now = queue.clock()
    (reserved,) = queue.reserve(device.piece(Terms(now, None if within is None else now + within, urgency), kind))
    return reserved


async def entered(device: Device) -> None:
    await asyncio.to_thread(device.entered.wait, 10)


async def held(queue: DeviceQueue, device: Device) -> asyncio.Task[object]:
    """A batch of one that stays on the device until the gate opens."""
    device.gate = threading.Event()
    running = asyncio.ensure_future(place(queue, device).run(0))
    await entered(device)
    return running


async def test_a_lone_item_runs_at_once_and_learns_how_it_went(queue: DeviceQueue, device: Device) -> None:
    ran = await place(queue, device).run(21)
    assert (ran.value, ran.batch) == (42, 1)
    assert ran.queued >= 0
    assert ran.ran > 0


async def test_items_that_gathered_while_the_device_was_busy_run_together(queue: DeviceQueue, device: Device) -> None:
    first = await held(queue, device)
    others = [asyncio.ensure_future(place(queue, device).run(number)) for number in (1, 2, 3)]
    await asyncio.sleep(0)
    assert device.gate is not None
    device.gate.set()
    assert [(await other).value for other in others] == [2, 4, 6]
    await first
    assert device.batches == [[0], [1, 2, 3]]


async def test_a_bad_item_fails_alone(queue: DeviceQueue, device: Device) -> None:
    first = await held(queue, device)
    device.fails[2] = BackendError("not this one")
    others = [asyncio.ensure_future(place(queue, device).run(number)) for number in (1, 2, 3)]
    await asyncio.sleep(0)
    assert device.gate is not None
    device.gate.set()
    await first
    good, bad, fine = await asyncio.gather(*others, return_exceptions=True)
    assert isinstance(bad, BackendError)
    assert not isinstance(good, BaseException)
    assert not isinstance(fine, BaseException)
    assert (good.value, fine.value) == (2, 6)


async def test_an_item_whose_caller_left_never_runs(queue: DeviceQueue, device: Device) -> None:
    first = await held(queue, device)
    leaving = asyncio.ensure_future(place(queue, device).run(1))
    staying = asyncio.ensure_future(place(queue, device).run(2))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait({leaving})
    assert device.gate is not None
    device.gate.set()
    await first
    assert (await staying).value == 4
    assert device.batches == [[0], [2]]


async def test_an_item_whose_deadline_passes_while_it_waits_never_runs(queue: DeviceQueue, device: Device) -> None:
    first = await held(queue, device)
    late = asyncio.ensure_future(place(queue, device, within=0.02).run(1))
    await asyncio.sleep(0.03)  # the deadline is on the real clock
    assert device.gate is not None
    device.gate.set()
    await first
    with pytest.raises(DeadlineExceeded):
        await late
    assert device.batches == [[0]]


async def test_a_place_given_up_before_its_payload_was_there_lets_the_others_run(
    queue: DeviceQueue, device: Device
) -> None:
    unused = place(queue, device)
    unused.leave()
    assert (await place(queue, device).run(5)).value == 10


async def test_a_broken_device_fails_everybody_at_once_and_says_so(queue: DeviceQueue, device: Device) -> None:
    first = await held(queue, device)
    waiting = asyncio.ensure_future(place(queue, device).run(1))
    await asyncio.sleep(0)
    device.fails[0] = DeviceBroken("the card fell off the bus")
    assert device.gate is not None
    device.gate.set()
    for failed in (first, waiting):
        with pytest.raises(DeviceBroken, match="fell off the bus"):
            await failed
    assert queue.broken
    with pytest.raises(DeviceBroken):
        place(queue, device)


async def test_closing_admits_nothing_more_and_finishes_what_was_admitted(queue: DeviceQueue, device: Device) -> None:
    first = await held(queue, device)
    admitted = asyncio.ensure_future(place(queue, device).run(1))
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(queue.close(10))
    await asyncio.sleep(0)
    with pytest.raises(NotReady):
        place(queue, device)
    assert device.gate is not None
    device.gate.set()
    await closing
    await first
    assert (await admitted).value == 2


async def test_closing_is_bounded(queue: DeviceQueue, device: Device) -> None:
    first = await held(queue, device)
    waiting = asyncio.ensure_future(place(queue, device).run(1))
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(queue.close(0.01))
    with pytest.raises(NotReady):
        await waiting
    assert device.gate is not None
    device.gate.set()
    await closing
    with pytest.raises(NotReady):
        await first
    assert device.batches == [[0]]


async def test_a_request_that_hands_in_its_next_piece_goes_before_less_urgent_work(
    queue: DeviceQueue, device: Device
) -> None:
    held_back = await held(queue, device)
    now = time.monotonic()
    terms = Terms(now, urgency=0)
    first, second = queue.reserve(device.piece(terms), device.piece(terms, "k2"))

    async def urgent() -> None:
        await first.run(1)
        await asyncio.sleep(0)  # some turns of the loop, as a pipeline takes
        await asyncio.sleep(0)
        await second.run(2)

    going = asyncio.ensure_future(urgent())
    await asyncio.sleep(0)
    less_urgent = asyncio.ensure_future(place(queue, device, urgency=7, kind="k3").run(3))
    await asyncio.sleep(0)
    assert device.gate is not None
    device.gate.set()
    await asyncio.gather(held_back, going, less_urgent)
    assert device.batches == [[0], [1], [2], [3]]


async def test_who_never_hands_in_what_is_more_urgent_holds_the_others_up_for_a_moment_only(device: Device) -> None:
    queue = DeviceQueue("fake:0", clock=FakeClock())  # which says that no time passes
    first = await held(queue, device)
    never = place(queue, device, urgency=0)
    waiting = asyncio.ensure_future(place(queue, device).run(1))
    await asyncio.sleep(0)
    assert device.gate is not None
    device.gate.set()
    async with asyncio.timeout(10):
        await first
        assert (await waiting).value == 2
    never.leave()
    await queue.close(10)
