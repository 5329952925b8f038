"""Every bad request is refused at every door with the same code and the same words, and no other request notices."""

from __future__ import annotations

from typing import Any, Final

import grpc
import pytest

from service.errors import PROBLEMS
from service.proto.generated.pomona.v1 import segmentation_pb2 as pb
from tests.contract.door import BOX, LIMITS, POINT, Door, fields, image, open_door, plain, problem, prompted
from tests.contract.doors import Name, doors, oip_doors, refusal_by
from tests.contract.grpc_door import Caller, frames_of, refused, segment_request
from tests.contract.refusals import BODIES, EVERYWHERE, IN_JSON, MESSAGES, ONLY_ID, PLACES, QUOTING, TEXTS, Refusal
from tests.contract.scenes import IMAGE, PEEL
from tests.file_server import serving

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATHS: Final = ("/v1/segment", "/v1/embed", "/v1/semantic", "/v1/inspect", "/v1/detect", "/v1/instances", "/v1/text")
SERVICE: Final = "/pomona.v1.Segmentation"

SAME_WORDS: Final = {
    "not_an_image",
    "truncated_image",
    "image_too_complex",
    "unsupported_image_format",
    "too_many_pixels",
    "prompt_outside_image",
    "too_many_prompts",
    "model_not_loaded",
}
"""Codes whose details are the same over the Open Inference Protocol, where others name tensors and parameters."""


@pytest.fixture
def caller(unharmed: Caller) -> Caller:
    return unharmed


@pytest.fixture
def door(caller: Caller) -> Door:
    return caller.door


@pytest.mark.parametrize("refusal", EVERYWHERE, ids=lambda refusal: refusal.id)
async def test_every_door_refuses_with_the_same_code_and_words(caller: Caller, refusal: Refusal) -> None:
    details = {}
    for name, send in doors(refusal.request).items():
        found = await refusal_by(send, caller, refusal.request)
        assert found.code == refusal.code, name
        details[name] = found.detail
    assert len(set(details.values())) == 1, details
    assert refusal.says in details["HTTP"]
    if refusal.oip:
        for name, send in oip_doors(refusal.request).items():
            found = await refusal_by(send, caller, refusal.request)
            assert found.code == refusal.code, name
            if refusal.code in SAME_WORDS:
                assert found.detail == details["HTTP"], name


@pytest.mark.parametrize("refusal", IN_JSON, ids=lambda refusal: refusal.id)
async def test_json_that_is_not_of_the_schema_is_refused(caller: Caller, refusal: Refusal) -> None:
    for name in ("HTTP", "HTTP, raw body"):
        if (send := doors(refusal.request).get(name)) is not None:
            found = await refusal_by(send, caller, refusal.request)
            assert found.code == refusal.code, name
            assert refusal.says in found.detail


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("code", "says", "text"), [case[1:] for case in TEXTS], ids=[case[0] for case in TEXTS])
async def test_text_that_is_not_a_json_object_is_refused(
    door: Door, path: str, code: str, says: str, text: bytes
) -> None:
    assert says in problem(await door.post(image(), plain("request", text), path=path), code).detail
    if text.isascii():
        headers = {"content-type": "image/png"}
        answer = await door.client.post(path, content=IMAGE, params={"request": text.decode()}, headers=headers)
        assert says in problem(answer, code).detail


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("code", "says", "body"), [case[1:] for case in BODIES], ids=[case[0] for case in BODIES])
async def test_a_body_of_another_form_is_refused(door: Door, path: str, code: str, says: str, body: Any) -> None:
    assert says in problem(await door.client.post(path, **body), code).detail


@pytest.mark.parametrize("name", ONLY_ID)
async def test_an_image_id_is_an_unknown_part_where_it_is_not_supported(door: Door, name: Name) -> None:
    assert "'image_id'" in problem(await door.post(*ONLY_ID[name], path=f"/v1/{name}"), "unknown_field").detail


@pytest.mark.parametrize(("method", "path", "code", "says"), PLACES)
async def test_a_wrong_path_or_method_is_refused(door: Door, method: str, path: str, code: str, says: str) -> None:
    answer = await door.client.request(method, path)
    assert says in problem(answer, code).detail
    if code == "method_not_allowed":
        assert answer.headers["allow"] == ("POST" if "allows POST" in says else "GET, HEAD")


@pytest.mark.parametrize(("code", "says", "message"), MESSAGES)
async def test_a_message_with_unknown_numbers_or_without_a_kind_is_refused(
    caller: Caller, code: str, says: str, message: Any
) -> None:
    method = type(message).__name__.removesuffix("Request")
    assert says in (await refused(getattr(caller.stub, method)(message), code)).detail


@pytest.mark.parametrize(
    "method", ["Segment", "Semantic", "Inspect", "Embed", "Detect", "Instances", "Text", "ListModels"]
)
@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\x7fan orange"])
async def test_bytes_that_are_no_message_are_refused(caller: Caller, method: str, data: bytes) -> None:
    error = await refused(caller.channel.unary_unary(f"{SERVICE}/{method}")(data), "malformed_request")
    assert error.status is grpc.StatusCode.INVALID_ARGUMENT


async def test_bytes_that_are_no_message_end_a_stream_once_the_frames_before_are_answered(shared: Caller) -> None:
    call = shared.channel.stream_stream(f"{SERVICE}/InspectStream")
    good = pb.InspectStreamRequest(request=pb.InspectRequest(image=PEEL)).SerializeToString()
    replies = call(frames_of([good, b"\xff\xff\xff"]))
    reply = pb.InspectStreamResponse.FromString(await replies.read())
    assert (reply.outcome, len(reply.response.fruits)) == (pb.FRAME_OUTCOME_ANSWERED, 2)
    await refused(replies.read(), "malformed_request")


@pytest.mark.parametrize("path", [f"{SERVICE}/Segmnet", "/pomona.v2.Segmentation/Segment", "/grpc.oranges/Check"])
async def test_an_unknown_method_is_refused_with_its_name(caller: Caller, path: str) -> None:
    assert path in (await refused(caller.channel.unary_unary(path)(b""), "not_found")).detail
    await refused(caller.channel.stream_stream(path)(frames_of([b""])).read(), "not_found")


async def test_a_url_instead_of_an_image_is_never_fetched(caller: Caller) -> None:
    with serving() as server:
        server.files["/orange.png"] = IMAGE
        url = server.url("/orange.png")
        for part in (image(url.encode()), plain("image", url)):
            problem(await caller.door.post(part, prompted(POINT)), "not_an_image")
        problem(await caller.door.post(plain("image_id", url), prompted(POINT)), "unknown_image_id")
        await refused(caller.segment(url.encode()), "not_an_image")
        await refused(
            caller.stub.Segment(pb.SegmentRequest(image_id=url, prompts=segment_request().prompts)), "unknown_image_id"
        )
        assert server.seen == []


async def test_a_detail_that_quotes_the_caller_stays_short(caller: Caller) -> None:
    assert len(problem(await caller.door.post(*QUOTING), "unknown_image_id").detail) == 1200
    call = caller.stub.Segment(pb.SegmentRequest(image_id="a" * 100_000, prompts=segment_request().prompts))
    assert len((await refused(call, "unknown_image_id")).detail) == 1200


async def test_empty_parts_of_a_form_are_as_if_absent() -> None:
    async with open_door(**LIMITS) as door:
        by_image = await door.segment(image(), plain("image_id", ""), prompted(BOX))
        by_id = await door.segment(image(b""), plain("image_id", by_image.image.id), prompted(BOX))
        assert by_id.results == by_image.results
        problem(await door.post(image(b""), fields(), path="/v1/embed"), "not_an_image")


BY_TESTS_OF_THEIR_OWN: Final = {
    "not_ready",
    "timed_out",
    "internal_error",
    "upload_too_large",
    "too_much_memory",
    "overloaded",
    "deadline_exceeded",
    "deadline_unreachable",
    "unauthenticated",
    "permission_denied",
    "rate_limited",
    "unknown_session",
    "session_expired",
    "frame_size_changed",
    "too_many_objects",
    "too_many_sessions",
}
"""In `test_deadlines`, `test_load`, `test_lifecycle`, `test_access` and `test_track`."""


async def test_every_code_has_a_test() -> None:
    everywhere = {refusal.code for refusal in EVERYWHERE}
    over_http = (
        {refusal.code for refusal in IN_JSON} | {case[1] for case in (*TEXTS, *BODIES)} | {case[2] for case in PLACES}
    )
    over_grpc = {code for code, _, _ in MESSAGES} | {"not_found"}
    assert everywhere | over_http | BY_TESTS_OF_THEIR_OWN == {row.code for row in PROBLEMS.values()}
    # These are about JSON, forms and HTTP; gRPC ignores unknown fields, so that newer callers may come.
    only_over_http = {"malformed_json", "unknown_field", "method_not_allowed"}
    assert over_http - everywhere - over_grpc == only_over_http
