"""The first process of a container, on tiny servers."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from service.supervise import UNSOUND, Sight, Watch, look, supervise

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


def given_up_after(*sights: Sight) -> int | None:
    watch = Watch()
    return next((number for number, sight in enumerate(sights, 1) if watch.gives_up(sight)), None)


def test_a_server_that_says_it_is_unsound_is_given_up_at_once() -> None:
    assert given_up_after("sound", "unsound") == 2


def test_silence_is_forgiven_twice_and_anew_after_every_answer() -> None:
    assert given_up_after("sound", "silent", "silent", "sound", "silent", "silent") is None
    assert given_up_after("sound", "silent", "silent", "silent") == 4


def test_a_server_that_was_never_heard_may_take_its_time() -> None:
    watch = Watch()
    assert not any(watch.gives_up("silent") for _ in range(100))


@pytest.mark.parametrize(("status", "sight"), [(200, "sound"), (503, "unsound")])
def test_a_look_tells_by_the_status(status: int, sight: Sight) -> None:
    with answering(status) as port:
        assert look(port, "/livez", tls=False) == sight


def test_a_look_at_nobody_sees_silence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        assert look(taken.getsockname()[1], "/livez", tls=False) == "silent"


def test_tls_is_not_found_where_there_is_none() -> None:
    with answering(200) as port:
        assert look(port, "/livez", tls=True) == "silent"


def test_an_unsound_server_is_ended_and_the_container_says_so() -> None:
    with process(DRAINS) as server:
        assert server.stdout is not None
        server.stdout.readline()
        assert supervise(server, lambda: "unsound", every=SOON, drain=10) == UNSOUND
        assert server.returncode == 0


def test_a_server_that_does_not_end_is_killed() -> None:
    with process(STUBBORN) as server:
        assert server.stdout is not None
        server.stdout.readline()
        assert supervise(server, lambda: "unsound", every=SOON, drain=SOON) == UNSOUND
        assert server.wait(10) == -signal.SIGKILL


@pytest.mark.parametrize(("code", "status"), [("raise SystemExit(3)", 3), ("", UNSOUND)])
def test_a_server_that_ends_by_itself_never_counts_as_well(code: str, status: int) -> None:
    with process(code) as server:
        assert supervise(server, lambda: "sound", every=10, drain=10) == status


def test_a_stop_is_handed_on_and_ends_as_the_server_does() -> None:
    with process(DRAINS) as server:
        assert server.stdout is not None
        server.stdout.readline()

        def stopped_meanwhile() -> Sight:
            signal.raise_signal(signal.SIGTERM)
            return "sound"

        assert supervise(server, stopped_meanwhile, every=SOON, drain=10) == 0
