from __future__ import annotations

import asyncio
import dataclasses
import io
import threading
from collections.abc import AsyncIterator

import numpy as np
import PIL.Image
import pytest

from models import images
from models.errors import (
    BackendError,
    DeviceBroken,
    MalformedPrompt,
    NoPrompt,
    NotAnImage,
    PomonaError,
    PromptOutsideImage,
    TooManyPixels,
    TooManyPrompts,
    UnknownModel,
)
from models.letterbox import Letterbox, Padding, letterbox_for
from models.masks import EncodedLogits, Rle, decode_logits, decode_png, decode_rle
from models.polygons import decode_polygons
from models.types import BACKGROUND, Box, Point, Prompt, Size
from service.errors import (
    DeadlineExceeded,
    DeadlineUnreachable,
    ModelNotLoaded,
    NoImage,
    NotReady,
    UnknownImageId,
    UnsupportedInput,
)
from service.formats import Png, Polygons
from service.messages import Embedded, InputChoice, MaskResult, Segmented, SegmentRequest, When
from service.pipeline import Pipeline
from service.work import QueueOptions
from tests.fakes import (
    EMBEDDING_BYTES,
    LOADED,
    PATIENCE_S,
    SCORES,
    SECOND,
    SIZE,
    UNPADDED,
    DecodeCall,
    FakeClock,
    FakeSam,
    WatchedCache,
    WatchedRunner,
    image_bytes,
    make_pipelines,
    make_settings,
    rectangle,
)

CENTRE = Prompt((Point(64, 48),))
BOX = Prompt(box=Box(32, 16, 64, 48), multimask=False)
SQUARE = Size(96, 96)
NEVER = 1e9
"""Seconds after which an idle device is tried anew: no test waits for that."""


@pytest.fixture
def sam() -> FakeSam:
    return FakeSam(prompt_batches=(1, 2, 3))


@pytest.fixture
def lemon_sam() -> FakeSam:
    return FakeSam(device="fake:1")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def cache(clock: FakeClock) -> WatchedCache:
    return WatchedCache(max_bytes=2 * EMBEDDING_BYTES, max_age=60, clock=clock)


@pytest.fixture
async def pipeline(sam: FakeSam, lemon_sam: FakeSam, cache: WatchedCache) -> AsyncIterator[Pipeline]:
    pipeline = make_pipelines(
        sam,
        lemon_sam,
        settings=make_settings(max_prompts=20, max_points=4, max_megapixels=0.1),
        cache=cache,
        options=QueueOptions(probe_after=NEVER),
    )
    yield pipeline
    if sam.blocks is not None:
        sam.blocks.set()
    await pipeline.close(PATIENCE_S)


def request(*prompts: Prompt, red: int = 0, **changes: object) -> SegmentRequest:
    return dataclasses.replace(SegmentRequest(prompts, data=image_bytes(red)), **changes)  # type: ignore[arg-type]


def boxes(answer: Segmented) -> list[list[tuple[int, int, int, int]]]:
    return [[result.mask.box for result in results] for results in answer.results]


def only(answer: Segmented) -> MaskResult:
    assert [len(results) for results in answer.results] == [1]
    return answer.results[0][0]


async def held(pipeline: Pipeline, sam: FakeSam) -> asyncio.Task[Embedded]:
    """An image that stays on the device until `sam.blocks` is set."""
    sam.blocks = threading.Event()
    running = asyncio.create_task(pipeline.embed(image_bytes(200)))
    assert await asyncio.to_thread(sam.entered.wait, PATIENCE_S)
    return running


def let_go(sam: FakeSam) -> None:
    assert sam.blocks is not None
    sam.blocks.set()


def watched(pipeline: Pipeline) -> WatchedRunner:
    runner = pipeline.runners[LOADED.name]
    assert isinstance(runner, WatchedRunner)
    return runner


async def test_a_point_gets_three_masks_best_first(pipeline: Pipeline) -> None:
    answer = await pipeline.segment(request(CENTRE))
    # The square around the point is 16 pixels wide; the tokens 2, 3 and 1 make it 1, 2 and 3 pixels smaller all around.
    assert boxes(answer) == [[(57, 41, 71, 55), (58, 42, 70, 54), (59, 43, 69, 53)]]
    masks = [result.mask for result in answer.results[0]]
    assert [mask.score for mask in masks] == pytest.approx([0.9, 0.8, 0.7])
    assert [mask.area for mask in masks] == [14 * 14, 12 * 12, 10 * 10]
    for mask in masks:
        np.testing.assert_array_equal(mask.pixels, rectangle(*mask.box))


async def test_without_multimask_it_is_the_one_mask_of_the_first_token(pipeline: Pipeline) -> None:
    mask = only(await pipeline.segment(request(BOX))).mask
    assert mask.box == (32, 16, 64, 48)
    assert mask.area == 32 * 32
    assert mask.score == SCORES[0]
    # Of 32 pixels a side, those beyond 1 logit from the edge are all inside, and none outside is within 1.
    assert mask.stability_score == 1


async def test_the_answer_says_what_image_and_model_it_is_about(pipeline: Pipeline) -> None:
    answer = await pipeline.segment(request(CENTRE))
    assert answer.image_id == images.content_id(image_bytes())
    assert answer.frame == UNPADDED
    assert answer.model is LOADED
    assert answer.overlay is None


async def test_the_second_request_for_a_image_skips_the_encoder_and_the_decoding(
    pipeline: Pipeline, sam: FakeSam
) -> None:
    first = await pipeline.segment(request(CENTRE))
    second = await pipeline.segment(request(CENTRE))
    assert first.timings.encode > 0
    assert first.timings.decode > 0
    assert second.timings.encode == second.timings.decode == 0
    assert boxes(first) == boxes(second)
    assert (sam.encodes, sam.prepares) == ([1], 1)


async def test_an_embedded_image_is_prompted_by_its_id(pipeline: Pipeline, sam: FakeSam) -> None:
    embedded = await pipeline.embed(image_bytes(7))
    assert (embedded.frame, embedded.model) == (UNPADDED, LOADED)
    assert embedded.timings.encode > 0
    answer = await pipeline.segment(SegmentRequest([BOX], image_id=embedded.image_id))
    assert (answer.image_id, answer.frame) == (embedded.image_id, embedded.frame)
    assert only(answer).mask.box == (32, 16, 64, 48)
    assert answer.timings.encode == 0
    again = await pipeline.embed(image_bytes(7))
    assert (again.image_id, again.timings.encode) == (embedded.image_id, 0)
    assert sam.encodes == [1]


async def test_masks_are_decoded_from_the_images_own_embedding(pipeline: Pipeline) -> None:
    await pipeline.embed(image_bytes(0))
    on_red = only(await pipeline.segment(request(BOX, red=255))).mask
    on_black = only(await pipeline.segment(request(BOX))).mask
    np.testing.assert_allclose(on_red.logits, 2 * on_black.logits)


async def test_two_requests_at_once_for_a_new_image_encode_it_once_and_the_second_waits(
    pipeline: Pipeline, cache: WatchedCache, sam: FakeSam
) -> None:
    sam.blocks = threading.Event()
    calls = [asyncio.create_task(pipeline.segment(request(CENTRE))) for _ in range(2)]
    await cache.asked.reach(2)
    sam.blocks.set()
    second, first = sorted(await asyncio.gather(*calls), key=lambda answer: answer.timings.encode)
    assert sam.encodes == [1]
    assert second.timings.encode == 0 < first.timings.encode
    assert 0 < second.timings.queue <= second.timings.total
    assert boxes(first) == boxes(second)


async def test_a_image_whose_only_caller_left_while_it_waited_is_never_encoded(
    pipeline: Pipeline, sam: FakeSam
) -> None:
    busy = await held(pipeline, sam)
    leaving = asyncio.create_task(pipeline.segment(request(CENTRE, red=1)))
    staying = asyncio.create_task(pipeline.segment(request(CENTRE, red=2)))
    await watched(pipeline).images.reach(3)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    let_go(sam)
    await asyncio.gather(busy, staying)
    assert sam.encoded == [200, 2]
    assert (await pipeline.segment(request(CENTRE, red=1))).timings.encode > 0


async def test_a_cancelled_request_does_not_hinder_the_next(pipeline: Pipeline, sam: FakeSam) -> None:
    sam.blocks = threading.Event()
    call = asyncio.create_task(pipeline.segment(request(CENTRE)))
    assert await asyncio.to_thread(sam.entered.wait, PATIENCE_S)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    sam.blocks.set()
    assert len((await pipeline.segment(request(CENTRE))).results) == 1


async def test_who_waits_for_an_encoding_is_answered_when_the_one_who_began_it_leaves(
    pipeline: Pipeline, cache: WatchedCache, sam: FakeSam
) -> None:
    busy = await held(pipeline, sam)
    first = asyncio.create_task(pipeline.segment(request(CENTRE)))
    await watched(pipeline).images.reach(2)
    second = asyncio.create_task(pipeline.segment(request(CENTRE)))
    await cache.asked.reach(3)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    let_go(sam)
    await busy
    async with asyncio.timeout(PATIENCE_S):
        assert len((await second).results) == 1
    assert sam.encoded == [200, 0]


async def test_who_waits_for_an_encoding_is_answered_when_the_deadline_of_the_one_who_began_it_passes(
    pipeline: Pipeline, cache: WatchedCache, sam: FakeSam
) -> None:
    busy = await held(pipeline, sam)
    first = asyncio.create_task(pipeline.segment(request(CENTRE, when=When(within=0.2))))
    await watched(pipeline).images.reach(2)
    second = asyncio.create_task(pipeline.segment(request(CENTRE)))
    await cache.asked.reach(3)
    with pytest.raises(DeadlineExceeded):
        await first
    let_go(sam)
    await busy
    async with asyncio.timeout(PATIENCE_S):
        assert len((await second).results) == 1
    assert sam.encoded == [200, 0]


async def test_who_waits_for_an_encoding_is_answered_when_it_is_dropped_as_late_for_the_one_who_began_it(
    pipeline: Pipeline, cache: WatchedCache, sam: FakeSam
) -> None:
    busy = await held(pipeline, sam)
    first = asyncio.create_task(pipeline.segment(request(CENTRE, when=When(within=1000))))
    await watched(pipeline).images.reach(2)
    second, third = (asyncio.create_task(pipeline.segment(request(prompt))) for prompt in (CENTRE, BOX))
    await cache.asked.reach(4)
    sam.clock.leap(2000)
    let_go(sam)
    await busy
    with pytest.raises(DeadlineExceeded):
        await first
    async with asyncio.timeout(PATIENCE_S):
        assert [len((await call).results) for call in (second, third)] == [1, 1]
    assert sam.encoded == [200, 0]


async def test_a_deadline_that_cannot_be_met_is_refused_before_anything_is_done(
    pipeline: Pipeline, sam: FakeSam
) -> None:
    sam.encode_s_per_megapixel = 100
    await pipeline.embed(image_bytes(1))
    sam.forget()
    for asked in (request(CENTRE, when=When(within=50)), request(CENTRE, red=2, when=When(within=50))):
        with pytest.raises(DeadlineUnreachable):
            await pipeline.segment(asked)
    with pytest.raises(DeadlineUnreachable):
        await pipeline.embed(image_bytes(), when=When(within=50))
    assert (sam.prepares, sam.encodes, sam.decodes) == (0, [], [])
    assert (await pipeline.segment(request(CENTRE, red=1, when=When(within=50)))).timings.encode == 0
    assert (await pipeline.segment(request(CENTRE, when=When(within=200)))).timings.encode > 0


async def test_the_largest_input_that_is_in_time_is_taken_where_the_size_is_left_open(
    pipeline: Pipeline, sam: FakeSam
) -> None:
    sam.encode_s_per_megapixel = 100
    await watched(pipeline).warm_up()
    auto = InputChoice("auto")
    # The encoder takes about 80, 45 and 20 seconds; a quarter of the time is to be left where a smaller size could do.
    for red, within, side in ((1, None, 1024), (2, 120, 1024), (3, 100, 768), (4, 70, 768), (5, 55, 512), (6, 35, 512)):
        answer = await pipeline.segment(request(BOX, red=red, input=auto, when=When(within=within)))
        assert answer.frame == letterbox_for(SIZE, side, "none")
        assert only(answer).mask.box == (32, 16, 64, 48)
    with pytest.raises(DeadlineUnreachable):
        await pipeline.segment(request(BOX, red=7, input=auto, when=When(within=15)))


async def test_an_embedding_of_any_size_serves_where_the_size_is_left_open(pipeline: Pipeline, sam: FakeSam) -> None:
    small = await pipeline.embed(image_bytes(), choice=InputChoice(512))
    assert (await pipeline.segment(request(CENTRE, input=InputChoice("auto")))).frame == small.frame
    assert (await pipeline.embed(image_bytes(), choice=InputChoice("auto"))).frame == small.frame
    assert len(sam.frames) == 1


async def test_of_several_embeddings_of_a_image_its_id_finds_the_largest_that_fits(pipeline: Pipeline) -> None:
    for choice in (InputChoice(512, "square"), InputChoice(1024)):
        image_id = (await pipeline.embed(image_bytes(), choice=choice)).image_id

    async def found(choice: InputChoice) -> Letterbox:
        return (await pipeline.segment(SegmentRequest([BOX], image_id=image_id, input=choice))).frame

    large, small = UNPADDED, letterbox_for(SIZE, 512, "square")
    for choice in (InputChoice(), InputChoice("auto"), InputChoice(1024), InputChoice(padding="none")):
        assert await found(choice) == large
    for choice in (InputChoice(512), InputChoice(padding="square"), InputChoice("auto", "square")):
        assert await found(choice) == small
    for choice in (InputChoice(768), InputChoice(1024, "square"), InputChoice(512, "none")):
        with pytest.raises(UnknownImageId, match="at this input size"):
            await found(choice)


@pytest.mark.parametrize("padding", ["none", "square"])
async def test_a_square_image_is_found_by_its_id_whatever_padding_it_was_sent_with(
    pipeline: Pipeline, sam: FakeSam, padding: Padding
) -> None:
    data = image_bytes(1, SQUARE)
    image_id = (await pipeline.embed(data, choice=InputChoice(padding=padding))).image_id
    for asked in ("none", "square"):
        choice = InputChoice(padding=asked)
        answer = await pipeline.segment(SegmentRequest([CENTRE], image_id=image_id, input=choice))
        assert answer.frame.padded == Size(1024, 1024)
        assert (await pipeline.embed(data, choice=choice)).timings.encode == 0
    assert sam.encodes == [1]


async def test_the_setting_is_the_input_size_of_requests_that_name_none(sam: FakeSam, lemon_sam: FakeSam) -> None:
    lemon_sam.flexible = False
    pipeline = make_pipelines(sam, lemon_sam, settings=make_settings(input_size=512))
    assert (await pipeline.embed(image_bytes())).frame == letterbox_for(SIZE, 512, "none")
    assert (await pipeline.embed(image_bytes(), choice=InputChoice(768))).frame == letterbox_for(SIZE, 768, "none")
    # A model that takes one size only is not asked for another by a setting.
    assert (await pipeline.embed(image_bytes(), SECOND.name)).frame == letterbox_for(SIZE)
    await pipeline.close(PATIENCE_S)


@pytest.mark.parametrize(
    "choice", [InputChoice(512), InputChoice(768, "square"), InputChoice(padding="none"), InputChoice("auto", "none")]
)
async def test_a_model_of_one_input_size_refuses_others(
    pipeline: Pipeline, lemon_sam: FakeSam, choice: InputChoice
) -> None:
    lemon_sam.flexible = False
    with pytest.raises(UnsupportedInput, match="1024 pixels, padded to a square"):
        await pipeline.segment(request(CENTRE, model=SECOND.name, input=choice))
    assert lemon_sam.prepares == 0
    for fitting in (InputChoice(), InputChoice("auto"), InputChoice(1024), InputChoice(padding="square")):
        answer = await pipeline.segment(request(CENTRE, model=SECOND.name, input=fitting))
        assert answer.frame == letterbox_for(SIZE)
    assert lemon_sam.encodes == [1]


async def test_masks_lie_where_they_should_at_every_input_size_and_padding(pipeline: Pipeline) -> None:
    for side in (1024, 768, 512):
        for padding in ("none", "square"):
            answer = await pipeline.segment(request(BOX, red=9, input=InputChoice(side, padding)))
            frame = letterbox_for(SIZE, side, padding)
            assert answer.frame == frame
            np.testing.assert_array_equal(only(answer).mask.pixels, rectangle(32, 16, 64, 48))
            assert only(answer).mask.logits.shape == (frame.logits.height, frame.logits.width)


async def test_many_prompts_are_answered_in_their_order_and_in_chunks(pipeline: Pipeline, sam: FakeSam) -> None:
    prompts = [Prompt(box=Box(x, 8, x + 16, 24), multimask=False) for x in range(0, 112, 16)]
    answer = await pipeline.segment(request(*prompts, input=InputChoice(padding="square")))
    assert boxes(answer) == [[(x, 8, x + 16, 24)] for x in range(0, 112, 16)]
    assert sam.decodes == [DecodeCall(count, with_masks=False) for count in (3, 3, 1)]


async def test_prompts_with_and_without_masks_may_be_mixed(pipeline: Pipeline, sam: FakeSam) -> None:
    guess = np.full((UNPADDED.logits.height, UNPADDED.logits.width), -4.0, np.float32)
    guess[32:64, 64:128] = 4
    prompts = [
        Prompt(mask=guess, multimask=False),
        BOX,
        Prompt(mask=rectangle(32, 16, 64, 48), multimask=False),
        CENTRE,
    ]
    answer = await pipeline.segment(request(*prompts))
    expected = rectangle(32, 16, 64, 32)
    np.testing.assert_array_equal(answer.results[0][0].mask.pixels, expected)
    np.testing.assert_array_equal(answer.results[0][0].mask.logits, guess)
    assert boxes(answer)[1:3] == [[(32, 16, 64, 48)], [(32, 16, 64, 48)]]
    assert [len(results) for results in answer.results] == [1, 1, 1, 3]
    assert sam.decodes == [DecodeCall(2, with_masks=False), DecodeCall(2, with_masks=True)]


async def test_a_image_that_is_not_square_or_small_keeps_its_coordinates(pipeline: Pipeline) -> None:
    tall = Size(256, 64)
    prompt = Prompt(box=Box(16, 64, 48, 192), multimask=False)
    mask = only(await pipeline.segment(SegmentRequest([prompt], data=image_bytes(1, tall)))).mask
    assert mask.pixels.shape == (256, 64)
    np.testing.assert_array_equal(mask.pixels, rectangle(16, 64, 48, 192, tall))


async def test_masks_come_in_the_format_that_was_asked_for(pipeline: Pipeline) -> None:
    expected = rectangle(32, 16, 64, 48)
    rle = only(await pipeline.segment(request(BOX, format="rle"))).encoded
    assert isinstance(rle, Rle)
    np.testing.assert_array_equal(decode_rle(rle), expected)
    png = only(await pipeline.segment(request(BOX, format="png"))).encoded
    assert isinstance(png, Png)
    np.testing.assert_array_equal(decode_png(png.data), expected)
    polygons = only(await pipeline.segment(request(BOX, format="polygons"))).encoded
    assert isinstance(polygons, Polygons)
    np.testing.assert_array_equal(decode_polygons(polygons.polygons, SIZE), expected)
    logits = only(await pipeline.segment(request(BOX, format="logits")))
    assert isinstance(logits.encoded, EncodedLogits)
    np.testing.assert_array_equal(decode_logits(logits.encoded), logits.mask.logits)


async def test_an_overlay_is_drawn_into_the_image_even_when_its_embedding_is_at_hand(
    pipeline: Pipeline, sam: FakeSam
) -> None:
    await pipeline.embed(image_bytes())
    answer = await pipeline.segment(request(BOX, overlay=True))
    assert answer.overlay is not None
    drawn = np.asarray(PIL.Image.open(io.BytesIO(answer.overlay)))
    assert drawn.shape == (96, 128, 3)
    assert drawn[32, 48].any()
    assert not drawn[80, 112].any()
    assert answer.timings.decode > 0 == answer.timings.encode
    assert sam.encodes == [1]


@pytest.mark.parametrize(
    ("prompt", "error", "says"),
    [
        (Prompt(), NoPrompt, "points, a box or a mask"),
        (Prompt((Point(1, 1, 7),)), MalformedPrompt, r"labels\[0\] must be 1"),
        (Prompt((Point(float("nan"), 1),)), MalformedPrompt, "finite"),
        (Prompt(box=Box(9, 1, 9, 5)), MalformedPrompt, "with x0 < x1"),
        (Prompt(mask=rectangle(1, 1, 2, 2, Size(95, 128))), MalformedPrompt, "128 x 96"),
        (Prompt((Point(128, 1, BACKGROUND),)), PromptOutsideImage, r"points\[0\]"),
        (Prompt(box=Box(0, 0, 128, 96.5)), PromptOutsideImage, "128 x 96"),
    ],
)
async def test_a_bad_prompt_is_refused_before_the_encoder_runs_and_named(
    pipeline: Pipeline, sam: FakeSam, prompt: Prompt, error: type[PomonaError], says: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        await pipeline.segment(request(CENTRE, prompt))
    assert type(caught.value) is error
    assert caught.value.detail.startswith("prompts[1]: ")
    assert sam.encodes == []
    embedded = await pipeline.embed(image_bytes())
    for known in (request(CENTRE, prompt), SegmentRequest([CENTRE, prompt], image_id=embedded.image_id)):
        with pytest.raises(error, match=says):
            await pipeline.segment(known)
    assert sam.decodes == []


async def test_a_image_that_cannot_be_used_is_refused_before_the_encoder_runs(pipeline: Pipeline, sam: FakeSam) -> None:
    with pytest.raises(NotAnImage):
        await pipeline.embed(b"https://example.org/orange.jpg")
    with pytest.raises(TooManyPixels, match="100000"):
        await pipeline.segment(SegmentRequest([CENTRE], data=image_bytes(0, Size(250, 401))))
    assert sam.encodes == []


async def test_more_prompts_or_points_than_the_limit_are_refused_before_the_image_is_looked_at(
    pipeline: Pipeline,
) -> None:
    with pytest.raises(TooManyPrompts, match="21 prompts; at most 20"):
        await pipeline.segment(SegmentRequest([CENTRE] * 21, data=b""))
    with pytest.raises(TooManyPrompts, match=r"prompts\[1\] has 5 points; at most 4"):
        await pipeline.segment(SegmentRequest([CENTRE, Prompt((Point(1, 1),) * 5)], data=b""))
    answer = await pipeline.segment(request(*[Prompt((Point(1, 1),) * 4, multimask=False)] * 20))
    assert len(answer.results) == 20


async def test_an_unknown_an_evicted_and_an_expired_image_are_to_be_sent_again(
    pipeline: Pipeline, clock: FakeClock
) -> None:
    async def by_id(image_id: str) -> Segmented:
        return await pipeline.segment(SegmentRequest([CENTRE], image_id=image_id))

    with pytest.raises(UnknownImageId, match="send it again"):
        await by_id("0" * 32)
    first, second, third = [(await pipeline.embed(image_bytes(red))).image_id for red in (1, 2, 3)]
    with pytest.raises(UnknownImageId, match=first):
        await by_id(first)
    assert (await by_id(second)).image_id == second
    clock.now += 60
    with pytest.raises(UnknownImageId, match=third):
        await by_id(third)


async def test_a_model_answers_by_its_name_with_its_own_embeddings(
    pipeline: Pipeline, sam: FakeSam, lemon_sam: FakeSam
) -> None:
    embedded = await pipeline.embed(image_bytes(), SECOND.name)
    assert embedded.model is SECOND
    assert (sam.encodes, lemon_sam.encodes) == ([], [1])
    by_id = SegmentRequest([CENTRE], image_id=embedded.image_id)
    with pytest.raises(UnknownImageId, match=LOADED.name):
        await pipeline.segment(by_id)
    answer = await pipeline.segment(dataclasses.replace(by_id, model=SECOND.name))
    assert answer.model is SECOND
    assert (len(sam.decodes), len(lemon_sam.decodes)) == (0, 1)


async def test_a_model_that_is_not_there_is_told_apart_from_one_that_is_not_loaded(pipeline: Pipeline) -> None:
    with pytest.raises(UnknownModel, match="'plum-sam'; loaded: orange-sam, lemon-sam") as caught:
        await pipeline.segment(request(CENTRE, model="plum-sam"))
    assert type(caught.value) is UnknownModel
    with pytest.raises(ModelNotLoaded, match="POMONA_MODELS=orange-sam,lemon-sam,melon-sam would load it"):
        await pipeline.embed(image_bytes(), "melon-sam")


async def test_neither_a_image_nor_an_id_is_refused(pipeline: Pipeline) -> None:
    with pytest.raises(NoImage):
        await pipeline.segment(SegmentRequest([CENTRE]))


async def test_a_failing_device_reaches_the_caller_and_the_next_request_tries_anew(
    pipeline: Pipeline, sam: FakeSam
) -> None:
    sam.fails = BackendError("the device failed")
    with pytest.raises(BackendError, match="the device failed"):
        await pipeline.segment(request(CENTRE))
    sam.fails = None
    assert len((await pipeline.segment(request(CENTRE))).results) == 1
    assert sam.encodes == [1, 1]


async def test_the_parts_of_the_time_lie_within_the_whole(pipeline: Pipeline) -> None:
    timings = (await pipeline.segment(request(CENTRE, CENTRE, overlay=True))).timings
    parts = dataclasses.asdict(timings)
    total = parts.pop("total")
    assert parts.pop("infer") == 0
    assert set(parts) == {"decode", "queue", "encode", "prompt", "postprocess"}
    assert min(parts.values()) > 0
    assert sum(parts.values()) <= total


async def test_an_embedding_alone_takes_no_time_for_prompts(pipeline: Pipeline) -> None:
    timings = (await pipeline.embed(image_bytes())).timings
    assert timings.prompt == timings.postprocess == 0
    assert timings.decode + timings.queue + timings.encode <= timings.total


async def test_a_device_that_broke_is_told_by_the_pipeline(pipeline: Pipeline, lemon_sam: FakeSam) -> None:
    told = [pipeline.broken]
    lemon_sam.fails = DeviceBroken("the card fell off the bus")
    with pytest.raises(DeviceBroken, match="fell off the bus"):
        await pipeline.embed(image_bytes(), SECOND.name)
    told.append(pipeline.broken)
    assert told == [False, True]
    assert len((await pipeline.segment(request(CENTRE))).results) == 1


async def test_closing_finishes_what_was_admitted_and_takes_nothing_more(sam: FakeSam) -> None:
    pipeline = make_pipelines(sam)
    busy = await held(pipeline, sam)
    call = asyncio.create_task(pipeline.segment(request(CENTRE)))
    await watched(pipeline).images.reach(2)
    closing = asyncio.create_task(pipeline.close(PATIENCE_S))
    await asyncio.sleep(0)
    with pytest.raises(NotReady):
        await pipeline.embed(image_bytes(1))
    let_go(sam)
    assert len((await call).results) == 1
    assert (await busy).image_id == images.content_id(image_bytes(200))
    await closing
    assert sam.encoded == [200, 0]


async def test_closing_drops_what_does_not_end_in_time(sam: FakeSam) -> None:
    pipeline = make_pipelines(sam)
    busy = await held(pipeline, sam)
    call = asyncio.create_task(pipeline.segment(request(CENTRE)))
    await watched(pipeline).images.reach(2)
    closing = asyncio.create_task(pipeline.close(0.01))
    with pytest.raises(NotReady):
        await call
    let_go(sam)
    await closing
    with pytest.raises(NotReady):
        await busy
    assert sam.encoded == [200]
