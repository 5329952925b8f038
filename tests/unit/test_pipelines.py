"""Pipelines over fake models: what the contract tests do not show of embeddings, batches, models and closing."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import PIL.Image
import pytest

from models.catalog import CatalogueEntry
from models.errors import PomonaError, TooManyPixels, TooManyPrompts, UnknownModel
from models.images import Stop
from models.types import Size
from models.unet.scales import unet_scales
from service.api.context import RETURN_S, RequestContext
from service.errors import (
    DeadlineExceeded,
    DeadlineUnreachable,
    ModelNotLoaded,
    NotReady,
    UnknownImageId,
    WrongFamily,
)
from service.pipelines import Pipelines
from service.pipelines.engine import Engine
from service.pipelines.source import EncodedImage
from service.pipelines.warmup import warm_up
from service.runners.base import Runner
from service.runners.sam import SamRunner
from service.runners.unet import UNetRunner
from service.scheduler.policy import QueueOptions
from service.scheduler.queue import DeviceQueue
from tests.contract.doors import logits_of, mask_array, rle_of
from tests.fakes import (
    EMBEDDING_BYTES,
    LOADED,
    LOADED_UNET,
    NOT_LOADED,
    OTHER_UNET,
    PATIENCE_S,
    SECOND,
    UNPADDED,
    DecodeCall,
    FakeClock,
    FakeSam,
    FakeUNet,
    WatchedCache,
    encode_image,
    image_bytes,
    make_pipelines,
    make_settings,
    rectangle,
)
from tests.unit.pipeline_calls import BOX, NEVER, POINT, context, embed, held, let_go, only, segment, watched


@pytest.fixture
def sam() -> FakeSam:
    return FakeSam(prompt_batches=(1, 2, 3))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def cache(clock: FakeClock) -> WatchedCache:
    return WatchedCache(max_bytes=2 * EMBEDDING_BYTES, max_age=60, clock=clock)


@pytest.fixture
async def pipelines(sam: FakeSam, cache: WatchedCache) -> AsyncIterator[Pipelines]:
    pipelines = make_pipelines(
        sam,
        FakeSam(device="fake:1"),
        settings=make_settings(max_prompts=20, max_points=4, max_megapixels=0.1),
        cache=cache,
        options=QueueOptions(probe_after=NEVER),
    )
    yield pipelines
    if sam.blocks is not None:
        sam.blocks.set()
    await pipelines.engine.close(PATIENCE_S)


# Embeddings.


async def test_two_requests_at_once_for_a_new_image_encode_it_once_and_the_second_waits(
    pipelines: Pipelines, cache: WatchedCache, sam: FakeSam
) -> None:
    sam.blocks = threading.Event()
    calls = [asyncio.create_task(segment(pipelines)) for _ in range(2)]
    await cache.lookups.reach(2)
    sam.blocks.set()
    second, first = sorted(await asyncio.gather(*calls), key=lambda answer: answer.timing_ms.encode)
    assert sam.encodes == [1]
    assert second.timing_ms.encode == 0 < first.timing_ms.encode
    assert 0 < second.timing_ms.queue <= second.timing_ms.total
    assert first.results == second.results


async def test_a_request_that_was_cancelled_on_the_device_does_not_hinder_the_next(
    pipelines: Pipelines, sam: FakeSam
) -> None:
    sam.blocks = threading.Event()
    call = asyncio.create_task(segment(pipelines))
    assert await asyncio.to_thread(sam.entered.wait, PATIENCE_S)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    sam.blocks.set()
    assert len((await segment(pipelines)).results) == 1


async def test_requests_that_wait_for_an_encoding_are_answered_when_it_is_dropped_as_late_for_the_first(
    pipelines: Pipelines, cache: WatchedCache, sam: FakeSam
) -> None:
    busy = await held(pipelines, sam)
    first = asyncio.create_task(segment(pipelines, within=1000))
    await watched(pipelines).images.reach(2)
    second, third = (asyncio.create_task(segment(pipelines, prompt)) for prompt in (POINT, BOX))
    await cache.lookups.reach(4)
    sam.clock.leap(2000)
    let_go(sam)
    await busy
    with pytest.raises(DeadlineExceeded):
        await first
    async with asyncio.timeout(PATIENCE_S):
        assert [len((await call).results) for call in (second, third)] == [1, 1]
    assert sam.encoded == [200, 0]


async def test_an_evicted_and_an_expired_image_must_be_sent_again(pipelines: Pipelines, clock: FakeClock) -> None:
    first, second, third = [(await embed(pipelines, red)).image.id for red in (1, 2, 3)]
    with pytest.raises(UnknownImageId, match=first):
        await segment(pipelines, image_id=first)
    assert (await segment(pipelines, image_id=second)).image.id == second
    clock.now += 60
    with pytest.raises(UnknownImageId, match=third):
        await segment(pipelines, image_id=third)


async def test_every_model_has_its_own_embeddings(pipelines: Pipelines, sam: FakeSam) -> None:
    embedded = await embed(pipelines, model=SECOND.name)
    with pytest.raises(UnknownImageId, match=LOADED.name):
        await segment(pipelines, image_id=embedded.image.id)
    answer = await segment(pipelines, image_id=embedded.image.id, model=SECOND.name)
    assert (answer.model.name, sam.encodes, sam.decodes) == (SECOND.name, [], [])


async def test_an_overlay_is_drawn_into_the_image_though_its_embedding_is_cached(
    pipelines: Pipelines, sam: FakeSam
) -> None:
    await embed(pipelines)
    answer = await segment(pipelines, BOX, overlay=True)
    assert answer.overlay is not None
    overlay = np.asarray(PIL.Image.open(io.BytesIO(answer.overlay)))
    assert overlay.shape == (96, 128, 3)
    assert overlay[32, 48].any()
    assert answer.timing_ms.decode > 0 == answer.timing_ms.encode
    assert sam.encodes == [1]


# Prompts.


async def test_many_prompts_are_answered_in_their_order_and_in_chunks(pipelines: Pipelines, sam: FakeSam) -> None:
    prompts = [{"box": [x, 8, x + 16, 24], "multimask": False} for x in range(0, 112, 16)]
    answer = await segment(pipelines, *prompts, padding="square")
    assert [result.masks[0].box for result in answer.results] == [(x, 8, x + 16, 24) for x in range(0, 112, 16)]
    assert sam.decodes == [DecodeCall(count, with_masks=False) for count in (3, 3, 1)]


async def test_prompts_with_and_without_masks_are_decoded_apart_and_answered_in_their_order(
    pipelines: Pipelines, sam: FakeSam
) -> None:
    guess = np.full((UNPADDED.logits.height, UNPADDED.logits.width), -4.0, np.float32)
    guess[32:64, 64:128] = 4
    by_logits = {"mask": logits_of(guess), "multimask": False}
    by_rle = {"mask": rle_of(rectangle(32, 16, 64, 48)), "multimask": False}
    answer = await segment(pipelines, by_logits, BOX, by_rle, POINT, format="logits")
    first, *others = answer.results
    np.testing.assert_array_equal(mask_array(first.masks[0].mask.model_dump(mode="json")), guess)
    assert first.masks[0].box == (32, 16, 64, 32)
    assert [result.masks[0].box for result in others[:2]] == [(32, 16, 64, 48)] * 2
    assert [len(result.masks) for result in answer.results] == [1, 1, 1, 3]
    assert sam.decodes == [DecodeCall(2, with_masks=False), DecodeCall(2, with_masks=True)]


async def test_a_tall_image_keeps_its_coordinates(pipelines: Pipelines) -> None:
    prompt = {"box": [16, 64, 48, 192], "multimask": False}
    mask = only(await segment(pipelines, prompt, data=image_bytes(1, Size(256, 64))))
    assert (mask.box, mask.area) == ((16, 64, 48, 192), 32 * 128)


@pytest.mark.parametrize("bad", [{}, {"points": [[1, 1]], "labels": [7]}, {"box": [0, 0, 128, 97]}])
async def test_a_bad_prompt_on_a_known_image_is_refused_before_the_decoder_runs(
    pipelines: Pipelines, sam: FakeSam, bad: Mapping[str, Any]
) -> None:
    image_id = (await embed(pipelines)).image.id
    with pytest.raises(PomonaError) as caught:
        await segment(pipelines, POINT, bad, image_id=image_id)
    assert caught.value.detail.startswith("prompts[1]: ")
    assert sam.decodes == []


async def test_more_prompts_or_points_than_the_limit_are_refused_before_the_image_is_read(
    pipelines: Pipelines,
) -> None:
    with pytest.raises(TooManyPrompts, match="at most 20 prompts, got 21"):
        await segment(pipelines, *[POINT] * 21, data=b"")
    with pytest.raises(TooManyPrompts, match=r"prompts\[1\]\.points must have at most 4 points, got 5"):
        await segment(pipelines, POINT, {"points": [[1, 1]] * 5}, data=b"")
    assert len((await segment(pipelines, *[{"points": [[1, 1]] * 4, "multimask": False}] * 20)).results) == 20


# Models.


@asynccontextmanager
async def engine(loaded: Sequence[CatalogueEntry], others: Sequence[CatalogueEntry] = ()) -> AsyncIterator[Engine]:
    queue = DeviceQueue("fake:0")
    runners: dict[str, Runner] = {
        entry.name: (
            UNetRunner(entry, FakeUNet(), queue) if entry.name.endswith("unet") else SamRunner(entry, FakeSam(), queue)
        )
        for entry in loaded
    }
    opened = Engine(runners, {entry.name: entry for entry in (*loaded, *others)}, make_settings())
    yield opened
    await opened.close(PATIENCE_S)


ALL: Final = (LOADED_UNET, LOADED, SECOND)
OTHERS: Final = (NOT_LOADED, OTHER_UNET)


async def test_the_first_loaded_model_of_a_family_answers_where_none_is_named() -> None:
    async with engine(ALL) as opened:
        assert opened.runner(SamRunner, None).entry is LOADED
        assert opened.runner(SamRunner, SECOND.name).entry is SECOND
        assert opened.runner(UNetRunner, None).entry is LOADED_UNET
        assert (opened.default("sam"), opened.default("unet")) == (LOADED.name, LOADED_UNET.name)


@pytest.mark.parametrize(
    ("kind", "name", "error", "says"),
    [
        (SamRunner, "plum-sam", UnknownModel, "no model 'plum-sam'; loaded: orange-sam, lemon-sam"),
        (UNetRunner, "plum-sam", UnknownModel, "no model 'plum-sam'; loaded: peel-unet"),
        (SamRunner, NOT_LOADED.name, ModelNotLoaded, "POMONA_MODELS=peel-unet,orange-sam,lemon-sam,melon-sam loads it"),
        (SamRunner, LOADED_UNET.name, WrongFamily, "peel-unet is a U-Net, .* needs a SAM, .*; loaded: orange-sam, lem"),
        (SamRunner, OTHER_UNET.name, WrongFamily, "rind-unet is a U-Net"),
        (UNetRunner, LOADED.name, WrongFamily, "orange-sam is a SAM, .* needs a U-Net, .*; loaded: peel-unet$"),
    ],
)
async def test_a_model_that_does_not_answer_is_refused_with_those_that_do(
    kind: type[SamRunner | UNetRunner], name: str, error: type[PomonaError], says: str
) -> None:
    async with engine(ALL, OTHERS) as opened:
        with pytest.raises(error, match=says) as caught:
            opened.runner(kind, name)
        assert type(caught.value) is error


@pytest.mark.parametrize("name", [None, LOADED.name, "plum-unet"])
async def test_where_no_model_of_the_family_is_loaded_the_error_says_how_to_load_one(name: str | None) -> None:
    async with engine((LOADED,), OTHERS) as opened:
        with pytest.raises(PomonaError, match=r"none is loaded\. POMONA_MODELS=orange-sam,rind-unet loads one"):
            opened.runner(UNetRunner, name)
    async with engine((LOADED,)) as opened:
        assert opened.default("unet") is None
        with pytest.raises(PomonaError, match="POMONA_MODELS_FILE"):
            opened.runner(UNetRunner, name)


def test_work_is_due_before_what_follows_it_and_the_way_back() -> None:
    assert RequestContext(deadline=52.0).due(before=0.5) == 51.5 - RETURN_S
    assert RequestContext().due(before=0.5) is None


# Warm-up and closing.


@asynccontextmanager
async def warmed(sizes: Sequence[Size], *sams: FakeSam, **options: Any) -> AsyncIterator[Pipelines]:
    pipelines = make_pipelines(*sams, **options)
    try:
        await warm_up(pipelines, sizes)
        yield pipelines
    finally:
        await pipelines.engine.close(PATIENCE_S)


CAMERA: Final = Size(96, 128)


@pytest.mark.parametrize(("flexible", "sides"), [(True, [1024, 768, 512]), (False, [1024])])
async def test_warm_up_answers_every_input_size_three_times_and_keeps_nothing(flexible: bool, sides: list[int]) -> None:
    sam = FakeSam(flexible=flexible)
    cache = WatchedCache(max_bytes=1 << 20, max_age=60, clock=sam.clock)
    async with warmed([CAMERA], sam, cache=cache):
        assert [letterbox.side for letterbox in sam.frames] == sides * 3
        assert all(letterbox.original == CAMERA for letterbox in sam.frames)
        assert len(sam.decodes) == 3 * len(sides)
        assert len(cache) == 0


async def test_the_first_frame_after_warm_up_is_admitted_by_learned_times() -> None:
    async with warmed([CAMERA], FakeSam(encode_s_per_batch=0.2)) as pipelines:
        with pytest.raises(DeadlineUnreachable):
            await segment(pipelines, data=image_bytes(7), within=0.15, input_size=512)


async def test_without_camera_sizes_nothing_is_warmed_up() -> None:
    sam = FakeSam()
    async with warmed([], sam):
        assert sam.frames == []


async def test_a_camera_size_beyond_the_limit_is_refused_at_the_start() -> None:
    with pytest.raises(TooManyPixels):
        async with warmed([CAMERA], FakeSam(), settings=make_settings(max_megapixels=0.001)):
            pass


async def test_a_u_net_is_warmed_up_for_both_of_its_operations() -> None:
    unet = FakeUNet()
    async with warmed([CAMERA], unet=unet):
        assert unet.prepares == 6


async def test_beside_a_sam_a_u_net_is_warmed_up_for_every_scale() -> None:
    unet = FakeUNet()
    async with warmed([CAMERA], FakeSam(), unet=unet):
        assert set(unet.frames) == set(unet_scales(CAMERA))
        assert unet.prepares == 15


async def test_closing_finishes_admitted_work_and_admits_no_more(sam: FakeSam) -> None:
    pipelines = make_pipelines(sam)
    busy = await held(pipelines, sam)
    call = asyncio.create_task(segment(pipelines))
    await watched(pipelines).images.reach(2)
    closing = asyncio.create_task(pipelines.engine.close(PATIENCE_S))
    await asyncio.sleep(0)
    with pytest.raises(NotReady):
        await embed(pipelines, 1)
    let_go(sam)
    assert len((await call).results) == 1
    await asyncio.gather(busy, closing)
    assert sam.encoded == [200, 0]


async def test_closing_drops_work_that_does_not_end_in_time(sam: FakeSam) -> None:
    pipelines = make_pipelines(sam)
    busy = await held(pipelines, sam)
    call = asyncio.create_task(segment(pipelines))
    await watched(pipelines).images.reach(2)
    closing = asyncio.create_task(pipelines.engine.close(0.01))
    with pytest.raises(NotReady):
        await call
    let_go(sam)
    await closing
    with pytest.raises(NotReady):
        await busy
    assert sam.encoded == [200]


# Images.


async def test_a_decode_ends_when_its_caller_leaves(pipelines: Pipelines) -> None:
    begun, ended = threading.Event(), threading.Event()

    def decode(stop: Stop) -> None:
        begun.set()
        while not stop():
            time.sleep(0.001)
        ended.set()

    decoding = asyncio.create_task(pipelines.engine.decode(context(pipelines), "decode", Size(9, 9), decode))
    assert await asyncio.to_thread(begun.wait, PATIENCE_S)
    decoding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await decoding
    assert await asyncio.to_thread(ended.wait, PATIENCE_S)


@dataclass(frozen=True)
class WatchedImage(EncodedImage):
    """Notes which threads read its header."""

    readers: list[str] = field(default_factory=list)

    def quick_size(self, max_pixels: int) -> Size | None:
        self.readers.append("loop" if threading.current_thread() is threading.main_thread() else "worker")
        return super().quick_size(max_pixels)

    def size(self, max_pixels: int) -> Size:
        self.readers.append("loop" if threading.current_thread() is threading.main_thread() else "worker")
        return super().size(max_pixels)


async def test_a_long_header_is_read_by_a_worker(pipelines: Pipelines) -> None:
    plain = encode_image(np.zeros((7, 5, 3), np.uint8), "JPEG")
    short, long = WatchedImage(plain), WatchedImage(plain[:2] + b"\xff\xe5\0\2" * 999 + plain[2:])
    assert await pipelines.engine.size(short) == await pipelines.engine.size(long) == Size(7, 5)
    assert (short.readers, long.readers) == (["loop"], ["loop", "worker"])
