"""Mutated inputs to every reader of untrusted bytes, and to a server: `python -m loadtest fuzz`.

Valid inputs are changed in a few places, so that most get past what is checked first. A reader may raise Pomona's own
errors only, a server may answer with problems only, within a time and a growth of memory. Inputs are used in processes
of their own, so that a crash of a library or an endless loop is found as well. An input that failed is written to a
file, and its number makes and uses it again: `python -m loadtest fuzz --input images:123`.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import resource
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import psutil
from tqdm import tqdm

from loadtest.answers import PASSED
from loadtest.fuzz_description import DESCRIBED
from loadtest.fuzz_requests import CALLS
from loadtest.fuzz_served import complaints, serving
from loadtest.fuzz_targets import READERS, Target
from loadtest.report import Effort, Report, table

TARGETS: Final[Mapping[str, Target]] = {**READERS, **CALLS, **DESCRIBED}

PER_ROUND: Final = 1_000

LONGEST_S: Final = 2.0
"""CPU seconds that a reader may take; the largest image is of one megapixel."""

LONGEST_ANSWER_S: Final = 20.0
"""Until a server's answer, which shares the cores with the other targets."""

HANGS_AFTER_S: Final = 60.0
STARTS_WITHIN_S: Final = 300.0
MEMORY_MIB: Final = 400
"""By which memory may grow from the first hundred inputs to the peak."""

_MOST_FAILURES: Final = 20
_REPORTED_EVERY: Final = 100
_STARTING: Final = -1
_MIB: Final = 1 << 20


@dataclass
class Result:
    """What came of a target's inputs.

    Attributes:
        inputs: how many were used.
        outcomes: `PASSED`, or the code of the problem, and how often.
        slowest_s: seconds of the input that took longest: of CPU in a reader, until the answer of a server.
        slowest: its number.
        grown_mib: growth of memory from the first inputs to the peak, of the reader's process.
        failures: what must not have happened, with the number of the input.
    """

    inputs: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    slowest: int = 0
    grown_mib: float = 0.0
    failures: list[tuple[int, str]] = field(default_factory=list)


def main(effort: Effort, folder: Path, *, input: str = "") -> None:  # noqa: A002 (the option's name)
    """Use `effort.rounds` thousands of inputs and write `fuzz`, or use one of them again.

    Raises:
        SystemExit: something failed.
    """
    if input:
        sys.exit(_again(input))
    total = effort.rounds * PER_ROUND
    counts = {name: round(total * target.share) for name, target in TARGETS.items()}
    readers = [name for name, target in TARGETS.items() if not target.served]
    calls = [name for name, target in TARGETS.items() if target.served]
    with tqdm(total=sum(counts.values()), unit=" inputs", mininterval=5) as bar, ThreadPoolExecutor(2) as threads:
        progress = Progress(bar)
        read = threads.submit(_fuzz_all, readers, counts, progress)
        called, server = _fuzz_server(calls, counts, progress)
        results = {**read.result(), **called}
    data = data_of(results, server)
    Report(
        "fuzz",
        data,
        lines_of(data),
        packages=("opencv-python-headless", "protobuf", "pydantic", "grpcio", "schemathesis", "hypothesis"),
    ).write(folder)
    failed = [(name, number, text) for name, result in results.items() for number, text in result.failures]
    for name, number, text in failed:
        print(f"{name}, input {number}{_kept(name, number)}: {text}")
    print(*server["complaints"][:20], sep="\n")
    if failed or server["complaints"]:
        raise SystemExit(f"{len(failed)} inputs failed; {len(server['complaints'])} complaints in the server's log.")


class Progress:
    """One line for all targets, which several threads write to."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._lock = threading.Lock()
        self._failures = 0

    def add(self, name: str, report: Result) -> None:
        """Count what was reported."""
        with self._lock:
            self._failures += len(report.failures)
            self._bar.set_postfix_str(f"{name}, {self._failures} failures", refresh=False)
            self._bar.update(report.inputs)


def _fuzz_all(names: Iterable[str], counts: Mapping[str, int], progress: Progress) -> dict[str, Result]:
    return {name: fuzz(name, counts[name], progress) for name in names}


def _fuzz_server(
    names: Iterable[str], counts: Mapping[str, int], progress: Progress
) -> tuple[dict[str, Result], dict[str, Any]]:
    """Use the inputs of targets that need a server; also return what it took and what it complained of in its log."""
    with serving() as server:
        before_mib = server.resident_mib()
        results = _fuzz_all(names, counts, progress)
        grown_mib = server.resident_mib() - before_mib
        found = {
            "grown_mib": round(grown_mib, 1),
            "complaints": complaints(server.log()),
            "alive": server.process.poll() is None,
        }
    return results, found


def _kept(name: str, number: int) -> str:
    """Keep an input in a file, and return its path in brackets."""
    with contextlib.suppress(Exception):  # what cannot be made here either, or needs the server
        path = Path(f"fuzz-{name.replace(' ', '-')}-{number}.bin")
        path.write_bytes(TARGETS[name].make(number))
        return f" ({path})"
    return ""


def _again(wanted: str) -> str | None:
    """Use the input of `TARGET:NUMBER`; return what failed, or None."""
    name, _, number = wanted.rpartition(":")
    if name not in TARGETS or not number.isdecimal():
        return f"--input must be TARGET:NUMBER with a target of {', '.join(TARGETS)}, got {wanted}"
    target = TARGETS[name]
    with serving() if target.served else contextlib.nullcontext() as server:
        outcome, failure = _outcome(target, target.make(int(number)))
        print(f"{name}, input {number}{_kept(name, int(number))}: {failure or outcome}")
        if server is not None:
            print(server.log())
    return None if failure is None else "It failed."


def fuzz(name: str, count: int, progress: Progress) -> Result:
    """Use the first `count` inputs of a target, in a child process that is replaced when it dies or hangs."""
    result, number = Result(), 0
    context = multiprocessing.get_context("spawn")
    while number < count and len(result.failures) < _MOST_FAILURES:
        current = context.Value("q", _STARTING)
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=_use_all, args=(name, number, count, current, sender), daemon=True)
        child.start()
        sender.close()
        ended = _follow(child, receiver, current, lambda report: _add(result, report, name, progress))
        failed = max(number, current.value)
        number = count if ended is None else failed + 1
        if ended is not None:
            _add(result, Result(inputs=1, failures=[(failed, ended)]), name, progress)
    return result


def _follow(child: Any, receiver: Connection, current: Any, add: Any) -> str | None:
    """Take what the child reports until it is done; return how it ended otherwise."""
    seen, since = _STARTING, time.monotonic()
    while True:
        if receiver.poll(1.0):
            try:
                report = receiver.recv()
            except EOFError:
                child.join()
                return f"the process died, exit code {child.exitcode}"
            if report is None:
                child.join()
                return None
            add(report)
        if current.value != seen:
            seen, since = current.value, time.monotonic()
        elif time.monotonic() - since > (limit := STARTS_WITHIN_S if seen == _STARTING else HANGS_AFTER_S):
            child.kill()
            child.join()
            return f"no end after {limit:g} s"


def _add(result: Result, report: Result, name: str, progress: Progress) -> None:
    result.inputs += report.inputs
    result.outcomes.update(report.outcomes)
    result.failures += report.failures
    result.grown_mib = max(result.grown_mib, report.grown_mib)
    if report.slowest_s > result.slowest_s:
        result.slowest_s, result.slowest = report.slowest_s, report.slowest
    progress.add(name, report)


def _use_all(name: str, first: int, count: int, current: Any, sender: Connection) -> None:
    """Use inputs `first` to `count`, and report every hundred."""
    target, start_mib, grown = TARGETS[name], 0.0, False
    clock, longest = (time.perf_counter, LONGEST_ANSWER_S) if target.served else (time.thread_time, LONGEST_S)
    report = Result()
    for number in range(first, count):
        data = target.make(number)
        current.value = number
        tick = clock()
        outcome, failure = _outcome(target, data)
        spent = clock() - tick
        report.inputs += 1
        report.outcomes[outcome] += 1
        if spent > report.slowest_s:
            report.slowest_s, report.slowest = spent, number
        if failure is None and spent > longest:
            failure = f"took {spent:.1f} s"
        if failure is not None:
            report.failures.append((number, failure))
        if number - first == _REPORTED_EVERY:
            start_mib = psutil.Process().memory_info().rss / _MIB
        if number % _REPORTED_EVERY == 0:
            peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            report.grown_mib = peak_mib - start_mib if start_mib else 0.0
            if report.grown_mib > MEMORY_MIB and not grown:
                grown = True
                report.failures.append((number, f"memory grew by {report.grown_mib:.0f} MiB, at this input or before"))
            sender.send(report)
            report = Result()
    sender.send(report)
    sender.send(None)


def _outcome(target: Target, data: bytes) -> tuple[str, str | None]:
    """Return what came of an input, and what must not have happened, or None."""
    try:
        return target.use(data), None
    except Exception as error:  # noqa: BLE001 (any that a target lets through is what is looked for)
        return type(error).__name__, traceback.format_exc(limit=-4)


def data_of(results: Mapping[str, Result], server: Mapping[str, Any]) -> dict[str, Any]:
    """Return the results for the JSON file."""
    targets = {
        name: {
            "inputs": result.inputs,
            "outcomes": dict(result.outcomes.most_common()),
            "slowest_ms": round(result.slowest_s * 1e3, 1),
            "slowest_input": result.slowest,
            "grown_mib": round(result.grown_mib, 1),
            "failures": len(result.failures),
        }
        for name, result in results.items()
    }
    return {"inputs": sum(result.inputs for result in results.values()), "targets": targets, "server": dict(server)}


def lines_of(data: Mapping[str, Any]) -> list[str]:
    """Return the report."""
    rows = []
    for name, found in data["targets"].items():
        inputs = max(1, found["inputs"])
        refused = [f"{code} {count / inputs:.1%}" for code, count in found["outcomes"].items() if code != PASSED]
        rows.append(
            (
                name,
                ", ".join(refused[:5]) + (", …" if len(refused) > 5 else ""),
                f"{found['inputs']:,}",
                f"{found['outcomes'].get(PASSED, 0) / inputs:.0%}",
                f"{found['slowest_ms']:g} ms",
                f"{found['failures']}",
            )
        )
    heads = ("target", "refused as", "inputs", "passed", "slowest", "failures")
    server = data["server"]
    return [
        f"{data['inputs']:,} inputs. Slowest is CPU time in readers, and the time until the answer over the network.",
        "",
        *table(heads, rows, left=2),
        "",
        f"The server's memory changed by {server['grown_mib']:+g} MiB; {len(server['complaints'])} errors in its log.",
    ]
