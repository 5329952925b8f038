"""Containers of an image, run as Kubernetes would: file system read-only, no capability, limits."""

# ruff: noqa: S603 (it runs containers, which is its purpose)
from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

LIMITS: Final = (
    "--read-only",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--memory=3g",
    "--cpus=2",
    "--pids-limit=512",
)


_READY_WITHIN_S: Final = 300
"""A machine that does other work too takes its time; what it took is told."""


class CheckFailed(Exception):
    """The image is not as it should be; the message says what was seen."""


@dataclass(frozen=True, slots=True)
class Container:
    """A running container.

    Attributes:
        tool: podman or docker.
        id: the container's.
        http: port of its HTTP door on this machine.
        grpc: port of its gRPC door.
    """

    tool: str
    id: str
    http: int
    grpc: int

    def inside(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the container."""
        return subprocess.run([self.tool, "exec", self.id, *command], capture_output=True, text=True, check=False)

    def ended(self, within: float) -> int:
        """Wait for its end, and return its exit status."""
        return int(run(self.tool, "wait", self.id, timeout=within))

    def logs(self) -> str:
        """What it printed."""
        ran = subprocess.run([self.tool, "logs", self.id], capture_output=True, text=True, check=False)
        return ran.stdout + ran.stderr


@contextlib.contextmanager
def running(tool: str, image: str, *options: str) -> Iterator[Container]:
    """Run a container with these options of the tool, and remove it; what it printed is shown where a check fails."""
    http, other = _free_ports(2)
    ports = (f"--env=POMONA_HTTP_PORT={http}", f"--env=POMONA_GRPC_PORT={other}")
    made = Container(tool, run(tool, "run", "--detach", *options, *LIMITS, *ports, image), http, other)
    try:
        yield made
    except BaseException:
        sys.stderr.write(made.logs())
        raise
    finally:
        subprocess.run([tool, "rm", "--force", made.id], capture_output=True, check=False)


def seconds_until(condition: Callable[[], bool], every: float = 0.1) -> float:
    """Seconds until `condition()` holds, asked `every` so many seconds.

    Raises:
        CheckFailed: it took too long.
    """
    started = time.monotonic()
    while not condition():
        expect(time.monotonic() - started < _READY_WITHIN_S, f"readiness within {_READY_WITHIN_S} s")
        time.sleep(every)
    return round(time.monotonic() - started, 2)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def run(*command: str, timeout: float = 120) -> str:
    """What a command printed.

    Raises:
        CheckFailed: it failed.
    """
    ran = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    expect(ran.returncode == 0, f"{' '.join(command)}: {ran.stderr}")
    return ran.stdout.strip()


def expect(truth: object, what: str) -> None:
    """See that something holds.

    Raises:
        CheckFailed: it does not.
    """
    if not truth:
        raise CheckFailed(what)
