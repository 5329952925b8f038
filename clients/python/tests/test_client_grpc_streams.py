"""Cameras over gRPC's own streams: what becomes of frames, of the stream, and of frames in flight."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import grpc
import pytest
from grpc_stand_in import Frames, GrpcStandIn, Status
from stand_in import PATIENCE_S, SEGMENTED, Problem, use_stream

from pomona import AsyncClient, Client, Frame, FrameAnswer, Inspect, Point, Retry, Segment, Semantic, errors
from pomona._proto import segmentation_pb2 as pb
from pomona.grpc_codec import encode

Code = grpc.StatusCode


def frames(count: int, size: int = 0) -> Iterator[Frame]:
    return (Frame(image=bytes(size) + str(number).encode(), frame_id=f"f{number}") for number in range(count))


def ids(answers: list[FrameAnswer[Any]]) -> list[str]:
    return [answer.frame_id for answer in answers]


def test_all_frames_go_over_one_stream_and_answers_come_in_their_order(grpc_service: GrpcStandIn, kind: str) -> None:
    def backwards(camera: Frames) -> Iterator[Any]:
        for number in (1, 4):
            got = [camera.next() for _ in range(3)]
            seen.extend(got)
            yield from (camera.reply(each) for each in range(number + 2, number - 1, -1))

    seen: list[Any] = []
    grpc_service.stream = backwards
    given = [Frame(image=b"x", frame_id=f"f{number}", trigger_id="t", captured_at_ns=number) for number in range(6)]
    answers = use_stream(kind, grpc_service.address, given, Inspect(mode="fast"), in_flight=3, deadline=9, urgency=1)
    assert ids(answers) == [f"f{number}" for number in range(6)]
    assert {answer.unwrap().fruits[0].grade for answer in answers} == {"B"}
    (camera,) = grpc_service.streams
    assert camera.settings == pb.StreamSettings(max_in_flight=3, when_full=pb.WHEN_FULL_WAIT)
    assert camera.metadata["x-request-id"]
    for number, message in enumerate(sorted(seen, key=lambda each: each.request.captured_at_ns)):
        expected = pb.InspectRequest(
            image=b"x",
            mode=pb.INSPECT_MODE_FAST,
            frame_id=f"f{number}",
            trigger_id="t",
            captured_at_ns=number,
        )
        assert (message.request, message.urgency) == (expected, 1)
        assert 8000 < message.deadline_ms <= 9000


def test_segment_has_a_stream_of_its_own(grpc_service: GrpcStandIn, kind: str) -> None:
    def segment(camera: Frames) -> Iterator[Any]:
        for number, message in enumerate(camera.rest(), start=1):
            assert message.request.prompts[0].points[0].x == 3
            reply = {"request_id": f"a.b.{number}", "outcome": "answered", "response": SEGMENTED}
            yield encode(reply, pb.SegmentStreamResponse.DESCRIPTOR)

    grpc_service.stream = segment
    answers = use_stream(kind, grpc_service.address, frames(2), Segment(Point(3, 3)))
    assert [answer.unwrap().best[0].area for answer in answers] == [20, 20]
    assert grpc_service.received == []


def test_requests_without_a_stream_are_sent_frame_by_frame(grpc_service: GrpcStandIn, kind: str) -> None:
    grpc_service.always(Problem("not_an_image"))
    answers = use_stream(kind, grpc_service.address, frames(2), Semantic())
    assert [type(answer.error) for answer in answers] == [errors.NotAnImage] * 2
    assert [received.operation for received in grpc_service.received] == ["semantic"] * 2


def test_bad_late_and_dropped_frames_are_answered_and_the_stream_goes_on(grpc_service: GrpcStandIn, kind: str) -> None:
    def judge(camera: Frames) -> Iterator[Any]:
        for number, message in enumerate(camera.rest(), start=1):
            yield {
                "f0": camera.reply(number),
                "f1": camera.reply(
                    number,
                    outcome="failed",
                    problem={"code": "not_an_image", "detail": "It is text."},
                ),
                "f2": camera.reply(number, outcome="late", problem={"code": "deadline_unreachable"}),
                "f3": camera.reply(number, outcome="dropped"),
                "f4": camera.reply(number, outcome="failed"),
            }[message.request.frame_id]

    grpc_service.stream = judge
    good, bad, late, dropped, odd = use_stream(kind, grpc_service.address, frames(5), Inspect(), deadline=9)
    assert good.unwrap().fruits
    assert isinstance(bad.error, errors.NotAnImage)
    assert bad.error.detail == "It is text."
    assert [answer.late for answer in (bad, late, dropped)] == [False, True, False]
    assert isinstance(late.error, errors.DeadlineUnreachable)
    assert dropped.dropped
    assert isinstance(odd.error, errors.BadAnswer)


def test_a_frame_that_the_service_wants_later_is_sent_again(grpc_service: GrpcStandIn, kind: str) -> None:
    def busy_once(camera: Frames) -> Iterator[Any]:
        camera.next()
        problem = {"code": "overloaded", "retry_after_ms": 20}
        yield camera.reply(1, outcome="failed", problem=problem)
        camera.next()
        yield camera.reply(2)

    grpc_service.stream = busy_once
    (answer,) = use_stream(kind, grpc_service.address, frames(1), Inspect(), retry=Retry(first_delay=0))
    assert answer.unwrap().fruits


def test_a_frame_that_is_not_answered_in_time_is_late(grpc_service: GrpcStandIn, kind: str) -> None:
    def second(camera: Frames) -> Iterator[Any]:
        for number, message in enumerate(camera.rest(), start=1):
            if message.request.frame_id == "f1":
                yield camera.reply(number)

    grpc_service.stream = second
    # A busy machine needs a part of the deadline for the frame that is answered.
    answers = use_stream(kind, grpc_service.address, frames(2), Inspect(), deadline=1.5)
    assert [answer.late for answer in answers] == [True, False]


def test_a_service_that_stops_raises_one_error_with_what_was_answered(grpc_service: GrpcStandIn, kind: str) -> None:
    def leave(camera: Frames) -> Iterator[Any]:
        for number in range(1, 3):
            camera.next()
            yield camera.reply(number)
        camera.next()
        grpc_service.server.stop(None)
        camera.cancelled.wait(PATIENCE_S)

    grpc_service.stream = leave
    with pytest.raises(errors.StreamBroken, match="2 frames were answered, 1 were not: f2") as broken:
        use_stream(kind, grpc_service.address, frames(9), Inspect(), in_flight=1)
    assert (broken.value.answered, broken.value.unanswered) == (2, ("f2",))
    assert isinstance(broken.value.__cause__, errors.ConnectionFailed)


@pytest.mark.parametrize("end", [None, Status(Code.UNAVAILABLE), Status(Code.UNAVAILABLE, code="not_ready")])
def test_a_stream_that_ends_is_opened_again_for_the_frames_without_an_answer(
    grpc_service: GrpcStandIn, kind: str, end: Status | None
) -> None:
    def leave(camera: Frames) -> Iterator[Any]:
        camera.next()
        if len(grpc_service.streams) == 1:
            camera.next()
            yield camera.reply(1)
            if end is not None:
                raise end
            return
        yield camera.reply(1)
        for number, _ in enumerate(camera.rest(), start=2):
            yield camera.reply(number)

    grpc_service.stream = leave
    answers = use_stream(kind, grpc_service.address, frames(4), Inspect(), in_flight=2, retry=Retry(first_delay=0))
    assert ids(answers) == ["f0", "f1", "f2", "f3"]
    assert all(answer.result for answer in answers)
    assert len(grpc_service.streams) == 2


def test_frames_for_a_service_without_streams_fail_as_not_found(grpc_service: GrpcStandIn, kind: str) -> None:
    def refuse(camera: Frames) -> Iterator[Any]:
        raise Status(Code.UNIMPLEMENTED)

    grpc_service.stream = refuse
    answers = use_stream(kind, grpc_service.address, frames(2), Inspect())
    assert [type(answer.error) for answer in answers] == [errors.NotFound] * 2


@pytest.mark.parametrize("odd", [b"\xff\xff", pb.InspectStreamResponse(request_id="what")])
def test_a_reply_that_cannot_be_read_is_an_error_of_ours(grpc_service: GrpcStandIn, kind: str, odd: Any) -> None:
    def strange(camera: Frames) -> Iterator[Any]:
        camera.next()
        yield odd
        camera.cancelled.wait(PATIENCE_S)

    grpc_service.stream = strange
    (answer,) = use_stream(kind, grpc_service.address, frames(1), Inspect())
    assert isinstance(answer.error, errors.BadAnswer)
    assert grpc_service.streams[0].cancelled.wait(PATIENCE_S)


def test_a_frame_too_large_for_the_service_fails_alone(grpc_service: GrpcStandIn, kind: str) -> None:
    huge = bytes(2 << 20)
    given = [b"0", b"1", huge, b"3", huge, b"5"]
    answers = use_stream(kind, grpc_service.address, given, Inspect(), in_flight=4)
    failed = [type(answer.error) for answer in answers if answer.error]
    assert ids([answer for answer in answers if answer.error]) == ["2", "4"]
    assert failed == [errors.UploadTooLarge] * 2
    assert len(grpc_service.streams) <= 3


def test_a_frame_that_cannot_be_sent_fails_alone(grpc_service: GrpcStandIn, kind: str) -> None:
    given = [Frame(image=b"0"), Frame(image=b"1", captured_at_ns=1 << 80), Frame(image=b"2")]
    answers = use_stream(kind, grpc_service.address, given, Inspect())
    assert [type(answer.error) for answer in answers] == [type(None), errors.InvalidArgument, type(None)]


def test_leaving_early_cancels_the_frames_in_flight(grpc_service: GrpcStandIn) -> None:
    def first_alone(camera: Frames) -> Iterator[Any]:
        yield camera.reply(camera.find("f0"))
        camera.cancelled.wait(PATIENCE_S)

    grpc_service.stream = first_alone
    with Client(grpc_service.address) as pomona:
        answers = pomona.stream(frames(9), Inspect(), in_flight=3)
        assert next(answers).frame_id == "f0"
        assert not grpc_service.streams[0].cancelled.is_set()
        answers.close()  # type: ignore[attr-defined] # it is a generator
        assert grpc_service.streams[0].cancelled.wait(PATIENCE_S)
        assert pomona.ready()


async def test_leaving_an_async_stream_cancels_the_frames_in_flight(grpc_service: GrpcStandIn) -> None:
    def first_alone(camera: Frames) -> Iterator[Any]:
        camera.next()
        yield camera.reply(1)
        camera.cancelled.wait(PATIENCE_S)

    async def camera() -> AsyncIterator[bytes]:
        for number in range(9):
            yield str(number).encode()

    grpc_service.stream = first_alone
    async with AsyncClient(grpc_service.address) as pomona:
        async with aclosing(pomona.stream(camera(), Inspect(), in_flight=3)) as answers:
            assert (await anext(answers)).frame_id == "0"
            assert not grpc_service.streams[0].cancelled.is_set()
        assert await asyncio.to_thread(grpc_service.streams[0].cancelled.wait, PATIENCE_S)
        assert await pomona.ready()


def test_a_stream_whose_frames_are_all_answered_ends_normally(grpc_service: GrpcStandIn, kind: str) -> None:
    ended: list[bool] = []

    def watched(camera: Frames) -> Iterator[Any]:
        for number, _ in enumerate(camera.rest(), start=1):
            yield camera.reply(number)
        ended.append(True)

    grpc_service.stream = watched
    assert len(use_stream(kind, grpc_service.address, frames(3), Inspect())) == 3
    assert ended == [True]


def test_a_client_that_is_closed_ends_its_streams(grpc_service: GrpcStandIn) -> None:
    def silent(camera: Frames) -> Iterator[Any]:
        camera.next()
        yield camera.reply(1)
        camera.cancelled.wait(PATIENCE_S)

    grpc_service.stream = silent
    pomona = Client(grpc_service.address)
    answers = pomona.stream(frames(3), Inspect(), in_flight=1)
    next(answers)
    pomona.close()
    (rest, last) = answers
    assert [type(answer.error) for answer in (rest, last)] == [errors.ClientClosed] * 2


def test_an_empty_stream_is_not_opened(grpc_service: GrpcStandIn, kind: str) -> None:
    assert use_stream(kind, grpc_service.address, [], Inspect()) == []
    assert grpc_service.streams == []
