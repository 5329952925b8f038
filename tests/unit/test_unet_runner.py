from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import numpy as np
import pytest
from numpy.typing import NDArray
from service.device_queue import DeviceQueue, Ran
from service.work import QueueOptions, Terms

from models.errors import BackendError, DeviceBroken
from models.types import Size
from models.unet.letterbox import UNetLetterbox, unet_letterbox
from service.errors import DeadlineUnreachable, NotReady, Overloaded
from tests.fakes import LOADED_UNET, PATIENCE_S, PEEL_FRAME, FakePeel, FakeUNet, WatchedUNetRunner

UPRIGHT = unet_letterbox(Size(224, 112))
NEVER = 1e9
"""Seconds after which an idle device is tried anew: no test waits for that."""


@pytest.fixture
def unet() -> FakeUNet:
    return FakeUNet()


@pytest.fixture
async def runner(unet: FakeUNet) -> AsyncIterator[WatchedUNetRunner]:
    runner = opened(unet)
    yield runner
    if unet.blocks is not None:
        unet.blocks.set()
    await runner.close(PATIENCE_S)


def opened(unet: FakeUNet, *, max_queued: int = 256) -> WatchedUNetRunner:
    options = QueueOptions(max_queued=max_queued, probe_after=NEVER)
    return WatchedUNetRunner(LOADED_UNET, unet, DeviceQueue(unet.device, options=options, clock=unet.clock))


def peel(mark: int = 0, frame: UNetLetterbox = PEEL_FRAME) -> FakePeel:
    return FakePeel(np.zeros((frame.padded.height, frame.padded.width, 3), np.float32), mark)


async def infer(
    runner: WatchedUNetRunner, image: FakePeel, frame: UNetLetterbox = PEEL_FRAME
) -> Ran[NDArray[np.float32]]:
    now = runner.backend.clock()
    return await runner.infer(runner.reserve(Terms(now), frame, ready_by=now), image)


async def held(runner: WatchedUNetRunner, unet: FakeUNet) -> asyncio.Task[Ran[NDArray[np.float32]]]:
    """An image that stays on the device until `unet.blocks` is set."""
    unet.entered.clear()
    unet.blocks = threading.Event()
    running = asyncio.create_task(infer(runner, peel()))
    assert await asyncio.to_thread(unet.entered.wait, PATIENCE_S)
    return running


def let_go(unet: FakeUNet) -> None:
    assert unet.blocks is not None
    unet.blocks.set()


async def test_a_prepared_image_becomes_logits_of_its_padded_size(runner: WatchedUNetRunner) -> None:
    frame = unet_letterbox(Size(100, 130))
    pixels = np.full((frame.resized.height, frame.resized.width, 3), (0, 255, 0), np.uint8)
    done = await infer(runner, runner.prepare(pixels, frame), frame)
    assert done.value.shape == (5, frame.padded.height, frame.padded.width)
    assert done.value[:3, 0, 0].tolist() == [0, 127.5 / 16, -127.5 / 16]
    assert done.ran > 0
    assert done.batch == 1


@pytest.mark.parametrize(("per_megapixel", "kept"), [(1000.0, 1), (0.0, 4)])
async def test_warming_up_keeps_the_smallest_batch_that_is_about_as_good_as_the_best(
    per_megapixel: float, kept: int
) -> None:
    unet = FakeUNet(image_batches=(1, 2, 4), infer_s_per_megapixel=per_megapixel, infer_s_per_batch=1.0)
    runner = opened(unet)
    await runner.warm_up()
    assert unet.encodes == [1, 1, 2, 2, 4, 4]  # each twice: the first run of a shape compiles
    unet.forget()
    busy = await held(runner, unet)
    calls = [asyncio.create_task(infer(runner, peel())) for _ in range(4)]
    await runner.images.reach(5)
    let_go(unet)
    await asyncio.gather(busy, *calls)
    await runner.close(PATIENCE_S)
    assert unet.encodes == [1] + [kept] * (4 // kept)


async def test_images_of_other_padded_sizes_never_share_a_batch() -> None:
    unet = FakeUNet(image_batches=(1, 4))
    runner = opened(unet)
    busy = await held(runner, unet)
    calls = [
        asyncio.create_task(infer(runner, peel(frame=frame), frame))
        for frame in (PEEL_FRAME, UPRIGHT, PEEL_FRAME, UPRIGHT)
    ]
    await runner.images.reach(5)
    let_go(unet)
    done = await asyncio.gather(*calls)
    await busy
    await runner.close(PATIENCE_S)
    assert unet.encodes == [1, 2, 2]
    assert [ran.batch for ran in done] == [2, 2, 2, 2]
    assert [ran.value.shape[1:] for ran in done] == [(224, 448), (448, 224)] * 2


async def test_warming_up_teaches_what_can_be_in_time() -> None:
    unet = FakeUNet(infer_s_per_megapixel=1000)
    runner = opened(unet)
    await runner.warm_up()
    now = unet.clock()
    takes = 1000 * PEEL_FRAME.padded.pixels / 1e6
    with pytest.raises(DeadlineUnreachable):
        runner.reserve(Terms(now, now + takes - 1), PEEL_FRAME, ready_by=now)
    runner.reserve(Terms(now, now + takes + PATIENCE_S), PEEL_FRAME, ready_by=now).leave()
    await runner.close(PATIENCE_S)


async def test_a_full_queue_refuses(unet: FakeUNet) -> None:
    runner = opened(unet, max_queued=1)
    busy = await held(runner, unet)
    now = unet.clock()
    waiting = runner.reserve(Terms(now), PEEL_FRAME, ready_by=now)
    with pytest.raises(Overloaded):
        runner.reserve(Terms(now), PEEL_FRAME, ready_by=now)
    waiting.leave()
    let_go(unet)
    await busy
    await runner.close(PATIENCE_S)


async def test_one_bad_image_fails_alone_and_the_next_is_answered(runner: WatchedUNetRunner, unet: FakeUNet) -> None:
    unet.spoilt = {2}
    with pytest.raises(BackendError, match="cannot do this image"):
        await infer(runner, peel(2))
    assert not runner.broken
    assert (await infer(runner, peel(1))).batch == 1


async def test_a_device_that_broke_refuses_all_that_comes_after(runner: WatchedUNetRunner, unet: FakeUNet) -> None:
    unet.fails = DeviceBroken("the card fell off the bus")
    with pytest.raises(DeviceBroken, match="fell off the bus"):
        await infer(runner, peel())
    unet.fails = None
    with pytest.raises(DeviceBroken, match="fell off the bus"):
        await infer(runner, peel())
    assert runner.broken
    assert unet.encodes == [1]


async def test_closing_finishes_what_was_admitted_and_takes_nothing_more(unet: FakeUNet) -> None:
    runner = opened(unet)
    calls = [await held(runner, unet), asyncio.create_task(infer(runner, peel(1)))]
    await runner.images.reach(2)
    closing = asyncio.create_task(runner.close(PATIENCE_S))
    await asyncio.sleep(0)
    with pytest.raises(NotReady):
        await infer(runner, peel(2))
    let_go(unet)
    await asyncio.gather(*calls)
    await closing
    assert unet.encoded == [0, 1]
