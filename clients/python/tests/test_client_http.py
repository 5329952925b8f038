"""Calls over real sockets to a service that is not there: what is answered, and what goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from stand_in import INSPECTED, MODELS, SEGMENTED, Got, Reply, StandIn, problem

from pomona import NO_RETRY, AsyncClient, Client, HttpTransport, Inspect, Point, Retry, Timeout, errors
from pomona.errors import BY_CODE, PomonaError

PICTURE = b"\x89PNG\r\n\x1a\n and so on"
QUICK = Retry(attempts=3, first_delay=0)


def test_answers_are_read_into_results(service: StandIn) -> None:
    with Client(service.address) as pomona:
        report = pomona.inspect(PICTURE, frame_id="7", request_id="belt-7")
        (fruit,) = report.fruits
        assert (fruit.grade, fruit.fruit_class, fruit.infected_fraction, fruit.box.width) == ("B", "infected", 0.1, 4)
        assert fruit.array[1:6, 2:6].all()
        assert int(fruit.array.sum()) == fruit.area == 20
        assert report.unet.input_size == (448, 224)
        result = pomona.segment(PICTURE, [Point(3, 3)])
        assert (result.masks[0].score, result.model.input_size, result.model.padding) == (0.9, 1024, "none")
        assert [model.loaded for model in pomona.models()] == [True, False]
        assert pomona.ready()
    inspected = service.got[0]
    assert inspected.fields == {"mode": "auto", "format": "rle", "frame_id": "7"}
    assert inspected.headers["x-request-id"] == "belt-7"
    assert inspected.headers["content-type"] == "image/png"
    assert inspected.body == PICTURE
    assert len({got.headers["x-request-id"] for got in service.got}) == 4


def test_fields_of_a_newer_service_are_passed_over(service: StandIn) -> None:
    newer = json.loads(json.dumps(INSPECTED)) | {"weather": "fine"}
    newer["fruits"][0]["sugar"] = 11.5
    newer["timing_ms"]["thinking"] = 3
    service.always(Reply(body=newer))
    with Client(service.address) as pomona:
        assert len(pomona.inspect(PICTURE).fruits) == 1


@pytest.mark.parametrize("code", sorted(BY_CODE))
def test_every_code_is_raised_as_its_class(service: StandIn, code: str) -> None:
    service.always(problem(400, code))
    with Client(service.address, retry=NO_RETRY) as pomona, pytest.raises(PomonaError) as raised:
        pomona.inspect(PICTURE, request_id="r1")
    assert type(raised.value) is BY_CODE[code]
    assert (raised.value.code, raised.value.detail) == (code, f"It is {code}.")
    assert str(raised.value) == f"{code}: It is {code}. (request r1)"


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (problem(422, "too_sour"), errors.RequestRefused),
        (problem(500, "too_sour"), errors.InternalError),
        (Reply(404, b"<html>"), errors.RequestRefused),
        (Reply(500, b""), errors.InternalError),
        (Reply(502, b"bad gateway"), errors.NotReady),
        (Reply(503, b"", {"retry_after": "7"}), errors.NotReady),
        (Reply(429, b"", {"retry_after": "Wed, 21 Oct 2026 07:28:00 GMT"}), errors.Overloaded),
        (Reply(413, b""), errors.UploadTooLarge),
        (Reply(504, b""), errors.TimedOut),
        (Reply(302, b"", {"location": "/"}), errors.BadAnswer),
        (Reply(200, b"<html>"), errors.BadAnswer),
        (Reply(200, b"\xff\xfe"), errors.BadAnswer),
        (Reply(200, []), errors.BadAnswer),
        (Reply(200, {"fruits": 5}), errors.BadAnswer),
        (Reply(200, INSPECTED | {"fruits": [{}]}), errors.BadAnswer),
        (Reply(200, INSPECTED | {"overlay": "*"}), errors.BadAnswer),
        (Reply(200, b"{}", {"content_encoding": "gzip"}), errors.BadAnswer),
        (Reply(hang_up=True), errors.ConnectionFailed),
    ],
)
def test_answers_that_are_not_pomona_s_are_errors_of_ours(
    service: StandIn, reply: Reply, error: type[PomonaError]
) -> None:
    service.always(reply)
    with Client(service.address, retry=NO_RETRY) as pomona, pytest.raises(PomonaError) as raised:
        pomona.inspect(PICTURE)
    assert type(raised.value) is error


def test_a_service_that_is_not_ready_is_no_error_when_asked_whether_it_is(service: StandIn) -> None:
    service.always(Reply(503, b""))
    with Client(service.address) as pomona:
        assert pomona.ready() is False
    assert len(service.got) == 1


def test_overload_and_broken_connections_are_tried_again(service: StandIn) -> None:
    replies = [problem(429, "overloaded", retry_after="2"), Reply(hang_up=True), Reply(body=SEGMENTED)]
    service.answer = lambda got: replies.pop(0)
    waits: list[float] = []
    with Client(service.address, retry=QUICK, sleep=waits.append) as pomona:
        assert len(pomona.segment(PICTURE, Point(1, 1)).masks) == 1
    assert waits == [2, 0]
    assert len({got.headers["x-request-id"] for got in service.got}) == 1


def test_connections_are_used_again(service: StandIn) -> None:
    with Client(service.address) as pomona:
        pomona.models()
        threads = threading.active_count()
        for _ in range(5):
            pomona.models()
        assert threading.active_count() == threads  # the stand-in has a thread for each connection


def test_nobody_there_is_told_after_the_attempts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    waits: list[float] = []
    with Client(f"http://127.0.0.1:{port}", retry=QUICK, sleep=waits.append) as pomona:
        with pytest.raises(errors.ConnectionFailed, match="cannot be reached"):
            pomona.models()
    assert len(waits) == 2


@pytest.mark.parametrize("url", ["localhost:3000", "ftp://localhost", "http://", "", "http://[::1"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        Client(url)


@contextlib.contextmanager
def silent(*says: bytes) -> Iterator[str]:
    """A service that takes connections, says so much, a piece at a time, and no more."""
    held: list[socket.socket] = []
    done = threading.Event()

    def serve() -> None:
        while not done.is_set():
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            held.append(connection)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client left, as it should
                for piece in says:
                    connection.sendall(piece)
                    if done.wait(0.02):
                        return

    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        done.set()
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join()
        for connection in held:
            connection.close()


HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 10000\r\n\r\n"


@pytest.mark.parametrize("says", [(), (HEAD,), (HEAD, *[b"x"] * 500)], ids=["nothing", "the head", "a byte at a time"])
@pytest.mark.parametrize("told", ["deadline", "timeout"])
async def test_silence_ends_in_time(says: tuple[bytes, ...], told: str) -> None:
    expected = errors.DeadlineExceeded if told == "deadline" else errors.NoAnswer
    deadline, timeout = (0.2, None) if told == "deadline" else (None, 0.2)
    with silent(*says) as address:
        with Client(address, timeout=timeout) as pomona:
            began = time.monotonic()
            with pytest.raises(expected):
                pomona.ask(Inspect(), PICTURE, deadline=deadline)
            assert 0.19 <= time.monotonic() - began < 2
        async with AsyncClient(address, timeout=timeout) as waiting:
            began = time.monotonic()
            with pytest.raises(expected):
                await waiting.ask(Inspect(), PICTURE, deadline=deadline)
            assert 0.19 <= time.monotonic() - began < 2


def test_limits_of_an_attempt_and_of_a_call_are_told_apart() -> None:
    with silent() as address, Client(address, timeout=Timeout(attempt=0.05, total=9)) as pomona:
        with pytest.raises(errors.NoAnswer, match=r"0\.05 s"):
            pomona.models()


def test_each_phase_of_a_request_gets_what_is_left_of_the_whole() -> None:
    def look(request: httpx.Request) -> httpx.Response:
        limits = request.extensions["timeout"]
        assert limits.get("connect") == 2
        first = limits.get("read")
        while (second := limits.get("read")) == first:
            pass
        assert 8 < second < first < 9
        return httpx.Response(200, json=MODELS)

    transport = HttpTransport("http://pomona", through=httpx.MockTransport(look))
    with Client(transport=transport, timeout=Timeout(connect=2, attempt=9)) as pomona:
        assert len(pomona.models()) == 2


async def test_a_cancelled_call_closes_its_connection() -> None:
    closed = asyncio.Event()
    received = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1 << 16):
            received.set()
        closed.set()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with AsyncClient(f"http://127.0.0.1:{port}") as pomona:
        call = asyncio.create_task(pomona.inspect(PICTURE))
        await asyncio.wait_for(received.wait(), 5)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.wait_for(closed.wait(), 5)
    server.close()
    await server.wait_closed()


async def test_the_async_client_has_the_sync_one_s_methods_and_answers(service: StandIn) -> None:
    async with AsyncClient(service.address) as waiting:
        with Client(service.address) as pomona:
            assert await waiting.inspect(PICTURE, deadline=9) == pomona.inspect(PICTURE, deadline=9)
            assert await waiting.segment(PICTURE, Point(1, 1)) == pomona.segment(PICTURE, Point(1, 1))
            assert await waiting.models() == pomona.models()
            assert await waiting.ready()
    with pytest.raises(errors.ClientClosed):
        await waiting.models()
    public = {name for name in dir(Client) if not name.startswith("_")}
    assert public == {name for name in dir(AsyncClient) if not name.startswith("_")}


def test_headers_and_certificates_of_your_own_are_used(service: StandIn) -> None:
    with Client(
        service.address + "/", headers={"authorization": "Bearer x"}, tls=ssl.create_default_context()
    ) as pomona:
        pomona.models()
    assert service.got[0].headers["authorization"] == "Bearer x"


def test_a_path_before_the_api_s_is_kept(service: StandIn) -> None:
    def answer(got: Got) -> Reply:
        return Reply(body=MODELS) if got.path == "/vision/v1/models" else Reply(404, b"")

    service.answer = answer
    with Client(service.address + "/vision") as pomona:
        assert len(pomona.models()) == 2


def test_a_transport_of_one_s_own_can_be_given(service: StandIn) -> None:
    with Client(transport=HttpTransport(service.address)) as pomona:
        assert pomona.inspect(np.zeros((8, 16, 3), np.uint8)).fruits[0].id == 1
    assert service.got[0].headers["content-type"] == "image/png"


def test_nothing_of_httpx_leaks_from_a_closed_client(service: StandIn) -> None:
    pomona = Client(service.address)
    pomona.close()
    pomona.close()
    calls: list[Any] = [pomona.models, pomona.ready, lambda: pomona.inspect(PICTURE)]
    for call in calls:
        with pytest.raises(errors.ClientClosed):
            call()
