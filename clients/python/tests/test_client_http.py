"""What is particular to HTTP: where fields travel, proxies' answers, and limits on the socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
import numpy as np
import pytest
from stand_in import IMAGE, INSPECTED, MODELS, SEGMENTED, SILENCE_S, Problem, Reply, StandIn, use, use_stream

from pomona import (
    NO_RETRY,
    AsyncClient,
    Attempt,
    Box,
    Call,
    Client,
    HttpTransport,
    Inspect,
    ListModels,
    Point,
    Retry,
    Segment,
    Semantic,
    Timeout,
    errors,
)
from pomona.errors import PomonaError
from pomona.http import build_request
from pomona.images import encode_image

NOW = Attempt(timeout=10, connect=5)
ENCODED = encode_image(np.zeros((4, 6, 3), np.uint8))


def test_short_requests_travel_in_the_query_beside_the_image() -> None:
    call = Call(request=Segment([Point(5, 6), Point(7, 8, 0), Box(1, 2, 3, 4)], input_size=512), image=ENCODED)
    attempt = Attempt(timeout=1, connect=1, deadline=0.25, urgency=2, request_id="r1")
    request = build_request(call, attempt)
    assert (request.method, request.path, request.parts) == ("POST", "/v1/segment", [])
    assert request.content == ENCODED.data
    assert request.headers == {
        "content-type": "image/png",
        "x-deadline-ms": "250.000",
        "priority": "u=2",
        "x-request-id": "r1",
    }
    prompt = {"points": [[5.0, 6.0], [7.0, 8.0]], "labels": [1, 0], "box": [1.0, 2.0, 3.0, 4.0], "multimask": True}
    assert json.loads(request.params["request"]) == {"prompts": [prompt], "input_size": 512}


def test_requests_without_an_image_are_refused_where_one_is_needed() -> None:
    assert build_request(Call(request=ListModels()), NOW).path == "/v1/models"
    with pytest.raises(errors.InvalidArgument, match="Semantic needs an image"):
        build_request(Call(request=Semantic()), NOW)


def test_fields_of_a_newer_service_are_ignored_and_missing_timings_are_0(http: StandIn) -> None:
    newer = json.loads(json.dumps(INSPECTED)) | {"weather": "fine"}
    newer["fruits"][0]["sugar"] = 11.5
    newer["timing_ms"] = {"thinking": 3, "total": 5}
    del newer["batch"], newer["frame"]
    http.always(newer)
    with Client(http.address) as pomona:
        report = pomona.inspect(IMAGE)
    assert len(report.fruits) == 1
    assert (report.timings.total, report.timings.decode, report.batch.infer) == (5, 0, 0)


NOT_POMONA: list[tuple[Reply, type[PomonaError]]] = [
    (Reply(422, {"code": "too_sour", "detail": "sour"}), errors.RequestRefused),
    (Reply(500, {"code": "too_sour", "detail": "sour"}), errors.InternalError),
    (Reply(404, b"<html>"), errors.RequestRefused),
    (Reply(500), errors.InternalError),
    (Reply(502, b"bad gateway"), errors.NotReady),
    (Reply(503, b"", {"retry-after": "7"}), errors.NotReady),
    (Reply(429, b"", {"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}), errors.Overloaded),
    (Reply(413), errors.UploadTooLarge),
    (Reply(504), errors.TimedOut),
    (Reply(302, b"", {"location": "/"}), errors.BadAnswer),
    (Reply(200, b"<html>"), errors.BadAnswer),
    (Reply(200, b"\xff\xfe"), errors.BadAnswer),
    (Reply(200, []), errors.BadAnswer),
    (Reply(200, {"fruits": 5}), errors.BadAnswer),
    (Reply(200, INSPECTED | {"overlay": "*"}), errors.BadAnswer),
    (Reply(200, b"{}", {"content-encoding": "gzip"}), errors.BadAnswer),
    (Reply(hang_up=True), errors.ConnectionFailed),
]


def test_answers_that_pomona_does_not_send_are_errors_of_ours(http: StandIn) -> None:
    with Client(http.address, retry=NO_RETRY) as pomona:
        for reply, error in NOT_POMONA:
            http.always(reply)
            with pytest.raises(PomonaError) as raised:
                pomona.inspect(IMAGE)
            assert type(raised.value) is error, reply
            assert raised.value.detail


def test_a_broken_connection_is_tried_again(http: StandIn, kind: str) -> None:
    http.answers(Problem("overloaded"), Reply(hang_up=True), SEGMENTED)
    retry = Retry(attempts=3, first_delay=0)
    result = use(kind, http.address, lambda client: client.segment(IMAGE, Point(1, 1)), retry=retry)
    assert len(result.masks) == 1


def test_connections_are_reused(http: StandIn) -> None:
    with Client(http.address) as pomona:
        pomona.models()
        threads = threading.active_count()
        for _ in range(5):
            pomona.models()
        assert threading.active_count() == threads  # the stand-in has a thread for each connection


@contextlib.contextmanager
def silent(*pieces: bytes) -> Iterator[str]:
    """A service that accepts connections, sends these pieces one at a time, and then nothing."""
    held: list[socket.socket] = []
    done = threading.Event()

    def serve() -> None:
        while not done.is_set():
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            held.append(connection)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client left
                for piece in pieces:
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


@pytest.mark.parametrize("pieces", [(), (HEAD,), (HEAD, *[b"x"] * 500)], ids=["nothing", "head", "a byte at a time"])
@pytest.mark.parametrize("limit", ["deadline", "timeout"])
def test_an_answer_that_does_not_end_is_given_up_in_time(pieces: tuple[bytes, ...], limit: str, kind: str) -> None:
    expected = errors.DeadlineExceeded if limit == "deadline" else errors.NoAnswer
    deadline, timeout = (SILENCE_S, None) if limit == "deadline" else (None, SILENCE_S)
    with silent(*pieces) as address:
        began = time.monotonic()
        with pytest.raises(expected):
            use(kind, address, lambda client: client.send(Inspect(), IMAGE, deadline=deadline), timeout=timeout)
        assert 0.95 * SILENCE_S <= time.monotonic() - began < 10  # not 65, the default


def test_the_limit_of_an_attempt_is_named() -> None:
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


TOO_LARGE = b'{"code": "upload_too_large", "detail": "At most 32 MiB."}'


@contextlib.contextmanager
def refuses_early(*, reads: int, pieces: int, reset: bool) -> Iterator[str]:
    """A service that answers frames of more than 1 MB with 413, and closes, before it has read them; others with 200.

    Args:
        reads: bytes of the body that it reads before.
        pieces: of the answer.
        reset: close so that the connection is reset at once, not only when more of the body arrives.
    """

    def talk(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(4096)
            head, _, body = head.partition(b"\r\n\r\n")
            (length,) = re.findall(rb"content-length: (\d+)", head.lower())
            wanted = int(length) if int(length) < 1 << 20 else reads
            while len(body) < wanted:
                body += connection.recv(1 << 16)
            status, content = (b"200 OK", json.dumps(INSPECTED).encode())
            if int(length) >= 1 << 20:
                status, content = b"413 Content Too Large", TOO_LARGE
            fields = b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(content)
            answer = b"HTTP/1.1 " + status + b"\r\n" + fields + content
            step = -(-len(answer) // pieces)
            for start in range(0, len(answer), step):
                connection.sendall(answer[start : start + step])
            if reset and wanted == reads:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def serve() -> None:
        with contextlib.suppress(OSError):  # closed at the end
            while True:
                threading.Thread(target=talk, args=listening.accept()[:1], daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize(
    ("reads", "pieces", "reset"), [(0, 1, False), (0, 2, False), (0, 1, True), (200_000, 1, False)]
)
def test_an_answer_that_comes_before_the_upload_was_read_is_the_answer(
    kind: str, reads: int, pieces: int, reset: bool
) -> None:
    with refuses_early(reads=reads, pieces=pieces, reset=reset) as address:
        for image in (IMAGE + bytes(1 << 20), IMAGE + bytes(40 << 20)):
            inspect = partial(AsyncClient.inspect if kind == "async" else Client.inspect, image=image)
            with pytest.raises(errors.UploadTooLarge, match=r"At most 32 MiB\."):
                # Rarely a reset is still quicker than the answer, so a broken connection is tried again as by default.
                use(kind, address, inspect, retry=Retry(attempts=3, first_delay=0))


def test_frames_that_are_refused_early_or_break_their_connection_fail_alone(http: StandIn, kind: str) -> None:
    with refuses_early(reads=0, pieces=1, reset=False) as address:
        frames = [IMAGE, IMAGE + bytes(8 << 20), IMAGE]
        answers = use_stream(kind, address, frames, Inspect(), in_flight=2)
        assert [type(answer.error) for answer in answers] == [type(None), errors.UploadTooLarge, type(None)]
    http.answer = lambda received: Reply(hang_up=True) if received.image == b"1" else INSPECTED
    answers = use_stream(kind, http.address, [b"0", b"1", b"2"], Inspect(), retry=Retry(attempts=2, first_delay=0))
    assert [type(answer.error) for answer in answers] == [type(None), errors.ConnectionFailed, type(None)]
    assert len(http.received) == 4


def test_a_broken_connection_is_told_from_one_that_cannot_be_made(http: StandIn, kind: str) -> None:
    http.always(Reply(hang_up=True))
    with pytest.raises(errors.ConnectionFailed, match=r"broke before the answer: \w[^.]*\.$") as broken:
        use(kind, http.address, lambda client: client.models())
    assert broken.value.connected
    with socket.create_server(("127.0.0.1", 0)) as listening:
        nobody = f"http://127.0.0.1:{listening.getsockname()[1]}"
    with pytest.raises(errors.ConnectionFailed, match=r"cannot be reached: [\w\[]") as refused:
        use(kind, nobody, lambda client: client.models())
    assert not refused.value.connected
    with pytest.raises(errors.StreamBroken):
        use_stream(kind, nobody, [IMAGE], Inspect())


@pytest.mark.parametrize("proxies", [{}, {"http_proxy": "http://127.0.0.1:9"}], ids=["none", "one"])
async def test_proxies_of_the_environment_are_used(
    http: StandIn, monkeypatch: pytest.MonkeyPatch, proxies: dict[str, str]
) -> None:
    for name, value in {"no_proxy": "", **proxies}.items():
        monkeypatch.setenv(name, value)
    async with AsyncClient(http.address, retry=NO_RETRY) as pomona:
        if not proxies:
            assert await pomona.ready()
            return
        with pytest.raises(errors.ConnectionFailed):
            await pomona.ready()
        assert http.received == []


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
        call = asyncio.create_task(pomona.inspect(IMAGE))
        await asyncio.wait_for(received.wait(), 5)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.wait_for(closed.wait(), 5)
    server.close()
    await server.wait_closed()


def test_a_transport_of_your_own_can_be_given(http: StandIn) -> None:
    transport: Any = HttpTransport(http.address, tls=ssl.create_default_context())
    with Client(transport=transport) as pomona:
        assert pomona.inspect(np.zeros((8, 16, 3), np.uint8)).fruits[0].id == 1
    assert http.received[0].headers["content-type"] == "image/png"
