"""Runners of both families: what shares a batch, how results come back, and what warm-up learns."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from models.errors import BackendError, DeviceOutOfMemory
from models.letterbox import Letterbox, letterbox_for
from models.sam.constants import LOGITS_SIDE
from models.types import Box, Logits, Point, Prompt, Size
from models.unet.letterbox import UNetLetterbox, unet_letterbox
from models.unet.scales import unet_scales
from service.api.context import RequestContext
from service.errors import DeadlineUnreachable
from service.runners.base import best_size
from service.runners.sam import Decoded
from service.scheduler.policy import QueueOptions
from service.scheduler.queue import BatchResult, DeviceQueue
from tests.fakes import (
    LOADED,
    LOADED_UNET,
    PATIENCE_S,
    PEEL_FRAME,
    SCORES,
    SIZE,
    DecodeCall,
    FakeImage,
    FakePeel,
    FakeSam,
    FakeUNet,
    WatchedRunner,
    WatchedUNetRunner,
)

FULL = letterbox_for(SIZE)
"""Eight pixels of the model's square are one pixel of the image."""

HALF = letterbox_for(SIZE, 512)
UPRIGHT = unet_letterbox(Size(224, 112))
BLACK = FakeImage(np.zeros(3, np.float32), FULL.padded)
RED = FakeImage(np.array([255, 0, 0], np.float32), FULL.padded)
CLICK = Prompt((Point(1, 1),))
OPTIONS = QueueOptions(probe_after=1e9)
"""No test waits until an idle device is probed."""


def open_sam(sam: FakeSam) -> WatchedRunner:
    return WatchedRunner(LOADED, sam, DeviceQueue(sam.device, options=OPTIONS, clock=sam.clock))


def open_unet(unet: FakeUNet) -> WatchedUNetRunner:
    return WatchedUNetRunner(LOADED_UNET, unet, DeviceQueue(unet.device, options=OPTIONS, clock=unet.clock))


@pytest.fixture
def sam() -> FakeSam:
    return FakeSam(prompt_batches=(1, 2, 3))


@pytest.fixture
async def runner(sam: FakeSam) -> AsyncIterator[WatchedRunner]:
    runner = open_sam(sam)
    yield runner
    await runner.close(PATIENCE_S)


def request(runner: WatchedRunner | WatchedUNetRunner) -> RequestContext:
    now = runner.backend.clock()
    return RequestContext(received=now, arrived=now)


async def encode(runner: WatchedRunner, image: FakeImage, letterbox: Letterbox = FULL) -> BatchResult[Any]:
    ticket = runner.reserve_encode(request(runner), letterbox, deadline=None, ready_by=0)
    return await runner.encode(ticket, image)


async def decode(
    runner: WatchedRunner, image: FakeImage, prompts: Sequence[Prompt], letterbox: Letterbox = FULL
) -> BatchResult[Decoded]:
    reservation = runner.reserve(request(runner), prompts, letterbox, deadline=None, encode=False, ready_by=0)
    return await runner.decode(reservation, image, prompts, letterbox)


async def infer(runner: WatchedUNetRunner, image: FakePeel, letterbox: UNetLetterbox = PEEL_FRAME) -> BatchResult[Any]:
    ticket = runner.reserve(request(runner), letterbox, deadline=None, ready_by=0)
    return await runner.infer(ticket, image)


def peel(letterbox: UNetLetterbox = PEEL_FRAME) -> FakePeel:
    return FakePeel(np.zeros((letterbox.padded.height, letterbox.padded.width, 3), np.float32), 0)


@asynccontextmanager
async def busy(runner: WatchedRunner | WatchedUNetRunner) -> AsyncIterator[None]:
    """Keep the device busy with an image until the block ends."""
    backend = runner.backend
    backend.entered.clear()
    backend.blocks = threading.Event()
    running = asyncio.create_task(encode(runner, BLACK) if isinstance(runner, WatchedRunner) else infer(runner, peel()))
    assert await asyncio.to_thread(backend.entered.wait, PATIENCE_S)
    try:
        yield
    finally:
        backend.blocks.set()
    await running


def guess(value: float) -> Logits:
    return np.full((LOGITS_SIDE, LOGITS_SIDE), value, np.float32)


async def test_a_sam_makes_a_prepared_image_an_embedding(runner: WatchedRunner, sam: FakeSam) -> None:
    pixels = np.full((768, 1024, 3), (10, 20, 30), np.uint8)
    result = await encode(runner, runner.prepare(pixels, FULL))
    assert result.value.colour.tolist() == [10, 20, 30]
    assert (result.batch_size, sam.encodes, sam.frames) == (1, [1], [FULL])
    assert result.ran > 0


async def test_a_u_net_returns_logits_of_the_padded_size() -> None:
    runner = open_unet(FakeUNet())
    letterbox = unet_letterbox(Size(100, 130))
    pixels = np.full((letterbox.resized.height, letterbox.resized.width, 3), (0, 255, 0), np.uint8)
    result = await infer(runner, runner.prepare(pixels, letterbox), letterbox)
    await runner.close(PATIENCE_S)
    assert result.value.shape == (5, letterbox.padded.height, letterbox.padded.width)
    assert result.value[:3, 0, 0].tolist() == [0, 127.5 / 16, -127.5 / 16]
    assert result.batch_size == 1
    assert result.ran > 0


async def test_prompts_are_decoded_on_the_given_embedding(runner: WatchedRunner) -> None:
    prompt = Prompt((Point(64, 48),), multimask=False)
    on_black = (await decode(runner, BLACK, [prompt])).value
    on_red = (await decode(runner, RED, [prompt])).value
    # The point lies at (512, 384) of the model's square, 2 pixels from the nearest cells' centres.
    assert on_black.logits[0][0, 96, 128] == 62
    assert on_red.logits[0][0, 96, 128] == 124
    assert on_black.scores[0].tolist() == np.asarray(SCORES[:1], np.float32).tolist()


@pytest.mark.parametrize("letterbox", [FULL, HALF, letterbox_for(SIZE, 768, "none")])
async def test_logits_have_a_quarter_of_the_shape_that_the_encoder_saw(
    runner: WatchedRunner, letterbox: Letterbox
) -> None:
    image = FakeImage(BLACK.colour, letterbox.padded)
    logits = (await decode(runner, image, [CLICK, CLICK], letterbox)).value.logits
    shape = (letterbox.padded.height // 4, letterbox.padded.width // 4)
    assert [each.shape for each in logits] == [(3, *shape)] * 2


async def test_a_request_with_many_prompts_is_decoded_in_several_batches(runner: WatchedRunner, sam: FakeSam) -> None:
    prompts = [Prompt((Point(8 + number, 8),)) for number in range(7)]
    result = await decode(runner, BLACK, prompts)
    assert sam.decodes == [DecodeCall(3, with_masks=False), DecodeCall(3, with_masks=False), DecodeCall(1, False)]
    assert [each.shape for each in result.value.logits] == [(3, 256, 256)] * 7
    assert all(each.base is None for each in result.value.logits)  # nothing of the batch is kept
    best_first = sorted(np.asarray(SCORES[1:], np.float32).tolist(), reverse=True)
    assert [each.tolist() for each in result.value.scores] == [best_first] * 7


async def test_prompts_of_many_requests_share_bounded_batches(runner: WatchedRunner, sam: FakeSam) -> None:
    async with busy(runner):
        calls = [asyncio.create_task(decode(runner, BLACK, [CLICK] * count)) for count in (1, 1, 2, 1, 3, 1)]
        await runner.requests.reach(6)
    results = await asyncio.gather(*calls)
    assert [len(result.value.scores) for result in results] == [1, 1, 2, 1, 3, 1]
    assert sum(call.prompts for call in sam.decodes) == 9
    assert max(call.prompts for call in sam.decodes) == 3
    assert len(sam.decodes) <= 4


async def test_images_share_a_sams_batch_if_their_padded_sizes_are_equal() -> None:
    runner = open_sam(FakeSam(image_batches=(1, 2, 3)))
    async with busy(runner):
        small = FakeImage(RED.colour, HALF.padded)
        calls = [asyncio.create_task(encode(runner, image)) for image in (BLACK, RED, BLACK, RED)]
        calls += [asyncio.create_task(encode(runner, small, HALF)) for _ in range(2)]
        await runner.images.reach(7)
    results = await asyncio.gather(*calls)
    await runner.close(PATIENCE_S)
    assert [result.value for result in results] == [BLACK, RED, BLACK, RED, small, small]
    assert [result.batch_size for result in results] == [3, 3, 3, 1, 2, 2]
    assert sorted(runner.backend.encodes) == [1, 1, 2, 3]


async def test_images_share_a_u_nets_batch_if_their_padded_sizes_are_equal() -> None:
    runner = open_unet(FakeUNet(image_batches=(1, 4)))
    async with busy(runner):
        letterboxes = (PEEL_FRAME, UPRIGHT, PEEL_FRAME, UPRIGHT)
        calls = [asyncio.create_task(infer(runner, peel(letterbox), letterbox)) for letterbox in letterboxes]
        await runner.images.reach(5)
    results = await asyncio.gather(*calls)
    await runner.close(PATIENCE_S)
    assert runner.backend.encodes == [1, 2, 2]
    assert [result.batch_size for result in results] == [2, 2, 2, 2]
    assert [result.value.shape[1:] for result in results] == [(224, 448), (448, 224)] * 2


async def test_a_batch_of_larger_images_has_no_more_pixels_than_one_of_the_models_own_size() -> None:
    runner = open_unet(FakeUNet(image_batches=(1, 4)))
    _, half, twice = unet_scales(Size(224, 448))
    async with busy(runner):
        letterboxes = (half,) * 4 + (twice,) * 4
        calls = [asyncio.create_task(infer(runner, peel(letterbox), letterbox)) for letterbox in letterboxes]
        await runner.images.reach(9)
    results = await asyncio.gather(*calls)
    await runner.close(PATIENCE_S)
    assert [result.batch_size for result in results] == [4] * 4 + [2] * 4


async def test_prompts_with_masks_run_in_their_own_batch_and_results_keep_their_order(
    runner: WatchedRunner, sam: FakeSam
) -> None:
    prompts = [
        Prompt(mask=guess(1), multimask=False),
        Prompt(box=Box(0, 0, 64, 48), multimask=False),
        Prompt(mask=guess(3), multimask=False),
        Prompt(box=Box(64, 48, 128, 96), multimask=False),
        Prompt((Point(1, 1),), mask=guess(5), multimask=False),
    ]
    logits = (await decode(runner, BLACK, prompts)).value.logits
    assert sam.decodes == [DecodeCall(2, with_masks=False), DecodeCall(3, with_masks=True)]
    assert [logits[row][0, 0, 0] for row in (0, 2, 4)] == [1, 3, 5]
    top_left, bottom_right = (32, 32), (160, 192)
    assert logits[1][(0, *top_left)] > 0 > logits[1][(0, *bottom_right)]
    assert logits[3][(0, *bottom_right)] > 0 > logits[3][(0, *top_left)]


async def test_prompts_with_masks_of_several_requests_share_a_batch_only_with_each_other(
    runner: WatchedRunner, sam: FakeSam
) -> None:
    async with busy(runner):
        click = replace(CLICK, multimask=False)
        prompts = (click, Prompt(mask=guess(2), multimask=False), click, Prompt(mask=guess(4), multimask=False))
        calls = [asyncio.create_task(decode(runner, BLACK, [prompt])) for prompt in prompts]
        await runner.requests.reach(4)
    logits = [(await call).value.logits[0][0, 200, 200] for call in calls]
    assert logits[0] == logits[2] < 0
    assert (logits[1], logits[3]) == (2, 4)
    assert sam.decodes == [DecodeCall(2, with_masks=False), DecodeCall(2, with_masks=True)]


# On a quarter of the square three groups of three prompts are no more work than one batch may have.
@pytest.mark.parametrize(("letterbox", "batches"), [(FULL, 3), (HALF, 1)])
async def test_a_request_counts_the_time_of_each_of_its_batches_once(
    runner: WatchedRunner, sam: FakeSam, letterbox: Letterbox, batches: int
) -> None:
    async with busy(runner):
        begin = sam.clock()
        image = FakeImage(BLACK.colour, letterbox.padded)
        call = asyncio.create_task(decode(runner, image, [CLICK] * 9, letterbox))
        await runner.requests.reach(1)
        sam.clock.leap(1000)
        sam.decode_s_per_batch = 100
    result = await call
    assert len(sam.decodes) == batches
    assert result.ran == pytest.approx(100 * batches, abs=PATIENCE_S)
    assert result.queued == pytest.approx(1000, abs=PATIENCE_S)
    assert result.queued + result.ran <= sam.clock() - begin


async def test_an_error_of_the_backend_reaches_the_caller_and_not_the_next_request(
    runner: WatchedRunner, sam: FakeSam
) -> None:
    sam.fails = BackendError("the device failed")
    with pytest.raises(BackendError, match="the device failed"):
        await encode(runner, BLACK)
    with pytest.raises(BackendError, match="the device failed"):
        await decode(runner, BLACK, [CLICK] * 4)
    assert not runner.broken
    sam.fails = None
    assert (await encode(runner, BLACK)).value is BLACK


async def test_warm_up_runs_every_kind_of_batch_twice(runner: WatchedRunner, sam: FakeSam) -> None:
    await runner.warm_up()
    assert {call.prompts for call in sam.decodes if not call.with_masks} == {1, 2, 3}
    assert DecodeCall(1, with_masks=True) in sam.decodes
    assert [(frame.side, frame.padded) for frame in sam.frames] == [(1024, Size(1024, 1024)), (512, Size(512, 512))]
    # Each twice: the first run of a shape compiles.
    assert {count % 2 for count in map(sam.decodes.count, set(sam.decodes))} == {0}


async def test_warm_up_of_a_model_with_one_input_size_uses_no_other() -> None:
    sam = FakeSam(flexible=False)
    runner = open_sam(sam)
    await runner.warm_up()
    await runner.close(PATIENCE_S)
    assert {frame.padded for frame in sam.frames} == {Size(1024, 1024)}
    assert sam.encodes


@pytest.mark.parametrize(
    ("per_batch", "per_prompt", "kept"),
    [(100.0, 0.0, 8), (0.0, 100.0, 1), (100.0, 100.0, 8), (4.0, 100.0, 1), (12.0, 100.0, 2)],
)
async def test_warm_up_keeps_the_smallest_prompt_batch_that_is_about_as_fast_as_the_best(
    per_batch: float, per_prompt: float, kept: int
) -> None:
    sam = FakeSam(prompt_batches=(1, 2, 4, 8), decode_s_per_batch=per_batch, decode_s_per_prompt=per_prompt)
    runner = open_sam(sam)
    await runner.warm_up()
    sam.forget()
    await decode(runner, BLACK, [CLICK] * 8)
    await runner.close(PATIENCE_S)
    assert [call.prompts for call in sam.decodes] == [kept] * (8 // kept)


@pytest.mark.parametrize("family", ["sam", "unet"])
@pytest.mark.parametrize(("per_megapixel", "kept"), [(1000.0, 1), (0.0, 4)])
async def test_warm_up_keeps_the_smallest_image_batch_that_is_about_as_fast_as_the_best(
    family: str, per_megapixel: float, kept: int
) -> None:
    runner: WatchedRunner | WatchedUNetRunner
    if family == "sam":
        runner = open_sam(FakeSam((1, 2, 4), encode_s_per_megapixel=per_megapixel, encode_s_per_batch=1.0))
    else:
        runner = open_unet(FakeUNet((1, 2, 4), infer_s_per_megapixel=per_megapixel, infer_s_per_batch=1.0))
    await runner.warm_up()
    assert runner.backend.encodes[:6] == [1, 1, 2, 2, 4, 4]
    runner.backend.forget()
    async with busy(runner):
        calls = [
            asyncio.create_task(encode(runner, RED) if isinstance(runner, WatchedRunner) else infer(runner, peel()))
            for _ in range(4)
        ]
        await runner.images.reach(5)
    await asyncio.gather(*calls)
    await runner.close(PATIENCE_S)
    assert runner.backend.encodes == [1] + [kept] * (4 // kept)


def test_batch_sizes_without_enough_memory_are_left_out() -> None:
    def seconds(size: int) -> float:
        if size > 4:
            raise DeviceOutOfMemory("no memory for this batch")
        return 1 / size

    assert best_size((1, 2, 4, 8, 16), seconds) == 4
    with pytest.raises(DeviceOutOfMemory):
        best_size((8, 16), seconds)


@pytest.mark.parametrize(
    ("letterbox", "prompts", "seconds"), [(FULL, 1, 104.9 + 10), (FULL, 3, 104.9 + 30), (HALF, 1, 26.2 + 2.5)]
)
async def test_warm_up_learns_what_a_sam_can_answer_in_time(letterbox: Letterbox, prompts: int, seconds: float) -> None:
    sam = FakeSam(encode_s_per_megapixel=100, decode_s_per_prompt=10)
    runner = open_sam(sam)
    await runner.warm_up()
    now = sam.clock()

    def reserve(within: float) -> None:
        runner.reserve(
            request(runner), [CLICK] * prompts, letterbox, deadline=now + within, encode=True, ready_by=now
        ).release()

    with pytest.raises(DeadlineUnreachable):
        reserve(seconds - 1)
    reserve(seconds + PATIENCE_S)
    await runner.close(PATIENCE_S)


async def test_warm_up_learns_what_a_u_net_can_answer_in_time() -> None:
    unet = FakeUNet(infer_s_per_megapixel=1000)
    runner = open_unet(unet)
    await runner.warm_up()
    now = unet.clock()
    seconds = 1000 * PEEL_FRAME.padded.pixels / 1e6
    with pytest.raises(DeadlineUnreachable):
        runner.reserve(request(runner), PEEL_FRAME, deadline=now + seconds - 1, ready_by=now)
    runner.reserve(request(runner), PEEL_FRAME, deadline=now + seconds + PATIENCE_S, ready_by=now).release()
    await runner.close(PATIENCE_S)
