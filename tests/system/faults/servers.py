"""Servers as processes for tests of faults, around the benchmark's model: it loads at once and takes a given time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psutil

from loadtest.peers import Work
from loadtest.server import Server, environment_of, free_port, launched

BENTO: Final = "loadtest.peers.serve_pomona:Pomona"
WITHIN_S: Final = 20.0

_FEW_FILES: Final = (
    "import resource, runpy, sys;"
    "resource.setrlimit(resource.RLIMIT_NOFILE, ({0}, {0}));"
    "sys.argv = ['bentoml', 'serve', '{1}'];"
    "runpy.run_module('bentoml', run_name='__main__')"
)


@contextmanager
def bench_server(
    folder: Path, *, batch_ms: float = 0.0, open_files: int | None = None, **settings: str
) -> Iterator[Server]:
    """Start `bentoml serve` with a model whose batches take `batch_ms`, and with at most so many open files."""
    port = free_port()
    environment = environment_of(port, models="mobile-sam", **settings) | Work(fixed_ms=batch_ms).environment()
    arguments = ["-m", "bentoml", "serve", BENTO]
    if open_files is not None:
        arguments = ["-c", _FEW_FILES.format(open_files, BENTO)]
    with launched(folder, port, arguments, environment) as server:
        yield server


def worker_of(server: Server) -> psutil.Process:
    """Return the process that answers."""
    for child in psutil.Process(server.process.pid).children(recursive=True):
        if "_bentoml_impl.worker.service" in " ".join(child.cmdline()):
            return child
    raise AssertionError(f"no worker:\n{server.log()}")


def gone(process: psutil.Process) -> bool:
    """Whether a process has ended."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def seconds_until(condition: Callable[[], bool], within: float = WITHIN_S) -> float:
    """Return the seconds until `condition()` is true, which must be soon."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < within, "it took too long"
        time.sleep(0.02)
    return time.monotonic() - began
