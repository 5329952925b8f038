from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from models.errors import BackendError
from models.sam.constants import LOGITS_SIDE
from models.transforms import frame_for
from models.types import Box, Logits, Point, Prompt, Size
from service.runners import SamRunner
from tests.fakes import LOADED, PATIENCE_S, SCORES, SIZE, DecodeCall, FakeSam

FRAME = frame_for(SIZE)
BLACK = np.zeros(3, np.float32)
RED = np.array([255, 0, 0], np.float32)


@pytest.fixture
def sam() -> FakeSam:
    return FakeSam(max_prompts=3)


@pytest.fixture
def runner(sam: FakeSam) -> Iterator[SamRunner]:
    runner = SamRunner(LOADED, sam)
    yield runner
    if sam.blocks is not None:
        sam.blocks.set()
    runner.close()


def guess(value: float) -> Logits:
    return np.full((LOGITS_SIDE, LOGITS_SIDE), value, np.float32)


async def test_a_prepared_picture_becomes_an_embedding(runner: SamRunner, sam: FakeSam) -> None:
    pixels = np.full((768, 1024, 3), (10, 20, 30), np.uint8)
    done = await runner.encode(runner.prepare(pixels))
    assert np.asarray(done.value).tolist() == [10, 20, 30]
    assert done.queued >= 0
    assert done.ran > 0
    assert sam.encodes == [1]


async def test_prompts_are_decoded_on_the_embedding_that_was_given(runner: SamRunner) -> None:
    prompt = Prompt((Point(64, 48),))
    on_black = (await runner.decode(BLACK, [prompt], FRAME)).value
    on_red = (await runner.decode(RED, [prompt], FRAME)).value
    # The point lies at (512, 384) of the model's square, 2 pixels from the nearest cells' centres.
    assert on_black.logits[0, 0, 96, 128] == 62
    assert on_red.logits[0, 0, 96, 128] == 124
    assert on_black.scores[0].tolist() == np.asarray(SCORES, np.float32).tolist()


async def test_a_call_to_the_decoder_takes_at_most_max_prompts(runner: SamRunner, sam: FakeSam) -> None:
    prompts = [Prompt((Point(8 + number, 8),)) for number in range(7)]
    done = await runner.decode(BLACK, prompts, FRAME)
    assert sam.decodes == [DecodeCall(3, with_masks=False), DecodeCall(3, with_masks=False), DecodeCall(1, False)]
    assert done.value.logits.shape == (7, 4, 256, 256)
    assert done.value.scores.shape == (7, 4)


async def test_prompts_with_masks_go_apart_and_all_come_back_in_their_order(runner: SamRunner, sam: FakeSam) -> None:
    prompts = [
        Prompt(mask=guess(1)),
        Prompt(box=Box(0, 0, 64, 48)),
        Prompt(mask=guess(3)),
        Prompt(box=Box(64, 48, 128, 96)),
        Prompt((Point(1, 1),), mask=guess(5)),
    ]
    logits = (await runner.decode(BLACK, prompts, FRAME)).value.logits
    assert sam.decodes == [DecodeCall(2, with_masks=False), DecodeCall(3, with_masks=True)]
    assert [logits[row, 0, 0, 0] for row in (0, 2, 4)] == [1, 3, 5]
    top_left, bottom_right = (32, 32), (160, 192)
    assert logits[1][(0, *top_left)] > 0 > logits[1][(0, *bottom_right)]
    assert logits[3][(0, *bottom_right)] > 0 > logits[3][(0, *top_left)]


async def test_calls_run_one_at_a_time_in_the_order_of_their_arrival(runner: SamRunner, sam: FakeSam) -> None:
    sam.blocks = threading.Event()
    ends: list[str] = []

    async def encode(name: str) -> None:
        await runner.encode(BLACK)
        ends.append(name)

    async def decode(name: str) -> None:
        await runner.decode(BLACK, [Prompt((Point(1, 1),))], FRAME)
        ends.append(name)

    calls = [asyncio.create_task(call) for call in (encode("a"), decode("b"), encode("c"), decode("d"))]
    assert await asyncio.to_thread(sam.entered.wait, PATIENCE_S)
    assert sam.decodes == []
    sam.blocks.set()
    await asyncio.gather(*calls)
    assert ends == ["a", "b", "c", "d"]
    assert not sam.overlapped


async def test_the_wait_for_the_device_is_told_apart_from_the_run(runner: SamRunner, sam: FakeSam) -> None:
    sam.blocks = threading.Event()
    first = asyncio.create_task(runner.encode(BLACK))
    assert await asyncio.to_thread(sam.entered.wait, PATIENCE_S)
    second = asyncio.create_task(runner.encode(RED))
    await asyncio.sleep(0)  # runs until it waits for the device
    at_least = await _a_moment()
    sam.blocks.set()
    assert (await first).ran >= at_least
    assert (await second).queued >= at_least


async def test_chunks_of_one_request_add_up_their_times(runner: SamRunner, sam: FakeSam) -> None:
    sam.blocks = threading.Event()
    busy = asyncio.create_task(runner.encode(BLACK))
    assert await asyncio.to_thread(sam.entered.wait, PATIENCE_S)
    begin = time.perf_counter()
    call = asyncio.create_task(runner.decode(BLACK, [Prompt((Point(1, 1),))] * 9, FRAME))
    await asyncio.sleep(0)  # runs until it waits for the device
    at_least = await _a_moment()
    sam.blocks.set()
    done = await call
    assert at_least <= done.queued
    assert sam.decoding_s <= done.ran
    assert done.queued + done.ran <= time.perf_counter() - begin
    assert (await busy).value is BLACK


async def _a_moment() -> float:
    """Let other tasks run for a hundredth of a second; how long it was."""
    begin = time.perf_counter()
    while (passed := time.perf_counter() - begin) <= 0.01:  # noqa: ASYNC110 (it is the clock that is waited for)
        await asyncio.sleep(0)
    return passed


async def test_a_failing_device_reaches_the_caller_and_not_the_next(runner: SamRunner, sam: FakeSam) -> None:
    sam.fails = BackendError("the device failed")
    with pytest.raises(BackendError, match="the device failed"):
        await runner.encode(BLACK)
    with pytest.raises(BackendError, match="the device failed"):
        await runner.decode(BLACK, [Prompt((Point(1, 1),))], FRAME)
    sam.fails = None
    assert (await runner.encode(BLACK)).value is BLACK


async def test_warming_up_runs_the_encoder_and_both_decoders_at_their_smallest_and_largest(
    runner: SamRunner, sam: FakeSam
) -> None:
    await runner.warm_up()
    assert sam.encodes == [1]
    assert set(sam.decodes) == {
        DecodeCall(count, with_masks) for count in (1, sam.max_prompts) for with_masks in (False, True)
    }


async def test_closing_finishes_what_was_submitted(sam: FakeSam) -> None:
    runner = SamRunner(LOADED, sam)
    sam.blocks = threading.Event()
    calls = [asyncio.create_task(runner.encode(BLACK)), asyncio.create_task(runner.encode(RED))]
    assert await asyncio.to_thread(sam.entered.wait, PATIENCE_S)
    closing = asyncio.create_task(asyncio.to_thread(runner.close))
    sam.blocks.set()
    answers = await asyncio.gather(*calls)
    await closing
    assert [answer.value for answer in answers] == [BLACK, RED]
    with pytest.raises(RuntimeError, match="shutdown"):
        await runner.encode(BLACK)


def test_frames_of_these_tests_scale_by_eight() -> None:
    assert FRAME.scale.tolist() == [8, 8]
    assert frame_for(Size(96, 128)) == FRAME
