"""The real service as a process of its own, on this machine only: for measurements and for system tests."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx
import psutil

_ROOT: Final = Path(__file__).parent.parent
_READY_WITHIN_S: Final = 180
_GONE_WITHIN_S: Final = 30
_MIB: Final = 1024 * 1024


class ServerFailed(Exception):
    """The server did not start or did not end as it should; its output is in the message."""


@dataclass
class Server:
    """A running server.

    Attributes:
        address: where it answers, without a slash at its end.
        output: file that its output goes to.
        process: the one that was started; it has children.
        ready_s: seconds from the command to the first green `/readyz`.
        seen_while_loading: status of /livez and /readyz, each time they were asked before the server was ready; None
            where nobody listened yet.
    """

    address: str
    output: Path
    process: subprocess.Popen[bytes]
    ready_s: float = 0.0
    seen_while_loading: list[tuple[int | None, int | None]] = field(default_factory=list)

    def log(self) -> str:
        """All that it printed so far."""
        return self.output.read_text(errors="replace")

    def resident_mib(self) -> float:
        """Resident memory of all its processes; pages that they share count more than once."""
        main = psutil.Process(self.process.pid)
        return sum(process.memory_info().rss for process in [main, *main.children(recursive=True)]) / _MIB

    def cpu_s(self) -> float:
        """Seconds of CPU that all its processes used so far, user's and kernel's."""
        main = psutil.Process(self.process.pid)
        times = [process.cpu_times() for process in [main, *main.children(recursive=True)]]
        return sum(spent.user + spent.system for spent in times)

    def stop(self) -> None:
        """Ask it to stop, and see that it ends well and leaves no process behind.

        Raises:
            ServerFailed: it did not.
        """
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(_GONE_WITHIN_S)
        _, alive = psutil.wait_procs(children, _GONE_WITHIN_S)
        if status != 0 or alive:
            raise ServerFailed(f"ended with {status}, leaving {alive}:\n{self.log()}")


def free_port() -> int:
    """A port of this machine on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


@contextlib.contextmanager
def running(folder: Path, *, bento: str = "service.app:Pomona", **settings: str) -> Iterator[Server]:
    """Start the service on a free port, wait until it is ready, and stop it afterwards where that was not done.

    Args:
        folder: for its output and BentoML's files.
        bento: what `bentoml serve` serves.
        settings: `POMONA_` settings without the prefix; where the weights lie is taken from the environment.

    Raises:
        ServerFailed: it ended, or was not ready in time, or did not stop.
    """
    port = free_port()
    with launched(folder, port, ["-m", "bentoml", "serve", bento], environment_of(port, **settings)) as server:
        yield server
        if server.process.poll() is None:
            server.stop()


def environment_of(port: int, **settings: str) -> dict[str, str]:
    """This process's environment with these settings of the service instead of its own, for a service on `port`."""
    kept = {"POMONA_CACHE_DIR", "POMONA_WEIGHTS_DIR"}
    environment = {name: value for name, value in os.environ.items() if name in kept or not name.startswith("POMONA_")}
    settings = {"grpc_port": "0"} | settings  # several run on one machine, and few are asked over gRPC
    environment |= {f"POMONA_{name.upper()}": value for name, value in settings.items()}
    return environment | {"POMONA_HTTP_HOST": "127.0.0.1", "POMONA_HTTP_PORT": str(port)}


@contextlib.contextmanager
def launched(
    folder: Path, port: int, arguments: Sequence[str], environment: Mapping[str, str], *, ready: str = "/readyz"
) -> Iterator[Server]:
    """Start Python with `arguments`, wait until the server that this is says that it is ready, and kill it afterwards.

    Args:
        folder: for its output and BentoML's files.
        port: where it will answer.
        arguments: of the interpreter.
        environment: of the process.
        ready: path that answers 200 once it is ready.

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
    server = Server(f"{scheme}://127.0.0.1:{port}", output, process)
    try:
        _wait_until_ready(server, ready)
        server.ready_s = time.monotonic() - started
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_until_ready(server: Server, ready: str) -> None:
    until = time.monotonic() + _READY_WITHIN_S
    # Whose certificate it has is not asked here.
    with httpx.Client(base_url=server.address, timeout=2, verify=False) as client:  # noqa: S501
        while time.monotonic() < until:
            if server.process.poll() is not None:
                raise ServerFailed(f"it ended with {server.process.returncode}:\n{server.log()}")
            livez, readyz = _status(client, "/livez"), _status(client, ready)
            if readyz == 200:
                return
            server.seen_while_loading.append((livez, readyz))
            time.sleep(0.05)
    raise ServerFailed(f"it was not ready within {_READY_WITHIN_S} s:\n{server.log()}")


def _status(client: httpx.Client, path: str) -> int | None:
    try:
        return client.get(path).status_code
    except httpx.TransportError:
        return None
