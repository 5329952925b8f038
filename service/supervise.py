"""The first process of a container: `python -m service.supervise [arguments of bentoml serve]`.

Without it a container would live on after its worker died, as BentoML ends with 0 or does not end at all. It starts the
server, forwards SIGTERM and SIGINT, and polls `/livez` every second. A server that reports that it is unhealthy drains;
one that is silent three times, or that no longer listens, is killed with all its processes: it has nothing to drain.
Either way it ends with `UNHEALTHY`, as where a server that had answered ends by itself, so that the container is
replaced. A server whose supervisor is killed drains.
`--check` requests `/readyz` once, for HEALTHCHECK.
It imports only the standard library, so that it costs little beside the server.
"""

from __future__ import annotations

import ctypes
import http.client
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final, Literal

UNHEALTHY: Final = 70
"""Exit status where the device broke, or the server stopped answering (EX_SOFTWARE of sysexits.h)."""

POLL_S: Final = 1.0
"""Seconds between an answer of `/livez` and the next probe."""

PROBE_TIMEOUT_S: Final = 5.0
"""Seconds without an answer after which a probe has found the server silent."""

MAX_SILENT: Final = 3
"""Silent probes in a row after which a server is given up."""

_SERVER: Final = (sys.executable, "-m", "bentoml", "serve", "service.app:Pomona")
_WAKE_S: Final = 0.1
_MARGIN_S: Final = 2.0
"""Seconds beyond the drain timeout after which a server that should end is killed."""

_PR_SET_PDEATHSIG: Final = 1
"""Of prctl(2)."""

Health = Literal["healthy", "unhealthy", "silent", "refused"]


@dataclass(slots=True)
class Watch:
    """What the probes of a server returned, and whether to give it up.

    Never before its first answer: files may have to be fetched and converted first.
    """

    answered: bool = False
    silent: int = 0

    def gives_up(self, health: Health) -> bool:
        """Take one more probe into account."""
        if health in ("healthy", "unhealthy"):
            self.answered, self.silent = True, 0
            return health == "unhealthy"
        self.silent += 1
        return self.answered and (health == "refused" or self.silent >= MAX_SILENT)


def probe(port: int, path: str, *, tls: bool, timeout: float = PROBE_TIMEOUT_S) -> Health:
    """Probe the server of this machine.

    Args:
        port: for HTTP.
        path: `/livez` or `/readyz`.
        tls: whether it serves HTTPS; its certificate is not verified.
        timeout: seconds without an answer after which it is silent.

    Returns:
        `refused` where no process listens, as only workers do: the last one has died.
    """
    connection: http.client.HTTPConnection
    if tls:
        trusting = ssl._create_unverified_context()  # noqa: S323 (our own server)  # nosec B323
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=timeout, context=trusting)
    else:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET", path)
        return "healthy" if connection.getresponse().status == http.client.OK else "unhealthy"
    except ConnectionRefusedError:
        return "refused"
    except (OSError, http.client.HTTPException):
        return "silent"
    finally:
        connection.close()


def supervise(server: subprocess.Popen[bytes], check: Callable[[], Health], *, every: float, drain: float) -> int:
    """Watch a server until it ends.

    Args:
        server: just started.
        check: probes it once.
        every: seconds between two probes.
        drain: seconds that a server has to end once it should.

    Returns:
        The server's exit status where it was asked to stop or could not start; else `UNHEALTHY`.
    """
    stopping: float | None = None

    def forward(number: int, _: FrameType | None) -> None:
        nonlocal stopping
        stopping = stopping or time.monotonic()
        server.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, forward)
    watch = Watch()
    probe_at = time.monotonic() + every
    while True:
        try:
            status = server.wait(min(every, _WAKE_S))
        except subprocess.TimeoutExpired:
            if stopping:
                if time.monotonic() - stopping < drain:
                    continue
                sys.stderr.write("pomona: the server did not end in time; killing it\n")
                kill_all(server)
                return UNHEALTHY
            if time.monotonic() < probe_at:
                continue
            health = check()
            probe_at = time.monotonic() + every
            if stopping or not watch.gives_up(health):
                continue
            if health != "unhealthy":
                sys.stderr.write("pomona: the server no longer answers; killing it\n")
                kill_all(server)
                return UNHEALTHY
            sys.stderr.write("pomona: the server is no longer healthy; stopping it\n")
            server.terminate()
            try:
                server.wait(drain)
            except subprocess.TimeoutExpired:
                kill_all(server)
            return UNHEALTHY
        # Without a signal, one that had answered ended because its workers died, with whatever status.
        return status if stopping or (status and not watch.answered) else UNHEALTHY


def kill_all(server: subprocess.Popen[bytes]) -> None:
    """Kill a server and its workers, which have process groups of their own."""
    parents = {}
    for each in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended meanwhile
            parents[int(each.parent.name)] = int(each.read_text().rpartition(")")[2].split()[1])
    doomed = [server.pid]
    for number in doomed:
        doomed += [child for child, parent in parents.items() if parent == number]
    for number in doomed:
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    server.wait()


def _end_with_the_supervisor() -> None:
    """Get SIGTERM when the parent process dies (Linux)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def main(arguments: Sequence[str]) -> int:
    """Serve, or `--check` once."""
    admin_port = int(os.environ.get("POMONA_ADMIN_PORT") or 0)
    port = admin_port or int(os.environ.get("POMONA_HTTP_PORT") or 3000)
    tls = bool(os.environ.get("POMONA_TLS_CERT_FILE")) and not admin_port
    if "--check" in arguments:
        return 0 if probe(port, "/readyz", tls=tls) == "healthy" else 1
    on_linux = sys.platform == "linux"
    server = subprocess.Popen(  # noqa: S603 (what the container was started with)
        [*_SERVER, *arguments],
        preexec_fn=_end_with_the_supervisor if on_linux else None,  # noqa: PLW1509 (there are no threads)
    )
    drain = float(os.environ.get("POMONA_DRAIN_TIMEOUT_S") or 30) + _MARGIN_S
    return supervise(server, lambda: probe(port, "/livez", tls=tls), every=POLL_S, drain=drain)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
