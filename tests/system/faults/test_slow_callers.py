"""Callers who are slow, or who hold connections: they are cut off in time, and others do not notice."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, suppress

import httpx
import pytest
import uvicorn

from service.http.worker import WorkerOptions, WorkerServer
from tests.contract.door import MIB, open_door
from tests.contract.live import LiveDoor, live_door
from tests.fakes import PATIENCE_S, make_settings
from tests.identity import Identity
from tests.system.faults.sockets import answer, begin_upload, get, is_closed, opened, seconds_open, upload

HEADER_S, IDLE_S, WRITE_S = 1.0, 4.5, 1.0
CHECKED_WITHIN_S = 3.0
"""Connections are checked each second; a loaded machine needs some more. One without a request lasts longer still."""

CONNECTIONS = 8


@pytest.fixture(scope="module")
def live() -> Iterator[LiveDoor]:
    with live_door(
        header_timeout_s=HEADER_S, idle_timeout_s=IDLE_S, write_timeout_s=WRITE_S, max_upload_mib=1.0
    ) as started:
        yield started


@pytest.fixture(scope="module")
def port(live: LiveDoor) -> int:
    return httpx.URL(live.address).port or 0


@pytest.fixture(scope="module")
def full() -> Iterator[LiveDoor]:
    with live_door(max_connections=CONNECTIONS) as started:
        yield started


@pytest.mark.parametrize("sent", [b"", b"GET /livez HTTP/1.1\r\nhost: po"], ids=["nothing", "half its headers"])
def test_a_caller_who_does_not_send_its_headers_is_cut_off(port: int, sent: bytes) -> None:
    with opened(port, sent) as slow:
        assert HEADER_S - 0.1 <= seconds_open(slow) <= HEADER_S + CHECKED_WITHIN_S


def test_headers_that_arrive_byte_by_byte_are_cut_off_too(port: int) -> None:
    began = time.monotonic()
    with opened(port) as slow:
        for byte in get("/livez"):
            if is_closed(slow):
                break
            slow.send(bytes([byte]))
            time.sleep(0.1)
        assert is_closed(slow)
    assert time.monotonic() - began <= HEADER_S + CHECKED_WITHIN_S


def test_a_connection_is_kept_between_requests_and_closed_when_none_comes(port: int) -> None:
    with opened(port) as idle:
        for _ in range(2):
            idle.sendall(get("/livez"))
            assert answer(idle) == (200, b"\n")
            time.sleep(HEADER_S + 0.5)  # longer than headers may take
        assert seconds_open(idle) <= IDLE_S + CHECKED_WITHIN_S


@pytest.mark.parametrize("stuck", [False, True], ids=["slow", "stuck"])
def test_a_caller_may_take_its_answers_slowly_but_not_stop_taking_them(port: int, stuck: bool) -> None:
    asset = "/static_content/swagger-ui-bundle.js"
    size = 15 * len(httpx.get(f"http://127.0.0.1:{port}{asset}").content)  # more than the kernel holds for both ends
    taken = 0
    with opened(port) as caller, suppress(ConnectionError):
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        caller.sendall(get(asset) * 15)  # as many as may be sent ahead
        pauses = [WRITE_S + 2 * CHECKED_WITHIN_S] if stuck else [WRITE_S / 4] * 14
        for pause in pauses:
            time.sleep(pause)
            for _ in range(4 * MIB // 65536):
                taken += len(caller.recv(65536))
        while taken < size and (data := caller.recv(MIB)):
            taken += len(data)
    assert (taken < size) == stuck


# Connections beyond the limit.


def test_idle_connections_make_room_for_new_ones_oldest_first(full: LiveDoor) -> None:
    port = httpx.URL(full.address).port or 0
    with ExitStack() as stack:
        idle = [stack.enter_context(opened(port)) for _ in range(CONNECTIONS)]
        time.sleep(0.2)
        newest = stack.enter_context(opened(port, get("/livez")))
        assert answer(newest) == (200, b"\n")
        assert seconds_open(idle[0]) < PATIENCE_S / 2  # a connection without a request has 75 s
        assert not any(is_closed(connection) for connection in idle[1:])


def test_a_flood_of_idle_connections_locks_nobody_out(full: LiveDoor) -> None:
    port = httpx.URL(full.address).port or 0
    with ExitStack() as stack:
        for _ in range(50 * CONNECTIONS):
            stack.enter_context(opened(port))
        for _ in range(3):
            began = time.monotonic()
            with opened(port, get("/livez")) as caller:
                assert answer(caller)[0] == 200
            assert time.monotonic() - began < PATIENCE_S / 2  # not when an idle one is closed by itself


def test_where_all_connections_have_a_request_probes_are_answered_and_others_refused(full: LiveDoor) -> None:
    port = httpx.URL(full.address).port or 0
    with ExitStack() as stack:
        for _ in range(CONNECTIONS):
            stack.enter_context(begin_upload(port, 1000))
        for path in ("/livez", "/readyz", "/metrics"):
            with opened(port, get(path)) as probe:
                assert answer(probe)[0] == 200
                assert seconds_open(probe) < PATIENCE_S / 2
        with opened(port, get("/v1/models")) as other:
            status, body = answer(other)
        assert (status, json.loads(body)["code"]) == (429, "overloaded")
    assert httpx.get(f"{full.address}/v1/models").status_code == 200


# A refusal is seen.


def test_a_caller_sees_why_an_upload_is_refused_before_all_of_it_is_sent(port: int) -> None:
    with opened(port, upload(64 * MIB, 0)) as caller:
        status, body = answer(caller)
        assert (status, json.loads(body)["code"]) == (413, "upload_too_large")
        caller.sendall(bytes(8 * MIB))  # no reset


def test_every_kind_of_client_sees_that_its_upload_is_too_large(live: LiveDoor) -> None:
    data, url, headers = bytes(20 * MIB), f"{live.address}/v1/embed", {"content-type": "image/png"}
    for _ in range(5):
        assert httpx.post(url, content=data, headers=headers).status_code == 413
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(urllib.request.Request(url, data, headers))  # noqa: S310 (http)
        assert caught.value.code == 413
        caught.value.close()


async def test_an_asynchronous_client_sees_it_too_whether_the_length_is_announced_or_not(live: LiveDoor) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(320):
            yield bytes(65536)

    async with httpx.AsyncClient() as client:
        for content in (bytes(20 * MIB), chunks()):
            response = await client.post(
                f"{live.address}/v1/embed", content=content, headers={"content-type": "image/png"}
            )
            assert response.status_code == 413


def test_a_refused_caller_who_falls_silent_is_closed(port: int) -> None:
    with opened(port, upload(64 * MIB, 0)) as caller:
        assert answer(caller)[0] == 413
        assert seconds_open(caller) < 3 + CHECKED_WITHIN_S


def test_a_refused_caller_who_sends_for_ever_is_closed_too(port: int) -> None:
    with opened(port, upload(64 * MIB, 0)) as caller:
        assert answer(caller)[0] == 413
        began = time.monotonic()
        with suppress(ConnectionError):
            while time.monotonic() - began < 25:
                caller.sendall(bytes(1024))
                time.sleep(0.1)
        assert 10 < time.monotonic() - began < 15 + 2 * CHECKED_WITHIN_S


def test_what_is_not_http_is_refused_with_a_problem(port: int) -> None:
    with opened(port, b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n") as caller:
        status, body = answer(caller)
    assert (status, json.loads(body)["code"]) == (400, "malformed_request")


def test_requests_that_are_sent_ahead_are_answered_in_order(port: int) -> None:
    with opened(port, get("/livez") + get("/nope") + get("/livez")) as caller:
        caller.settimeout(2)
        data = b""
        while data.count(b"HTTP/1.1") < 3:
            data += caller.recv(65536)
    assert [part[1:4] for part in data.split(b"HTTP/1.1")[1:]] == [b"200", b"404", b"200"]


# TLS.


@pytest.fixture
async def tls_port(identity: Identity) -> AsyncIterator[int]:
    async with open_door() as door:
        settings = make_settings(header_timeout_s=HEADER_S, max_connections=CONNECTIONS)
        config = uvicorn.Config(
            door.app,
            lifespan="off",
            log_config=None,
            ssl_certfile=identity.tls.certificate,
            ssl_keyfile=identity.tls.key,
        )
        server = WorkerServer(config, options=WorkerOptions(settings, door.app, door.app.drain))
        config.load()
        server.lifespan = config.lifespan_class(config)
        with socket.socket() as bound:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(("127.0.0.1", 0))
            await server.startup(sockets=[bound])
            yield bound.getsockname()[1]
            await server.shutdown()


async def test_a_tls_handshake_that_does_not_come_is_cut_off(tls_port: int) -> None:
    began = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", tls_port)
    assert await reader.read() == b""
    assert HEADER_S - 0.1 <= time.monotonic() - began <= HEADER_S + CHECKED_WITHIN_S
    writer.close()


async def test_handshakes_that_do_not_come_lock_nobody_out(tls_port: int, identity: Identity) -> None:
    silent = [await asyncio.open_connection("127.0.0.1", tls_port) for _ in range(5 * CONNECTIONS)]
    trusting = ssl.create_default_context(cafile=str(identity.authority))
    async with httpx.AsyncClient(verify=trusting) as client:
        assert (await client.get(f"https://localhost:{tls_port}/livez")).status_code == 200
    for _, writer in silent:
        writer.close()
