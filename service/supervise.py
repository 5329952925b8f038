"""The first process of a container: `python -m service.supervise [arguments of bentoml serve]`.

Without it a container would live on after its worker died, as BentoML ends with 0 or does not end at all. It starts the
server, forwards SIGTERM and SIGINT, and polls `/livez`; when the server is no longer healthy, it lets it drain and ends
with `UNHEALTHY`, so that the container is replaced. `--check` requests `/readyz` once, for HEALTHCHECK.
It imports only the standard library, so that it costs little beside the server.
"""

from __future__ import annotations

import http.client
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Final, Literal

UNHEALTHY: Final = 70
"""Exit status where the device broke, or the server stopped answering (EX_SOFTWARE of sysexits.h)."""

_SERVER: Final = (sys.executable, "-m", "bentoml", "serve", "service.app:Pomona")
_MAX_SILENT: Final = 3

Health = Literal["healthy", "unhealthy", "silent"]


@dataclass(slots=True)
class Watch:
    """What the probes of a server returned, and whether to give it up.

    A server that reports that it is unhealthy is given up at once. One that is silent is given up after three probes,
    and never before its first answer: files may have to be fetched and converted first.
    """

    answered: bool = False
    silent: int = 0

    def gives_up(self, health: Health) -> bool:
        """Take one more probe into account."""
        if health == "silent":
            self.silent += 1
            return self.answered and self.silent >= _MAX_SILENT
        self.answered, self.silent = True, 0
        return health == "unhealthy"


def probe(port: int, path: str, *, tls: bool, timeout: float = 5) -> Health:
    """Probe the server of this machine.

    Args:
        port: for HTTP.
        path: `/livez` or `/readyz`.
        tls: whether it serves HTTPS; its certificate is not verified.
        timeout: seconds without an answer after which it is silent.
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
        drain: seconds that a server which is given up has to end.

    Returns:
        The server's exit status, or `UNHEALTHY` where it had to be given up.
    """
    stopping = False

    def forward(number: int, _: FrameType | None) -> None:
        nonlocal stopping
        stopping = True
        server.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, forward)
    watch = Watch()
    while True:
        try:
            status = server.wait(every)
        except subprocess.TimeoutExpired:
            if stopping or not watch.gives_up(check()):
                continue
            sys.stderr.write("pomona: the server is no longer healthy; stopping it\n")
            server.terminate()
            try:
                server.wait(drain)
            except subprocess.TimeoutExpired:
                server.kill()
            return UNHEALTHY
        # Without a signal it ended because its workers died.
        return status if stopping else status or UNHEALTHY


def main(arguments: Sequence[str]) -> int:
    """Serve, or `--check` once."""
    port = int(os.environ.get("POMONA_HTTP_PORT") or 3000)
    tls = bool(os.environ.get("POMONA_TLS_CERT_FILE"))
    if "--check" in arguments:
        return 0 if probe(port, "/readyz", tls=tls) == "healthy" else 1
    server = subprocess.Popen([*_SERVER, *arguments])  # noqa: S603 (what the container was started with)
    drain = float(os.environ.get("POMONA_DRAIN_TIMEOUT_S") or 30) + 10
    return supervise(server, lambda: probe(port, "/livez", tls=tls), every=5, drain=drain)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
