from __future__ import annotations

import pytest
from service.messages import InputChoice, SegmentRequest, When
from service.rehearsal import rehearse

from models.errors import TooManyPixels
from models.types import Point, Prompt, Size
from service.errors import DeadlineUnreachable
from tests.fakes import PATIENCE_S, FakeSam, FakeUNet, WatchedCache, image_bytes, make_pipelines, make_settings

CAMERA = Size(96, 128)
PROMPT = Prompt((Point(64, 48),))


@pytest.mark.parametrize(("flexible", "sides"), [(True, [1024, 768, 512]), (False, [1024])])
async def test_each_way_to_see_a_cameras_image_is_gone_three_times(flexible: bool, sides: list[int]) -> None:
    sam = FakeSam(flexible=flexible)
    cache = WatchedCache(max_bytes=1 << 20, max_age=60, clock=sam.clock)
    pipeline = make_pipelines(sam, settings=make_settings(), cache=cache)
    await rehearse(pipeline, [CAMERA])
    assert [frame.side for frame in sam.frames] == sides * 3
    assert all(frame.original == CAMERA for frame in sam.frames)
    assert len(sam.decodes) == 3 * len(sides)
    assert len(cache) == 0
    await pipeline.close(PATIENCE_S)


async def test_the_first_frame_after_it_is_judged_by_what_was_learned() -> None:
    sam = FakeSam(encode_s_per_batch=0.2)
    pipeline = make_pipelines(sam, settings=make_settings())
    await rehearse(pipeline, [CAMERA])
    asked = SegmentRequest([PROMPT], image_bytes(7), input=InputChoice(512), when=When(within=0.15))
    with pytest.raises(DeadlineUnreachable):
        await pipeline.segment(asked)
    await pipeline.close(PATIENCE_S)


async def test_without_cameras_nothing_is_rehearsed() -> None:
    sam = FakeSam()
    pipeline = make_pipelines(sam, settings=make_settings())
    await rehearse(pipeline, [])
    assert sam.frames == []
    await pipeline.close(PATIENCE_S)


async def test_a_image_that_could_not_be_answered_later_is_told_at_the_start() -> None:
    pipeline = make_pipelines(FakeSam(), settings=make_settings(max_megapixels=0.001))
    with pytest.raises(TooManyPixels):
        await rehearse(pipeline, [CAMERA])
    await pipeline.close(PATIENCE_S)


async def test_a_u_net_answers_for_both_of_its_endpoints() -> None:
    unet = FakeUNet()
    pipeline = make_pipelines(unet=unet, settings=make_settings())
    await rehearse(pipeline, [CAMERA])
    assert unet.prepares == 6
    await pipeline.close(PATIENCE_S)
