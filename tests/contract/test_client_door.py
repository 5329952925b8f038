"""The Python client against the door: the same answers, the same errors."""

from __future__ import annotations

import asyncio
import io
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import httpx
import numpy as np
import PIL.Image
import pytest

from models.data.brush import decode_brush
from models.masks import encode_rle
from models.types import Size
from pomona import (
    AsyncClient,
    AsyncHttpTransport,
    Box,
    Client,
    Frame,
    Inspect,
    Mask,
    Point,
    Prompt,
    Retry,
    Segment,
    errors,
)
from service.api.handler import RequestHandler
from service.errors import PROBLEMS
from service.grpc.server import GrpcServer
from tests.contract.door import BOX_MASK, IMAGE, LIMITS, Door, open_door
from tests.contract.live import LiveDoor, live_door
from tests.contract.scenes import CLEAN, HEALTHY, INFECTED, PEEL, SICK, SPOT, TWO
from tests.contract.scenes import FRUIT_SIZE as TWO_SIZE
from tests.fakes import LOADED, LOADED_UNET, NOT_LOADED, PATIENCE_S, image_bytes, make_settings, peel_image, rectangle

BOX = Box(32, 16, 64, 48)
ONE = Prompt(box=BOX, multimask=False)


@pytest.fixture(params=["http", "grpc"])
def way(request: pytest.FixtureRequest) -> str:
    """The transport; the gRPC server has the same pipeline."""
    return str(request.param)


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    async with open_door() as opened:
        yield opened


@asynccontextmanager
async def open_client(
    door: Door, way: str, *, limits: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[AsyncClient]:
    if way == "http":
        transport = AsyncHttpTransport("http://pomona", through=httpx.ASGITransport(door.app))
        async with AsyncClient(transport=transport, **options) as client:
            yield client
        return
    server = GrpcServer(make_settings(**(limits or {})), RequestHandler())
    port = await server.start("127.0.0.1", 0)
    server.open(door.pipelines)
    try:
        async with AsyncClient(f"grpc://127.0.0.1:{port}", **options) as client:
            yield client
    finally:
        door.let_go()
        await server.drain(PATIENCE_S)


@pytest.fixture
async def pomona(door: Door, way: str) -> AsyncIterator[AsyncClient]:
    async with open_client(door, way, retry=Retry(first_delay=0)) as client:
        yield client


@pytest.fixture(scope="module")
def live() -> Iterator[LiveDoor]:
    with live_door() as opened:
        yield opened


@pytest.fixture
def blocking(live: LiveDoor) -> Iterator[Client]:
    with Client(live.address) as client:
        yield client


def test_every_code_of_the_service_has_its_class_in_the_client() -> None:
    of_label_studio = {"image_not_fetched"}  # of paths that the client does not call
    assert set(errors.BY_CODE) == {problem.code for problem in PROBLEMS.values()} - of_label_studio


async def test_masks_have_their_box_area_model_and_timings(pomona: AsyncClient) -> None:
    result = await pomona.segment(IMAGE, ONE)
    (best,) = result.masks
    np.testing.assert_array_equal(best.array, BOX_MASK)
    assert (best.box, best.area) == ((32, 16, 64, 48), 32 * 32)
    assert (result.image.width, result.image.height) == (128, 96)
    assert result.model.name == LOADED.name
    assert result.timings.total > 0
    assert result.batch.encode == 1


async def test_logits_are_upsampled_to_nearly_the_mask_and_can_be_a_prompt(pomona: AsyncClient) -> None:
    guess = (await pomona.segment(IMAGE, ONE, logits=True)).masks[0]
    wrong = int((guess.array ^ BOX_MASK).sum())
    assert wrong <= 4  # corners, where interpolation in one step and in two differ
    again = (await pomona.segment(IMAGE, [guess], multimask=False)).masks[0]
    np.testing.assert_array_equal(again.array, BOX_MASK)


async def test_prompts_may_be_points_boxes_and_masks_of_several_objects(pomona: AsyncClient) -> None:
    mask = rectangle(8, 8, 40, 40)
    result = await pomona.segment(IMAGE, [[Point(64, 48)], [BOX], Prompt.of(Point(20, 20), mask)])
    assert [len(masks) for masks in result.results] == [3, 3, 3]
    assert len(result.masks) == 9
    assert [best.score for best in result.best] == [max(mask.score for mask in masks) for masks in result.results]


async def test_an_inspection_has_the_figures_of_each_fruit(pomona: AsyncClient) -> None:
    report = await pomona.inspect(
        TWO, mode="fast", grades={"A": 0.0, "B": 0.1}, frame_id="7", trigger_id="t", captured_at_ns=5
    )
    clean, sick = report.fruits
    assert [(fruit.grade, fruit.fruit_class) for fruit in report.fruits] == [("A", "healthy"), ("B", "infected")]
    np.testing.assert_array_equal(clean.array, rectangle(*CLEAN, TWO_SIZE))
    np.testing.assert_array_equal(sick.array, rectangle(*SICK, TWO_SIZE))
    np.testing.assert_array_equal(sick.infected_mask.array, rectangle(*SPOT, TWO_SIZE))
    assert sick.infected_fraction == pytest.approx(0.08, abs=1e-6)
    assert (report.frame.frame_id, report.frame.trigger_id, report.frame.captured_at_ns) == ("7", "t", 5)
    assert (report.mode, report.sam) == ("fast", None)
    assert report.unet.name == LOADED_UNET.name
    accurate = await pomona.inspect(TWO, mode="accurate", overlay=True)
    assert accurate.sam is not None
    assert accurate.overlay().size == (TWO_SIZE.width, TWO_SIZE.height)


async def test_every_pixel_gets_its_class(pomona: AsyncClient) -> None:
    result = await pomona.semantic(PEEL)
    np.testing.assert_array_equal(result.array, HEALTHY + 2 * INFECTED.view(np.uint8))
    assert (result.healthy_area, result.infected_area) == (HEALTHY.sum(), INFECTED.sum())
    assert {region.region_class for region in result.objects} == {"healthy", "infected"}


async def test_models_are_listed_loaded_ones_first(pomona: AsyncClient) -> None:
    models = await pomona.models()
    assert models[0].name == LOADED.name
    assert [model.loaded for model in models] == [True, True, True, True, False, False, False]


async def test_an_embedded_image_is_prompted_without_being_encoded_again(pomona: AsyncClient, door: Door) -> None:
    embedding = await pomona.embed(IMAGE)
    for source in (embedding, embedding.image):
        result = await pomona.segment(source, ONE)
        assert result.batch.encode == 0
    assert len(door.sam.encodes) == 1


async def test_an_image_that_the_service_does_not_know_is_sent_again(pomona: AsyncClient, way: str) -> None:
    embedding = await pomona.embed(IMAGE)
    async with open_door() as other, open_client(other, way) as client:
        with pytest.raises(errors.UnknownImageId):
            await client.segment(embedding.without_source(), ONE)
        result = await client.segment(embedding, ONE)
        np.testing.assert_array_equal(result.masks[0].array, BOX_MASK)
        assert (await client.segment(embedding, ONE)).batch.encode == 0


@pytest.mark.parametrize(
    ("image_", "prompts", "model", "error"),
    [
        (b"an orange", ONE, None, errors.NotAnImage),
        (IMAGE[:-40], ONE, None, errors.TruncatedImage),
        (image_bytes(size=Size(300, 400)), ONE, None, errors.TooManyPixels),
        (IMAGE, Point(128, 48), None, errors.PromptOutsideImage),
        (IMAGE, [[BOX]] * 4, None, errors.TooManyPrompts),
        (IMAGE, np.ones((4, 4), np.bool_), None, errors.MalformedPrompt),
        (IMAGE, ONE, "plum-sam", errors.UnknownModel),
        (IMAGE, ONE, NOT_LOADED.name, errors.ModelNotLoaded),
        (IMAGE, ONE, LOADED_UNET.name, errors.WrongModelFamily),
        (IMAGE + bytes(1 << 20), ONE, None, errors.UploadTooLarge),
    ],
)
async def test_refusals_are_raised_as_the_class_of_their_code(
    image_: bytes, prompts: object, model: str | None, error: type[errors.PomonaError], way: str
) -> None:
    async with open_door(**LIMITS) as door, open_client(door, way, limits=LIMITS) as pomona:
        with pytest.raises(error) as raised:
            await pomona.segment(image_, prompts, model=model, request_id="belt-7")  # type: ignore[arg-type]
    assert type(raised.value) is error
    if error is not errors.UploadTooLarge or way == "http":  # gRPC itself refuses it, without an id
        assert raised.value.request_id == "belt-7"
    assert raised.value.code == error.default_code


async def test_a_deadline_reaches_the_service(pomona: AsyncClient, door: Door) -> None:
    busy = await door.hold()
    with pytest.raises(errors.TooLate) as late:  # a busy machine may refuse it at once
        await pomona.segment(image_bytes(1), ONE, deadline=0.2)
    assert late.value.code in ("deadline_exceeded", "deadline_unreachable")
    assert not busy.done()
    door.let_go()
    await busy
    assert 1 not in door.sam.encoded


async def test_the_more_urgent_go_first(pomona: AsyncClient, door: Door) -> None:
    busy = await door.hold()
    calls = []
    for mark, urgency in enumerate((7, 0, 4)):
        calls.append(asyncio.create_task(pomona.embed(image_bytes(mark), urgency=urgency)))
        await door.runner.images.reach(1 + len(calls))
    door.let_go()
    await asyncio.gather(busy, *calls)
    assert door.sam.encoded[1:] == [1, 2, 0]


async def test_a_full_queue_is_waited_for(door: Door, way: str) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        door.let_go()
        await busy

    async with open_door(max_queued=1) as full:
        door = full
        busy = await full.hold()
        queued = full.start(("image", ("o.png", image_bytes(1))), path="/v1/embed")
        await full.runner.images.reach(2)
        async with open_client(full, way, sleep=sleep) as pomona:
            assert (await pomona.embed(image_bytes(2))).image.width == 128
        await queued
    assert waits[0] >= 1  # Retry-After


async def test_a_stream_goes_on_after_a_bad_frame_and_keeps_order(pomona: AsyncClient) -> None:
    frames: list[Frame | bytes] = [Frame(image=TWO, frame_id="a"), b"no image", TWO]
    answers = [answer async for answer in pomona.stream(frames, Inspect(mode="fast"), in_flight=2)]
    assert [answer.frame_id for answer in answers] == ["a", "1", "2"]
    assert isinstance(answers[1].error, errors.NotAnImage)
    assert [len(answers[place].unwrap().fruits) for place in (0, 2)] == [2, 2]
    assert answers[0].unwrap().frame.frame_id == "a"


def test_blocking_calls_work_over_a_socket(blocking: Client) -> None:
    result = blocking.segment(IMAGE, ONE)
    np.testing.assert_array_equal(result.masks[0].array, BOX_MASK)
    report = blocking.inspect(TWO, deadline=PATIENCE_S)
    assert len(report.fruits) == 2


def test_a_long_list_of_prompts_and_masks_travels_in_the_body(blocking: Client) -> None:
    rng = np.random.default_rng(5)
    noise = rng.random((96, 128)) < 0.5
    result = blocking.segment(IMAGE, [[Mask.of(noise), Point(64, 48)], [BOX]])
    assert len(result.results) == 2


def test_a_blocking_stream_answers_frames_as_they_finish(blocking: Client) -> None:
    frames = [Frame(image=image_bytes(red), frame_id=str(red)) for red in range(12)]
    answers = list(blocking.stream(frames, Segment(ONE), in_flight=3, ordered=False))
    assert sorted(int(answer.frame_id) for answer in answers) == list(range(12))
    assert all(answer.unwrap().masks[0].area == 32 * 32 for answer in answers)


async def test_cancelling_a_task_cancels_its_work_in_the_service(
    live: LiveDoor, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="pomona.http")
    busy = await asyncio.to_thread(live.do, Door.hold)
    seen = live.door.runner.images.count
    async with AsyncClient(live.address) as pomona:
        call = asyncio.create_task(pomona.embed(image_bytes(77)))
        await asyncio.to_thread(live.do, lambda door: door.runner.images.reach(seen + 1))
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await _until(lambda: any(vars(record).get("status") == 499 for record in caplog.records))
        live.do(_let_go)
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_wait(busy), live.loop))
    assert 77 not in live.door.sam.encoded


async def test_leaving_a_stream_cancels_its_frames_in_the_service(
    live: LiveDoor, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="pomona.http")
    async with AsyncClient(live.address) as pomona:
        busy = await asyncio.to_thread(live.do, Door.hold_unet)
        frames = [Frame(image=peel_image(mark), frame_id=str(mark)) for mark in (81, 82, 83)]
        seen = live.door.unet_runner.images.count

        async def look() -> None:
            async with aclosing(pomona.stream(frames, Inspect(mode="fast"), in_flight=2)) as answers:
                async for _ in answers:
                    raise AssertionError("the device is held")

        looking = asyncio.create_task(look())
        await asyncio.to_thread(live.do, lambda door: door.unet_runner.images.reach(seen + 2))
        looking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await looking
        await _until(lambda: sum(vars(record).get("status") == 499 for record in caplog.records) == 2)
        live.do(_let_go)
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_wait(busy), live.loop))
    assert not {81, 82, 83} & set(live.door.unet.encoded)


def test_a_service_that_stops_breaks_the_stream_with_what_was_answered() -> None:
    with live_door() as leaving, Client(leaving.address, retry=Retry(attempts=1)) as pomona:
        answers = pomona.stream((image_bytes(red) for red in range(9)), Segment(ONE), in_flight=1)
        assert next(answers).frame_id == "0"
        leaving.stop()
        with pytest.raises(errors.StreamBroken) as broken:
            list(answers)
    assert broken.value.answered >= 1
    assert len(broken.value.unanswered) == 1


def test_exported_masks_are_read_by_the_readers_of_models(blocking: Client) -> None:
    report = blocking.inspect(TWO, mode="fast")
    sick = rectangle(*SICK, TWO_SIZE)
    annotation = report.to_coco(file_name="two.png")["annotations"][1]
    rle = encode_rle(sick)
    assert annotation["segmentation"] == {"size": list(rle.size), "counts": rle.counts}
    result = report.to_label_studio(image="two.png")["predictions"][0]["result"][1]
    alpha = decode_brush(bytes(result["value"]["rle"]), TWO_SIZE)
    np.testing.assert_array_equal(alpha, sick * np.uint8(255))


def test_an_overlay_changes_only_the_fruit(blocking: Client) -> None:
    report = blocking.inspect(TWO, mode="fast")
    before = np.asarray(PIL.Image.open(io.BytesIO(TWO)).convert("RGB"))
    changed = (np.asarray(report.overlay(TWO)) != before).any(axis=2)
    fruits = rectangle(*CLEAN, TWO_SIZE) | rectangle(*SICK, TWO_SIZE)
    assert not changed[~fruits].any()
    assert changed[rectangle(*SPOT, TWO_SIZE)].all()
    assert changed[40:140, 139].all()  # the right edge of the clean one
    assert not changed[100:130, 60:130].any()  # inside it


async def _until(done: Callable[[], bool]) -> None:
    began = time.monotonic()
    while not done():
        assert time.monotonic() - began < PATIENCE_S
        await asyncio.sleep(0.01)


async def _let_go(door: Door) -> None:
    door.let_go()


async def _wait(task: asyncio.Task[object]) -> None:
    await task
