"""Frames of a stream: how many at a time, which wait, which are dropped, what ends a stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from service.grpc.streams import DEFAULT_IN_FLIGHT, FrameStream, StreamOptions, Turns


@dataclass
class Work:
    """Answers a frame when the test allows it, and remembers which were begun."""

    options: StreamOptions = field(default_factory=StreamOptions)
    begun: list[str] = field(default_factory=list)
    gates: dict[str, asyncio.Event] = field(default_factory=dict)
    impatient: set[str] = field(default_factory=set)

    async def answer(self, frame: str, number: int, turn: asyncio.Future[bool]) -> str:
        if frame in self.impatient:
            turn.cancel()
            return f"{number} {frame} late"
        if not await turn:
            return f"{number} {frame} dropped"
        self.begun.append(frame)
        await self.gates.setdefault(frame, asyncio.Event()).wait()
        return f"{number} {frame} answered"

    def finish(self, *frames: str) -> None:
        for frame in frames:
            self.gates.setdefault(frame, asyncio.Event()).set()

    def stream(self) -> FrameStream[str, str]:
        return FrameStream(lambda first: (self.options, None if first == "settings" else first), self.answer)


@dataclass
class Camera:
    """Frames to be read, and how many of them were."""

    frames: list[str]
    read: int = 0
    ends: asyncio.Event = field(default_factory=asyncio.Event)
    failure: Exception | None = None

    async def __aiter__(self) -> AsyncIterator[str]:
        for frame in self.frames:
            self.read += 1
            yield frame
        if self.failure is not None:
            raise self.failure
        await self.ends.wait()


async def settle() -> None:
    """Run everything that needs nothing more from the test."""
    for _ in range(50):
        await asyncio.sleep(0)


def collect(stream: FrameStream[str, str], camera: Camera) -> tuple[asyncio.Task[None], list[str]]:
    answers: list[str] = []

    async def run() -> None:
        async for answer in stream.answers(aiter(camera)):
            answers.append(answer)  # noqa: PERF401 (each as it comes)

    return asyncio.create_task(run()), answers


async def test_no_more_frames_are_read_than_may_be_in_flight() -> None:
    work, camera = Work(StreamOptions(max_in_flight=2)), Camera(list("abcde"))
    running, answers = collect(work.stream(), camera)
    await settle()
    assert (camera.read, work.begun) == (2, ["a", "b"])
    work.finish("b")
    await settle()
    assert (camera.read, work.begun, answers) == (3, ["a", "b", "c"], ["2 b answered"])
    work.finish(*"acde")
    camera.ends.set()
    await running
    assert len(answers) == 5


async def test_a_caller_who_takes_no_answers_is_not_read_from_for_ever() -> None:
    for newest_first, most in ((False, 2), (True, 5)):
        work = Work(StreamOptions(max_in_flight=2, newest_first=newest_first))
        work.finish(*map(str, range(20)))
        camera = Camera([str(number) for number in range(20)])
        answers = work.stream().answers(aiter(camera))
        await anext(answers)
        await settle()
        assert camera.read == most
        await anext(answers)
        await settle()
        assert camera.read == most + 1
        await answers.aclose()


async def test_a_frame_that_stops_waiting_blocks_no_later_one() -> None:
    work = Work(StreamOptions(max_in_flight=1, newest_first=True), impatient={"b"})
    camera = Camera(list("ab"))
    running, answers = collect(work.stream(), camera)
    await settle()
    assert answers == ["2 b late"]
    work.finish("a")
    await settle()
    camera.ends.set()
    await running
    assert answers == ["2 b late", "1 a answered"]


async def test_settings_may_come_without_a_frame_and_are_not_counted() -> None:
    work, camera = Work(StreamOptions(max_in_flight=1)), Camera(["settings", "a", "b"])
    running, answers = collect(work.stream(), camera)
    work.finish("a", "b")
    camera.ends.set()
    await running
    assert answers == ["1 a answered", "2 b answered"]
    empty = Camera(["settings"])
    empty.ends.set()
    running, answers = collect(work.stream(), empty)
    await running
    assert answers == []


async def test_a_halted_stream_reads_nothing_more_and_answers_what_it_read() -> None:
    work, camera = Work(), Camera(["a", "b"])
    stream = work.stream()
    running, answers = collect(stream, camera)
    await settle()
    stream.halt()
    await settle()
    assert not running.done()
    work.finish("a", "b")
    await running
    assert answers == ["1 a answered", "2 b answered"]
    late = work.stream()
    late.halt()
    running, answers = collect(late, camera := Camera(["c"]))
    await running
    assert (answers, camera.read) == ([], 0)


async def test_a_failure_of_the_sender_is_raised_once_the_frames_before_are_answered() -> None:
    work, camera = Work(), Camera(["a"], failure=ValueError("no message"))
    running, answers = collect(work.stream(), camera)
    await settle()
    assert not running.done()
    work.finish("a")
    with pytest.raises(ValueError, match="no message"):
        await running
    assert answers == ["1 a answered"]


async def test_a_stream_that_is_left_cancels_its_frames() -> None:
    work, camera = Work(), Camera(["a"])
    running, _ = collect(work.stream(), camera)
    await settle()
    frames = {task for task in asyncio.all_tasks() if task not in {running, asyncio.current_task()}}
    assert work.begun == ["a"]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert all(task.done() for task in frames)


async def test_an_answer_that_fails_ends_the_stream_with_its_failure() -> None:
    async def broken(frame: str, number: int, turn: asyncio.Future[bool]) -> str:
        raise ZeroDivisionError

    stream = FrameStream[str, str](lambda first: (StreamOptions(), first), broken)
    running, answers = collect(stream, Camera(["a"]))
    with pytest.raises(ExceptionGroup) as caught:
        await running
    assert caught.group_contains(ZeroDivisionError)
    assert answers == []


async def test_a_turn_that_was_given_back_goes_to_the_next_or_stays_free() -> None:
    turns = Turns(1)
    first, second = turns.take(), turns.take()
    assert first.result()
    assert not second.done()
    turns.leave(first)
    assert second.result()
    third = turns.take()
    third.cancel()
    turns.leave(second)
    turns.leave(third)
    assert turns.take().result()


def test_the_default_number_in_flight_is_the_documented_one() -> None:
    assert DEFAULT_IN_FLIGHT == 8
    assert StreamOptions().max_unanswered == 8
    assert StreamOptions(newest_first=True).max_unanswered == 17
