"""The load generator: HTTP connections, closed loops (callers wait for answers) and open loops (arrivals do not)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeVar, cast

import httptools
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


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer.

    Attributes:
        status: of HTTP.
        body: as it came.
        at: when its last byte came, seconds of `time.monotonic`: uvloop's own clock ticks in milliseconds.
    """

    status: int
    body: bytes
    at: float


class Pool:
    """HTTP connections to a server on 127.0.0.1, one per request in flight; the one used last is used next."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[_Connection] = []

    async def post(self, chunks: Iterable[bytes], timeout_s: float) -> Answer:
        """Send a request and wait for its answer.

        Raises:
            TimeoutError: no answer within `timeout_s`; the connection is closed.
            OSError: the connection failed.
        """
        async with asyncio.timeout(timeout_s):
            connection = await self._connection()
            try:
                answer = await connection.post(chunks)
            except BaseException:
                connection.close()
                raise
        if connection.open:
            self._idle.append(connection)
        return answer

    def close(self) -> None:
        """Close the idle connections."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def _connection(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.open:
                return connection
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, "127.0.0.1", self._port)
        return connection


class _Connection(asyncio.Protocol):
    """A connection with one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._waiting: asyncio.Future[Answer] | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []

    @property
    def open(self) -> bool:
        """Whether another request can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    async def post(self, chunks: Iterable[bytes]) -> Answer:
        """See `Pool.post`."""
        if self._transport is None:
            raise ConnectionError("the connection is closed")
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.writelines(chunks)
        return await self._waiting

    def close(self) -> None:
        """Close at once, without sending what is buffered."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is not a subclass

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the request in flight."""
        self._transport = None
        self._fail(exc or ConnectionError("the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        """Parse the answer."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(ConnectionError(f"the answer is not HTTP: {error}"))
            self.close()

    def on_message_begin(self) -> None:
        """Begin an answer (called by the parser)."""
        self._body.clear()

    def on_body(self, part: bytes) -> None:
        """Keep a part of the body (called by the parser)."""
        self._body.append(part)

    def on_message_complete(self) -> None:
        """Return the answer (called by the parser)."""
        if not self._parser.should_keep_alive() and self._transport is not None:
            self._transport.close()
        if self._waiting is not None and not self._waiting.done():
            answer = Answer(self._parser.get_status_code(), b"".join(self._body), time.monotonic())
            self._waiting.set_result(answer)

    def _fail(self, error: Exception) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(error)


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
