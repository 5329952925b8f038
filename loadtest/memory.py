"""Does the server keep its memory under attack? `python -m loadtest memory`.

Every attack meets a server that is ready and idle; its peak, and what it keeps after a rest, are read from `/proc`.
Where a memory control group can be made below this process's own, the server runs in one of 3 GiB, as in the chart:
then the kernel kills it where it takes more. Else the report says that it was only measured.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import psutil
from tqdm import tqdm

from deploy.image import containers
from deploy.image.containers import Container
from loadtest.attacks import ATTACKS, SMALL, Attack, Attacked, photograph, post
from loadtest.report import Effort, Report, table
from loadtest.server import Server, free_port, running

LIMIT: Final = 3 << 30
REST_S: Final = 60.0
ALLOWED_PEAK_MIB: Final = 400
"""Of one legal request, above idle."""

ALLOWED_GROWTH: Final = 0.15

_MIB: Final = 1 << 20
_CGROUP: Final = Path("/sys/fs/cgroup")
_TOOL: Final = Path(__file__).parent.parent / "deploy" / "image" / "tool.sh"
_TIMEOUT_S: Final = 600
"""Of a request: a slow machine does not end one before it has taken what it takes."""


@dataclass(frozen=True, slots=True)
class Result:
    """How a server stood an attack.

    Attributes:
        answers: by status.
        before_mib: resident before it.
        peak_mib: most that was resident.
        after_mib: resident after the rest.
        seconds: it took.
        alive: whether the server answers as before.
    """

    answers: Mapping[str, int]
    before_mib: float
    peak_mib: float
    after_mib: float
    seconds: float
    alive: bool

    @property
    def growth(self) -> float:
        """What is kept, as a part of what there was."""
        return self.after_mib / self.before_mib - 1


def main(effort: Effort, folder: Path, *, image: str = "") -> None:
    """Attack a server with everything, and write `memory`, or `memory-image` for a container of `image`.

    `effort.seconds` is the rest after each attack.

    Raises:
        SystemExit: the server died, or an attack took or kept more than is allowed.
    """
    results: dict[str, list[Result]] = {}
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        server: Attacked
        if image:
            server, limited = stack.enter_context(contained(image)), True
        else:
            server, limited = stack.enter_context(started(Path(scratch)))
        warm_up(server)
        for name, attack in tqdm(ATTACKS.items(), desc="attacks"):
            results[name] = [meet(server, attack, rest_s=effort.seconds) for _ in range(effort.rounds)]
            if not results[name][-1].alive:
                break
    Report(
        "memory-image" if image else "memory", _data(results, limited=limited), lines_of(results, limited=limited)
    ).write(folder)
    if missed := [name for name, all_of in results.items() if not all(map(_holds, all_of))]:
        raise SystemExit(f"Memory was not kept: {', '.join(missed)}.")


def warm_up(server: Attacked) -> None:
    """Let the server allocate what it keeps for any request."""
    for path, request in (("/v1/segment", {"prompts": [{"points": [[600, 400]]}]}), ("/v1/semantic", {})):
        for _ in range(3):
            post(server, path, photograph(SMALL), request)


def meet(server: Attacked, attack: Attack, *, scale: float = 1.0, rest_s: float = REST_S) -> Result:
    """Measure one attack on an idle server."""
    processes = server.processes()
    before = _resident_mib(processes)
    for process in processes:
        Path(f"/proc/{process.pid}/clear_refs").write_text("5")  # the peak begins again
    started = time.monotonic()
    answers = attack(server, scale)
    seconds = time.monotonic() - started
    peak = sum(_status(process, "VmHWM") for process in processes)
    time.sleep(rest_s)
    alive = _alive(server)
    return Result(dict(answers), before, peak, _resident_mib(processes), seconds, alive)


@contextlib.contextmanager
def started(scratch: Path) -> Iterator[tuple[Server, bool]]:
    """Start the service, within the limit where that is possible; also say whether it was."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(group_of(LIMIT))
        # What this process starts while it is in the group begins there, and sees the limit.
        if folder is not None:
            home = folder.parent
            _move(folder)
        try:
            settings = {"grpc_port": str(free_port()), "request_timeout_s": str(_TIMEOUT_S)}
            server = stack.enter_context(running(scratch, **settings))
        finally:
            if folder is not None:
                _move(home)
        yield server, folder is not None


@dataclass(frozen=True, slots=True)
class ContainedServer:
    """A server in a container; its processes are seen from outside."""

    container: Container

    @property
    def address(self) -> str:
        """Base URL."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def port(self) -> int:
        """Port of HTTP."""
        return self.container.http

    @property
    def grpc_port(self) -> int:
        """Port of gRPC."""
        return self.container.grpc

    def processes(self) -> list[psutil.Process]:
        """Return its processes; none once it has ended."""
        with contextlib.suppress(psutil.NoSuchProcess):
            first = psutil.Process(self.container.pid())
            return [first, *first.children(recursive=True)]
        return []


@contextlib.contextmanager
def contained(image: str) -> Iterator[ContainedServer]:
    """Start a container with the limits of the chart, and wait until it is ready."""
    tool = os.environ.get("TOOL") or containers.run(str(_TOOL))
    with containers.running(tool, image, "--network=host") as made:
        containers.seconds_until(lambda: _is_ready(f"http://127.0.0.1:{made.admin}"))
        yield ContainedServer(made)


@contextlib.contextmanager
def group_of(nbytes: int) -> Iterator[Path | None]:
    """Make a memory control group below that of this process; None where that is not possible."""
    found = next(iter(_memory_groups()), None)
    if found is None:
        yield None
        return
    parent, name = found
    folder = parent / f"pomona-memory-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / name).write_text(str(nbytes))
    except OSError:
        with contextlib.suppress(OSError):
            folder.rmdir()
        yield None
        return
    try:
        yield folder
    finally:
        _remove(folder)


def _remove(group: Path) -> None:
    """Remove a group, as soon as the processes that were killed in it are gone."""
    for _ in range(100):
        with contextlib.suppress(OSError):
            group.rmdir()
            return
        time.sleep(0.1)


def _move(group: Path) -> None:
    (group / "cgroup.procs").write_text(str(os.getpid()))


def _memory_groups() -> Iterator[tuple[Path, str]]:
    """Yield the memory group of this process and the file of its limit, of version 1 or 2."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            yield _CGROUP / "memory" / path.lstrip("/"), "memory.limit_in_bytes"
        elif not controllers and (_CGROUP / path.lstrip("/") / "memory.current").exists():
            yield _CGROUP / path.lstrip("/"), "memory.max"


def _resident_mib(processes: Sequence[psutil.Process]) -> float:
    return sum(_status(process, "VmRSS") for process in processes)


def _status(process: psutil.Process, name: str) -> float:
    """Return a number of `/proc/PID/status` in MiB; 0 of a process that is gone."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) * 1024 / _MIB for line in lines if line.startswith(f"{name}:")), 0.0)


def _alive(server: Attacked) -> bool:
    return _is_ready(server.address) and (
        post(server, "/v1/segment", photograph(SMALL), {"prompts": [{"points": [[600, 400]]}]}) == "200"
    )


def _is_ready(address: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{address}/readyz", timeout=10).status_code == 200
    return False


def _holds(result: Result) -> bool:
    return result.alive and result.growth <= ALLOWED_GROWTH


def _data(results: Mapping[str, Sequence[Result]], *, limited: bool) -> dict[str, Any]:
    return {
        "limited_to_mib": LIMIT // _MIB if limited else None,
        "attacks": {
            name: [
                {
                    "answers": result.answers,
                    "before_mib": round(result.before_mib),
                    "peak_mib": round(result.peak_mib),
                    "after_mib": round(result.after_mib),
                    "growth": round(result.growth, 3),
                    "seconds": round(result.seconds, 1),
                    "alive": result.alive,
                }
                for result in all_of
            ]
            for name, all_of in results.items()
        },
    }


def lines_of(results: Mapping[str, Sequence[Result]], *, limited: bool) -> list[str]:
    """Return the report as Markdown."""
    rows = [
        (
            name,
            ", ".join(f"{count} x {answer}" for answer, count in sorted(result.answers.items())),
            f"{result.seconds:.0f} s",
            f"{result.before_mib:.0f} MiB",
            f"+{result.peak_mib - result.before_mib:.0f} MiB",
            f"{result.growth:+.0%}",
            "yes" if result.alive else "no",
        )
        for name, all_of in results.items()
        for result in all_of
    ]
    where = (
        f"in a memory control group of {LIMIT // _MIB} MiB, where the kernel would have killed it"
        if limited
        else "without a limit: no memory control group could be made here"
    )
    return [
        f"The server ran {where}.",
        "",
        *table(("attack", "answers", "took", "before", "peak", "kept after a rest", "alive"), rows, left=2),
    ]
