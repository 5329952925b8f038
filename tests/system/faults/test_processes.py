"""Processes that die or cannot start: callers are refused at once, and nothing is left behind."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from loadtest.server import Server, environment_of, free_port, launched
from models.errors import PomonaError
from service.errors import PortTaken
from service.http.listener import listening_socket
from service.supervise import MAX_SILENT, POLL_S, PROBE_TIMEOUT_S, UNHEALTHY
from tests.system.faults.servers import bench_server, gone, seconds_until, worker_of

REFUSED_WITHIN_S = 1.0
RESPAWNED_WITHIN_S = 60.0
"""BentoML looks after its workers every ten seconds, and one takes some seconds to start, more on a busy machine."""


def refused(port: int) -> bool:
    """Whether no process listens; a connection that hangs fails the test."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=REFUSED_WITHIN_S).close()
    except ConnectionRefusedError:
        return True
    return False


def answers(server: Server) -> bool:
    try:
        return httpx.get(f"{server.address}/readyz").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.slow
def test_after_a_worker_or_its_parent_was_killed_callers_are_refused_at_once(tmp_path: Path) -> None:
    grpc_port = free_port()
    with bench_server(tmp_path, grpc_port=str(grpc_port)) as server:
        worker = worker_of(server)
        worker.kill()
        seconds_until(lambda: gone(worker))
        for port in (server.port, grpc_port):  # the threads of a killed process end one by one
            seconds_until(lambda port=port: refused(port), REFUSED_WITHIN_S)  # type: ignore[misc]
        seconds_until(lambda: answers(server), RESPAWNED_WITHIN_S)

        worker = worker_of(server)
        server.process.kill()
        server.process.wait()
        seconds_until(lambda: gone(worker), 5)
        for port in (server.port, grpc_port):  # the threads of a killed process end one by one
            seconds_until(lambda port=port: refused(port), REFUSED_WITHIN_S)  # type: ignore[misc]


@pytest.mark.parametrize("name", ["POMONA_HTTP_PORT", "POMONA_GRPC_PORT", "POMONA_ADMIN_PORT"])
def test_a_port_that_is_in_use_ends_the_start_with_one_sentence_and_a_status(tmp_path: Path, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        environment = environment_of(free_port(), models="unet-mobilenetv2-citrus") | {name: str(port)}
        ended = serve(tmp_path, environment)
    assert ended.returncode == 1
    assert f"127.0.0.1 port {port} cannot be listened on: Address already in use" in ended.stderr
    assert f"Choose another port with {name}." in ended.stderr
    assert "Traceback" not in ended.stderr + ended.stdout


def test_a_port_that_a_worker_cannot_have_ends_the_server_too(tmp_path: Path) -> None:
    port = free_port()  # for both: it is free until the worker listens
    ended = serve(tmp_path, environment_of(port, models="unet-mobilenetv2-citrus", admin_port=str(port)))
    assert ended.returncode == 1
    assert f"127.0.0.1 port {port} cannot be listened on: Address already in use" in ended.stdout
    assert "Traceback" not in ended.stderr + ended.stdout


def serve(folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bentoml", "serve", "service.app:Pomona"],
        env={**environment, "BENTOML_HOME": str(folder), "BENTOML_DO_NOT_TRACK": "True"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_port_may_be_shared_by_workers_only() -> None:
    port = free_port()
    with listening_socket("127.0.0.1", port, "POMONA_HTTP_PORT", shared=True):
        listening_socket("127.0.0.1", port, "POMONA_HTTP_PORT", shared=True).close()
        with pytest.raises(PortTaken, match="POMONA_HTTP_PORT"):
            listening_socket("127.0.0.1", port, "POMONA_HTTP_PORT")
    with pytest.raises(PomonaError):
        listening_socket("192.0.2.1", port, "POMONA_HTTP_PORT")  # not an address of this machine


def test_the_port_of_a_bound_socket_that_does_not_listen_is_refused_and_can_be_listened_on() -> None:
    """What BentoML's first process holds while its worker lives, and after it died."""
    with socket.socket() as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        assert refused(port)
        listening_socket("127.0.0.1", port, "POMONA_HTTP_PORT").close()
        assert refused(port)


# Supervised, as in a container.


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Server]:
    port = free_port()
    environment = environment_of(port, models="unet-mobilenetv2-citrus", drain_timeout_s="2")
    with launched(tmp_path, port, ["-m", "service.supervise"], environment) as server:
        yield server


@pytest.mark.slow
@pytest.mark.checkpoint
def test_a_server_whose_supervisor_is_killed_ends(supervised: Server) -> None:
    processes = psutil.Process(supervised.process.pid).children(recursive=True)
    assert len(processes) == 2
    supervised.process.kill()
    supervised.process.wait()
    seconds_until(lambda: all(gone(process) for process in processes), 2 + 2)


@pytest.mark.slow
@pytest.mark.checkpoint
def test_a_worker_that_is_stopped_is_killed_with_all_others(supervised: Server) -> None:
    processes = psutil.Process(supervised.process.pid).children(recursive=True)
    time.sleep(2 * POLL_S)  # a server is given up only after `supervise` had an answer of it
    worker_of(supervised).send_signal(signal.SIGSTOP)
    began = time.monotonic()
    assert supervised.process.wait(60) == UNHEALTHY
    assert time.monotonic() - began < MAX_SILENT * (PROBE_TIMEOUT_S + POLL_S) + 2
    seconds_until(lambda: all(gone(process) for process in processes), 2)


@pytest.mark.slow
@pytest.mark.checkpoint
def test_a_worker_that_dies_ends_a_container(tmp_path: Path) -> None:
    port = free_port()
    environment = environment_of(port, models="unet-mobilenetv2-citrus") | {"BENTOML_CONTAINERIZED": "true"}
    with launched(tmp_path, port, ["-m", "service.supervise"], environment) as server:
        time.sleep(2 * POLL_S)  # as above
        worker_of(server).kill()
        assert server.process.wait(2 * POLL_S + 2) == UNHEALTHY
        assert refused(port)
