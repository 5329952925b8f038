"""Streams of which only the newest frames go: whose turn it is, and that nobody waits for the others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from test_client_streams import PATIENCE_S, Gates, ids

from pomona import AsyncClient, Client, Frame, Inspect, errors
from pomona.streams import StreamOptions, Taken, Turns


def taken(*numbers: int) -> list[Taken]:
    return [Taken(number, Frame(image=b"", frame_id=str(number))) for number in numbers]


def test_of_the_frames_that_wait_the_newest_goes_next() -> None:
    sent: list[int] = []
    dropped: list[int] = []
    turns = Turns(2, lambda each: sent.append(each.number), lambda each: dropped.append(each.number))
    for each in taken(0, 1, 2, 3, 4):
        turns.take(each)
    assert (sent, dropped) == ([0, 1], [2, 3])
    turns.leave()
    assert sent == [0, 1, 4]
    turns.leave()
    turns.leave()
    for each in taken(5, 6, 7):
        turns.take(each)
    assert (sent, dropped) == ([0, 1, 4, 5, 6], [2, 3])
    turns.end()
    turns.leave()
    assert sent == [0, 1, 4, 5, 6]


def test_a_frame_has_its_deadline_from_when_it_was_taken() -> None:
    (frame,) = taken(0)
    assert frame.left(None) is None
    left = frame.left(5)
    assert left is not None
    assert 4 < left <= 5
    with pytest.raises(errors.DeadlineExceeded):
        Taken(0, frame.frame, at=frame.at - 6).left(5)


def test_frames_that_have_no_place_are_dropped_and_said_to_be() -> None:
    gates, shutter = Gates(), threading.Event()

    def camera() -> Iterator[bytes]:
        yield b"0"
        gates.wait_for(1)
        yield from (b"1", b"2", b"3")
        shutter.set()

    with Client(transport=gates) as pomona:
        answers = pomona.stream(camera(), Inspect(), in_flight=2, ordered=False, newest_first=True)
        first = next(answers)
        assert first.dropped
        assert isinstance(first.error, errors.FrameDropped)
        assert (first.frame_id, first.late) == ("2", False)
        assert shutter.wait(PATIENCE_S)
        gates.let(0, 1, 3)
        rest = list(answers)
    assert sorted(ids(rest)) == ["0", "1", "3"]
    assert [answer.dropped for answer in rest] == [False] * 3
    assert sorted(gates.entered) == [0, 1, 3]


async def test_an_async_camera_drops_frames_too_and_keeps_order() -> None:
    gates = Gates()

    async def camera() -> AsyncIterator[bytes]:
        yield b"0"
        while not gates.entered:
            await asyncio.sleep(0)
        yield b"1"
        gates.let(0, 2)
        yield b"2"

    async with AsyncClient(transport=gates) as pomona:
        answers = [each async for each in pomona.stream(camera(), Inspect(), in_flight=1, newest_first=True)]
    assert ids(answers) == ["0", "1", "2"]
    assert [answer.dropped for answer in answers] == [False, True, False]
    assert gates.entered == [0, 2]


def test_who_does_not_look_at_answers_gets_no_more_frames() -> None:
    gates = Gates()
    gates.let(0)
    enough = StreamOptions(1, ordered=False, newest_first=True).unseen
    counts: list[int] = []
    full = threading.Event()

    def camera() -> Iterator[bytes]:
        for number in range(20):
            counts.append(number)
            if len(counts) > enough:
                full.set()
            yield str(number).encode()

    with Client(transport=gates) as pomona:
        answers: Any = pomona.stream(camera(), Inspect(), in_flight=1, ordered=False, newest_first=True)
        next(answers)
        assert not full.wait(0.1)
        assert len(counts) == enough
        answers.close()
