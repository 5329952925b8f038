"""Streams of frames on a transport without streams of its own: order, bounds, failed frames, and leaving early."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import pytest
from stand_in import PATIENCE_S, use_stream

from pomona import (
    AsyncClient,
    Attempt,
    Call,
    Client,
    Frame,
    FrameAnswer,
    Inspect,
    Inspection,
    Point,
    Retry,
    Segment,
    errors,
)
from pomona.testing import MockTransport, a_mask, a_segmentation, an_inspection


@dataclass
class Gates:
    """A transport that answers a frame when the test opens its gate; the frame's bytes are its number."""

    refused: frozenset[int] = frozenset()
    busy: frozenset[int] = frozenset()
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
        assert call.image is not None
        number = int(call.image.data)
        with self.changed:
            self.entered.append(number)
            self.changed.notify_all()
        return number

    def answer(self, number: int) -> Inspection:
        if number in self.refused:
            raise errors.NotAnImage("text")
        if number in self.busy:
            raise errors.Overloaded("full", retry_after=1)
        if number in self.gone:
            raise errors.ConnectionFailed("It broke.")
        if number in self.late:
            raise errors.DeadlineExceeded("late")
        return an_inspection()

    def send(self, call: Call[Any], attempt: Attempt) -> Any:
        number = self.enter(call)
        assert self.gate(number).wait(PATIENCE_S)
        return self.answer(number)

    async def asend(self, call: Call[Any], attempt: Attempt) -> Any:
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


def test_answers_come_in_the_order_of_the_frames_whichever_finishes_first(kind: str) -> None:
    gates = Gates()
    gates.let(1, 2, 3)

    def last() -> None:
        gates.wait_for(3)
        gates.let(0)

    helper = threading.Thread(target=last)
    helper.start()
    assert ids(use_stream(kind, gates, frames(4), Inspect(), in_flight=3)) == ["f0", "f1", "f2", "f3"]
    helper.join()


def test_answers_come_as_they_finish_where_order_does_not_matter(kind: str) -> None:
    gates = Gates()
    gates.let(2)
    following = {"f2": 0, "f0": 1}

    def look(answer: FrameAnswer[Any]) -> None:
        if answer.frame_id in following:
            gates.let(following[answer.frame_id])

    answers = use_stream(kind, gates, frames(3), Inspect(), look=look, in_flight=3, ordered=False)
    assert ids(answers) == ["f2", "f0", "f1"]


def test_no_more_frames_are_taken_than_may_be_in_flight() -> None:
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
        # The caller looks at the answer to frame 0: its place is not free yet.
        gates.wait_for(2)
        with gates.changed:
            assert not gates.changed.wait_for(lambda: len(gates.entered) > 2, 0.1)
        assert taken == [0, 1]
        gates.let(*range(1, 9))
        assert len(list(answers)) == 8
        assert taken == list(range(9))


async def test_an_async_camera_is_bounded_too_and_bad_frames_do_not_end_the_stream() -> None:
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


def test_answers_do_not_wait_for_a_camera_that_blocks(kind: str) -> None:
    gates, shutter = Gates(), threading.Event()

    def camera() -> Iterator[bytes]:
        yield b"0"
        assert shutter.wait(PATIENCE_S)
        yield b"1"

    gates.let(0, 1)
    assert ids(use_stream(kind, gates, camera(), Inspect(), look=lambda _: shutter.set())) == ["0", "1"]


def test_bad_and_late_frames_are_answered_and_the_stream_goes_on(kind: str) -> None:
    gates = Gates(refused=frozenset({1}), late=frozenset({2}))
    gates.let(0, 1, 2, 3)
    good, bad, late, last = use_stream(kind, gates, frames(4), Inspect(), deadline=9)
    assert [answer.late for answer in (good, bad, late, last)] == [False, False, True, False]
    assert isinstance(bad.error, errors.NotAnImage)
    assert bad.result is None
    with pytest.raises(errors.NotAnImage):
        bad.unwrap()
    assert good.unwrap().fruits == ()
    assert (good.frame_id, good.trigger_id) == ("f0", "t")


def test_a_broken_connection_raises_one_error_with_what_was_answered(kind: str) -> None:
    gates = Gates(gone=frozenset({2}))
    gates.let(0, 1)
    seen: list[str] = []

    def look(answer: FrameAnswer[Any]) -> None:
        seen.append(answer.frame_id)
        if len(seen) == 2:
            gates.let(2)

    with pytest.raises(errors.StreamBroken, match="2 frames were answered") as broken:
        use_stream(kind, gates, frames(9), Inspect(), look=look, in_flight=3)
    assert (seen, broken.value.answered) == (["f0", "f1"], 2)
    assert broken.value.unanswered[0] == "f2"
    assert len(broken.value.unanswered) <= 3


def test_errors_of_the_camera_are_raised_after_the_answers_to_its_frames(kind: str) -> None:
    gates = Gates()
    gates.let(0)
    seen: list[str] = []

    def camera() -> Iterator[bytes]:
        yield b"0"
        raise OSError("unplugged")

    with pytest.raises(OSError, match="unplugged"):
        use_stream(kind, gates, camera(), Inspect(), look=lambda answer: seen.append(answer.frame_id))
    assert seen == ["0"]


def test_leaving_early_takes_no_more_frames_and_lets_the_program_end() -> None:
    gates = Gates()
    taken: list[int] = []

    def camera() -> Iterator[bytes]:
        for number in range(9):
            taken.append(number)
            yield str(number).encode()

    pomona = Client(transport=gates)
    answers: Any = pomona.stream(camera(), Inspect(), in_flight=2)
    gates.let(0)
    next(answers)
    gates.wait_for(2)
    workers = [each for each in threading.enumerate() if each.name.startswith("pomona-frame")]
    assert workers
    assert all(worker.daemon for worker in workers)
    began = time.monotonic()
    answers.close()
    assert time.monotonic() - began < PATIENCE_S / 2  # not until the frames in flight are answered
    pomona.close()
    for worker in workers:
        worker.join(PATIENCE_S)
    assert len(taken) <= 4


async def test_leaving_an_async_stream_cancels_the_frames_in_flight() -> None:
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


def test_the_deadline_of_a_frame_counts_from_its_capture_where_that_is_known(kind: str) -> None:
    now_ns = 9_000_000_000_000
    ages = {"30 s old": 30e9, "too old": 100e9, "of now": 0, "of the future": -1e9, "of another clock": 8e12}
    given = [Frame(image=b"0", frame_id=name, captured_at_ns=int(now_ns - age)) for name, age in ages.items()]
    given.append(Frame(image=b"0", frame_id="of no time"))

    def deadlines(clock: Any) -> dict[str, float]:
        transport = MockTransport()
        transport.answer(Segment, a_segmentation([a_mask((1, 1, 4, 4))]))
        options: dict[str, Any] = {"capture_clock": clock, "in_flight": 1, "deadline": 60, "urgency": 1}
        answers = use_stream(kind, transport, given, Segment(Point(1, 1)), **options)
        assert {sent.attempt.urgency for sent in transport.sent} == {1}
        left = iter([sent.attempt.deadline or 0.0 for sent in transport.sent])
        return {answer.frame_id: 0.0 if answer.late else next(left) for answer in answers}

    from_taken = dict.fromkeys([*ages, "of no time"], 60)
    # A busy machine may take seconds from a frame's arrival until it is sent.
    assert deadlines(lambda: now_ns) == pytest.approx(from_taken | {"30 s old": 30, "too old": 0}, abs=10)
    assert deadlines(None) == pytest.approx(from_taken, abs=10)


def test_an_empty_stream_ends_and_one_without_places_is_refused(kind: str) -> None:
    assert use_stream(kind, MockTransport(), [], Inspect()) == []
    with pytest.raises(errors.InvalidArgument, match="in_flight must be a whole number from 1 to 256, got 0"):
        use_stream(kind, MockTransport(), [], Inspect(), in_flight=0)


def test_frames_without_a_place_are_dropped_with_newest_first(kind: str) -> None:
    gates = Gates()

    def camera() -> Iterator[bytes]:
        yield b"0"
        gates.wait_for(1)
        yield from (b"1", b"2", b"3")

    def look(answer: FrameAnswer[Any]) -> None:
        if answer.dropped:
            gates.let(0, 1, 3)

    answers = use_stream(kind, gates, camera(), Inspect(), look=look, in_flight=2, ordered=False, newest_first=True)
    first = answers[0]
    assert isinstance(first.error, errors.FrameDropped)
    assert (first.frame_id, first.dropped, first.late) == ("2", True, False)
    assert sorted(ids(answers[1:])) == ["0", "1", "3"]
    assert sorted(gates.entered) == [0, 1, 3]


def test_dropped_frames_make_place_at_once_and_the_newest_is_sent_next(kind: str) -> None:
    gates = Gates()

    def camera() -> Iterator[bytes]:
        yield b"0"
        gates.wait_for(1)
        # A camera that does not wait gives all of these while the service works on the first.
        yield from (str(number).encode() for number in range(1, 30))
        gates.let(0, 29)

    answers = use_stream(kind, gates, camera(), Inspect(), in_flight=1, newest_first=True)
    assert ids(answers) == [str(number) for number in range(30)]
    assert [answer.frame_id for answer in answers if not answer.dropped] == ["0", "29"]
    assert gates.entered == [0, 29]
    assert {answer.frame.image for answer in answers if answer.dropped} == {b""}


def test_a_frame_that_the_service_wants_later_is_dropped_for_a_newer_one(kind: str) -> None:
    gates, arrived = Gates(busy=frozenset({0})), threading.Event()
    gates.let(0, 1)

    def camera() -> Iterator[bytes]:
        yield b"0"
        gates.wait_for(1)
        yield b"1"
        arrived.set()

    async def wait(seconds: float) -> None:
        while not arrived.is_set():
            await asyncio.sleep(0.001)

    sleep = wait if kind == "async" else lambda seconds: arrived.wait(PATIENCE_S)
    options: dict[str, Any] = {"in_flight": 1, "newest_first": True, "retry": Retry(), "sleep": sleep}
    old, new = use_stream(kind, gates, camera(), Inspect(), **options)
    assert (old.dropped, new.dropped) == (True, False)
    assert gates.entered == [0, 1]


def test_newest_first_is_bounded_too(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pomona.streams.MOST_UNRETURNED", 5)
    gates, taken, counts = Gates(), [], []
    gates.let(*range(40))

    def camera() -> Iterator[bytes]:
        for number in range(40):
            taken.append(number)
            yield str(number).encode()

    def look(answer: FrameAnswer[Any]) -> None:
        time.sleep(0.002)  # in which the camera could give all
        counts.append(len(taken))

    answers = use_stream(kind, gates, camera(), Inspect(), look=look, in_flight=1, newest_first=True)
    assert len(answers) == 40
    # While the caller looks at one answer there are at most four more.
    assert max(count - returned for returned, count in enumerate(counts)) <= 5
    assert min(counts) <= 5
