"""The load generator: HTTP connections, closed loops (callers wait for answers) and open loops (arrivals do not)."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeVar

import numpy as np
import uvloop

from loadtest.summary import Kind, Outcome, Record, judge
from loadtest.wire import Call, Unanswered, problem_code

T = TypeVar("T")

Send: TypeAlias = Callable[[], Awaitable[object]]
"""Sends one request and waits for its answer; raises `Unanswered` if it got none, or a wrong one."""

PATIENCE_S: Final = 30.0
_REQUEST_TIMEOUT: Final = 408
"""What mosec answers when its timeout is over; others answer 504."""


_HEAD: Final = re.compile(rb"HTTP/1\.1 (\d{3})")
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CLOSE: Final = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer.

    Attributes:
        status: of HTTP.
        body: as it came.
        at: when it had come, seconds of `time.monotonic`: uvloop's own clock ticks in milliseconds.
    """

    status: int
    body: bytes
    at: float


class Pool:
    """HTTP connections to a server on 127.0.0.1, one per request in flight; the one used last is used next."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, chunks: Iterable[bytes], timeout_s: float) -> Answer:
        """Send a request and wait for its answer, which must have a Content-Length.

        Raises:
            TimeoutError: no answer within `timeout_s`; the connection is closed.
            OSError: the connection failed, or the answer is not HTTP.
        """
        async with asyncio.timeout(timeout_s):
            reader, writer = await self._connection()
            try:
                writer.writelines(chunks)
                answer, keep = await _read_answer(reader)
            except BaseException:
                writer.transport.abort()
                raise
        if keep:
            self._idle.append((reader, writer))
        else:
            writer.close()
        return answer

    def close(self) -> None:
        """Close the idle connections."""
        for _, writer in self._idle:
            writer.close()
        self._idle.clear()

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return await asyncio.open_connection("127.0.0.1", self._port)


async def _read_answer(reader: asyncio.StreamReader) -> tuple[Answer, bool]:
    """Return an answer, and whether the connection stays open."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        status, length = _HEAD.match(head), _LENGTH.search(head)
        body = await reader.readexactly(int(length[1]) if length else 0)
    except EOFError as error:
        raise ConnectionError("the server closed the connection") from error
    if status is None:
        raise ConnectionError(f"an answer must be HTTP/1.1, got {head[:500]!r}")
    return Answer(int(status[1]), body, time.monotonic()), not _CLOSE.search(head)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run on uvloop, so that the load generator is not what is measured."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


async def post_ok(pool: Pool, call: Call) -> bytes:
    """Send a request and return the body of its answer.

    Raises:
        Unanswered: its status is not 200.
    """
    answer = await pool.post(call.chunks(), PATIENCE_S)
    if answer.status != 200:
        raise Unanswered(f"{answer.status}: {answer.body[:500]!r}")
    return answer.body


async def closed_loop(send: Send, callers: int, seconds: float) -> list[float]:
    """Let `callers` each send its next request when it has its answer, for `seconds`.

    Returns:
        The seconds that each answer took.
    """
    until = time.monotonic() + seconds
    taken: list[float] = []

    async def caller() -> None:
        while (sent := time.monotonic()) < until:
            await send()
            taken.append(time.monotonic() - sent)

    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(caller())
    return taken


async def lone_requests(send: Send, count: int, pause_s: float) -> list[float]:
    """Send `count` requests one after another, with a pause after each, and return the seconds of each answer."""
    taken = []
    for _ in range(count):
        sent = time.monotonic()
        await send()
        taken.append(time.monotonic() - sent)
        await asyncio.sleep(pause_s)
    return taken


def poisson(rate_per_s: float, seconds: float, seed: int) -> list[float]:
    """Return when the requests of many independent callers fall due, fixed before the run.

    Args:
        rate_per_s: mean rate, above 0.
        seconds: length of the run.
        seed: gives every server the same arrivals.

    Returns:
        Rising seconds from the start, each below `seconds`.
    """
    rng = np.random.default_rng(seed)
    # Given their number, the arrivals of a Poisson process are independent and uniform.
    return sorted(float(due) for due in rng.uniform(0, seconds, rng.poisson(rate_per_s * seconds)))


async def open_loop(dues: Sequence[float], send: Callable[[float], Coroutine[Any, Any, T]]) -> list[T]:
    """Call `send` for every request when it falls due, whatever became of those before.

    Args:
        dues: rising seconds from now.
        send: gets the time at which the request was due, on `time.monotonic`.

    Returns:
        The results, in the order of `dues`.
    """
    start = time.monotonic()
    async with asyncio.TaskGroup() as group:
        tasks = []
        for due in dues:
            if (wait := start + due - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            tasks.append(group.create_task(send(start + due)))
    return [task.result() for task in tasks]


async def offer(pool: Pool, call: Call, dues: Sequence[float], deadline_s: float, give_up_s: float) -> list[Record]:
    """Send requests in an open loop.

    Args:
        pool: connections to the server.
        call: the request; its header says how much of the deadline is left, if the server knows deadlines.
        dues: rising seconds from now.
        deadline_s: seconds from when a request is due.
        give_up_s: seconds from when it is due after which it counts as late, and its connection is closed.

    Returns:
        A record for each; `seconds` counts from when it was due.
    """

    async def send(due: float) -> Record:
        lag = time.monotonic() - due
        try:
            answer = await pool.post(call.chunks(1000 * (deadline_s - lag)), give_up_s - lag)
        except TimeoutError:
            return Record(Kind.FRAME, 0, Outcome.LATE, give_up_s, lag, "gave up")
        except OSError as error:
            return Record(Kind.FRAME, 0, Outcome.FAILED, time.monotonic() - due, lag, type(error).__name__)
        seconds = answer.at - due
        status = 504 if answer.status == _REQUEST_TIMEOUT else answer.status
        code = "" if status == 200 else problem_code(answer.body) or str(answer.status)
        return Record(Kind.FRAME, 0, judge(status, code, seconds, deadline_s), seconds, lag, code)

    return await open_loop(dues, send)
