"""The first process of a container: `python -m service.supervise [arguments of bentoml serve]`.

Without it a container would live on after its worker died, as BentoML ends with 0 or does not end at all. It starts the
server, hands on SIGTERM and SIGINT, and asks `/livez`; when the server is not sound any more, it lets it drain and ends
with `UNSOUND`, so that whoever runs the container starts another. `--check` asks `/readyz` once, for HEALTHCHECK.
Only the standard library, so that it costs little beside the server.
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

UNSOUND: Final = 70
"""Exit status where the device broke, or the server stopped answering (EX_SOFTWARE of sysexits.h)."""

_SERVER: Final = (sys.executable, "-m", "bentoml", "serve", "service.app:Pomona")
_PATIENCE: Final = 3

Sight = Literal["sound", "unsound", "silent"]


@dataclass(slots=True)
class Watch:
    """What was seen of a server, and whether it is time to give it up.

    A server that says that it is unsound is believed at once. One that is silent is given up after three looks, and
    never before it was heard for the first time: files may have to be fetched and converted first.
    """

    heard: bool = False
    silent: int = 0

    def gives_up(self, sight: Sight) -> bool:
        """Take one more look into account."""
        if sight == "silent":
            self.silent += 1
            return self.heard and self.silent >= _PATIENCE
        self.heard, self.silent = True, 0
        return sight == "unsound"


def look(port: int, path: str, *, tls: bool, timeout: float = 5) -> Sight:
    """Ask the server of this machine.

    Args:
        port: of its HTTP door.
        path: `/livez` or `/readyz`.
        tls: it speaks HTTPS; whose certificate it has is not asked.
        timeout: seconds without an answer after which it is silent.
    """
    connection: http.client.HTTPConnection
    if tls:
        trusting = ssl._create_unverified_context()  # noqa: S323 (our own server, named by no certificate here)
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=timeout, context=trusting)
    else:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET", path)
        return "sound" if connection.getresponse().status == http.client.OK else "unsound"
    except (OSError, http.client.HTTPException):
        return "silent"
    finally:
        connection.close()


def supervise(server: subprocess.Popen[bytes], see: Callable[[], Sight], *, every: float, drain: float) -> int:
    """Watch a server until it ends.

    Args:
        server: just started.
        see: one look at it.
        every: seconds between two looks.
        drain: seconds that a server which is given up has for its end.

    Returns:
        the server's exit status, or `UNSOUND` where it had to be given up.
    """
    told = False

    def hand_on(number: int, _: FrameType | None) -> None:
        nonlocal told
        told = True
        server.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, hand_on)
    watch = Watch()
    while True:
        try:
            status = server.wait(every)
        except subprocess.TimeoutExpired:
            if told or not watch.gives_up(see()):
                continue
            sys.stderr.write("pomona: the server is not sound any more; it ends\n")
            server.terminate()
            try:
                server.wait(drain)
            except subprocess.TimeoutExpired:
                server.kill()
            return UNSOUND
        # Nobody asked it to end: its workers died.
        return status if told else status or UNSOUND


def main(arguments: Sequence[str]) -> int:
    """Serve, or `--check` once."""
    port = int(os.environ.get("POMONA_HTTP_PORT") or 3000)
    tls = bool(os.environ.get("POMONA_TLS_CERT_FILE"))
    if "--check" in arguments:
        return 0 if look(port, "/readyz", tls=tls) == "sound" else 1
    server = subprocess.Popen([*_SERVER, *arguments])  # noqa: S603 (what the container was started with)
    drain = float(os.environ.get("POMONA_DRAIN_TIMEOUT_S") or 30) + 10
    return supervise(server, lambda: look(port, "/livez", tls=tls), every=5, drain=drain)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
