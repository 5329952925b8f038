"""The benchmarks: their load generator, the requests and settings of the servers, the reports."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from loadtest import cost, doors, overload
from loadtest.callers import CALLERS, Target
from loadtest.images import padded_jpeg
from loadtest.load import Pool, closed_loop, offer, poisson, post_ok
from loadtest.peers import BATCH, STRIP, Work
from loadtest.report import Effort, Report, table
from loadtest.server import BARE_ASGI, BARE_GRPC, POMONA, POMONA_RAW, calls
from loadtest.summary import Kind, Outcome, Record, Spread
from loadtest.wire import Call, Masks, Unanswered
from models.images import decode, read_size
from models.letterbox import letterbox_for
from models.types import Point
from service.runners.base import share

CALL = Call("/there", "text/plain", b"please", "X-Deadline-Ms")
MAX_PIXELS = 10_000_000
EFFORT = Effort(2, 0.5)

Reply = Callable[[bytes], Awaitable[bytes]]


def answer(status: int, body: bytes = b"", *, close: bool = False) -> bytes:
    last = b"Connection: close\r\n" if close else b""
    return b"HTTP/1.1 %d X\r\n%bContent-Length: %d\r\n\r\n%b" % (status, last, len(body), body)


@asynccontextmanager
async def listening(reply: Reply) -> AsyncIterator[tuple[Pool, list[int]]]:
    """Run a server of one function; yield a pool for it, and how many requests came over each connection."""
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


def test_poisson_arrivals_have_the_rate_and_exponential_gaps_and_depend_on_the_seed() -> None:
    dues = poisson(200, 50, seed=1)
    assert dues == sorted(dues) == poisson(200, 50, seed=1) != poisson(200, 50, seed=2)
    assert 0 <= dues[0] <= dues[-1] < 50
    # A Poisson count of mean 10,000 is within 5 standard deviations; mean and deviation of the gaps are equal.
    assert abs(len(dues) - 10_000) < 500
    gaps = np.diff(dues)
    assert np.mean(gaps) == pytest.approx(1 / 200, rel=0.05)
    assert np.std(gaps) == pytest.approx(1 / 200, rel=0.05)


@pytest.mark.parametrize("work", [Work(), Work(40, 5), Work(1.5, 0.25, timeout_ms=250)])
def test_a_server_reads_its_work_from_its_environment(work: Work) -> None:
    assert Work.from_environment(work.environment()) == work


def test_the_padded_image_has_the_given_length_and_is_still_an_image() -> None:
    data = padded_jpeg(STRIP, 300_000)
    assert len(data) == 300_000
    assert read_size(data, max_pixels=MAX_PIXELS) == decode(data, max_pixels=MAX_PIXELS).size == STRIP
    with pytest.raises(ValueError, match="got 100"):
        padded_jpeg(STRIP, 100)


def test_a_batch_of_the_benchmarks_images_is_one_full_square() -> None:
    assert share(letterbox_for(STRIP, 1024, "none")) * BATCH == 1


def test_every_server_gets_the_same_image_and_only_pomona_gets_deadlines() -> None:
    image = padded_jpeg(STRIP, 2_000)
    requests = calls(image)
    assert all(image in call.body for call in requests.values())
    with_deadline = {name for name, call in requests.items() if b"X-Deadline-Ms: 12.5" in call.chunks(12.5)[0]}
    assert with_deadline == {POMONA, POMONA_RAW}
    head, body = CALL.chunks()
    assert head == b"POST /there HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: text/plain\r\nContent-Length: 6\r\n\r\n"
    assert body == b"please"


def test_json_and_message_have_the_same_content() -> None:
    target = Target(3000, 3001, "orange-sam", b"an image", Point(3.5, 4), multimask=False)
    for masks in ("RLE", "PNG"):
        request, message = json.loads(target.request(masks)), target.message(masks)
        (prompt,), (in_message,) = request["prompts"], message.prompts
        assert prompt["points"] == [[point.x, point.y] for point in in_message.points] == [[3.5, 4]]
        assert (prompt["multimask"], request["model"]) == (in_message.multimask, message.model) == (False, "orange-sam")
        assert (request["format"], message.image) == (masks.lower(), target.jpeg)
    target.check(1)
    with pytest.raises(Unanswered, match="must have 1 masks, got 3"):
        target.check(3)


async def test_connections_are_reused_and_a_closed_loop_stops_at_a_failure() -> None:
    replies = [answer(200, b"a"), answer(200, b"b", close=True), answer(200, b"c"), b"what?\r\n\r\n"]

    async def reply(_: bytes) -> bytes:
        return replies.pop(0)

    async with listening(reply) as (pool, counts):
        assert [await post_ok(pool, CALL) for _ in range(3)] == [b"a", b"b", b"c"]
        with pytest.raises(ConnectionError):
            await post_ok(pool, CALL)
        replies = [answer(200)] * 4 + [answer(500, b"oops")]
        with pytest.raises(ExceptionGroup) as raised:
            await closed_loop(partial(post_ok, pool, CALL), callers=1, seconds=10)
    assert raised.group_contains(Unanswered, match="500.*oops")
    assert counts == [2, 2, 5]


async def test_offered_requests_are_judged_and_carry_the_rest_of_their_deadline() -> None:
    left: list[float] = []
    replies = [answer(200), answer(429, b'{"code": "overloaded"}'), answer(503), answer(408), answer(500)]

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
    # Sent in tenths of a millisecond.
    assert left == pytest.approx([1000 * (10 - item.lag_s) for item in records], abs=0.06)


async def test_an_open_loop_does_not_wait_for_answers() -> None:
    async def reply(_: bytes) -> bytes:
        if len(counts) == 1:
            await asyncio.Event().wait()
        return answer(200)

    async with listening(reply) as (pool, counts):
        first, second = await offer(pool, CALL, [0.0, 0.02], deadline_s=0.8, give_up_s=0.9)
    assert (first.outcome, first.seconds, first.code) == (Outcome.LATE, 0.9, "gave up")
    assert second.outcome is Outcome.IN_TIME
    (gone,) = await offer(pool, CALL, [0.0], deadline_s=1, give_up_s=1)
    assert (gone.outcome, gone.code) == (Outcome.FAILED, "ConnectionRefusedError")


def test_a_report_has_its_provenance_in_every_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = table(("server", "ms"), [("ours", 1), ("theirs", Spread(2, 1, 3))])
    assert rows == ["| server | ms |", "|---|---:|", "| ours | 1 |", "| theirs | 2 (1 to 3) |"]
    Report("name", {"figure": 1}, rows, Figure(), ("grpcio",)).write(tmp_path / "new")
    data = json.loads((tmp_path / "new" / "name.json").read_text())
    assert data["figure"] == 1
    text = (tmp_path / "new" / "name.md").read_text()
    assert text in capsys.readouterr().out
    assert f"commit {data['machine']['commit']}." in text
    assert f"grpcio {data['machine']['versions']['grpcio']}" in text
    assert (tmp_path / "new" / "name.png").read_bytes().startswith(b"\x89PNG")


def test_the_server_report_compares_cpu_time_round_by_round() -> None:
    cpu_ms = {
        BARE_ASGI: (1.0, 2.0),
        POMONA_RAW: (1.5, 2.0),
        POMONA: (2.0, 6.0),
        BARE_GRPC: (1.0, 0.0),
        cost.POMONA_GRPC: (3.0, 3.0),
    }
    windows: dict[tuple[str, Masks, int], list[cost.Window]] = {
        (name, "RLE", cost.RATIO_CALLERS): [cost.Window(100, 1, 4, one, 0.2) for one in cpu_ms[name]] for name in cpu_ms
    }
    compared = cost.ratios(windows, cost.RATIO_CALLERS)
    assert compared[POMONA_RAW, BARE_ASGI] == Spread(1.25, 1, 1.5)
    costs = cost.costs_of(windows)
    text = cost.lines_of(costs, compared, EFFORT)
    assert f"| {POMONA} | {BARE_ASGI} | 2.5 (2 to 3) | 2 |" in text
    assert f"| {POMONA} | 8 | 4 (2 to 6) | 100 (100 to 100) | 1 (1 to 1) |" in text


def test_the_doors_report_has_a_row_for_every_caller_and_format() -> None:
    windows = [cost.Window(100, 1, 4, 0.5, 0.2), cost.Window(80, 3, 5, 0.7, 0.4)]
    costs = [cost.Cost.of(name, kind, 8, windows) for name, (_, kinds) in CALLERS.items() for kind in kinds]
    text = doors.lines_of(costs, costs[:2], EFFORT)
    assert "| gRPC | PNG | 8 | 90 | 2 | 4.5 | 0.6 (0.5 to 0.7) | 0.3 |" in text
    assert sum(line.startswith("| HTTP, multipart | RLE | 8 |") for line in text) == 2


def test_what_the_client_adds_is_the_difference_within_each_round() -> None:
    names = [name for pair in doors.PAIRS.values() for name in pair]
    rounds = [dict(zip(names, times, strict=True)) for times in ([4, 4.25, 3, 3.5], [6, 6.75, 2, 2], [5, 5.5, 1, 1.25])]
    *_, over_http, over_grpc = doors.client_lines(rounds)
    assert over_http == "| HTTP | 5 (4 to 6) | 5.5 (4.25 to 6.75) | 0.5 (0.25 to 0.75) |"
    assert over_grpc == "| gRPC | 2 (1 to 3) | 2 (1.25 to 3.5) | 0.25 (0 to 0.5) |"


def test_the_overload_report_counts_goodput_by_round_and_early_refusals() -> None:
    soon, after = 0.01, overload.DEADLINE_MS / 1000 + 0.01
    first = [record(Outcome.IN_TIME, soon)] * 8 + [record(Outcome.REFUSED, soon)] * 2
    second = [record(Outcome.IN_TIME, soon)] * 4 + [record(Outcome.REFUSED, after)] * 4
    load = overload.Load.of(POMONA, 2.0, [first, second, [record(Outcome.LATE, 1.0)] * 2], seconds=4.0)
    assert load.goodput_per_s == Spread(1, 0, 2)
    assert load.refused_early_share == pytest.approx(2 / 20)
    # Requests that were given up count among the latencies of what was not refused.
    assert load.summary.latency_ms is not None
    assert load.summary.latency_ms.p99 == pytest.approx(1000)
    *_, row = overload.lines_of({POMONA: 99.0}, [load], EFFORT)
    assert row.startswith(f"| {POMONA} | 2 x | 2 | 1 (0 to 2) |")
    assert overload.plot([load]).axes


def test_the_burst_report_compares_the_medians_of_each_round() -> None:
    recovery = overload.Recovery.of(POMONA, [([0.01, 0.01, 5.0], [0.02] * 3), ([0.01] * 3, [0.01] * 3)])
    assert overload.burst_lines([recovery], EFFORT)[-1] == "| Pomona | 10 (10 to 10) | 15 (10 to 20) | 1.5 (1 to 2) |"


def test_the_device_report_shows_goodput_relative_to_the_best() -> None:
    in_time, refused = record(Outcome.IN_TIME, 0.1), record(Outcome.REFUSED, 0.0)
    loads = [
        overload.Load.of("simulated device", 1.0, [[in_time] * 10], 0.5),
        overload.Load.of("simulated device", 4.0, [[in_time] * 9 + [refused] * 31], 0.5),
    ]
    *_, best, most = overload.device_lines(loads, EFFORT)
    assert best == "| 1 x | 20 | 20 (20 to 20) | 1.00 | 0% | 0 | 0 |"
    assert most == "| 4 x | 80 | 18 (18 to 18) | 0.90 | 78% | 0 | 0 |"
