"""Two SAMs and a U-Net on one device: one queue and one thread, exact times on a fake clock."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from service.device_queue import DeviceQueue, Ran
from service.work import QueueOptions, Terms

from models.errors import DeviceBroken
from models.letterbox import letterbox_for
from models.types import Point, Prompt
from service.errors import DeadlineExceeded, DeadlineUnreachable, NotReady, Overloaded
from service.observability.observer import Observer, Stage
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
"""Seconds of a batch of any size, the second SAM's the quick one."""

FRAME = letterbox_for(SIZE)
IMAGE = FakeImage(np.zeros(3, np.float32), FRAME.padded)
PEEL = FakePeel(np.zeros((PEEL_FRAME.padded.height, PEEL_FRAME.padded.width, 3), np.float32), 0)
CLICK = Prompt((Point(1, 1),))
NEVER = 1e9
"""Seconds after which an idle device is tried anew: no test waits for that."""


@dataclass
class Heard(Observer):
    """What an observer is told."""

    batches: list[tuple[str, Stage, int, float]] = field(default_factory=list)
    waits: list[tuple[str, Stage, float]] = field(default_factory=list)
    drops: list[tuple[str, str]] = field(default_factory=list)

    def ran(self, runner: str, stage: Stage, size: int, seconds: float) -> None:
        self.batches.append((runner, stage, size, seconds))

    def waited(self, runner: str, stage: Stage, seconds: float) -> None:
        self.waits.append((runner, stage, seconds))

    def dropped(self, runner: str, reason: str) -> None:
        self.drops.append((runner, reason))


class Bench:
    """The device, warmed up; `hold` keeps it busy with an image of the first SAM until it is let go."""

    def __init__(self, *, max_queued: int = 256) -> None:
        self.clock = FakeClock()
        self.heard = Heard()
        card = threading.Lock()
        self.sam = FakeSam((1, 4), encode_s_per_batch=ENCODING, decode_s_per_batch=DECODING)
        self.quick = FakeSam((1, 4), encode_s_per_batch=QUICK_ENCODING, decode_s_per_batch=DECODING)
        self.unet = FakeUNet((1, 4), infer_s_per_batch=INFERENCE)
        for fake in (self.sam, self.quick, self.unet):
            fake.clock, fake.card = self.clock, card
        options = QueueOptions(max_queued=max_queued, probe_after=NEVER)
        queue = DeviceQueue(self.sam.device, options=options, clock=self.clock, observer=self.heard)
        self.sams = WatchedRunner(LOADED, self.sam, queue)
        self.quicks = WatchedRunner(SECOND, self.quick, queue)
        self.unets = WatchedUNetRunner(LOADED_UNET, self.unet, queue)

    async def warm_up(self) -> None:
        await asyncio.gather(self.sams.warm_up(), self.quicks.warm_up(), self.unets.warm_up())
        for fake in (self.sam, self.quick, self.unet):
            fake.forget()
            fake.entered.clear()

    async def hold(self) -> asyncio.Task[Ran[Any]]:
        self.sam.blocks = threading.Event()
        running = await self.waiting(self.encode())
        assert await asyncio.to_thread(self.sam.entered.wait, PATIENCE_S)
        return running

    def let_go(self) -> None:
        if self.sam.blocks is not None:
            self.sam.blocks.set()

    async def waiting(self, call: Coroutine[Any, Any, Ran[Any]]) -> asyncio.Task[Ran[Any]]:
        """A call that has handed its work in."""
        task = asyncio.create_task(call)
        await asyncio.sleep(0)
        return task

    def terms(self, within: float | None = None) -> Terms:
        return Terms(self.clock.now, None if within is None else self.clock.now + within)

    async def encode(self, runner: WatchedRunner | None = None, within: float | None = None) -> Ran[Any]:
        runner = runner or self.sams
        place = runner.reserve_encode(self.terms(within), FRAME, ready_by=self.clock.now)
        return await runner.encode(place, IMAGE)

    async def infer(self, within: float | None = None) -> Ran[NDArray[np.float32]]:
        place = self.unets.reserve(self.terms(within), PEEL_FRAME, ready_by=self.clock.now)
        return await self.unets.infer(place, PEEL)

    def would_be_in_time(self, within: float) -> bool:
        """Whether a frame for the U-Net is admitted now."""
        try:
            self.unets.reserve(self.terms(within), PEEL_FRAME, ready_by=self.clock.now).leave()
        except DeadlineUnreachable:
            return False
        return True


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    opened = Bench()
    await opened.warm_up()
    yield opened
    opened.let_go()
    await opened.sams.close(PATIENCE_S)


async def test_a_u_net_frame_with_a_tight_deadline_goes_before_a_sams_encoding_that_waits(bench: Bench) -> None:
    start = bench.clock.now
    busy = await bench.hold()
    encoding = await bench.waiting(bench.encode(within=60))
    frame = await bench.waiting(bench.infer(within=6))
    bench.let_go()
    assert (await frame).started == start + ENCODING
    assert (await encoding).started == start + ENCODING + INFERENCE
    await busy


async def test_a_sams_encoding_with_a_tight_deadline_goes_before_u_net_frames_that_wait(bench: Bench) -> None:
    start = bench.clock.now
    busy = await bench.hold()
    frame = await bench.waiting(bench.infer(within=60))
    encoding = await bench.waiting(bench.encode(within=9))
    bench.let_go()
    assert (await encoding).started == start + ENCODING
    assert (await frame).started == start + 2 * ENCODING
    await busy


async def test_work_of_different_models_never_shares_a_batch_however_alike_it_is(bench: Bench) -> None:
    busy = await bench.hold()
    calls = [
        await bench.waiting(call)
        for _ in range(2)
        for call in (bench.encode(), bench.encode(bench.quicks), bench.infer())
    ]
    bench.let_go()
    done = await asyncio.gather(*calls)
    await busy
    assert [ran.batch for ran in done] == [2] * 6
    assert (bench.sam.encodes, bench.quick.encodes, bench.unet.encodes) == ([1, 2], [2], [2])


async def test_all_that_runs_on_the_device_runs_on_its_one_thread_the_warming_up_too(bench: Bench) -> None:
    await asyncio.gather(bench.encode(), bench.encode(bench.quicks), bench.infer())
    assert not any(fake.overlapped for fake in (bench.sam, bench.quick, bench.unet))
    (thread,) = bench.sam.threads | bench.quick.threads | bench.unet.threads
    assert thread != threading.get_ident()


async def test_what_a_sam_is_running_counts_when_a_u_net_frame_asks_to_be_admitted(bench: Bench) -> None:
    assert bench.would_be_in_time(INFERENCE + 0.01)
    busy = await bench.hold()
    # A twentieth of the wait is kept in reserve.
    assert not bench.would_be_in_time((ENCODING + INFERENCE) * 1.05 - 0.01)
    assert bench.would_be_in_time((ENCODING + INFERENCE) * 1.05 + 0.01)
    bench.let_go()
    await busy


async def test_what_waits_for_a_sam_counts_where_it_goes_before_the_frame(bench: Bench) -> None:
    busy = await bench.hold()
    encoding = await bench.waiting(bench.encode(within=9))
    assert not bench.would_be_in_time(9.1)
    assert bench.would_be_in_time((2 * ENCODING + INFERENCE) * 1.05 + 0.01)
    bench.let_go()
    await asyncio.gather(busy, encoding)


async def test_a_frame_that_would_make_an_admitted_encoding_late_is_refused(bench: Bench) -> None:
    busy = await bench.hold()
    encoding = await bench.waiting(bench.encode(within=8.5))
    with pytest.raises(Overloaded, match="late that was admitted before"):
        await bench.infer(within=6)
    bench.let_go()
    await asyncio.gather(busy, encoding)


async def test_every_models_times_are_its_own(bench: Bench) -> None:
    terms, now = bench.terms(within=QUICK_ENCODING), bench.clock.now
    bench.quicks.reserve_encode(terms, FRAME, ready_by=now).leave()
    with pytest.raises(DeadlineUnreachable, match=f"{(ENCODING - QUICK_ENCODING) * 1000:.0f} ms after"):
        bench.sams.reserve_encode(terms, FRAME, ready_by=now)


async def test_every_models_batches_are_bounded_by_its_own_limits() -> None:
    bench = Bench()
    bench.sam.image_batches = (1,)
    await bench.warm_up()
    busy = await bench.hold()
    calls = [await bench.waiting(call) for _ in range(3) for call in (bench.encode(), bench.infer())]
    bench.let_go()
    await asyncio.gather(busy, *calls)
    await bench.sams.close(PATIENCE_S)
    assert (bench.sam.encodes, bench.unet.encodes) == ([1, 1, 1, 1], [3])


async def test_a_queue_full_of_one_models_work_is_full_for_the_others() -> None:
    bench = Bench(max_queued=2)
    await bench.warm_up()
    busy = await bench.hold()
    calls = [await bench.waiting(bench.encode()), await bench.waiting(bench.infer())]
    for call in (bench.infer(), bench.encode(bench.quicks)):
        with pytest.raises(Overloaded):
            await call
    bench.let_go()
    await asyncio.gather(busy, *calls)
    await bench.sams.close(PATIENCE_S)


async def test_a_device_that_broke_under_one_model_is_broken_for_all(bench: Bench) -> None:
    busy = await bench.hold()
    frame = await bench.waiting(bench.infer())
    bench.sam.fails = DeviceBroken("the card fell off the bus")
    bench.let_go()
    for call in (busy, frame, bench.infer(), bench.encode(bench.quicks)):
        with pytest.raises(DeviceBroken, match="fell off the bus"):
            await call
    assert bench.sams.broken
    assert bench.quicks.broken
    assert bench.unets.broken
    assert bench.unet.encodes == []


async def test_closing_finishes_what_all_models_have_admitted_and_admits_nothing_more_for_any(bench: Bench) -> None:
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


async def test_runners_that_are_closed_one_after_another_wait_for_the_device_once(bench: Bench) -> None:
    busy = await bench.hold()
    frame = await bench.waiting(bench.infer())

    async def close_all() -> None:
        await bench.unets.close(0.01)
        await bench.sams.close(NEVER)

    closing = asyncio.create_task(close_all())
    with pytest.raises(NotReady):
        await frame
    bench.let_go()
    async with asyncio.timeout(PATIENCE_S):
        await closing
    with pytest.raises(NotReady):
        await busy
    assert bench.unet.encodes == []


async def test_batches_and_waits_are_told_under_the_name_of_whose_work_it_is(bench: Bench) -> None:
    busy = await bench.hold()
    frame = await bench.waiting(bench.infer())
    bench.let_go()
    await asyncio.gather(busy, frame)
    asked = bench.quicks.reserve(bench.terms(), [CLICK], FRAME, encode=False, ready_by=0)
    await bench.quicks.decode(asked, IMAGE, [CLICK], FRAME)
    assert bench.heard.batches == [
        ("orange-sam", "encode", 1, ENCODING),
        ("peel-unet", "infer", 1, INFERENCE),
        ("lemon-sam", "decode", 1, DECODING),
    ]
    assert bench.heard.waits == [
        ("orange-sam", "encode", 0),
        ("peel-unet", "infer", ENCODING),
        ("lemon-sam", "decode", 0),
    ]


async def test_drops_are_told_under_the_name_of_whose_work_it_was(bench: Bench) -> None:
    busy = await bench.hold()
    leaving = await bench.waiting(bench.encode(bench.quicks))
    late = await bench.waiting(bench.infer(within=6))
    leaving.cancel()
    await asyncio.wait({leaving})
    with pytest.raises(DeadlineUnreachable):
        await bench.infer(within=0.1)
    bench.clock.leap(10)
    bench.let_go()
    await busy
    with pytest.raises(DeadlineExceeded):
        await late
    assert bench.heard.drops == [
        ("lemon-sam", "abandoned"),
        ("peel-unet", "deadline_unreachable"),
        ("peel-unet", "deadline_exceeded"),
    ]
