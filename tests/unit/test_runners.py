from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Sequence

import numpy as np
import pytest
from service.device_queue import DeviceQueue, Ran
from service.work import QueueOptions, Terms

from models.errors import BackendError, DeviceBroken, DeviceOutOfMemory
from models.letterbox import Letterbox, letterbox_for
from models.sam.constants import LOGITS_SIDE
from models.types import Box, Logits, Point, Prompt, Size
from service.errors import DeadlineUnreachable, NotReady, Overloaded
from service.runners.base import best_size
from service.runners.sam import Decoded
from tests.fakes import LOADED, PATIENCE_S, SCORES, SIZE, DecodeCall, FakeImage, FakeSam, WatchedRunner

FRAME = letterbox_for(SIZE)
HALF = letterbox_for(SIZE, 512)
BLACK = FakeImage(np.zeros(3, np.float32), FRAME.padded)
RED = FakeImage(np.array([255, 0, 0], np.float32), FRAME.padded)
CLICK = Prompt((Point(1, 1),))
NEVER = 1e9
"""Seconds after which an idle device is tried anew: no test waits for that."""


@pytest.fixture
def sam() -> FakeSam:
    return FakeSam(prompt_batches=(1, 2, 3))


@pytest.fixture
async def runner(sam: FakeSam) -> AsyncIterator[WatchedRunner]:
    runner = opened(sam)
    yield runner
    if sam.blocks is not None:
        sam.blocks.set()
    await runner.close(PATIENCE_S)


def opened(sam: FakeSam, *, max_queued: int = 256) -> WatchedRunner:
    options = QueueOptions(max_queued=max_queued, probe_after=NEVER)
    return WatchedRunner(LOADED, sam, DeviceQueue(sam.device, options=options, clock=sam.clock))


def terms(runner: WatchedRunner, within: float | None = None) -> Terms:
    now = runner.backend.clock()
    return Terms(now, None if within is None else now + within)


async def encode(runner: WatchedRunner, image: FakeImage, *, frame: Letterbox = FRAME) -> Ran[FakeImage]:
    place = runner.reserve_encode(terms(runner), frame, ready_by=runner.backend.clock())
    ran = await runner.encode(place, image)
    assert isinstance(ran.value, FakeImage)
    return Ran(ran.value, ran.queued, ran.ran, ran.batch, ran.started)


async def decode(
    runner: WatchedRunner, image: FakeImage, prompts: Sequence[Prompt], frame: Letterbox = FRAME
) -> Ran[Decoded]:
    reservation = runner.reserve(terms(runner), prompts, frame, encode=False, ready_by=runner.backend.clock())
    return await runner.decode(reservation, image, prompts, frame)


async def held(runner: WatchedRunner, sam: FakeSam) -> asyncio.Task[Ran[FakeImage]]:
    """An image that stays on the device until `sam.blocks` is set."""
    sam.blocks = threading.Event()
    running = asyncio.create_task(encode(runner, BLACK))
    assert await asyncio.to_thread(sam.entered.wait, PATIENCE_S)
    return running


def let_go(sam: FakeSam) -> None:
    assert sam.blocks is not None
    sam.blocks.set()


def guess(value: float) -> Logits:
    return np.full((LOGITS_SIDE, LOGITS_SIDE), value, np.float32)


async def test_a_prepared_image_becomes_an_embedding(runner: WatchedRunner, sam: FakeSam) -> None:
    pixels = np.full((768, 1024, 3), (10, 20, 30), np.uint8)
    done = await encode(runner, runner.prepare(pixels, FRAME))
    assert done.value.colour.tolist() == [10, 20, 30]
    assert done.queued >= 0
    assert done.ran > 0
    assert (sam.encodes, sam.frames) == ([1], [FRAME])


async def test_prompts_are_decoded_on_the_embedding_that_was_given(runner: WatchedRunner) -> None:
    prompt = Prompt((Point(64, 48),))
    on_black = (await decode(runner, BLACK, [prompt])).value
    on_red = (await decode(runner, RED, [prompt])).value
    # The point lies at (512, 384) of the model's square, 2 pixels from the nearest cells' centres.
    assert on_black.logits[0, 0, 96, 128] == 62
    assert on_red.logits[0, 0, 96, 128] == 124
    assert on_black.scores[0].tolist() == np.asarray(SCORES, np.float32).tolist()


async def test_logits_have_a_quarter_of_the_shape_that_the_encoder_saw(runner: WatchedRunner) -> None:
    for frame in (FRAME, HALF, letterbox_for(SIZE, 768, "none")):
        image = FakeImage(BLACK.colour, frame.padded)
        logits = (await decode(runner, image, [CLICK, CLICK], frame)).value.logits
        assert logits.shape == (2, 4, frame.padded.height // 4, frame.padded.width // 4)


async def test_a_batch_of_the_decoder_takes_no_more_prompts_than_pay(runner: WatchedRunner, sam: FakeSam) -> None:
    prompts = [Prompt((Point(8 + number, 8),)) for number in range(7)]
    done = await decode(runner, BLACK, prompts)
    assert sam.decodes == [DecodeCall(3, with_masks=False), DecodeCall(3, with_masks=False), DecodeCall(1, False)]
    assert done.value.logits.shape == (7, 4, 256, 256)
    assert done.value.scores.shape == (7, 4)


async def test_prompts_of_many_requests_share_batches_that_stay_bounded(runner: WatchedRunner, sam: FakeSam) -> None:
    busy = await held(runner, sam)
    calls = [asyncio.create_task(decode(runner, BLACK, [CLICK] * count)) for count in (1, 1, 2, 1, 3, 1)]
    await runner.requests.reach(6)
    let_go(sam)
    done = await asyncio.gather(*calls)
    await busy
    assert [len(ran.value.scores) for ran in done] == [1, 1, 2, 1, 3, 1]
    assert sum(call.prompts for call in sam.decodes) == 9
    assert max(call.prompts for call in sam.decodes) == 3
    assert len(sam.decodes) <= 4


async def test_images_that_gathered_share_a_batch_where_their_frames_are_alike() -> None:
    sam = FakeSam(image_batches=(1, 2, 3))
    runner = opened(sam)
    busy = await held(runner, sam)
    small = FakeImage(RED.colour, HALF.padded)
    calls = [asyncio.create_task(encode(runner, image)) for image in (BLACK, RED, BLACK, RED)]
    calls += [asyncio.create_task(encode(runner, small, frame=HALF)) for _ in range(2)]
    await runner.images.reach(7)
    let_go(sam)
    done = await asyncio.gather(*calls)
    await busy
    await runner.close(PATIENCE_S)
    assert [ran.value for ran in done] == [BLACK, RED, BLACK, RED, small, small]
    assert [ran.batch for ran in done] == [3, 3, 3, 1, 2, 2]
    assert sorted(sam.encodes) == [1, 1, 2, 3]


async def test_prompts_with_masks_go_apart_and_all_come_back_in_their_order(
    runner: WatchedRunner, sam: FakeSam
) -> None:
    prompts = [
        Prompt(mask=guess(1)),
        Prompt(box=Box(0, 0, 64, 48)),
        Prompt(mask=guess(3)),
        Prompt(box=Box(64, 48, 128, 96)),
        Prompt((Point(1, 1),), mask=guess(5)),
    ]
    logits = (await decode(runner, BLACK, prompts)).value.logits
    assert sam.decodes == [DecodeCall(2, with_masks=False), DecodeCall(3, with_masks=True)]
    assert [logits[row, 0, 0, 0] for row in (0, 2, 4)] == [1, 3, 5]
    top_left, bottom_right = (32, 32), (160, 192)
    assert logits[1][(0, *top_left)] > 0 > logits[1][(0, *bottom_right)]
    assert logits[3][(0, *bottom_right)] > 0 > logits[3][(0, *top_left)]


async def test_prompts_with_masks_of_many_requests_never_share_a_batch_with_others(
    runner: WatchedRunner, sam: FakeSam
) -> None:
    busy = await held(runner, sam)
    calls = [
        asyncio.create_task(decode(runner, BLACK, [prompt]))
        for prompt in (CLICK, Prompt(mask=guess(2)), CLICK, Prompt(mask=guess(4)))
    ]
    await runner.requests.reach(4)
    let_go(sam)
    logits = [(await call).value.logits[0, 0, 200, 200] for call in calls]
    await busy
    assert logits[0] == logits[2] < 0
    assert (logits[1], logits[3]) == (2, 4)
    assert sam.decodes == [DecodeCall(2, with_masks=False), DecodeCall(2, with_masks=True)]


async def test_calls_run_one_at_a_time_and_what_gathered_runs_together_in_the_order_of_its_first(
    runner: WatchedRunner, sam: FakeSam
) -> None:
    busy = await held(runner, sam)
    ends: list[str] = []

    async def note(name: str, call: Awaitable[object]) -> None:
        await call
        ends.append(name)

    calls = [
        asyncio.create_task(note(name, call))
        for name, call in (
            ("b", decode(runner, BLACK, [CLICK])),
            ("c", encode(runner, BLACK)),
            ("d", decode(runner, BLACK, [CLICK])),
        )
    ]
    await runner.images.reach(2)
    await runner.requests.reach(2)
    assert sam.decodes == []
    let_go(sam)
    await asyncio.gather(busy, *calls)
    assert ends == ["b", "d", "c"]
    assert not sam.overlapped


async def test_the_wait_for_the_device_is_told_apart_from_the_run(runner: WatchedRunner, sam: FakeSam) -> None:
    first = await held(runner, sam)
    second = asyncio.create_task(encode(runner, RED))
    await runner.images.reach(2)
    sam.clock.leap(100)
    sam.encode_s_per_megapixel = 10
    let_go(sam)
    alone = FRAME.padded.pixels / 1e6 * 10
    assert (await first).ran == pytest.approx(100 + alone, abs=PATIENCE_S)
    done = await second
    assert done.ran == pytest.approx(alone, abs=PATIENCE_S)
    assert done.queued == pytest.approx(100 + alone, abs=PATIENCE_S)


async def test_chunks_of_one_request_add_up_their_times(runner: WatchedRunner, sam: FakeSam) -> None:
    busy = await held(runner, sam)
    begin = sam.clock()
    call = asyncio.create_task(decode(runner, BLACK, [CLICK] * 9))
    await runner.requests.reach(1)
    sam.clock.leap(1000)
    sam.decode_s_per_batch = 100
    let_go(sam)
    done = await call
    assert len(sam.decodes) == 3
    assert done.ran == pytest.approx(300, abs=PATIENCE_S)
    assert done.queued == pytest.approx(1000, abs=PATIENCE_S)
    assert done.queued + done.ran <= sam.clock() - begin
    assert (await busy).value is BLACK


async def test_chunks_of_one_request_that_share_a_batch_count_its_time_once(
    runner: WatchedRunner, sam: FakeSam
) -> None:
    busy = await held(runner, sam)
    begin = sam.clock()
    # On a quarter of the square's cells three chunks of three prompts are no more work than one batch may be.
    image = FakeImage(BLACK.colour, HALF.padded)
    call = asyncio.create_task(decode(runner, image, [CLICK] * 9, HALF))
    await runner.requests.reach(1)
    sam.decode_s_per_batch = 100
    let_go(sam)
    done = await call
    assert len(sam.decodes) < 3
    assert done.ran == pytest.approx(100 * len(sam.decodes), abs=PATIENCE_S)
    assert done.queued + done.ran <= sam.clock() - begin
    await busy


async def test_a_failing_device_reaches_the_caller_and_not_the_next(runner: WatchedRunner, sam: FakeSam) -> None:
    sam.fails = BackendError("the device failed")
    with pytest.raises(BackendError, match="the device failed"):
        await encode(runner, BLACK)
    with pytest.raises(BackendError, match="the device failed"):
        await decode(runner, BLACK, [CLICK])
    assert not runner.broken
    sam.fails = None
    assert (await encode(runner, BLACK)).value is BLACK


async def test_a_device_that_broke_refuses_all_that_comes_after(runner: WatchedRunner, sam: FakeSam) -> None:
    sam.fails = DeviceBroken("the card fell off the bus")
    with pytest.raises(DeviceBroken, match="fell off the bus"):
        await encode(runner, BLACK)
    assert runner.broken
    sam.fails = None
    with pytest.raises(DeviceBroken, match="fell off the bus"):
        await decode(runner, BLACK, [CLICK])
    assert sam.decodes == []


async def test_warming_up_runs_all_that_will_run(runner: WatchedRunner, sam: FakeSam) -> None:
    await runner.warm_up()
    assert {call.prompts for call in sam.decodes if not call.with_masks} == {1, 2, 3}
    assert DecodeCall(1, with_masks=True) in sam.decodes
    assert [(frame.side, frame.padded) for frame in sam.frames] == [(1024, Size(1024, 1024)), (512, Size(512, 512))]
    # Each twice: the first run of a shape compiles.
    assert {count % 2 for count in map(sam.decodes.count, set(sam.decodes))} == {0}


async def test_warming_up_a_model_of_one_frame_shows_it_no_other() -> None:
    sam = FakeSam(flexible=False)
    runner = opened(sam)
    await runner.warm_up()
    await runner.close(PATIENCE_S)
    assert {frame.padded for frame in sam.frames} == {Size(1024, 1024)}
    assert sam.encodes


@pytest.mark.parametrize(
    ("per_batch", "per_prompt", "kept"),
    [(100.0, 0.0, 8), (0.0, 100.0, 1), (100.0, 100.0, 8), (4.0, 100.0, 1), (12.0, 100.0, 2)],
)
async def test_warming_up_keeps_the_smallest_prompt_batch_that_is_about_as_good_as_the_best(
    per_batch: float, per_prompt: float, kept: int
) -> None:
    sam = FakeSam(prompt_batches=(1, 2, 4, 8), decode_s_per_batch=per_batch, decode_s_per_prompt=per_prompt)
    runner = opened(sam)
    await runner.warm_up()
    sam.forget()
    await decode(runner, BLACK, [CLICK] * 8)
    await runner.close(PATIENCE_S)
    assert [call.prompts for call in sam.decodes] == [kept] * (8 // kept)


@pytest.mark.parametrize(("per_megapixel", "kept"), [(100.0, 1), (0.0, 4)])
async def test_warming_up_keeps_the_smallest_image_batch_that_is_about_as_good_as_the_best(
    per_megapixel: float, kept: int
) -> None:
    sam = FakeSam(image_batches=(1, 2, 4), encode_s_per_megapixel=per_megapixel, encode_s_per_batch=1.0)
    runner = opened(sam)
    await runner.warm_up()
    sam.forget()
    sam.entered.clear()
    busy = await held(runner, sam)
    calls = [asyncio.create_task(encode(runner, RED)) for _ in range(4)]
    await runner.images.reach(5)
    let_go(sam)
    await asyncio.gather(busy, *calls)
    await runner.close(PATIENCE_S)
    assert sam.encodes == [1] + [kept] * (4 // kept)


def test_batches_that_the_device_has_no_memory_for_are_left_out() -> None:
    def seconds(size: int) -> float:
        if size > 4:
            raise DeviceOutOfMemory("no memory for this batch")
        return 1 / size

    assert best_size((1, 2, 4, 8, 16), seconds) == 4
    with pytest.raises(DeviceOutOfMemory):
        best_size((8, 16), seconds)


async def test_warming_up_teaches_what_can_be_in_time_at_which_size() -> None:
    sam = FakeSam(encode_s_per_megapixel=100, decode_s_per_prompt=10)
    runner = opened(sam)
    await runner.warm_up()
    now = sam.clock()

    def reserve(within: float, frame: Letterbox, prompts: int) -> None:
        asked = runner.reserve(Terms(now, now + within), [CLICK] * prompts, frame, encode=True, ready_by=now)
        asked.leave()

    reserve(104.9 + 10 + PATIENCE_S, FRAME, 1)
    for frame, within, prompts in ((FRAME, 110.0, 1), (FRAME, 104.9 + 20, 3), (HALF, 26.0, 1)):
        with pytest.raises(DeadlineUnreachable):
            reserve(within, frame, prompts)
    reserve(26.2 + 2.5 + PATIENCE_S, HALF, 1)
    await runner.close(PATIENCE_S)


async def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    sam = FakeSam(encode_s_per_megapixel=100, decode_s_per_prompt=10)
    runner = opened(sam, max_queued=2)
    await runner.warm_up()
    busy = await held(runner, sam)
    waiting = runner.reserve(terms(runner), [CLICK], FRAME, encode=True, ready_by=0)
    with pytest.raises(Overloaded) as caught:
        runner.reserve_encode(terms(runner), FRAME, ready_by=0)
    # The image on the device, and the image and the prompt that wait.
    assert caught.value.retry_after == pytest.approx(104.9 + 104.9 + 10, abs=PATIENCE_S)
    waiting.leave()
    runner.reserve_encode(terms(runner), FRAME, ready_by=0).leave()
    let_go(sam)
    await busy
    await runner.close(PATIENCE_S)


async def test_closing_finishes_what_was_submitted_and_takes_nothing_more(sam: FakeSam) -> None:
    runner = opened(sam)
    calls = [await held(runner, sam), asyncio.create_task(encode(runner, RED))]
    await runner.images.reach(2)
    closing = asyncio.create_task(runner.close(PATIENCE_S))
    await asyncio.sleep(0)
    with pytest.raises(NotReady):
        await encode(runner, BLACK)
    let_go(sam)
    answers = await asyncio.gather(*calls)
    await closing
    assert [answer.value for answer in answers] == [BLACK, RED]
    with pytest.raises(NotReady):
        await encode(runner, BLACK)


def test_frames_of_these_tests_scale_by_eight() -> None:
    assert FRAME.scale.tolist() == [8, 8]
    assert letterbox_for(Size(96, 128)) == FRAME
