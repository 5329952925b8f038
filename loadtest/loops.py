"""The two ways in which a server is loaded: callers who wait for answers, and arrivals that do not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import uvloop

from loadtest.client import Pool
from loadtest.outcomes import Kind, Outcome, Record, judge
from loadtest.peers.servers import Call
from loadtest.server import Server
from loadtest.wire import problem_code

T = TypeVar("T")

_PATIENCE_S: Final = 30.0
_REQUEST_TIMEOUT: Final = 408
"""What mosec answers when its timeout is over; others say 504."""


class Unanswered(Exception):
    """A server did not answer 200 where nothing could have been in its way."""


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run on uvloop: the generator must not be what is measured."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def pool_of(server: Server) -> Pool:
    """Connections to it."""
    return Pool(urlsplit(server.address).port or 0)


async def keep_busy(pool: Pool, call: Call, callers: int, seconds: float) -> list[float]:
    """Let callers ask one request after another.

    Returns:
        Seconds of each answer.

    Raises:
        Unanswered: an answer was not 200.
    """
    until = time.monotonic() + seconds
    chunks = call.chunks()
    taken: list[float] = []

    async def caller() -> None:
        while (sent := time.monotonic()) < until:
            answer = await pool.ask(chunks, _PATIENCE_S)
            if answer.status != 200:
                raise Unanswered(f"{answer.status}: {answer.body[:500]!r}")
            taken.append(answer.at - sent)

    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(caller())
    return taken


async def ask_alone(pool: Pool, call: Call, count: int, pause_s: float) -> list[float]:
    """Lone requests, with a pause after each answer.

    Returns:
        Seconds of each answer.

    Raises:
        Unanswered: an answer was not 200.
    """
    taken = []
    for _ in range(count):
        sent = time.monotonic()
        answer = await pool.ask(call.chunks(), _PATIENCE_S)
        if answer.status != 200:
            raise Unanswered(f"{answer.status}: {answer.body[:500]!r}")
        taken.append(answer.at - sent)
        await asyncio.sleep(pause_s)
    return taken


async def offer(pool: Pool, call: Call, dues: Sequence[float], deadline_s: float, give_up_s: float) -> list[Record]:
    """Send every request when it falls due, whatever became of those before.

    Args:
        pool: to the server.
        call: what is asked; a server that knows deadlines is told what is left of it.
        dues: seconds from now.
        deadline_s: seconds from when a request is due.
        give_up_s: after this many seconds from when it is due, it is late, and its connection is closed.

    Returns:
        One record for each; `seconds` counts from when it was due.
    """
    start = time.monotonic()

    async def send(due: float) -> Record:
        lag = time.monotonic() - due
        try:
            answer = await pool.ask(call.chunks(1000 * (deadline_s - lag)), give_up_s - lag)
        except TimeoutError:
            return Record(Kind.FRAME, 0, Outcome.LATE, give_up_s, lag, "gave up")
        except OSError as error:
            return Record(Kind.FRAME, 0, Outcome.FAILED, time.monotonic() - due, lag, type(error).__name__)
        seconds = answer.at - due
        status = 504 if answer.status == _REQUEST_TIMEOUT else answer.status
        code = "" if status == 200 else problem_code(answer.body) or str(answer.status)
        return Record(Kind.FRAME, 0, judge(status, code, seconds, deadline_s), seconds, lag, code)

    async with asyncio.TaskGroup() as group:
        tasks = []
        for due in dues:
            if (wait := start + due - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            tasks.append(group.create_task(send(start + due)))
    return [task.result() for task in tasks]
