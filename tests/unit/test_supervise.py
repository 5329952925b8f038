"""The first process of a container, with tiny servers."""

from __future__ import annotations

import itertools
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psutil
import pytest

from service.supervise import UNHEALTHY, Health, Watch, probe, supervise

SOON = 0.01
LONG = "import time; time.sleep(60)"
DRAINS = (
    "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); print(flush=True); time.sleep(60)"
)
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, lambda *_: None); print(flush=True); time.sleep(60)"


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@contextmanager
def process(code: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as started:
        try:
            yield started
        finally:
            started.kill()


@contextmanager
def answering(status: int) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(SOON,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def given_up_after(*probes: Health) -> int | None:
    watch = Watch()
    return next((number for number, health in enumerate(probes, 1) if watch.gives_up(health)), None)


def test_a_server_that_reports_it_is_unhealthy_is_given_up_at_once() -> None:
    assert given_up_after("healthy", "unhealthy") == 2


def test_a_server_may_be_silent_twice_after_every_answer() -> None:
    assert given_up_after("healthy", "silent", "silent", "healthy", "silent", "silent") is None
    assert given_up_after("healthy", "silent", "silent", "silent") == 4


def test_a_server_that_no_longer_listens_is_given_up_at_once() -> None:
    assert given_up_after("healthy", "refused") == 2


def test_a_server_that_never_answered_may_take_its_time() -> None:
    watch = Watch()
    assert not any(watch.gives_up(health) for health in ("refused", "silent") * 50)


@pytest.mark.parametrize(("status", "health"), [(200, "healthy"), (503, "unhealthy")])
def test_a_probe_tells_health_by_the_status(status: int, health: Health) -> None:
    with answering(status) as port:
        assert probe(port, "/livez", tls=False) == health


def test_a_probe_of_a_port_without_a_server_is_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        assert probe(taken.getsockname()[1], "/livez", tls=False) == "refused"


def test_a_probe_of_a_server_that_never_answers_is_silent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        assert probe(mute.getsockname()[1], "/livez", tls=False, timeout=SOON) == "silent"


def test_a_probe_over_tls_of_a_server_without_is_silent() -> None:
    with answering(200) as port:
        assert probe(port, "/livez", tls=True) == "silent"


def test_an_unhealthy_server_is_stopped_and_the_container_says_so() -> None:
    with process(DRAINS) as server:
        assert server.stdout is not None
        server.stdout.readline()
        assert supervise(server, lambda: "unhealthy", every=SOON, drain=10) == UNHEALTHY
        assert server.returncode == 0


@pytest.mark.parametrize("last", ["silent", "refused"])
def test_a_server_that_no_longer_answers_is_killed_without_a_drain(last: Health) -> None:
    answers: Iterator[Health] = itertools.chain(["healthy"], itertools.repeat(last))
    with process(STUBBORN) as server:
        assert server.stdout is not None
        server.stdout.readline()
        assert supervise(server, lambda: next(answers), every=SOON, drain=3600) == UNHEALTHY
        assert server.returncode == -signal.SIGKILL


def test_a_server_that_does_not_stop_is_killed() -> None:
    with process(STUBBORN) as server:
        assert server.stdout is not None
        server.stdout.readline()
        assert supervise(server, lambda: "unhealthy", every=SOON, drain=SOON) == UNHEALTHY
        assert server.wait(10) == -signal.SIGKILL


@pytest.mark.parametrize(("code", "status"), [("raise SystemExit(3)", 3), ("", UNHEALTHY)])
def test_a_server_that_ends_by_itself_has_failed(code: str, status: int) -> None:
    with process(code) as server:
        assert supervise(server, lambda: "healthy", every=10, drain=10) == status


def test_a_signal_is_forwarded_and_the_status_is_the_servers() -> None:
    with process(DRAINS) as server:
        assert server.stdout is not None
        server.stdout.readline()

        def stopped_meanwhile() -> Health:
            signal.raise_signal(signal.SIGTERM)
            return "healthy"

        assert supervise(server, stopped_meanwhile, every=SOON, drain=10) == 0


def test_a_server_that_does_not_stop_after_a_signal_is_killed_with_its_workers() -> None:
    worker = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {LONG!r}]).pid, flush=True)"
    with process(f"{worker}\n{STUBBORN}") as server:
        assert server.stdout is not None
        child = int(server.stdout.readline())
        server.stdout.readline()

        def stopped_meanwhile() -> Health:
            signal.raise_signal(signal.SIGTERM)
            return "healthy"

        assert supervise(server, stopped_meanwhile, every=SOON, drain=SOON) == UNHEALTHY
        assert server.returncode == -signal.SIGKILL
        until = time.monotonic() + 10
        while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < until
            time.sleep(SOON)
