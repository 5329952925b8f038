"""The state of a server that stops, with a clock of its own."""

from __future__ import annotations

import asyncio

import pytest

from service.api.drain import Drain
from service.errors import NotReady


async def test_new_work_is_refused_from_the_signal_on_and_all_who_listen_learn_it_once() -> None:
    drain = Drain(5)
    notified: list[str] = []
    drain.on_begin(lambda: notified.append("stopping"))
    drain.check()
    drain.begin()
    drain.begin()
    assert notified == ["stopping"]
    with pytest.raises(NotReady, match="stopping"):
        drain.check()


async def test_what_is_being_answered_is_waited_for_and_no_longer_than_the_limit() -> None:
    drain = Drain(0.05)
    with drain.working():
        drain.begin()
        assert not await drain.finished()
        assert drain.remaining == 0
    assert await drain.finished()


async def test_a_body_that_stalls_is_given_up_when_the_server_stops_and_one_that_ends_is_not() -> None:
    drain = Drain(0.05)

    async def read(seconds: float) -> str:
        async with drain.uploading():
            await asyncio.sleep(seconds)
        return "read"

    stalled, ending = asyncio.create_task(read(60)), asyncio.create_task(read(0.01))
    await asyncio.sleep(0)
    drain.begin()
    assert await ending == "read"
    with pytest.raises(NotReady, match="stopping"):
        await stalled
