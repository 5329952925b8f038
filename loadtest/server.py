"""A real server process for measurements, on this machine only."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import psutil

_ROOT: Final = Path(__file__).parent.parent
_MIB: Final = 1024 * 1024


class ServerFailed(Exception):
    """The server ended, or was not ready in time; its output is in the message."""


@dataclass(frozen=True, slots=True)
class Server:
    """A ready server.

    Attributes:
        url: where it answers.
        process: the one that was started; workers are its children.
        ready_s: seconds from the command to the first green `/readyz`.
    """

    url: str
    process: subprocess.Popen[bytes]
    ready_s: float

    def resident_mib(self) -> float:
        """Resident memory of all its processes; pages that they share count more than once."""
        family = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        return sum(process.memory_info().rss for process in family) / _MIB


@contextmanager
def running_server(environment: Mapping[str, str], *, ready_within_s: float = 300) -> Iterator[Server]:
    """Start the service on a free port and stop it afterwards.

    Raises:
        ServerFailed: it ended, or was not ready within `ready_within_s`.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as home, tempfile.TemporaryFile() as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "bentoml", "serve", "service.app:Pomona"],
            cwd=_ROOT,
            env=os.environ
            | {"BENTOML_HOME": home, "BENTOML_DO_NOT_TRACK": "True"}
            | {"POMONA_HTTP_PORT": str(port), "POMONA_HTTP_HOST": "127.0.0.1"}
            | dict(environment),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        url = f"http://127.0.0.1:{port}"
        try:
            while not _is_ready(url):
                if process.poll() is not None or time.perf_counter() - started > ready_within_s:
                    output.seek(0)
                    raise ServerFailed(f"not ready; its output:\n{output.read().decode(errors='replace')}")
                time.sleep(0.05)
            yield Server(url, process, time.perf_counter() - started)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=2).status_code == 200
    except httpx.TransportError:
        return False
