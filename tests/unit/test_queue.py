"""Two SAMs and a U-Net share a device: one queue, one thread, exact times on a fake clock."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from models.errors import BackendError, DeviceBroken, DeviceOutOfMemory
from models.letterbox import letterbox_for
from models.types import Point, Prompt
from service.api.context import DEFAULT_URGENCY, RequestContext
from service.errors import DeadlineExceeded, DeadlineUnreachable, NotReady, Overloaded
from service.observability.observer import Observer, Stage
from service.scheduler.policy import QueueOptions
from service.scheduler.queue import BatchResult, DeviceQueue, Ticket, run_bisected
from tests.fakes import (
    LOADED,
    LOADED_UNET,
    PATIENCE_S,
    PEEL_FRAME,
    SECOND,
    SIZE,
    FakeClock,
    FakeImage,
    FakePeel,
    FakeSam,
    FakeUNet,
    WatchedRunner,
    WatchedUNetRunner,
)

ENCODING, QUICK_ENCODING, DECODING, INFERENCE = 4.0, 2.0, 0.5, 1.0
"""Seconds of a batch of any size; the second SAM encodes quickly."""

LETTERBOX = letterbox_for(SIZE)
CLICK = Prompt((Point(1, 1),))
NEVER = 1e9
"""Seconds: longer than any test."""


def image(red: int = 0) -> FakeImage:
    return FakeImage(np.array([red, 0, 0], np.float32), LETTERBOX.padded)


def peel(mark: int = 0) -> FakePeel:
    return FakePeel(np.zeros((PEEL_FRAME.padded.height, PEEL_FRAME.padded.width, 3), np.float32), mark)


@dataclass
class Recorder(Observer):
    """Records batches, waits and drops."""

    batches: list[tuple[str, Stage, int, float]] = field(default_factory=list)
    waits: list[tuple[str, Stage, float]] = field(default_factory=list)
    drops: list[tuple[str, str]] = field(default_factory=list)

    def batch_ran(self, model: str, stage: Stage, size: int, seconds: float) -> None:
        self.batches.append((model, stage, size, seconds))

    def item_waited(self, model: str, stage: Stage, seconds: float) -> None:
        self.waits.append((model, stage, seconds))

    def work_dropped(self, model: str, reason: str) -> None:
        self.drops.append((model, reason))


class Bench:
    """The device, warmed up; `hold` keeps it busy with an image of the first SAM until `let_go`."""

    def __init__(self, *, max_queued: int = 256, image_batches: tuple[int, ...] = (1, 4)) -> None:
        self.clock = FakeClock()
        self.recorder = Recorder()
        card = threading.Lock()
        self.sam = FakeSam(image_batches, prompt_batches=(1,), encode_s_per_batch=ENCODING, decode_s_per_batch=DECODING)
        self.quick = FakeSam(
            (1, 4), prompt_batches=(1,), encode_s_per_batch=QUICK_ENCODING, decode_s_per_batch=DECODING
        )
        self.unet = FakeUNet((1, 4), infer_s_per_batch=INFERENCE)
        for fake in (self.sam, self.quick, self.unet):
            fake.clock, fake.card = self.clock, card
        options = QueueOptions(max_queued=max_queued, max_age=NEVER, probe_after=NEVER)
        queue = DeviceQueue(self.sam.device, options=options, clock=self.clock, observer=self.recorder)
        self.sams = WatchedRunner(LOADED, self.sam, queue)
        self.quicks = WatchedRunner(SECOND, self.quick, queue)
        self.unets = WatchedUNetRunner(LOADED_UNET, self.unet, queue)

    async def warm_up(self) -> None:
        await asyncio.gather(self.sams.warm_up(), self.quicks.warm_up(), self.unets.warm_up())
        for fake in (self.sam, self.quick, self.unet):
            fake.forget()
            fake.entered.clear()

    async def close(self) -> None:
        self.let_go()
        await self.sams.close(PATIENCE_S)

    async def hold(self) -> asyncio.Task[BatchResult[Any]]:
        self.sam.blocks = threading.Event()
        running = await self.waiting(self.encode())
        assert await asyncio.to_thread(self.sam.entered.wait, PATIENCE_S)
        return running

    @asynccontextmanager
    async def busy(self) -> AsyncIterator[None]:
        """Hold the device until the block ends."""
        running = await self.hold()
        yield
        self.let_go()
        await running

    def let_go(self) -> None:
        if self.sam.blocks is not None:
            self.sam.blocks.set()

    async def waiting(self, call: Coroutine[Any, Any, BatchResult[Any]]) -> asyncio.Task[BatchResult[Any]]:
        """Start a call and let it hand its payload in."""
        task = asyncio.create_task(call)
        await asyncio.sleep(0)
        return task

    def request(self, urgency: int = DEFAULT_URGENCY) -> RequestContext:
        return RequestContext(received=self.clock.now, arrived=self.clock.now, urgency=urgency)

    def deadline(self, within: float | None) -> float | None:
        return None if within is None else self.clock.now + within

    def reserve_encode(self, runner: WatchedRunner | None = None, within: float | None = None) -> Ticket:
        deadline, now = self.deadline(within), self.clock.now
        return (runner or self.sams).reserve_encode(self.request(), LETTERBOX, deadline=deadline, ready_by=now)

    def reserve_infer(self, within: float | None = None, urgency: int = DEFAULT_URGENCY) -> Ticket:
        deadline, now = self.deadline(within), self.clock.now
        return self.unets.reserve(self.request(urgency), PEEL_FRAME, deadline=deadline, ready_by=now)

    async def encode(self, runner: WatchedRunner | None = None, within: float | None = None) -> BatchResult[Any]:
        return await (runner or self.sams).encode(self.reserve_encode(runner, within), image())

    async def infer(
        self, within: float | None = None, *, mark: int = 0, urgency: int = DEFAULT_URGENCY
    ) -> BatchResult[Any]:
        return await self.unets.infer(self.reserve_infer(within, urgency), peel(mark))

    def would_be_in_time(self, within: float) -> bool:
        """Return whether an image for the U-Net is admitted now."""
        try:
            self.reserve_infer(within).release()
        except DeadlineUnreachable:
            return False
        return True


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    opened = Bench()
    await opened.warm_up()
    yield opened
    await opened.close()


class Doubler:
    """Doubles numbers; fails on bad ones, and on batches larger than its memory."""

    def __init__(self, *, bad: frozenset[int] = frozenset(), memory: int = 100, broken: bool = False) -> None:
        self.bad, self.memory, self.broken = bad, memory, broken
        self.batches: list[list[int]] = []

    def run(self, batch: Sequence[int]) -> list[int]:
        self.batches.append(list(batch))
        if self.broken:
            raise DeviceBroken("gone")
        if len(batch) > self.memory:
            raise DeviceOutOfMemory("no memory for this batch")
        if self.bad & set(batch):
            raise BackendError(f"cannot double {self.bad & set(batch)}")
        return [2 * number for number in batch]


@pytest.mark.parametrize(
    ("device", "failing", "batches"),
    [
        (Doubler(), [], [[1, 2, 3, 4]]),
        (Doubler(bad=frozenset({3})), [3], [[1, 2, 3, 4], [1, 2], [3, 4], [3], [4]]),
        (Doubler(memory=2), [], [[1, 2, 3, 4], [1, 2], [3, 4]]),
        (Doubler(memory=0), [1, 2, 3, 4], [[1, 2, 3, 4], [1, 2], [1], [2], [3, 4], [3], [4]]),
    ],
)
def test_a_failing_batch_is_split_until_only_the_items_that_fail_alone_fail(
    device: Doubler, failing: list[int], batches: list[list[int]]
) -> None:
    numbers = [1, 2, 3, 4]
    outcomes = run_bisected(device.run, numbers)
    assert [number for number, outcome in zip(numbers, outcomes, strict=True) if outcome != 2 * number] == failing
    assert all(isinstance(outcomes[number - 1], BackendError) for number in failing)
    assert device.batches == batches


def test_nothing_more_runs_on_a_broken_device() -> None:
    device = Doubler(broken=True)
    with pytest.raises(DeviceBroken):
        run_bisected(device.run, [1, 2, 3])
    assert device.batches == [[1, 2, 3]]


async def test_waiting_items_run_together_and_a_bad_one_fails_alone(bench: Bench) -> None:
    async with bench.busy():
        bench.unet.spoilt = {2}
        calls = [await bench.waiting(bench.infer(mark=mark)) for mark in (1, 2, 3)]
    good, bad, fine = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(bad, BackendError)
    assert isinstance(good, BatchResult)
    assert isinstance(fine, BatchResult)
    assert bench.unet.encodes[0] == 3
    assert not bench.unets.broken


async def test_an_item_whose_caller_left_never_runs(bench: Bench) -> None:
    async with bench.busy():
        leaving, staying = [await bench.waiting(bench.infer(mark=mark)) for mark in (1, 2)]
        leaving.cancel()
        await asyncio.wait({leaving})
    await staying
    assert bench.unet.encoded == [2]


async def test_a_ticket_that_is_released_before_its_payload_is_there_holds_nothing_up(bench: Bench) -> None:
    ticket = bench.reserve_infer(urgency=0)
    ticket.release()
    assert (await bench.infer()).queued == 0
    with pytest.raises(DeadlineExceeded, match="gave it up"):
        await ticket.run(peel())


async def test_the_next_stage_of_a_request_goes_before_less_urgent_work(bench: Bench) -> None:
    async with bench.busy():
        urgent = bench.quicks.reserve(
            bench.request(urgency=0), [CLICK], LETTERBOX, deadline=None, encode=True, ready_by=bench.clock.now
        )

        async def segment() -> None:
            assert urgent.encode is not None
            embedding = (await bench.quicks.encode(urgent.encode, image())).value
            await asyncio.sleep(0)  # some turns of the event loop, as a pipeline takes
            await asyncio.sleep(0)
            await bench.quicks.decode(urgent, embedding, [CLICK], LETTERBOX)

        segmenting = asyncio.create_task(segment())
        await asyncio.sleep(0)
        other = await bench.waiting(bench.infer(urgency=7))
    await asyncio.gather(segmenting, other)
    assert [stage for _, stage, *_ in bench.recorder.batches] == ["encode", "encode", "mask_decode", "infer"]


async def test_an_urgent_payload_that_never_comes_delays_other_work_only_briefly(bench: Bench) -> None:
    async with bench.busy():
        never = bench.reserve_infer(urgency=0)
        waiting = await bench.waiting(bench.encode(bench.quicks))
    async with asyncio.timeout(PATIENCE_S):  # of the event loop: the queue's clock stands still
        await waiting
    never.release()


async def test_the_device_waits_for_an_image_that_the_next_batch_would_make_late(bench: Bench) -> None:
    now = bench.clock.now
    ticket = bench.unets.reserve(bench.request(), PEEL_FRAME, deadline=now + 3, ready_by=now + 1)
    encoding = await bench.waiting(bench.encode())
    assert bench.sam.encodes == []
    await bench.unets.infer(ticket, peel())
    await encoding
    assert [stage for _, stage, *_ in bench.recorder.batches] == ["infer", "encode"]


async def test_the_device_waits_no_longer_than_until_the_image_should_be_prepared(bench: Bench) -> None:
    now = bench.clock.now
    never = bench.unets.reserve(bench.request(), PEEL_FRAME, deadline=now + 3, ready_by=now + 0.05)
    encoding = await bench.waiting(bench.encode())
    assert bench.sam.encodes == []
    bench.clock.leap(0.05)
    async with asyncio.timeout(PATIENCE_S):  # of the event loop, which wakes the queue
        await encoding
    never.release()


@pytest.mark.parametrize(
    ("encode_within", "infer_within", "encoding_waits", "inference_waits"),
    [(60, 6, ENCODING + INFERENCE, ENCODING), (9, 60, ENCODING, 2 * ENCODING)],
)
async def test_of_two_models_the_one_with_the_tighter_deadline_goes_first(
    bench: Bench, encode_within: float, infer_within: float, encoding_waits: float, inference_waits: float
) -> None:
    start = bench.clock.now
    async with bench.busy():
        encoding = await bench.waiting(bench.encode(within=encode_within))
        inference = await bench.waiting(bench.infer(within=infer_within))
    assert (await encoding).started == start + encoding_waits
    assert (await inference).started == start + inference_waits


async def test_models_share_the_devices_thread_and_never_a_batch(bench: Bench) -> None:
    async with bench.busy():
        calls = [
            await bench.waiting(call)
            for _ in range(2)
            for call in (bench.encode(), bench.encode(bench.quicks), bench.infer())
        ]
    done = await asyncio.gather(*calls)
    assert [result.batch_size for result in done] == [2] * 6
    assert (bench.sam.encodes, bench.quick.encodes, bench.unet.encodes) == ([1, 2], [2], [2])
    assert not any(fake.overlapped for fake in (bench.sam, bench.quick, bench.unet))
    (thread,) = bench.sam.threads | bench.quick.threads | bench.unet.threads  # warm-up included
    assert thread != threading.get_ident()


async def test_admission_counts_the_work_of_other_models_that_runs_or_goes_first(bench: Bench) -> None:
    reserve = 1.05  # of a predicted wait a twentieth is kept
    assert bench.would_be_in_time(INFERENCE + 0.01)
    async with bench.busy():
        assert not bench.would_be_in_time((ENCODING + INFERENCE) * reserve - 0.01)
        assert bench.would_be_in_time((ENCODING + INFERENCE) * reserve + 0.01)
        encoding = await bench.waiting(bench.encode(within=9))
        assert not bench.would_be_in_time(9.1)
        assert bench.would_be_in_time((2 * ENCODING + INFERENCE) * reserve + 0.01)
    await encoding


async def test_work_that_would_make_admitted_work_of_another_model_late_is_refused(bench: Bench) -> None:
    async with bench.busy():
        encoding = await bench.waiting(bench.encode(within=8.5))
        with pytest.raises(Overloaded):
            await bench.infer(within=6)
    await encoding


async def test_the_times_of_each_model_are_learned_separately(bench: Bench) -> None:
    bench.reserve_encode(bench.quicks, within=QUICK_ENCODING).release()
    with pytest.raises(DeadlineUnreachable, match=f"{(ENCODING - QUICK_ENCODING) * 1000:.0f} ms"):
        bench.reserve_encode(bench.sams, within=QUICK_ENCODING)


async def test_each_model_has_its_own_batch_limits() -> None:
    bench = Bench(image_batches=(1,))
    await bench.warm_up()
    async with bench.busy():
        calls = [await bench.waiting(call) for _ in range(3) for call in (bench.encode(), bench.infer())]
    await asyncio.gather(*calls)
    await bench.close()
    assert (bench.sam.encodes, bench.unet.encodes) == ([1, 1, 1, 1], [3])


async def test_a_full_queue_refuses_the_work_of_every_model_and_says_when_to_retry() -> None:
    bench = Bench(max_queued=2)
    await bench.warm_up()
    async with bench.busy():
        encoding, inference = [await bench.waiting(call) for call in (bench.encode(), bench.infer())]
        for runner in (bench.sams, bench.quicks):
            with pytest.raises(Overloaded) as refused:
                bench.reserve_encode(runner)
            assert refused.value.retry_after == pytest.approx(2 * ENCODING + INFERENCE)
        with pytest.raises(Overloaded):
            bench.reserve_infer()
        inference.cancel()
        await asyncio.wait({inference})
        bench.reserve_infer().release()
    await encoding
    await bench.close()


async def test_a_device_that_broke_under_one_model_is_broken_for_all(bench: Bench) -> None:
    busy = await bench.hold()
    inference = await bench.waiting(bench.infer())
    place = bench.reserve_infer()
    bench.sam.fails = DeviceBroken("the card fell off the bus")
    bench.let_go()
    for call in (busy, inference, bench.infer(), bench.encode(bench.quicks)):
        with pytest.raises(DeviceBroken, match="fell off the bus"):
            await call
    assert bench.sams.broken
    assert bench.quicks.broken
    assert bench.unets.broken
    assert bench.unet.encodes == []
    place.release()
    assert bench.recorder.drops == [], "nobody gave anything up"


async def test_closing_finishes_admitted_work_of_all_models_and_admits_no_more(bench: Bench) -> None:
    calls = [await bench.hold()]
    calls += [await bench.waiting(call) for call in (bench.encode(bench.quicks), bench.infer())]
    closing = asyncio.create_task(bench.sams.close(PATIENCE_S))
    await asyncio.sleep(0)
    for refused in (bench.encode(), bench.encode(bench.quicks), bench.infer()):
        with pytest.raises(NotReady):
            await refused
    bench.let_go()
    await closing
    assert [call.done() for call in calls] == [True] * 3
    await asyncio.gather(*calls)
    await bench.quicks.close(PATIENCE_S)
    await bench.unets.close(PATIENCE_S)


async def test_closing_is_bounded_and_the_next_runner_does_not_wait_again(bench: Bench) -> None:
    busy = await bench.hold()
    inference = await bench.waiting(bench.infer())

    async def close_all() -> None:
        await bench.unets.close(0.01)
        await bench.sams.close(NEVER)

    closing = asyncio.create_task(close_all())
    with pytest.raises(NotReady):
        await inference
    bench.let_go()
    async with asyncio.timeout(PATIENCE_S):
        await closing
    with pytest.raises(NotReady):
        await busy
    assert bench.unet.encodes == []


async def test_batches_and_waits_are_reported_by_model_and_stage(bench: Bench) -> None:
    async with bench.busy():
        inference = await bench.waiting(bench.infer())
    result = await inference
    assert (result.queued, result.ran, result.batch_size) == (ENCODING, INFERENCE, 1)
    reservation = bench.quicks.reserve(
        bench.request(), [CLICK], LETTERBOX, deadline=None, encode=False, ready_by=bench.clock.now
    )
    await bench.quicks.decode(reservation, image(), [CLICK], LETTERBOX)
    assert bench.recorder.batches == [
        ("orange-sam", "encode", 1, ENCODING),
        ("peel-unet", "infer", 1, INFERENCE),
        ("lemon-sam", "mask_decode", 1, DECODING),
    ]
    assert bench.recorder.waits == [
        ("orange-sam", "encode", 0),
        ("peel-unet", "infer", ENCODING),
        ("lemon-sam", "mask_decode", 0),
    ]


async def test_dropped_work_never_runs_and_is_reported_by_model_and_reason(bench: Bench) -> None:
    async with bench.busy():
        leaving = await bench.waiting(bench.encode(bench.quicks))
        late = await bench.waiting(bench.infer(within=6))
        leaving.cancel()
        await asyncio.wait({leaving})
        with pytest.raises(DeadlineUnreachable):
            await bench.infer(within=0.1)
        bench.clock.leap(10)
    with pytest.raises(DeadlineExceeded):
        await late
    assert bench.quick.encodes == bench.unet.encodes == []
    assert bench.recorder.drops == [
        ("lemon-sam", "abandoned"),
        ("peel-unet", "deadline_unreachable"),
        ("peel-unet", "deadline_exceeded"),
    ]
