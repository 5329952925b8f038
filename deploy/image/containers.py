"""Run containers of an image as Kubernetes would: with a read-only file system, no capabilities, and limits."""

# ruff: noqa: S603 (running commands is its purpose)
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
"""Enough for a busy machine; the time that it took is reported."""


class CheckFailed(Exception):
    """The image fails a check; the message says what must hold and what was found."""


@dataclass(frozen=True, slots=True)
class Container:
    """A running container.

    Attributes:
        tool: podman or docker.
        id: the container's.
        http: port of its HTTP endpoint on this machine.
        grpc: port of its gRPC endpoint.
        admin: port for probes.
    """

    tool: str
    id: str
    http: int
    grpc: int
    admin: int

    def inside(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command inside the container."""
        return subprocess.run([self.tool, "exec", self.id, *command], capture_output=True, text=True, check=False)

    def pid(self) -> int:
        """Return the number of its first process on this machine; 0 once it has ended."""
        return int(run(self.tool, "inspect", "--format", "{{.State.Pid}}", self.id))

    def ended(self, within: float) -> int:
        """Wait until it ends, and return its exit status."""
        return int(run(self.tool, "wait", self.id, timeout=within))

    def logs(self) -> str:
        """Return what it printed."""
        ran = subprocess.run([self.tool, "logs", self.id], capture_output=True, text=True, check=False)
        return ran.stdout + ran.stderr


@contextlib.contextmanager
def running(tool: str, image: str, *options: str) -> Iterator[Container]:
    """Run a container with the given options, and remove it at the end; if a check fails, print its output."""
    http, other, admin = _free_ports(3)
    numbers = {"HTTP": http, "GRPC": other, "ADMIN": admin}
    # This machine's network is the container's, and its other users are no callers.
    ports = ["--env=POMONA_HTTP_HOST=127.0.0.1"]
    ports += [f"--env=POMONA_{name}_PORT={number}" for name, number in numbers.items()]
    made = Container(tool, run(tool, "run", "--detach", *options, *LIMITS, *ports, image), http, other, admin)
    try:
        yield made
    except BaseException:
        sys.stderr.write(made.logs())
        raise
    finally:
        subprocess.run([tool, "rm", "--force", made.id], capture_output=True, check=False)


def seconds_until(condition: Callable[[], bool], every: float = 0.1) -> float:
    """Wait until `condition()` holds, and return the seconds that it took.

    Args:
        condition: tried again and again.
        every: seconds between two tries.

    Raises:
        CheckFailed: it took too long.
    """
    started = time.monotonic()
    while not condition():
        expect(time.monotonic() - started < _READY_WITHIN_S, f"the container must be ready within {_READY_WITHIN_S} s")
        time.sleep(every)
    return round(time.monotonic() - started, 2)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def run(*command: str, timeout: float = 120) -> str:
    """Run a command and return what it printed.

    Raises:
        CheckFailed: the command failed.
    """
    ran = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    expect(ran.returncode == 0, f"{' '.join(command)}: {ran.stderr}")
    return ran.stdout.strip()


def expect(truth: object, what: str) -> None:
    """Check that something holds.

    Raises:
        CheckFailed: it does not; the message is `what`.
    """
    if not truth:
        raise CheckFailed(what)
