"""Fruit that is followed over a stream of frames."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import numpy as np
import pytest

from service.proto.generated.pomona.v1 import segmentation_pb2 as pb
from tests.contract.door import LIMITS
from tests.contract.grpc_door import Caller, frames_of, open_grpc, refused, segment_request
from tests.contract.scenes import fruit_image

STEP: Final = 40
ANSWERED: Final = pb.FRAME_OUTCOME_ANSWERED


@pytest.fixture
async def caller() -> AsyncIterator[Caller]:
    async with open_grpc(**{**LIMITS, "max_megapixels": 0.2}) as opened:
        yield opened


def scene(frame: int, *, spot: bool = False) -> bytes:
    """Two fruits that move by `STEP` a frame; the second leaves the image of 448 pixels after five frames."""
    first, second = (10 + STEP * frame, 40, 90 + STEP * frame, 120), (240 + STEP * frame, 120, 320 + STEP * frame, 200)
    x0, y0, *_ = second
    return fruit_image(first, second, spots=[(x0 + 10, y0 + 10, x0 + 50, y0 + 50)] if spot else ())


def message(number: int, data: bytes, **fields: Any) -> pb.InspectStreamRequest:
    request = pb.InspectRequest(image=data, mode=pb.INSPECT_MODE_FAST, frame_id=f"frame-{number}")
    return pb.InspectStreamRequest(request=request, **fields)


def belt(frames: int, track: pb.Track.ValueType = pb.TRACK_LEAVING) -> list[pb.InspectStreamRequest]:
    settings = pb.InspectStreamRequest(settings=pb.StreamSettings(track=track))
    return [settings, *(message(number, scene(number, spot=number in (1, 2, 3))) for number in range(frames))]


async def by_frame(caller: Caller, messages: list[Any]) -> dict[str, Any]:
    return {reply.frame.frame_id: reply async for reply in caller.stub.InspectStream(frames_of(messages))}


async def test_a_fruit_has_one_track_and_a_verdict_when_it_has_left(caller: Caller) -> None:
    replies = await by_frame(caller, belt(8))
    for number in range(5):
        boxes = [fruit.box.x0 for fruit in replies[f"frame-{number}"].response.fruits]
        ids = list(replies[f"frame-{number}"].tracking.track_ids)
        assert dict(zip(np.argsort(boxes).tolist(), ids, strict=True)) == {0: 1, 1: 2}
    verdicts = [verdict for reply in replies.values() for verdict in reply.tracking.verdicts]
    (verdict,) = verdicts
    assert (verdict.track_id, verdict.left) == (2, True)
    assert verdict.views in (5, 6)
    assert verdict.first_frame.frame_id == "frame-0"
    assert verdict.infected_fraction_max == pytest.approx(0.25, abs=0.02)
    assert verdict.grade == "C"
    assert verdict.best_box.y1 - verdict.best_box.y0 == pytest.approx(80, abs=2)


async def test_verdicts_so_far_are_answered_where_they_are_asked_for(caller: Caller) -> None:
    replies = await by_frame(caller, belt(4, pb.TRACK_ALL))
    assert [len(replies[f"frame-{number}"].tracking.verdicts) for number in range(4)] == [0, 2, 2, 2]
    last = replies["frame-3"].tracking.verdicts
    assert [(verdict.track_id, verdict.views, verdict.left) for verdict in last] == [(1, 4, False), (2, 4, False)]
    assert [verdict.last_frame.frame_id for verdict in last] == ["frame-3"] * 2


async def test_the_verdict_has_the_grades_of_the_frame_that_brings_it(caller: Caller) -> None:
    messages = belt(4, pb.TRACK_ALL)
    messages[-1].request.grades.add(grade="juice", max_infected_fraction=1.0)
    replies = await by_frame(caller, messages)
    assert {verdict.grade for verdict in replies["frame-3"].tracking.verdicts} == {"juice"}


async def test_frames_that_fail_or_are_late_do_not_stop_those_after_them(caller: Caller) -> None:
    messages = belt(5)
    messages[2].request.image = b"an orange"
    messages[3].deadline_ms = 0.001
    replies = await by_frame(caller, messages)
    assert replies["frame-1"].outcome == pb.FRAME_OUTCOME_FAILED
    assert replies["frame-2"].outcome == pb.FRAME_OUTCOME_LATE
    for number in (0, 3, 4):
        assert replies[f"frame-{number}"].outcome == ANSWERED
        assert sorted(replies[f"frame-{number}"].tracking.track_ids) == [1, 2]
    assert not replies["frame-1"].HasField("tracking")


async def test_a_frame_waits_for_the_one_before_it(caller: Caller) -> None:
    busy = await caller.door.hold()
    messages = belt(2)
    messages[1].request.mode = pb.INSPECT_MODE_ACCURATE
    replies = caller.stub.InspectStream(frames_of(messages))
    reading = asyncio.create_task(replies.read())
    await asyncio.sleep(0.2)
    assert not reading.done()  # the second frame has its fruit, but not yet the first
    caller.door.let_go()
    await busy
    assert {(await reading).frame.frame_id, (await replies.read()).frame.frame_id} == {"frame-0", "frame-1"}


async def test_streams_do_not_share_their_tracks_and_without_the_setting_there_are_none(caller: Caller) -> None:
    first, second = await by_frame(caller, belt(2)), await by_frame(caller, belt(2))
    assert list(first["frame-1"].tracking.track_ids) == list(second["frame-1"].tracking.track_ids)
    plain = await by_frame(caller, belt(2)[1:])
    assert not plain["frame-1"].HasField("tracking")


async def test_a_setting_that_the_stream_has_not_is_refused(caller: Caller) -> None:
    settings = pb.StreamSettings(track=pb.TRACK_ALL)
    prompts = pb.SegmentStreamRequest(settings=settings, request=segment_request())
    assert (
        "InspectStream"
        in (await refused(caller.stub.SegmentStream(frames_of([prompts])).read(), "malformed_request")).detail
    )
    odd = pb.InspectStreamRequest()
    odd.settings.track = 9  # type: ignore[assignment]
    assert "track" in (await refused(caller.stub.InspectStream(frames_of([odd])).read(), "malformed_request")).detail
