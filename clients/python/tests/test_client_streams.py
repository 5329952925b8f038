"""Streams of frames: order, bounds, bad frames, and who leaves."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import pytest

from pomona import AsyncClient, Client, Frame, FrameAnswer, Inspect, Inspection, Segment, errors
from pomona.asks import Attempt, Call
from pomona.retrying import NO_RETRY
from pomona.shapes import Point
from pomona.testing import MockTransport, a_mask, a_segmentation, an_inspection

PATIENCE_S = 10.0


@dataclass
class Gates:
    """A service that answers a frame when the test opens its gate; the frame's bytes are its number."""

    refused: frozenset[int] = frozenset()
    gone: frozenset[int] = frozenset()
    late: frozenset[int] = frozenset()
    open: dict[int, threading.Event] = field(default_factory=dict)
    entered: list[int] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def gate(self, number: int) -> threading.Event:
        with self.changed:
            return self.open.setdefault(number, threading.Event())

    def let(self, *numbers: int) -> None:
        for number in numbers:
            self.gate(number).set()

    def wait_for(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.entered) >= count, PATIENCE_S)

    def enter(self, call: Call[Any]) -> int:
        assert call.picture is not None
        number = int(call.picture.data)
        with self.changed:
            self.entered.append(number)
            self.changed.notify_all()
        return number

    def answer(self, number: int) -> Inspection:
        if number in self.refused:
            raise errors.NotAnImage("no picture")
        if number in self.gone:
            raise errors.ConnectionFailed("It left.")
        if number in self.late:
            raise errors.DeadlineExceeded("late")
        return an_inspection()

    def call(self, call: Call[Any], attempt: Attempt) -> Any:
        number = self.enter(call)
        assert self.gate(number).wait(PATIENCE_S)
        return self.answer(number)

    async def acall(self, call: Call[Any], attempt: Attempt) -> Any:
        number = self.enter(call)
        try:
            while not self.gate(number).is_set():
                await asyncio.sleep(0.001)
        except asyncio.CancelledError:
            self.cancelled.append(number)
            raise
        return self.answer(number)

    def close(self) -> None:
        self.let(*range(50))

    async def aclose(self) -> None:
        self.close()


def frames(count: int) -> Iterator[Frame]:
    return (Frame(image=str(number).encode(), frame_id=f"f{number}", trigger_id="t") for number in range(count))


def ids(answers: list[FrameAnswer[Any]]) -> list[str]:
    return [answer.frame_id for answer in answers]


def test_answers_come_in_the_order_of_the_frames_whatever_finishes_first() -> None:
    gates = Gates()
    with Client(transport=gates) as pomona:
        answers = pomona.stream(frames(4), Inspect(), in_flight=3)
        gates.let(1, 2, 3)

        def last() -> None:
            gates.wait_for(3)
            gates.let(0)

        helper = threading.Thread(target=last)
        helper.start()
        assert ids(list(answers)) == ["f0", "f1", "f2", "f3"]
        helper.join()


def test_answers_come_as_they_finish_where_order_does_not_matter() -> None:
    gates = Gates()
    gates.let(2)
    with Client(transport=gates) as pomona:
        answers = pomona.stream(frames(3), Inspect(), in_flight=3, ordered=False)
        assert next(answers).frame_id == "f2"
        gates.let(0)
        assert next(answers).frame_id == "f0"
        gates.let(1)
        assert ids(list(answers)) == ["f1"]


def test_no_more_frames_are_taken_than_may_be_on_their_way() -> None:
    gates = Gates()
    taken: list[int] = []

    def camera() -> Iterator[bytes]:
        for number in range(9):
            taken.append(number)
            yield str(number).encode()

    with Client(transport=gates) as pomona:
        answers = pomona.stream(camera(), Inspect(), in_flight=2)
        gates.let(0)
        assert next(answers).frame_id == "0"
        # The answer to frame 0 is being looked at: its place is not free yet.
        gates.wait_for(2)
        with gates.changed:
            assert not gates.changed.wait_for(lambda: len(gates.entered) > 2, 0.1)
        assert taken == [0, 1]
        gates.let(*range(1, 9))
        assert len(list(answers)) == 8
        assert taken == list(range(9))


def test_answers_do_not_wait_for_a_camera_that_blocks() -> None:
    gates, shutter = Gates(), threading.Event()

    def camera() -> Iterator[bytes]:
        yield b"0"
        shutter.wait(PATIENCE_S)
        yield b"1"

    gates.let(0, 1)
    with Client(transport=gates) as pomona:
        answers = pomona.stream(camera(), Inspect())
        assert next(answers).frame_id == "0"
        shutter.set()
        assert ids(list(answers)) == ["1"]


def test_a_bad_frame_and_a_late_one_are_answered_and_the_stream_goes_on() -> None:
    gates = Gates(refused=frozenset({1}), late=frozenset({2}))
    gates.let(0, 1, 2, 3)
    with Client(transport=gates) as pomona:
        good, bad, late, last = pomona.stream(frames(4), Inspect(), deadline=9)
    assert [answer.late for answer in (good, bad, late, last)] == [False, False, True, False]
    assert isinstance(bad.error, errors.NotAnImage)
    assert bad.result is None
    with pytest.raises(errors.NotAnImage):
        bad.unwrap()
    assert good.unwrap().fruits == ()
    assert (good.frame_id, good.trigger_id) == ("f0", "t")


def test_a_service_that_leaves_raises_one_error_that_tells_what_was_answered() -> None:
    gates = Gates(gone=frozenset({2}))
    gates.let(0, 1)
    with Client(transport=gates, retry=NO_RETRY) as pomona:
        answers = pomona.stream(frames(9), Inspect(), in_flight=3)
        assert ids([next(answers), next(answers)]) == ["f0", "f1"]
        gates.wait_for(4)
        gates.let(2)
        with pytest.raises(errors.StreamBroken, match="2 frames were answered") as broken:
            next(answers)
    assert broken.value.answered == 2
    assert broken.value.unanswered[:2] == ("f2", "f3")
    assert len(broken.value.unanswered) <= 3


def test_what_the_camera_raises_is_raised_after_the_answers_to_its_frames() -> None:
    gates = Gates()
    gates.let(0)

    def camera() -> Iterator[bytes]:
        yield b"0"
        raise OSError("unplugged")

    with Client(transport=gates) as pomona:
        answers = pomona.stream(camera(), Inspect())
        assert next(answers).frame_id == "0"
        with pytest.raises(OSError, match="unplugged"):
            next(answers)


def test_who_leaves_early_takes_no_more_frames() -> None:
    gates = Gates()
    gates.let(*range(9))
    taken: list[int] = []

    def camera() -> Iterator[bytes]:
        for number in range(9):
            taken.append(number)
            yield str(number).encode()

    with Client(transport=gates) as pomona:
        answers = pomona.stream(camera(), Inspect(), in_flight=2)
        next(answers)
        answers.close()  # type: ignore[attr-defined] # it is a generator
        feeder = next((each for each in threading.enumerate() if each.name == "pomona-frames"), None)
        if feeder is not None:
            feeder.join(PATIENCE_S)
        assert len(taken) <= 4


def test_a_frame_gets_its_deadline_from_when_it_was_taken() -> None:
    transport = MockTransport()
    transport.answer(Segment, a_segmentation([a_mask((1, 1, 4, 4))]))
    with Client(transport=transport) as pomona:
        (answer,) = pomona.stream([b"0"], Segment(Point(1, 1)), deadline=0.5, urgency=1)
    assert answer.unwrap().best[0].area == 9
    attempt = transport.sent[0].attempt
    assert attempt.deadline is not None
    assert 0.2 < attempt.deadline <= 0.5
    assert attempt.urgency == 1


def test_a_stream_without_a_place_is_refused() -> None:
    with Client(transport=MockTransport()) as pomona, pytest.raises(errors.InvalidArgument):
        pomona.stream([], Inspect(), in_flight=0)


def test_an_empty_stream_ends() -> None:
    with Client(transport=MockTransport()) as pomona:
        assert list(pomona.stream([], Inspect())) == []


async def in_order(pomona: AsyncClient, count: int, **options: Any) -> list[FrameAnswer[Inspection]]:
    return [answer async for answer in pomona.stream(frames(count), Inspect(), **options)]


async def test_async_answers_come_in_order_or_as_they_finish() -> None:
    for ordered, expected in ((True, ["f0", "f1", "f2"]), (False, ["f1", "f2", "f0"])):
        gates = Gates()
        gates.let(1)
        async with AsyncClient(transport=gates) as pomona:
            answers = asyncio.create_task(in_order(pomona, 3, ordered=ordered, in_flight=3))
            while len(gates.entered) < 3:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.005)
            gates.let(2)
            await asyncio.sleep(0.01)
            gates.let(0)
            assert ids(await answers) == expected


async def test_async_frames_may_come_from_an_async_camera_and_are_bounded() -> None:
    gates = Gates(refused=frozenset({1}))
    gates.let(*range(6))
    taken: list[int] = []

    async def camera() -> AsyncIterator[bytes]:
        for number in range(6):
            taken.append(number)
            yield str(number).encode()

    async with AsyncClient(transport=gates) as pomona:
        async with aclosing(pomona.stream(camera(), Inspect(), in_flight=2)) as answers:
            first = await anext(answers)
            assert first.frame_id == "0"
            assert len(taken) <= 2
            rest = [answer async for answer in answers]
    assert [answer.error is None for answer in rest] == [False, True, True, True, True]


async def test_leaving_an_async_stream_cancels_what_is_on_its_way() -> None:
    gates = Gates()
    gates.let(0)
    async with AsyncClient(transport=gates) as pomona:
        async with aclosing(pomona.stream(frames(9), Inspect(), in_flight=3)) as answers:
            async for answer in answers:
                assert answer.frame_id == "f0"
                while len(gates.entered) < 3:
                    await asyncio.sleep(0.001)
                break
        assert sorted(gates.cancelled) == [1, 2]


async def test_an_async_service_that_leaves_breaks_the_stream() -> None:
    gates = Gates(gone=frozenset({1}))
    gates.let(0, 1)
    async with AsyncClient(transport=gates, retry=NO_RETRY) as pomona:
        with pytest.raises(errors.StreamBroken) as broken:
            await in_order(pomona, 5, in_flight=2)
    assert broken.value.answered == 1
    assert broken.value.unanswered[0] == "f1"


async def test_what_an_async_camera_raises_is_raised() -> None:
    async def camera() -> AsyncIterator[bytes]:
        yield b"0"
        raise OSError("unplugged")

    gates = Gates()
    gates.let(0)
    async with AsyncClient(transport=gates) as pomona:
        answers = pomona.stream(camera(), Inspect())
        assert (await anext(answers)).frame_id == "0"
        with pytest.raises(OSError, match="unplugged"):
            await anext(answers)


def test_a_program_that_leaves_a_stream_can_end_at_once() -> None:
    gates = Gates()
    pomona = Client(transport=gates)
    answers = pomona.stream(frames(3), Inspect(), in_flight=2)
    gates.let(0)
    next(answers)
    gates.wait_for(2)
    workers = [each for each in threading.enumerate() if each.name.startswith("pomona-frame")]
    assert workers
    assert all(worker.daemon for worker in workers)
    began = time.monotonic()
    answers.close()  # type: ignore[attr-defined] # it is a generator
    assert time.monotonic() - began < 1
    pomona.close()
