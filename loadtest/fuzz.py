"""Mutated inputs to every reader of untrusted bytes: `python -m loadtest fuzz`.

Valid inputs are changed in a few places, so that most get past what is checked first. A reader may raise Pomona's own
errors only, within a time and a growth of memory. Each runs in a process of its own, so that a crash of a library or an
endless loop is found as well; an input that failed is written to a file, and its number makes it again.
"""

from __future__ import annotations

import multiprocessing
import random
import resource
import time
import traceback
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import psutil

from loadtest.fuzz_targets import TARGETS, Target
from loadtest.report import Effort, Report, table

PER_ROUND: Final = 1_000
SHARES: Final[Mapping[str, float]] = {"images": 0.6, "JSON": 0.1, "gRPC messages": 0.1}
"""Of the inputs; the other targets have equal parts of the rest."""

LONGEST_S: Final = 2.0
"""CPU seconds that an input may take; the largest image is of one megapixel."""

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
        inputs: how many were read.
        outcomes: "read", or the name of the error, and how often.
        slowest_s: CPU seconds of the input that took longest.
        slowest: its number.
        grown_mib: growth of memory from the first inputs to the peak.
        failures: what must not have happened, with the number of the input.
    """

    inputs: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    slowest: int = 0
    grown_mib: float = 0.0
    failures: list[tuple[int, str]] = field(default_factory=list)


def main(effort: Effort, folder: Path) -> None:
    """Read `effort.rounds` thousands of inputs and write `fuzz`.

    Raises:
        SystemExit: a reader failed.
    """
    total = effort.rounds * PER_ROUND
    rest = (1 - sum(SHARES.values())) / (len(TARGETS) - len(SHARES))
    results = {name: fuzz(name, round(total * SHARES.get(name, rest))) for name in TARGETS}
    data = {
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
    Report("fuzz", data, lines_of(data), packages=("opencv-python-headless", "protobuf", "pydantic")).write(folder)
    failed = [(name, number, text) for name, result in results.items() for number, text in result.failures]
    for name, number, text in failed:
        path = Path(f"fuzz-{name.replace(' ', '-')}-{number}.bin")
        path.write_bytes(input_of(TARGETS[name], name, number))
        print(f"{name}, input {number} ({path}): {text}")
    if failed:
        raise SystemExit(f"{len(failed)} inputs failed.")


def input_of(target: Target, name: str, number: int) -> bytes:
    """Return an input; the first ones are the seeds."""
    seeds = target.seeds()
    if number < len(seeds):
        return seeds[number]
    return target.mutate(seeds, random.Random(f"{name} {number}"))  # noqa: S311 (reproducible)


def fuzz(name: str, count: int) -> Result:
    """Read the first `count` inputs of a target, in a child process that is replaced when it dies or hangs."""
    result, number = Result(), 0
    context = multiprocessing.get_context("spawn")
    while number < count and len(result.failures) < _MOST_FAILURES:
        current = context.Value("q", _STARTING)
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=_read_all, args=(name, number, count, current, sender), daemon=True)
        child.start()
        sender.close()
        ended = _follow(child, receiver, current, result)
        failed = max(number, current.value)
        number = count if ended is None else failed + 1
        if ended is not None:
            result.inputs += 1
            result.failures.append((failed, ended))
    return result


def _follow(child: Any, receiver: Connection, current: Any, result: Result) -> str | None:
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
            _add(result, report)
        if current.value != seen:
            seen, since = current.value, time.monotonic()
        elif time.monotonic() - since > (limit := STARTS_WITHIN_S if seen == _STARTING else HANGS_AFTER_S):
            child.kill()
            child.join()
            return f"no end after {limit:g} s"


def _add(result: Result, report: Result) -> None:
    result.inputs += report.inputs
    result.outcomes.update(report.outcomes)
    result.failures += report.failures
    result.grown_mib = max(result.grown_mib, report.grown_mib)
    if report.slowest_s > result.slowest_s:
        result.slowest_s, result.slowest = report.slowest_s, report.slowest


def _read_all(name: str, first: int, count: int, current: Any, sender: Connection) -> None:
    """Read inputs `first` to `count`, and report every hundred."""
    target, start_mib = TARGETS[name], 0.0
    report = Result()
    for number in range(first, count):
        current.value = number
        data = input_of(target, name, number)
        tick = time.thread_time()
        outcome, failure = _outcome(target, data)
        spent = time.thread_time() - tick
        report.inputs += 1
        report.outcomes[outcome] += 1
        if spent > report.slowest_s:
            report.slowest_s, report.slowest = spent, number
        if failure is None and spent > LONGEST_S:
            failure = f"took {spent:.1f} s"
        if failure is not None:
            report.failures.append((number, failure))
        if number - first == _REPORTED_EVERY:
            start_mib = psutil.Process().memory_info().rss / _MIB
        if number % _REPORTED_EVERY == 0:
            peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            report.grown_mib = peak_mib - start_mib if start_mib else 0.0
            if report.grown_mib > MEMORY_MIB:
                report.failures.append((number, f"memory grew by {report.grown_mib:.0f} MiB, at this input or before"))
            sender.send(report)
            report = Result()
    sender.send(report)
    sender.send(None)


def _outcome(target: Target, data: bytes) -> tuple[str, str | None]:
    """Return what came of an input, and what must not have happened, or None."""
    try:
        target.read(data)
    except target.allowed as error:
        return type(error).__name__, None if getattr(error, "detail", "") else "an error without a detail"
    except Exception as error:  # noqa: BLE001 (any other is what is looked for)
        return type(error).__name__, traceback.format_exc(limit=-4)
    return "read", None


def lines_of(data: Mapping[str, Any]) -> list[str]:
    """Return the report."""
    rows = [
        (
            name,
            f"{found['inputs']:,}",
            f"{found['outcomes'].get('read', 0) / max(1, found['inputs']):.0%}",
            f"{found['slowest_ms']:g}",
            f"{found['grown_mib']:g}",
            str(found["failures"]),
        )
        for name, found in data.items()
    ]
    heads = ("reader", "inputs", "read without an error", "longest, CPU ms", "memory grown by, MiB", "failures")
    return ["# Fuzzing", "", *table(heads, rows)]
