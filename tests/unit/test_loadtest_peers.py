"""The comparison with other servers: arrivals, the wire, the cost, what becomes of offered requests, the figures."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from loadtest import burst, noop, overload
from loadtest.arrivals import poisson
from loadtest.client import Pool
from loadtest.figures import Spread
from loadtest.loops import Unanswered, keep_busy, offer
from loadtest.outcomes import Kind, Outcome, Record
from loadtest.peers.model import BATCH, Work
from loadtest.peers.servers import (
    BENTOML,
    LITSERVE,
    MOSEC,
    POMONA,
    POMONA_RAW,
    STRIP,
    Call,
    calls,
    padded_jpeg,
)
from models.images import decode, read_size
from models.letterbox import letterbox_for
from service.keys import share

TOLD = {"cpu": "abacus", "cores": 1, "python": "3.11", "versions": {"beads": "1"}, "commit": "0a"}
CALL = Call("/there", "text/plain", b"please", "X-Deadline-Ms")
MAX_PIXELS = 10_000_000

Reply = Callable[[bytes], Awaitable[bytes]]


def answer(status: int, body: bytes = b"", *, close: bool = False) -> bytes:
    last = b"Connection: close\r\n" if close else b""
    return b"HTTP/1.1 %d X\r\n%bContent-Length: %d\r\n\r\n%b" % (status, last, len(body), body)


@asynccontextmanager
async def listening(reply: Reply) -> AsyncIterator[tuple[Pool, list[int]]]:
    """A server of one function, a pool to it, and how many requests came over each connection."""
    counts: list[int] = []
    serving: list[asyncio.Task[None] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(counts)
        counts.append(0)
        serving.append(asyncio.current_task())
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(len(CALL.body))
                counts[number] += 1
                writer.write(await reply(head))
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    pool = Pool(server.sockets[0].getsockname()[1])
    try:
        yield pool, counts
    finally:
        pool.close()
        server.close()
        for task in serving:
            if task is not None:
                task.cancel()
                await asyncio.wait({task})


def record(outcome: Outcome, seconds: float) -> Record:
    return Record(Kind.FRAME, 0, outcome, seconds)


def test_arrivals_come_at_the_asked_rate_within_the_stretch_and_the_same_for_a_seed() -> None:
    dues = poisson(200, 50, seed=1)
    assert dues == sorted(dues) == poisson(200, 50, seed=1) != poisson(200, 50, seed=2)
    assert 0 <= dues[0] <= dues[-1] < 50
    # A Poisson count of mean 10,000 is within 5 standard deviations of it.
    assert abs(len(dues) - 10_000) < 500


def test_gaps_between_arrivals_are_exponential() -> None:
    gaps = np.diff(poisson(100, 100, seed=3))
    # Mean and standard deviation of an exponential are equal; 10,000 gaps leave an error of about 1 %.
    assert np.mean(gaps) == pytest.approx(0.01, rel=0.05)
    assert np.std(gaps) == pytest.approx(0.01, rel=0.05)


def test_the_model_costs_a_fixed_part_and_a_part_per_item_and_its_capacity_is_that_of_full_batches() -> None:
    work = Work(fixed_ms=40, per_item_ms=5)
    assert work.seconds(1) == pytest.approx(0.045)
    assert work.seconds(BATCH) == pytest.approx(0.08)
    assert work.capacity_per_s == pytest.approx(100)


@pytest.mark.parametrize("work", [Work(), Work(40, 5), Work(1.5, 0.25, timeout_ms=250)])
def test_a_server_is_told_its_work_in_its_environment(work: Work) -> None:
    assert Work.told(work.environment()) == work


def test_the_padded_image_is_as_long_as_asked_and_still_a_image() -> None:
    data = padded_jpeg(STRIP, 300_000)
    assert len(data) == 300_000
    assert read_size(data, max_pixels=MAX_PIXELS) == STRIP
    assert decode(data, max_pixels=MAX_PIXELS).size == STRIP


def test_a_image_longer_than_asked_is_an_error() -> None:
    with pytest.raises(ValueError, match="more than 100"):
        padded_jpeg(STRIP, 100)


def test_as_many_of_the_images_as_the_others_take_fit_into_one_batch_of_the_full_square() -> None:
    assert share(letterbox_for(STRIP, 1024, "none")) * BATCH == 1


def test_every_server_is_sent_the_same_image_and_only_pomona_is_told_deadlines() -> None:
    image = padded_jpeg(STRIP, 2_000)
    asked = calls(image)
    assert set(asked) == {POMONA, POMONA_RAW, LITSERVE, MOSEC, BENTOML}
    assert all(image in call.body for call in asked.values())
    assert {name for name, call in asked.items() if b"X-Deadline-Ms: 12.5" in call.chunks(12.5)[0]} == {
        POMONA,
        POMONA_RAW,
    }


def test_a_request_without_a_deadline_names_none() -> None:
    head, body = CALL.chunks()
    assert head.decode().split("\r\n") == [
        "POST /there HTTP/1.1",
        "Host: 127.0.0.1",
        "Content-Type: text/plain",
        "Content-Length: 6",
        "",
        "",
    ]
    assert body == b"please"


async def test_a_connection_is_used_again_and_not_after_the_server_closed_it() -> None:
    replies = [answer(200, b"a"), answer(200, b"b", close=True), answer(200, b"c")]

    async def reply(_: bytes) -> bytes:
        return replies.pop(0)

    async with listening(reply) as (pool, counts):
        bodies = [(await pool.ask(CALL.chunks(), 10)).body for _ in range(3)]
    assert bodies == [b"a", b"b", b"c"]
    assert counts == [2, 1]


async def test_requests_at_the_same_time_have_connections_of_their_own() -> None:
    together = asyncio.Barrier(3)

    async def reply(_: bytes) -> bytes:
        await together.wait()
        return answer(200)

    async with listening(reply) as (pool, counts):
        await asyncio.gather(*(pool.ask(CALL.chunks(), 10) for _ in range(3)))
    assert counts == [1, 1, 1]


async def test_what_is_no_http_is_an_error_of_the_connection() -> None:
    async def reply(_: bytes) -> bytes:
        return b"what?\r\n\r\n"

    async with listening(reply) as (pool, _):
        with pytest.raises(ConnectionError):
            await pool.ask(CALL.chunks(), 10)


async def test_callers_who_wait_ask_until_the_time_is_over_and_stop_at_a_failure() -> None:
    async def reply(_: bytes) -> bytes:
        return answer(200 if sum(counts) < 8 else 500, b"oops")

    async with listening(reply) as (pool, counts):
        with pytest.raises(ExceptionGroup) as raised:
            await keep_busy(pool, CALL, callers=2, seconds=10)
    assert raised.group_contains(Unanswered, match="500.*oops")
    assert sum(counts) >= 8


async def test_offered_requests_are_judged_by_answer_and_told_what_is_left_of_their_deadline() -> None:
    left: list[float] = []
    problem = json.dumps({"code": "overloaded"}).encode()
    replies = [answer(200), answer(429, problem), answer(503), answer(408), answer(500)]

    async def reply(head: bytes) -> bytes:
        left.append(float(head.split(b"X-Deadline-Ms: ")[1].split(b"\r\n")[0]))
        return replies.pop(0)

    async with listening(reply) as (pool, _):
        records = [(await offer(pool, CALL, [0.0], deadline_s=10, give_up_s=20))[0] for _ in range(5)]
    assert [(item.outcome, item.code) for item in records] == [
        (Outcome.IN_TIME, ""),
        (Outcome.REFUSED, "overloaded"),
        (Outcome.REFUSED, "503"),
        (Outcome.REFUSED, "408"),
        (Outcome.FAILED, "500"),
    ]
    assert all(0 < item.lag_s <= item.seconds for item in records)
    # Told in tenths of a millisecond.
    assert left == pytest.approx([1000 * (10 - item.lag_s) for item in records], abs=0.06)


async def test_a_request_goes_out_whatever_became_of_the_one_before_and_is_late_once_given_up() -> None:
    second_came = asyncio.Event()

    async def reply(_: bytes) -> bytes:
        if len(counts) == 1:
            await asyncio.Event().wait()
        second_came.set()
        return answer(200)

    async with listening(reply) as (pool, counts):
        records = await offer(pool, CALL, [0.0, 0.02], deadline_s=0.1, give_up_s=0.2)
    assert second_came.is_set()
    assert (records[0].outcome, records[0].seconds, records[0].code) == (Outcome.LATE, 0.2, "gave up")
    assert records[1].outcome is Outcome.IN_TIME


async def test_a_server_that_is_not_there_is_a_failure() -> None:
    async def reply(_: bytes) -> bytes:
        return b""

    async with listening(reply) as (pool, _):
        pass
    (gone,) = await offer(pool, CALL, [0.0], deadline_s=1, give_up_s=1)
    assert (gone.outcome, gone.code) == (Outcome.FAILED, "ConnectionRefusedError")


def test_a_load_counts_answers_in_time_by_round_and_only_refusals_before_the_deadline_as_early() -> None:
    soon, after = 0.01, overload.DEADLINE_MS / 1000 + 0.01
    first = [record(Outcome.IN_TIME, soon)] * 8 + [record(Outcome.REFUSED, soon)] * 2
    second = (
        [record(Outcome.IN_TIME, soon)] * 4 + [record(Outcome.REFUSED, after)] * 4 + [record(Outcome.LATE, 1.0)] * 2
    )
    load = overload.Load.of(POMONA, 2.0, [first, second])
    per_s = (6 / overload.WINDOW_S, 4 / overload.WINDOW_S, 8 / overload.WINDOW_S)
    assert load.goodput_per_s == Spread(*per_s)
    assert load.refused_early_share == pytest.approx(2 / 20)
    assert (load.figures.offered, load.figures.refused, load.figures.late) == (20, 6, 2)
    # What was given up counts among the latencies of what was not refused.
    assert load.figures.latency_ms is not None
    assert load.figures.latency_ms.p99 == pytest.approx(1000)


def test_a_recovery_compares_the_medians_of_each_round() -> None:
    recovery = burst.Recovery.of(BENTOML, [([0.01, 0.01, 5.0], [0.02] * 3), ([0.01] * 3, [0.01] * 3)])
    assert recovery.ratio == Spread(1.5, 1.0, 2.0)
    assert recovery.before_ms == Spread(10.0, 10.0, 10.0)


def test_reports_name_every_server_and_the_machine_and_plots_are_written(tmp_path: Path) -> None:
    windows = [noop.Window(1.0, 100.0, 2.0), noop.Window(3.0, 80.0, 4.0)]
    costs = [noop.Cost.of(name, callers, windows) for callers in noop.CALLERS for name in calls(b"")]
    loads = [
        overload.Load.of(name, load, [[record(Outcome.IN_TIME, 0.1)]])
        for name in (POMONA, LITSERVE, MOSEC, BENTOML)
        for load in overload.LOADS
    ]
    text = noop.table(costs, TOLD)
    assert "| LitServe | 8 | 2 (1 to 3) | 90 (80 to 100) | 3 (2 to 4) |" in text
    assert all("abacus" in told for told in (text, overload.table({POMONA: 99.0}, loads, TOLD), burst.table([], TOLD)))
    noop.draw(tmp_path / "noop.png", costs)
    overload.draw(tmp_path / "overload.png", loads)
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("noop.png", "overload.png"))
