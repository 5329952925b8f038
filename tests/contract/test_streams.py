"""Streams of frames over gRPC, as a vision PC uses them."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import grpc
import pytest

from models.errors import BackendError
from service.proto.generated.pomona.v1 import segmentation_pb2 as pb
from tests.contract.door import HELD
from tests.contract.grpc_door import Caller, call_error, corners, frames_of, open_grpc, refused, segment_request
from tests.contract.scenes import IMAGE, PEEL
from tests.fakes import LOADED, PATIENCE_S, image_bytes, peel_image

ANSWERED, LATE = pb.FRAME_OUTCOME_ANSWERED, pb.FRAME_OUTCOME_LATE
DROPPED, FAILED = pb.FRAME_OUTCOME_DROPPED, pb.FRAME_OUTCOME_FAILED


def peel(mark: int, data: bytes | None = None, **fields: Any) -> pb.InspectStreamRequest:
    """A frame for the U-Net alone, marked with its number."""
    request = pb.InspectRequest(
        image=peel_image(mark) if data is None else data,
        mode=pb.INSPECT_MODE_FAST,
        frame_id=f"frame-{mark}",
        trigger_id=f"trigger-{mark}",
        captured_at_ns=mark,
    )
    return pb.InspectStreamRequest(request=request, **fields)


def orange(red: int, **fields: Any) -> pb.SegmentStreamRequest:
    request = segment_request(image_bytes(red))
    return pb.SegmentStreamRequest(request=request, frame=pb.Frame(frame_id=f"frame-{red}"), **fields)


def settings(max_in_flight: int, *, drop: bool = False) -> pb.StreamSettings:
    return pb.StreamSettings(
        max_in_flight=max_in_flight, when_full=pb.WHEN_FULL_DROP_OLDEST if drop else pb.WHEN_FULL_WAIT
    )


def outcomes(replies: list[Any]) -> list[tuple[str, Any]]:
    return [(reply.frame.frame_id, reply.outcome) for reply in replies]


async def rest_of(replies: Any) -> list[Any]:
    """Read what is still to come; a call that was read from cannot be iterated over."""
    rest = []
    while (reply := await replies.read()) is not grpc.aio.EOF:
        rest.append(reply)
    return rest


async def test_every_frame_is_answered_with_its_identifiers(caller: Caller) -> None:
    call = caller.stub.InspectStream(frames_of(peel(mark) for mark in range(5)), metadata=(("x-request-id", "cam2"),))
    replies = sorted([reply async for reply in call], key=lambda reply: reply.frame.captured_at_ns)
    assert outcomes(replies) == [(f"frame-{mark}", ANSWERED) for mark in range(5)]
    assert [reply.request_id for reply in replies] == [f"cam2.{number}" for number in range(1, 6)]
    alone = await caller.stub.Inspect(peel(0).request)
    for mark, reply in enumerate(replies):
        assert reply.frame == reply.response.frame
        assert (reply.frame.trigger_id, reply.response.request_id) == (f"trigger-{mark}", reply.request_id)
        assert list(reply.response.fruits) == list(alone.fruits)
        assert not reply.HasField("problem")
    assert await call.code() is grpc.StatusCode.OK


async def test_prompts_are_answered_on_every_frame_and_a_known_image_by_its_id(caller: Caller) -> None:
    known = (await caller.stub.Embed(pb.EmbedRequest(image=IMAGE))).image.id
    by_id = pb.SegmentStreamRequest(
        request=pb.SegmentRequest(image_id=known, prompts=segment_request().prompts), frame=pb.Frame(frame_id="known")
    )
    replies = {reply.frame.frame_id: reply async for reply in caller.stub.SegmentStream(frames_of([orange(9), by_id]))}
    assert {name: reply.outcome for name, reply in replies.items()} == {"frame-9": ANSWERED, "known": ANSWERED}
    for reply in replies.values():
        assert corners(reply.response.results[0].masks[0].box) == (32, 16, 64, 48)
    assert replies["known"].response.batch.encode == 0


async def test_answers_come_as_they_are_ready(caller: Caller) -> None:
    busy = await caller.door.hold()
    accurate = peel(1)
    accurate.request.mode = pb.INSPECT_MODE_ACCURATE
    until = asyncio.Event()
    replies = caller.stub.InspectStream(frames_of([accurate, peel(2)], until))
    assert (await replies.read()).frame.frame_id == "frame-2"
    caller.door.let_go()
    await busy
    assert (await replies.read()).frame.frame_id == "frame-1"
    until.set()
    assert await replies.read() is grpc.aio.EOF


async def test_one_bad_frame_is_answered_with_its_error_and_the_stream_goes_on(caller: Caller) -> None:
    caller.door.unet.spoilt = {4}
    messages = [
        peel(1, b"an orange"),
        peel(2, PEEL[:-40]),
        pb.InspectStreamRequest(request=pb.InspectRequest(frame_id="frame-3")),
        peel(4),
        peel(5, deadline_ms=-1),
        peel(6, urgency=8),
        pb.InspectStreamRequest(deadline_ms=5),
        peel(8, settings=settings(1)),
        pb.InspectStreamRequest(request=pb.InspectRequest(image=PEEL, frame_id="f" * 129)),
        peel(10),
    ]
    replies = [reply async for reply in caller.stub.InspectStream(frames_of(messages))]
    by_number = {reply.request_id.rpartition(".")[2]: reply for reply in replies}
    expected = [
        "not_an_image",
        "truncated_image",
        "no_image",
        "internal_error",
        *["malformed_request"] * 5,
        "",
    ]
    assert [by_number[str(number)].problem.code for number in range(1, 11)] == expected
    assert [by_number[str(number)].outcome for number in range(1, 11)] == [FAILED] * 9 + [ANSWERED]
    for number, word in ((5, "deadline_ms must be above 0"), (6, "urgency must be 0"), (8, "first message")):
        assert word in by_number[str(number)].problem.detail
    assert "cannot do" not in by_number["4"].problem.detail
    assert by_number["1"].problem.title == "The bytes are not an image"
    assert by_number["9"].frame.frame_id == "f" * 129


async def test_a_frame_past_its_deadline_is_late_at_once_and_later_frames_do_not_wait_for_it(
    caller: Caller,
) -> None:
    busy = await caller.door.hold()
    accurate = peel(1, deadline_ms=500)
    accurate.request.mode = pb.INSPECT_MODE_ACCURATE
    began = time.monotonic()
    messages = [accurate, peel(2)]
    replies = [reply async for reply in caller.stub.InspectStream(frames_of(messages))]
    by_frame = {reply.frame.frame_id: reply for reply in replies}
    assert {name: reply.outcome for name, reply in by_frame.items()} == {"frame-2": ANSWERED, "frame-1": LATE}
    assert by_frame["frame-1"].problem.code == "deadline_exceeded"
    assert time.monotonic() - began < PATIENCE_S / 2
    assert not busy.done()
    caller.door.let_go()
    await busy


async def test_a_frame_whose_deadline_cannot_be_met_is_late_before_anything_is_run(caller: Caller) -> None:
    caller.door.sam.encode_s_per_megapixel = 100
    await caller.door.learn()
    messages = [orange(1, deadline_ms=60_000), orange(2, deadline_ms=120_000)]
    replies = [reply async for reply in caller.stub.SegmentStream(frames_of(messages))]
    assert outcomes(replies) == [("frame-1", LATE), ("frame-2", ANSWERED)]
    assert replies[0].problem.code == "deadline_unreachable"
    assert caller.door.sam.encoded == [2]


@pytest.mark.parametrize("options", [{"timeout": 60}, {"metadata": (("x-deadline-ms", "60000"),)}])
async def test_the_streams_own_deadline_counts_for_every_frame_that_has_none(caller: Caller, options: Any) -> None:
    caller.door.sam.encode_s_per_megapixel = 100
    await caller.door.learn()
    replies = [reply async for reply in caller.stub.SegmentStream(frames_of([orange(1)]), **options)]
    assert outcomes(replies) == [("frame-1", LATE)]


async def test_no_more_frames_are_processed_at_a_time_than_the_settings_say(caller: Caller) -> None:
    busy = await caller.door.hold_unet()
    messages = [peel(1, settings=settings(2)), *(peel(mark) for mark in range(2, 6))]
    replies = caller.stub.InspectStream(frames_of(messages))
    await caller.door.unet_runner.images.reach(3)
    # A later call would find a third frame before it.
    other = caller.start(caller.stub.Inspect(peel(9).request))
    await caller.door.unet_runner.images.reach(4)
    caller.door.let_go()
    await asyncio.gather(busy, other)
    assert len([reply async for reply in replies]) == 5
    assert set(caller.door.unet.encoded[:4]) == {HELD, 1, 2, 9}


async def test_with_drop_oldest_the_frame_that_waited_is_dropped_and_reported(caller: Caller) -> None:
    busy = await caller.door.hold_unet()
    until = asyncio.Event()
    first = pb.InspectStreamRequest(settings=settings(1, drop=True))
    replies = caller.stub.InspectStream(frames_of([first, *(peel(mark) for mark in range(1, 5))], until))
    dropped = [await replies.read(), await replies.read()]
    assert outcomes(dropped) == [("frame-2", DROPPED), ("frame-3", DROPPED)]
    assert not any(reply.HasField("problem") or reply.HasField("response") for reply in dropped)
    caller.door.let_go()
    await busy
    until.set()
    assert outcomes(await rest_of(replies)) == [("frame-1", ANSWERED), ("frame-4", ANSWERED)]
    assert caller.door.unet.encoded == [HELD, 1, 4]


async def test_a_frame_that_waits_for_its_turn_is_late_at_once_too(caller: Caller) -> None:
    busy = await caller.door.hold_unet()
    until = asyncio.Event()
    messages = [peel(1, settings=settings(1, drop=True)), peel(2, deadline_ms=500)]
    replies = caller.stub.InspectStream(frames_of(messages, until))
    late = await replies.read()
    assert outcomes([late]) == [("frame-2", LATE)]
    assert "turn" in late.problem.detail
    caller.door.let_go()
    await busy
    until.set()
    assert outcomes(await rest_of(replies)) == [("frame-1", ANSWERED)]
    assert caller.door.unet.encoded == [HELD, 1]


async def test_a_frame_has_its_own_urgency_or_else_the_streams(caller: Caller) -> None:
    busy = await caller.door.hold_unet()
    messages = [peel(1, urgency=7), peel(2), peel(3, urgency=0)]
    replies = caller.stub.InspectStream(frames_of(messages), metadata=(("priority", "u=5"),))
    await caller.door.unet_runner.images.reach(4)
    caller.door.let_go()
    await busy
    assert len([reply async for reply in replies]) == 3
    assert caller.door.unet.encoded == [HELD, 3, 2, 1]


async def test_a_frame_beyond_a_full_queue_is_refused_with_the_time_after_which_to_retry() -> None:
    async with open_grpc(max_queued=2) as caller:
        busy = await caller.door.hold_unet()
        replies = caller.stub.InspectStream(frames_of(peel(mark) for mark in range(1, 4)))
        reply = await replies.read()
        assert (reply.outcome, reply.problem.code) == (FAILED, "overloaded")
        assert reply.problem.retry_after_ms >= 1000
        caller.door.let_go()
        await busy
        assert ANSWERED in {reply.outcome for reply in await rest_of(replies)}


@pytest.mark.parametrize(
    ("odd", "says"),
    [
        (pb.StreamSettings(max_in_flight=65), "max_in_flight must be 1 to 64, got 65"),
        (pb.StreamSettings(when_full=9), "when_full"),  # type: ignore[arg-type]
    ],
)
async def test_settings_out_of_range_end_the_stream(caller: Caller, odd: pb.StreamSettings, says: str) -> None:
    # The stream stays open: of one that is ended while its caller writes, grpc.aio may report the failed write instead.
    replies = caller.stub.InspectStream(frames_of([pb.InspectStreamRequest(settings=odd)], asyncio.Event()))
    assert says in (await refused(replies.read(), "malformed_request")).detail
    assert caller.door.unet.encodes == []


@pytest.mark.parametrize("messages", [[], [pb.InspectStreamRequest()]])
async def test_a_stream_without_frames_ends_well(caller: Caller, messages: list[Any]) -> None:
    assert [reply async for reply in caller.stub.InspectStream(frames_of(messages))] == []


async def test_nothing_is_run_for_a_camera_that_left(caller: Caller, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="pomona.grpc")
    busy = await caller.door.hold_unet()
    replies = caller.stub.InspectStream(frames_of([peel(1), peel(2)]))
    reading = caller.start(replies.read())
    await caller.door.unet_runner.images.reach(3)
    replies.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await caller.stub.ListModels(pb.ListModelsRequest())
    caller.door.let_go()
    await busy
    assert (await caller.stub.Inspect(peel(3).request)).frame.frame_id == "frame-3"
    assert caller.door.unet.encoded == [HELD, 3]
    ended = [vars(record) for record in caplog.records if vars(record)["path"].endswith("InspectStream")]
    assert {line["grpc_status"] for line in ended} == {"CANCELLED"}
    assert [line["message"] for line in ended].count("stream") == 1


async def test_a_device_that_fails_fails_frames_and_not_the_stream(caller: Caller) -> None:
    caller.door.sam.fails = BackendError("CUDA: secret path")
    until = asyncio.Event()

    async def messages() -> Any:
        yield orange(1)
        await until.wait()
        yield orange(2)

    replies = caller.stub.SegmentStream(messages())
    failed = await replies.read()
    assert (failed.outcome, failed.problem.code) == (FAILED, "internal_error")
    assert "secret" not in str(failed)
    caller.door.sam.fails = None
    until.set()
    assert outcomes(await rest_of(replies)) == [("frame-2", ANSWERED)]


async def test_before_the_models_are_loaded_frames_are_refused_with_the_time_after_which_to_retry() -> None:
    async with open_grpc(ready=False) as caller:
        replies = [reply async for reply in caller.stub.InspectStream(frames_of([peel(1)]))]
        assert [(reply.outcome, reply.problem.code, reply.problem.retry_after_ms) for reply in replies] == [
            (FAILED, "not_ready", 2000)
        ]


async def test_a_server_that_stops_answers_the_frames_it_read_and_says_why_it_ends(caller: Caller) -> None:
    busy = await caller.door.hold()
    forever = asyncio.Event()
    replies = caller.stub.SegmentStream(frames_of([orange(1), orange(2)], forever))
    await caller.door.runner.images.reach(3)
    idle = caller.stub.InspectStream(frames_of([peel(1)], forever))
    assert (await idle.read()).outcome == ANSWERED
    draining = asyncio.create_task(caller.server.drain(PATIENCE_S))
    await refused(idle.read(), "not_ready")
    assert not draining.done()
    caller.door.let_go()
    await busy
    got = [await replies.read(), await replies.read()]
    assert sorted(outcomes(got)) == [("frame-1", ANSWERED), ("frame-2", ANSWERED)]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await replies.read()
    assert call_error(caught.value).code == "not_ready"
    await draining


async def test_each_frame_has_its_own_line_in_the_log(caller: Caller, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="pomona.grpc")
    call = caller.stub.SegmentStream(
        frames_of([orange(1), pb.SegmentStreamRequest(request=pb.SegmentRequest(prompts=segment_request().prompts))]),
        metadata=(("x-request-id", "cam2"),),
    )
    replies = {reply.request_id: reply async for reply in call}
    lines = {vars(record)["request_id"]: vars(record) for record in caplog.records}
    assert lines.keys() == {"cam2", "cam2.1", "cam2.2"}
    good, bad, whole = lines["cam2.1"], lines["cam2.2"], lines["cam2"]
    assert (good["grpc_status"], good["model"], good["prompts"]) == ("OK", LOADED.name, 1)
    assert good["frame_id"] == "frame-1"
    assert good["timing_ms"]["total"] == pytest.approx(replies["cam2.1"].response.timing_ms.total, abs=0.01)
    assert (bad["grpc_status"], bad["code"]) == ("INVALID_ARGUMENT", "no_image")
    assert (whole["message"], whole["grpc_status"]) == ("stream", "OK")
