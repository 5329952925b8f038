"""Cameras over gRPC's own streams: what becomes of frames, of the stream, and of who leaves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from typing import Any

import grpc
import pytest
from grpc_stand_in import (
    PATIENCE_S,
    SEGMENTED_MESSAGE,
    Frames,
    GrpcStandIn,
    Told,
    grpc_standing_in,
)

from pomona import NO_RETRY, AsyncClient, Client, Frame, FrameAnswer, Inspect, Point, Retry, Segment, Semantic, errors
from pomona._proto import segmentation_pb2 as pb

Status = grpc.StatusCode


@pytest.fixture
def other() -> Iterator[GrpcStandIn]:
    with grpc_standing_in() as stand_in:
        yield stand_in


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def frames(count: int, size: int = 0) -> Iterator[Frame]:
    return (Frame(image=bytes(size) + str(number).encode(), frame_id=f"f{number}") for number in range(count))


def answers_of(
    kind: str, address: str, given: Any, ask: Any, *, look: Callable[[], None] = lambda: None, **options: Any
) -> list[FrameAnswer[Any]]:
    """All answers of one stream, by either client; `look` is called at each."""
    retry = options.pop("retry", NO_RETRY)
    answers: list[FrameAnswer[Any]] = []
    if kind == "sync":
        with Client(address, retry=retry) as pomona:
            for answer in pomona.stream(given, ask, **options):
                answers.append(answer)
                look()
        return answers

    async def watch() -> None:
        async with AsyncClient(address, retry=retry) as pomona:
            async for answer in pomona.stream(given, ask, **options):
                answers.append(answer)
                look()

    asyncio.run(watch())
    return answers


def ids(answers: list[FrameAnswer[Any]]) -> list[str]:
    return [answer.frame_id for answer in answers]


def test_all_frames_go_over_one_stream_and_answers_come_in_their_order(other: GrpcStandIn, kind: str) -> None:
    def backwards(camera: Frames) -> Iterator[Any]:
        for number in (1, 4):
            got = [camera.next() for _ in range(3)]
            seen.extend(got)
            yield from (camera.reply(each) for each in range(number + 2, number - 1, -1))

    seen: list[Any] = []
    other.stream = backwards
    given = [Frame(image=b"x", frame_id=f"f{number}", trigger_id="t", captured_at_ns=number) for number in range(6)]
    answers = answers_of(kind, other.address, given, Inspect(mode="fast"), in_flight=3, deadline=9, urgency=1)
    assert ids(answers) == [f"f{number}" for number in range(6)]
    assert {answer.unwrap().fruits[0].grade for answer in answers} == {"B"}
    (camera,) = other.streams
    assert camera.settings == pb.StreamSettings(max_in_flight=3, when_full=pb.WHEN_FULL_WAIT)
    assert camera.metadata["x-request-id"]
    for number, message in enumerate(sorted(seen, key=lambda each: each.request.frame.captured_at_ns)):
        expected = pb.InspectRequest(
            image=b"x",
            mode=pb.INSPECT_MODE_FAST,
            format=pb.MASK_FORMAT_RLE,
            frame=pb.Frame(frame_id=f"f{number}", trigger_id="t", captured_at_ns=number),
        )
        assert (message.request, message.urgency) == (expected, 1)
        assert 8000 < message.deadline_ms <= 9000


def test_answers_come_as_they_finish_where_order_does_not_matter(other: GrpcStandIn, kind: str) -> None:
    looked = threading.Event()

    def last_first(camera: Frames) -> Iterator[Any]:
        numbers = {frame_id: camera.find(frame_id) for frame_id in ("f0", "f1", "f2")}
        yield camera.reply(numbers["f2"])
        assert looked.wait(PATIENCE_S)
        yield camera.reply(numbers["f0"])
        yield camera.reply(numbers["f1"])

    other.stream = last_first
    answers = answers_of(kind, other.address, frames(3), Inspect(), look=looked.set, in_flight=3, ordered=False)
    assert ids(answers)[0] == "f2"
    assert sorted(ids(answers)) == ["f0", "f1", "f2"]


def test_prompts_are_asked_of_every_frame_by_their_own_stream(other: GrpcStandIn, kind: str) -> None:
    def segment(camera: Frames) -> Iterator[Any]:
        for number, message in enumerate(camera.rest(), start=1):
            assert message.request.prompts[0].points[0].x == 3
            outcome = pb.FRAME_OUTCOME_ANSWERED
            name = f"a.b.{number}"
            yield pb.SegmentStreamResponse(request_id=name, outcome=outcome, response=SEGMENTED_MESSAGE)

    other.stream = segment
    answers = answers_of(kind, other.address, frames(2), Segment(Point(3, 3)))
    assert [answer.unwrap().best[0].area for answer in answers] == [20, 20]
    assert other.got == []


def test_what_has_no_stream_of_its_own_is_asked_frame_by_frame(other: GrpcStandIn, kind: str) -> None:
    other.always(Told(Status.INVALID_ARGUMENT, code="not_an_image"))
    answers = answers_of(kind, other.address, frames(2), Semantic())
    assert [type(answer.error) for answer in answers] == [errors.NotAnImage] * 2
    assert [got.method for got in other.got] == ["Semantic"] * 2


def test_bad_late_and_dropped_frames_are_answered_and_the_stream_goes_on(other: GrpcStandIn, kind: str) -> None:
    def judge(camera: Frames) -> Iterator[Any]:
        for number, message in enumerate(camera.rest(), start=1):
            yield {
                "f0": camera.reply(number),
                "f1": camera.reply(
                    number,
                    outcome=pb.FRAME_OUTCOME_FAILED,
                    problem=pb.Problem(code="not_an_image", detail="It is none."),
                ),
                "f2": camera.reply(
                    number, outcome=pb.FRAME_OUTCOME_LATE, problem=pb.Problem(code="deadline_unreachable")
                ),
                "f3": camera.reply(number, outcome=pb.FRAME_OUTCOME_DROPPED),
                "f4": camera.reply(number, outcome=pb.FRAME_OUTCOME_FAILED),
            }[message.request.frame.frame_id]

    other.stream = judge
    good, bad, late, dropped, odd = answers_of(kind, other.address, frames(5), Inspect(), deadline=9)
    assert good.unwrap().fruits
    assert isinstance(bad.error, errors.NotAnImage)
    assert bad.error.detail == "It is none."
    assert [answer.late for answer in (bad, late, dropped)] == [False, True, False]
    assert isinstance(late.error, errors.DeadlineUnreachable)
    assert dropped.dropped
    assert isinstance(odd.error, errors.BadAnswer)


def test_a_frame_that_is_to_be_sent_later_is(other: GrpcStandIn, kind: str) -> None:
    def busy_once(camera: Frames) -> Iterator[Any]:
        camera.next()
        problem = pb.Problem(code="overloaded", retry_after_ms=20)
        yield camera.reply(1, outcome=pb.FRAME_OUTCOME_FAILED, problem=problem)
        camera.next()
        yield camera.reply(2)

    other.stream = busy_once
    (answer,) = answers_of(kind, other.address, frames(1), Inspect(), retry=Retry(first_delay=0))
    assert answer.unwrap().fruits


def test_a_frame_that_is_not_answered_in_time_is_late(other: GrpcStandIn, kind: str) -> None:
    def second(camera: Frames) -> Iterator[Any]:
        for number, message in enumerate(camera.rest(), start=1):
            if message.request.frame.frame_id == "f1":
                yield camera.reply(number)

    other.stream = second
    answers = answers_of(kind, other.address, frames(2), Inspect(), deadline=0.3)
    assert [answer.late for answer in answers] == [True, False]


def test_no_more_frames_are_sent_than_may_be_on_their_way(other: GrpcStandIn) -> None:
    gate = threading.Event()

    def one_by_one(camera: Frames) -> Iterator[Any]:
        for number, _ in enumerate(camera.rest(), start=1):
            with other.changed:
                other.changed.notify_all()
            if number == 2:
                assert gate.wait(PATIENCE_S)
                yield camera.reply(1)
                yield camera.reply(2)
            elif number > 2:
                yield camera.reply(number)

    other.stream = one_by_one
    with Client(other.address) as pomona:
        answers = pomona.stream(frames(5), Inspect(), in_flight=2)
        first: list[Any] = []
        looking = threading.Thread(target=lambda: first.append(next(answers)))
        looking.start()
        other.wait_for(lambda: bool(other.streams) and other.streams[0].read == 2)
        with other.changed:
            assert not other.changed.wait_for(lambda: other.streams[0].read > 2, 0.1)
        gate.set()
        looking.join(PATIENCE_S)
        assert [*ids(first), *ids(list(answers))] == [f"f{number}" for number in range(5)]


def test_a_service_that_vanishes_raises_one_error_that_tells_what_was_answered(other: GrpcStandIn, kind: str) -> None:
    def leave(camera: Frames) -> Iterator[Any]:
        for number in range(1, 3):
            camera.next()
            yield camera.reply(number)
        camera.next()
        other.server.stop(None)
        camera.cancelled.wait(PATIENCE_S)

    other.stream = leave
    with pytest.raises(errors.StreamBroken, match="2 frames were answered, 1 were not: f2") as broken:
        answers_of(kind, other.address, frames(9), Inspect(), in_flight=1)
    assert (broken.value.answered, broken.value.unanswered) == (2, ("f2",))
    assert isinstance(broken.value.__cause__, errors.ConnectionFailed)


@pytest.mark.parametrize("end", [None, Told(Status.UNAVAILABLE), Told(Status.UNAVAILABLE, code="not_ready")])
def test_a_stream_that_ends_is_begun_again_with_the_frames_that_have_no_answer(
    other: GrpcStandIn, kind: str, end: Told | None
) -> None:
    def leave(camera: Frames) -> Iterator[Any]:
        camera.next()
        if len(other.streams) == 1:
            camera.next()
            yield camera.reply(1)
            if end is not None:
                raise end
            return
        yield camera.reply(1)
        for number, _ in enumerate(camera.rest(), start=2):
            yield camera.reply(number)

    other.stream = leave
    answers = answers_of(kind, other.address, frames(4), Inspect(), in_flight=2, retry=Retry(first_delay=0))
    assert ids(answers) == ["f0", "f1", "f2", "f3"]
    assert all(answer.result for answer in answers)
    assert len(other.streams) == 2


def test_frames_of_a_service_without_streams_are_told_so(other: GrpcStandIn, kind: str) -> None:
    def refuse(camera: Frames) -> Iterator[Any]:
        raise Told(Status.UNIMPLEMENTED)

    other.stream = refuse
    answers = answers_of(kind, other.address, frames(2), Inspect())
    assert [type(answer.error) for answer in answers] == [errors.NotFound] * 2


@pytest.mark.parametrize("odd", [b"\xff\xff", pb.InspectStreamResponse(request_id="what")])
def test_a_reply_that_cannot_be_read_is_an_error_of_ours(other: GrpcStandIn, kind: str, odd: Any) -> None:
    def strange(camera: Frames) -> Iterator[Any]:
        camera.next()
        yield odd
        camera.cancelled.wait(PATIENCE_S)

    other.stream = strange
    (answer,) = answers_of(kind, other.address, frames(1), Inspect())
    assert isinstance(answer.error, errors.BadAnswer)
    assert other.streams[0].cancelled.wait(PATIENCE_S)


def test_a_frame_too_large_for_the_service_fails_alone(other: GrpcStandIn, kind: str) -> None:
    huge = bytes(2 << 20)
    given = [b"0", b"1", huge, b"3", huge, b"5"]
    answers = answers_of(kind, other.address, given, Inspect(), in_flight=4)
    failed = [type(answer.error) for answer in answers if answer.error]
    assert ids([answer for answer in answers if answer.error]) == ["2", "4"]
    assert failed == [errors.UploadTooLarge] * 2
    assert len(other.streams) <= 3


def test_a_frame_that_cannot_be_sent_fails_alone(other: GrpcStandIn, kind: str) -> None:
    given = [Frame(image=b"0"), Frame(image=b"1", captured_at_ns=1 << 80), Frame(image=b"2")]
    answers = answers_of(kind, other.address, given, Inspect())
    assert [type(answer.error) for answer in answers] == [type(None), errors.InvalidArgument, type(None)]


def test_who_leaves_early_cancels_what_is_on_its_way(other: GrpcStandIn) -> None:
    def first_alone(camera: Frames) -> Iterator[Any]:
        yield camera.reply(camera.find("f0"))
        camera.cancelled.wait(PATIENCE_S)

    other.stream = first_alone
    with Client(other.address) as pomona:
        answers = pomona.stream(frames(9), Inspect(), in_flight=3)
        assert next(answers).frame_id == "f0"
        assert not other.streams[0].cancelled.is_set()
        answers.close()  # type: ignore[attr-defined] # it is a generator
        assert other.streams[0].cancelled.wait(PATIENCE_S)
        assert pomona.ready()


async def test_who_leaves_an_async_stream_cancels_what_is_on_its_way(other: GrpcStandIn) -> None:
    def first_alone(camera: Frames) -> Iterator[Any]:
        camera.next()
        yield camera.reply(1)
        camera.cancelled.wait(PATIENCE_S)

    async def camera() -> AsyncIterator[bytes]:
        for number in range(9):
            yield str(number).encode()

    other.stream = first_alone
    async with AsyncClient(other.address) as pomona:
        async with aclosing(pomona.stream(camera(), Inspect(), in_flight=3)) as answers:
            assert (await anext(answers)).frame_id == "0"
            assert not other.streams[0].cancelled.is_set()
        assert await asyncio.to_thread(other.streams[0].cancelled.wait, PATIENCE_S)
        assert await pomona.ready()


def test_a_stream_whose_frames_are_all_answered_ends_well(other: GrpcStandIn, kind: str) -> None:
    ended: list[bool] = []

    def watched(camera: Frames) -> Iterator[Any]:
        for number, _ in enumerate(camera.rest(), start=1):
            yield camera.reply(number)
        ended.append(True)

    other.stream = watched
    assert len(answers_of(kind, other.address, frames(3), Inspect())) == 3
    assert ended == [True]


def test_a_client_that_is_closed_ends_its_streams(other: GrpcStandIn) -> None:
    def silent(camera: Frames) -> Iterator[Any]:
        camera.next()
        yield camera.reply(1)
        camera.cancelled.wait(PATIENCE_S)

    other.stream = silent
    pomona = Client(other.address)
    answers = pomona.stream(frames(3), Inspect(), in_flight=1)
    next(answers)
    pomona.close()
    (rest, last) = answers
    assert [type(answer.error) for answer in (rest, last)] == [errors.ClientClosed] * 2


def test_an_empty_stream_opens_none(other: GrpcStandIn, kind: str) -> None:
    assert answers_of(kind, other.address, [], Inspect()) == []
    assert other.streams == []
