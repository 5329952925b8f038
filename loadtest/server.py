"""Servers as processes on this machine, for benchmarks and system tests: the service, and those compared with it."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import httpx
import psutil

from loadtest.peers import STRIP, Work
from loadtest.wire import CONTENT_TYPE, DEADLINE_HEADER, SEGMENT, Call, as_form, as_raw_body, multipart, point_request
from models.types import Point

POMONA: Final = "Pomona"
POMONA_RAW: Final = "Pomona, raw body"
LITSERVE: Final = "LitServe"
MOSEC: Final = "mosec, raw body"
BENTOML: Final = "BentoML batchable"
BARE_ASGI: Final = "bare ASGI in BentoML, raw body"
BARE_GRPC: Final = "empty grpcio handler"

PEERS: Final = (POMONA, LITSERVE, MOSEC, BENTOML)
"""The servers that batch."""

MODEL: Final = "mobile-sam"
STRIP_POINT: Final = Point(STRIP.width / 2, STRIP.height / 2)

_ROOT: Final = Path(__file__).parent.parent
_READY_WITHIN_S: Final = 600
_GONE_WITHIN_S: Final = 30
_TERMINATED_WITHIN_S: Final = 10
_MIB: Final = 1024 * 1024


class ServerFailed(Exception):
    """The server did not start or stop properly; the message holds its output."""


@dataclass
class Server:
    """A running server.

    Attributes:
        address: base URL, without a slash at its end.
        output: file with what it printed.
        process: the process that was started; it has children.
        grpc_port: of its gRPC endpoint; 0 if it has none.
        ready_s: seconds from the command to the first 200 of its readiness path.
        seen_while_loading: status of /livez and /readyz, each time they were tried before the server was ready; None
            while no socket was open.
    """

    address: str
    output: Path
    process: subprocess.Popen[bytes]
    grpc_port: int = 0
    ready_s: float = 0.0
    seen_while_loading: list[tuple[int | None, int | None]] = field(default_factory=list)

    @property
    def port(self) -> int:
        """Port of `address`."""
        return int(self.address.rpartition(":")[2])

    def log(self) -> str:
        """Return all that it printed so far."""
        return self.output.read_text(errors="replace")

    def resident_mib(self) -> float:
        """Return the resident memory of all its processes; pages that they share count more than once."""
        return sum(process.memory_info().rss for process in self.processes()) / _MIB

    def cpu_s(self) -> float:
        """Return the CPU seconds that all its processes used so far, in user and kernel mode."""
        times = [process.cpu_times() for process in self.processes()]
        return sum(spent.user + spent.system for spent in times)

    def stop(self) -> None:
        """Stop it with SIGTERM, and check that it exits with 0 and leaves no process behind.

        Raises:
            ServerFailed: it did not.
        """
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(_GONE_WITHIN_S)
        _, alive = psutil.wait_procs(children, _GONE_WITHIN_S)
        if status != 0 or alive:
            raise ServerFailed(f"the server exited with {status}, leaving {alive}:\n{self.log()}")

    def processes(self) -> list[psutil.Process]:
        """Return it and its children."""
        main = psutil.Process(self.process.pid)
        return [main, *main.children(recursive=True)]


def free_port() -> int:
    """Return a port of this machine that is not in use."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


@contextlib.contextmanager
def running(folder: Path, *, bento: str = "service.app:Pomona", **settings: str) -> Iterator[Server]:
    """Start the service on a free port, wait until it is ready, and stop it at the end unless that was done.

    Args:
        folder: for its output and BentoML's files.
        bento: argument of `bentoml serve`.
        settings: `POMONA_` settings without the prefix; the folders of weights are taken from the environment.

    Raises:
        ServerFailed: it ended, or was not ready in time, or did not stop.
    """
    port = free_port()
    environment = environment_of(port, **settings)
    with launched(folder, port, ["-m", "bentoml", "serve", bento], environment) as server:
        yield server
        if server.process.poll() is None:
            server.stop()


def environment_of(port: int, **settings: str) -> dict[str, str]:
    """Return this process's environment with the given settings instead of its own, for a service on `port`."""
    kept = {"POMONA_CACHE_DIR", "POMONA_WEIGHTS_DIR"}
    environment = {name: value for name, value in os.environ.items() if name in kept or not name.startswith("POMONA_")}
    # Several servers run on one machine, and few are called over gRPC.
    settings = {"http_host": "127.0.0.1", "grpc_port": "0"} | settings
    environment |= {f"POMONA_{name.upper()}": value for name, value in settings.items()}
    return environment | {"POMONA_HTTP_PORT": str(port)}


@contextlib.contextmanager
def launched(
    folder: Path, port: int, arguments: Sequence[str], environment: Mapping[str, str], *, ready: str = "/readyz"
) -> Iterator[Server]:
    """Start a server in a Python process, wait until it is ready, and kill it at the end.

    Args:
        folder: for its output and BentoML's files.
        port: that it will listen on.
        arguments: of the interpreter.
        environment: of the process.
        ready: path that answers 200 once it is ready; empty if an open port is enough.

    Raises:
        ServerFailed: it ended, or was not ready in time.
    """
    output = folder / "output.txt"
    started = time.monotonic()
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=_ROOT,
            env={**environment, "BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(folder / "bentoml")},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    scheme = "https" if environment.get("POMONA_TLS_CERT_FILE") else "http"
    server = Server(f"{scheme}://127.0.0.1:{port}", output, process, int(environment.get("POMONA_GRPC_PORT", 0)))
    try:
        _wait_until_ready(server, ready)
        server.ready_s = time.monotonic() - started
        yield server
    finally:
        # BentoML's workers are not in the process group of their parent.
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_until_ready(server: Server, ready: str) -> None:
    until = time.monotonic() + _READY_WITHIN_S
    # The certificate is not what is being checked.
    with httpx.Client(base_url=server.address, timeout=2, verify=False) as client:  # noqa: S501
        while time.monotonic() < until:
            if server.process.poll() is not None:
                raise ServerFailed(f"the server ended with {server.process.returncode}:\n{server.log()}")
            if not ready and _listens(server.port):
                return
            if ready:
                livez, readyz = _status(client, "/livez"), _status(client, ready)
                if readyz == 200:
                    return
                server.seen_while_loading.append((livez, readyz))
            time.sleep(0.05)
    raise ServerFailed(f"the server was not ready within {_READY_WITHIN_S} s:\n{server.log()}")


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _status(client: httpx.Client, path: str) -> int | None:
    try:
        return client.get(path).status_code
    except httpx.TransportError:
        return None


def post_image(
    client: httpx.Client,
    server: Server,
    image: bytes,
    request: Mapping[str, Any],
    *,
    path: str = SEGMENT,
    deadline_ms: int | None = None,
    timeout_s: float = 60.0,
) -> httpx.Response:
    """Send an image as a raw body, with the request in the query."""
    headers = {"Content-Type": "image/jpeg"}
    if deadline_ms is not None:
        headers[DEADLINE_HEADER] = str(deadline_ms)
    params = {"request": json.dumps(request)}
    return client.post(f"{server.address}{path}", content=image, params=params, headers=headers, timeout=timeout_s)


def calls(image: bytes) -> dict[str, Call]:
    """Return the no-op request of each HTTP server, in its fastest documented form; Pomona's in both of its forms."""
    request = json.dumps(point_request(STRIP_POINT, multimask=False))
    return {
        POMONA: as_form(request, image),
        POMONA_RAW: as_raw_body(request, image),
        LITSERVE: Call("/predict", CONTENT_TYPE, multipart({}, image)),
        MOSEC: Call("/inference", "application/octet-stream", image),
        BENTOML: Call("/segment", CONTENT_TYPE, multipart({}, image, "images")),
        BARE_ASGI: Call("/", "application/octet-stream", image),
    }


def installed(names: Sequence[str]) -> list[str]:
    """Return those of the servers whose packages are installed, and print which are not: `make bench` installs all."""
    packages = {LITSERVE: "litserve", MOSEC: "mosec"}
    missing = {name for name in names if name in packages and importlib.util.find_spec(packages[name]) is None}
    if missing:
        print(f"Not installed, and left out: {', '.join(sorted(missing))}")
    return [name for name in names if name not in missing]


@contextlib.contextmanager
def serving(names: Sequence[str], work: Work) -> Iterator[dict[str, Server]]:
    """Start a server for each name, all at once, around the benchmark's model.

    Raises:
        ServerFailed: one did not start.
    """
    with contextlib.ExitStack() as stack:
        servers = {}
        for name in names:
            folder = Path(stack.enter_context(TemporaryDirectory()))
            servers[name] = stack.enter_context(_starting(name, folder, work))
        yield servers


@contextlib.contextmanager
def _starting(name: str, folder: Path, work: Work) -> Iterator[Server]:
    port = free_port()
    environment = environment_of(port, models=MODEL) | work.environment()
    module = "loadtest.peers.serve_"
    plain = ["-m", "bentoml", "serve", "--host", "127.0.0.1", "--port", str(port)]
    timeout = [] if work.timeout_ms is None else ["--timeout", str(work.timeout_ms)]
    arguments, ready = {
        POMONA: (["-m", "bentoml", "serve", f"{module}pomona:Pomona"], "/readyz"),
        LITSERVE: (["-m", f"{module}litserve", str(port)], "/health"),
        MOSEC: (["-m", f"{module}mosec", "--address", "127.0.0.1", "--port", str(port), *timeout], "/"),
        BENTOML: ([*plain, f"{module}bentoml:Plain"], "/readyz"),
        BARE_ASGI: ([*plain, f"{module}bentoml:Bare"], "/readyz"),
        BARE_GRPC: (["-m", f"{module}grpc", str(port)], ""),
    }[name]
    if name == POMONA:
        environment["POMONA_GRPC_PORT"] = str(free_port())
    elif name == BARE_GRPC:
        environment["POMONA_GRPC_PORT"] = str(port)
    with launched(folder, port, arguments, environment, ready=ready) as server:
        yield server
        # A server that does not end in time is killed.
        server.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.process.wait(_TERMINATED_WITHIN_S)
