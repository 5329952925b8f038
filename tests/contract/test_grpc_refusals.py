from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any, Final

import grpc
import pytest

from models.errors import BackendError, DeviceBroken
from service.errors import PROBLEMS
from service.proto.generated.pomona.v1 import segmentation_pb2 as pb
from tests.contract import test_grpc_deadlines as deadlines
from tests.contract.grpc_door import BOX, IMAGE, PEEL, POINT, Caller, corners, only, open_grpc, refused
from tests.contract.grpc_refusals import REFUSALS, Refusal
from tests.file_server import serving

PATH = "/pomona.v1.Segmentation"


async def still_answers(caller: Caller) -> None:
    assert corners(only(await caller.segment()).box) == (32, 16, 64, 48)


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: f"{refusal.method} {refusal.code}: {refusal.name}")
async def test_a_bad_call_is_refused_with_its_code_and_costs_no_encoding(caller: Caller, refusal: Refusal) -> None:
    call = getattr(caller.stub, refusal.method)(refusal.request, metadata=refusal.metadata)
    assert refusal.says in (await refused(call, refusal.code)).detail
    door = caller.door
    assert door.sam.encodes == door.second.encodes == door.unet.encodes == []
    # The next caller notices nothing.
    await still_answers(caller)


@pytest.mark.parametrize("method", ["Segment", "Semantic", "Inspect", "Embed", "ListModels"])
@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\x7fan orange"])
async def test_bytes_that_are_no_message_are_refused(caller: Caller, method: str, data: bytes) -> None:
    told = await refused(caller.channel.unary_unary(f"{PATH}/{method}")(data), "malformed_request")
    assert told.status is grpc.StatusCode.INVALID_ARGUMENT
    await still_answers(caller)


async def test_bytes_that_are_no_message_end_a_stream_once_what_came_before_is_answered(caller: Caller) -> None:
    call = caller.channel.stream_stream(f"{PATH}/InspectStream")
    good = pb.InspectStreamRequest(request=pb.InspectRequest(image=PEEL)).SerializeToString()

    async def messages() -> Any:
        yield good
        yield b"\xff\xff\xff"

    replies = call(messages())
    reply = pb.InspectStreamResponse.FromString(await replies.read())
    assert (reply.outcome, len(reply.response.fruits)) == (pb.FRAME_OUTCOME_ANSWERED, 2)
    await refused(replies.read(), "malformed_request")
    await still_answers(caller)


@pytest.mark.parametrize("path", [f"{PATH}/Segmnet", "/pomona.v2.Segmentation/Segment", "/grpc.oranges/Check"])
async def test_a_method_that_is_not_there_is_refused_with_its_name(caller: Caller, path: str) -> None:
    assert path in (await refused(caller.channel.unary_unary(path)(b""), "not_found")).detail


async def test_a_method_is_refused_to_a_stream_that_is_not_there(caller: Caller) -> None:
    async def nothing() -> Any:
        yield b""

    replies = caller.channel.stream_stream(f"{PATH}/EdgesStream")(nothing())
    await refused(replies.read(), "not_found")


async def test_a_message_beyond_the_limit_is_refused_and_one_of_it_is_taken() -> None:
    request = pb.SegmentRequest(image=IMAGE, prompts=[BOX])
    size = len(request.SerializeToString())
    async with open_grpc(max_upload_mib=size / 2**20) as caller:
        assert corners(only(await caller.stub.Segment(request)).box) == (32, 16, 64, 48)
        request.model = "x"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await caller.stub.Segment(request)
        row = next(row for row in PROBLEMS.values() if row.code == "upload_too_large")
        assert caught.value.code() is grpc.StatusCode[row.grpc]
        await still_answers(caller)


async def test_answers_may_be_larger_than_what_is_taken() -> None:
    async with open_grpc(max_upload_mib=0.01) as caller:
        answer = await caller.segment(IMAGE, *[POINT] * 20, format=pb.MASK_FORMAT_LOGITS)
        assert answer.ByteSize() > 20 * 0.01 * 2**20


async def test_a_url_instead_of_a_image_is_never_fetched(caller: Caller) -> None:
    with serving() as server:
        server.files["/orange.png"] = IMAGE
        url = server.url("/orange.png")
        await refused(caller.segment(url.encode()), "not_an_image")
        call = caller.stub.Segment(pb.SegmentRequest(image_id=url, prompts=[POINT]))
        await refused(call, "unknown_image_id")
        assert server.seen == []


async def test_before_the_models_are_loaded_the_answer_is_to_come_back_later() -> None:
    async with open_grpc(ready=False) as caller:
        stub = caller.stub
        for call in (
            stub.Segment(pb.SegmentRequest(image=IMAGE, prompts=[BOX])),
            stub.Semantic(pb.SemanticRequest(image=PEEL)),
            stub.Inspect(pb.InspectRequest(image=PEEL)),
            stub.Embed(pb.EmbedRequest(image=IMAGE)),
            stub.ListModels(pb.ListModelsRequest()),
        ):
            told = await refused(call, "not_ready")
            assert told.status is grpc.StatusCode.UNAVAILABLE
            assert told.retry_after_s == 2
        caller.server.open(caller.door.pipeline)
        await still_answers(caller)


async def test_a_call_that_takes_too_long_is_told_so_and_the_next_is_answered() -> None:
    async with open_grpc(request_timeout_s=0.2) as caller:
        caller.door.sam.blocks = threading.Event()
        assert "POMONA_REQUEST_TIMEOUT_S" in (await refused(caller.segment(), "timed_out")).detail
        await refused(caller.stub.Embed(pb.EmbedRequest(image=IMAGE)), "timed_out")
        caller.door.let_go()
        await still_answers(caller)


@pytest.mark.parametrize("failure", [BackendError("CUDA: secret path /srv/weights"), ZeroDivisionError("secret path")])
async def test_a_failure_of_the_server_leaks_nothing_and_is_logged(
    caller: Caller, failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    caller.door.sam.fails = failure
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await caller.segment()
    for leak in ("secret", type(failure).__name__):
        assert leak not in str(caught.value)
        assert leak.encode() not in str(caught.value.trailing_metadata()).encode()
    told = await refused(caller.segment(), "internal_error")
    logged = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert vars(logged[-1])["request_id"] == told.request_id
    assert any("secret" in str(vars(record)) for record in logged)
    caller.door.sam.fails = None
    await still_answers(caller)


async def test_a_device_that_broke_answers_everybody_that_the_server_failed(
    caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    busy = await caller.hold()
    waiting = asyncio.create_task(caller.segment())
    await caller.door.runner.images.reach(2)
    caller.door.sam.fails = DeviceBroken("CUDA error at /srv/weights")
    caller.door.let_go()
    await refused(waiting, "internal_error")
    assert "CUDA" not in (await refused(caller.segment(), "internal_error")).detail
    with pytest.raises(AssertionError, match="internal_error"):
        await busy
    assert any("CUDA" in str(vars(record)) for record in caplog.records)


async def test_a_detail_that_quotes_a_caller_stays_short(caller: Caller) -> None:
    call = caller.stub.Segment(pb.SegmentRequest(image_id="a" * 100_000, prompts=[POINT]))
    assert len((await refused(call, "unknown_image_id")).detail) == 600


BY_TESTS_OF_THEIR_OWN: Final = {
    "not_ready": test_before_the_models_are_loaded_the_answer_is_to_come_back_later,
    "timed_out": test_a_call_that_takes_too_long_is_told_so_and_the_next_is_answered,
    "internal_error": test_a_failure_of_the_server_leaks_nothing_and_is_logged,
    "upload_too_large": test_a_message_beyond_the_limit_is_refused_and_one_of_it_is_taken,
    "not_found": test_a_method_that_is_not_there_is_refused_with_its_name,
    "overloaded": deadlines.test_a_call_beyond_a_full_queue_is_refused_and_told_when_to_come_back,
    "deadline_exceeded": deadlines.test_a_deadline_that_passes_in_the_queue_is_answered_at_once_and_nothing_is_run,
    "deadline_unreachable": deadlines.test_a_deadline_that_cannot_be_met_is_refused_before_anything_is_run,
}
ONLY_OVER_HTTP: Final = {"malformed_json", "unknown_field", "method_not_allowed"}
"""Of JSON, of forms, and of methods of HTTP; over gRPC unknown fields are ignored, so that newer callers may come."""


def test_every_code_of_the_table_is_exercised() -> None:
    exercised = {refusal.code for refusal in REFUSALS} | set(BY_TESTS_OF_THEIR_OWN)
    assert not exercised & ONLY_OVER_HTTP
    assert exercised | ONLY_OVER_HTTP == {row.code for row in PROBLEMS.values()}
