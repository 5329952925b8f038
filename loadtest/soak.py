"""Half an hour of every operation, at 0.8 of the measured capacity: `python -m loadtest soak`.

First, callers who wait for their answers measure how many actions a second the server completes. Then actions fall due
at random times at 0.8 of that rate, whether or not earlier ones were answered. Memory, open files and threads must stay
flat after a warm-up, every answer must be one that the action may have, and each must come. See `loadtest.soak_mix`.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
from matplotlib.figure import Figure
from tqdm import tqdm

from loadtest.images import RenderedImage, render_image
from loadtest.load import poisson
from loadtest.report import Effort, Report, table
from loadtest.server import Server, free_port, running
from loadtest.soak_mix import KINDS, Kind, Scene, Service
from models.types import Size

SHARE: Final = 0.8
"""Of the capacity."""

CALLERS: Final = 32
"""Most actions in flight."""

MEASURING: Final = 6
"""Callers who measure the capacity."""

CACHE_MIB: Final = 32
"""For embeddings: so little that it is full within the first minute."""

SIZES: Final = (Size(96, 512), Size(512, 96), Size(140, 512), Size(300, 400), Size(200, 512), Size(768, 1024))
"""Few pixels, so that there are many requests; each shape makes the backend allocate."""

WARM_UP: Final = 1 / 6
"""Of the time, before memory, files and threads are judged: all shapes were seen, pools and caches are full."""

REST_S: Final = 60.0
"""Before what is left is compared with what there was before the load."""

MOST_GROWTH: Final = 0.05
"""Of resident memory from the first to the last fifth after the warm-up: the heap keeps a little of a changing mixture.
An image of 20 KB that each of 5,000 actions left behind would be 7 %."""

MOST_FILES: Final = 8
"""More open files at rest, or in the last fifth: connections that idle for a minute come and go."""

MOST_THREADS: Final = 2
"""More threads in the last fifth: pools that grow by need have grown in the warm-up."""

UNDER_LOAD: Final = frozenset({"overloaded", "deadline_exceeded"})
"""What any request may be answered with while there are many: by design, and counted."""

_SAMPLES: Final = 180
_WINDOWS: Final = 30


@dataclass(frozen=True, slots=True)
class Done:
    """An action that ended.

    Attributes:
        kind: name of it.
        due: seconds from the start of the load.
        seconds: from when it was due to its end.
        outcome: see `loadtest.soak_mix.Kind`.
        failure: what must not have happened, or empty.
    """

    kind: str
    due: float
    seconds: float
    outcome: str
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """What the server's processes hold.

    Attributes:
        at: seconds from the start of the load.
        resident_mib: memory.
        files: open files, sockets included.
        threads: of all processes.
    """

    at: float
    resident_mib: float
    files: int
    threads: int


def main(effort: Effort, folder: Path, *, minutes: float) -> None:
    """Measure the capacity for `effort.seconds`, load the server for `minutes`, and write `soak`.

    Raises:
        SystemExit: something grew, failed or hung.
    """
    images = [render_image(seed, SIZES[seed % len(SIZES)]) for seed in range(60)]
    settings = {"embedding_cache_mib": str(CACHE_MIB), "input_size": "512", "grpc_port": str(free_port())}
    with tempfile.TemporaryDirectory() as scratch, running(Path(scratch), **settings) as server:
        with contextlib.closing(Service(server.address, server.grpc_port)) as service:
            actor = Actor(service, images)
            capacity = _capacity(actor, effort.seconds)
            time.sleep(min(REST_S, effort.seconds))
            before = sample(server, 0.0)
            done, samples = _load(actor, server, SHARE * capacity, minutes * 60)
        time.sleep(min(REST_S, minutes * 60))
        after = sample(server, minutes * 60 + REST_S)
        alive = server.process.poll() is None
    failures = judge(done, samples, before, after)
    if not alive:
        failures.append("the server ended")
    data = data_of(done, samples, before, after) | {
        "minutes": minutes,
        "capacity_per_s": round(capacity, 2),
        "offered_per_s": round(SHARE * capacity, 2),
        "failures": failures,
    }
    Report("soak", data, lines_of(data), plot(done, samples)).write(folder)
    if failures:
        raise SystemExit("\n".join(failures[:50]))


class Actor:
    """Chooses what is done by its number, the same in each run, and does it."""

    def __init__(self, service: Service, images: Sequence[RenderedImage], kinds: Mapping[str, Kind] = KINDS) -> None:
        self._service = service
        self._images = images
        self._kinds = kinds

    def act(self, number: int) -> tuple[str, str, str]:
        """Do it; return its kind, its outcome, and what must not have happened, or empty."""
        dice = random.Random(number)  # noqa: S311 (a reproducible mixture)
        name = dice.choices(list(self._kinds), [kind.weight for kind in self._kinds.values()])[0]
        kind, scene = self._kinds[name], Scene.of(dice.choice(self._images), number)
        try:
            outcome = kind.act(self._service, scene, dice)
        except Exception as error:  # noqa: BLE001 (whatever it is, it must not have happened)
            return name, type(error).__name__, f"{name}, action {number}: {type(error).__name__}: {error}"
        if outcome in kind.expected | UNDER_LOAD:
            return name, outcome, ""
        return name, outcome, f"{name}, action {number}: answered with {outcome}"


def _capacity(actor: Actor, seconds: float) -> float:
    """Return the actions a second that callers complete who wait for their answers."""
    until = time.monotonic() + seconds
    numbers = iter(range(-1, -1_000_000, -1))
    lock = threading.Lock()

    def call(_: int) -> int:
        count = 0
        while time.monotonic() < until:
            with lock:
                number = next(numbers)
            actor.act(abs(number) + 1_000_000_000)
            count += 1
        return count

    started = time.monotonic()
    with ThreadPoolExecutor(MEASURING) as callers:
        count = sum(callers.map(call, range(MEASURING)))
    return count / (time.monotonic() - started)


def _load(actor: Actor, server: Server, rate_per_s: float, seconds: float) -> tuple[list[Done], list[Sample]]:
    """Let actions fall due at random times, and look at the server meanwhile."""
    dues = poisson(rate_per_s, seconds, seed=0)
    done: list[Done] = []
    samples: list[Sample] = []
    over = threading.Event()
    started = time.monotonic()

    def act(number: int, due: float) -> None:
        kind, outcome, failure = actor.act(number)
        done.append(Done(kind, due, time.monotonic() - started - due, outcome, failure))

    def watch() -> None:
        while not over.wait(max(1.0, seconds / _SAMPLES)):
            with contextlib.suppress(psutil.Error):
                samples.append(sample(server, time.monotonic() - started))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    with ThreadPoolExecutor(CALLERS) as callers:
        for number, due in enumerate(tqdm(dues, desc="actions", mininterval=5)):
            time.sleep(max(0.0, started + due - time.monotonic()))
            callers.submit(act, number, due)
    over.set()
    watcher.join()
    return done, samples


def sample(server: Server, at: float) -> Sample:
    """Look at the server's processes."""
    processes = server.processes()
    return Sample(
        at,
        server.resident_mib(),
        sum(process.num_fds() for process in processes),
        sum(process.num_threads() for process in processes),
    )


def judge(done: Sequence[Done], samples: Sequence[Sample], before: Sample, after: Sample) -> list[str]:
    """Return what must not have happened.

    Args:
        done: all actions.
        samples: in order, during the load.
        before: after the capacity was measured, at rest.
        after: after the load, at rest.
    """
    failures = [one.failure for one in done if one.failure]
    first, last = fifths(samples)
    growth = last.resident_mib / first.resident_mib - 1
    if growth > MOST_GROWTH:
        failures.append(f"Memory must grow by at most {MOST_GROWTH:.0%} after the warm-up, it grew by {growth:.1%}.")
    files = max(last.files - first.files, after.files - before.files)
    if files > MOST_FILES:
        failures.append(f"There must be at most {MOST_FILES} more open files, there were {files}.")
    if last.threads - first.threads > MOST_THREADS:
        failures.append(
            f"There must be at most {MOST_THREADS} more threads, there were {last.threads - first.threads}."
        )
    return failures


def fifths(samples: Sequence[Sample]) -> tuple[Sample, Sample]:
    """Return the medians of the first and of the last fifth of the samples after the warm-up."""
    warm = [one for one in samples if one.at >= WARM_UP * samples[-1].at]
    count = max(1, len(warm) // 5)
    return _median(warm[:count]), _median(warm[-count:])


def _median(samples: Sequence[Sample]) -> Sample:
    def of(value: Callable[[Sample], float]) -> float:
        return float(np.median([value(one) for one in samples]))

    return Sample(
        of(lambda one: one.at),
        of(lambda one: one.resident_mib),
        round(of(lambda one: one.files)),
        round(of(lambda one: one.threads)),
    )


def slope_per_hour(samples: Sequence[Sample]) -> float:
    """Return the slope of resident memory after the warm-up in MiB per hour, by least squares."""
    warm = [one for one in samples if one.at >= WARM_UP * samples[-1].at]
    if len(warm) < 2:
        return 0.0
    return 3600 * float(np.polyfit([one.at for one in warm], [one.resident_mib for one in warm], 1)[0])


def data_of(done: Sequence[Done], samples: Sequence[Sample], before: Sample, after: Sample) -> dict[str, Any]:
    """Return the results for the JSON file."""
    first, last = fifths(samples)
    end = max(one.due for one in done)
    middle = [WARM_UP * end + part * (1 - WARM_UP) * end / 2 for part in (0, 1, 2)]
    kinds = {}
    for name in dict.fromkeys(one.kind for one in sorted(done, key=lambda one: one.kind)):
        of_kind = [one for one in done if one.kind == name]
        halves = [[one.seconds for one in of_kind if start <= one.due <= stop] for start, stop in pairwise(middle)]
        kinds[name] = {
            "outcomes": dict(Counter(one.outcome for one in of_kind).most_common()),
            "ms": [round(1e3 * float(np.percentile([one.seconds for one in of_kind], q))) for q in (50, 95, 99)],
            "halves_p95_ms": [round(1e3 * float(np.percentile(half, 95))) if half else None for half in halves],
        }
    return {
        "actions": len(done),
        "kinds": kinds,
        "before": _fields(before),
        "first_fifth": _fields(first),
        "last_fifth": _fields(last),
        "after_rest": _fields(after),
        "slope_mib_per_hour": round(slope_per_hour(samples), 1),
        "longest_s": round(max(one.seconds for one in done), 1),
    }


def _fields(found: Sample) -> dict[str, float]:
    return {"resident_mib": round(found.resident_mib, 1), "files": found.files, "threads": found.threads}


def plot(done: Sequence[Done], samples: Sequence[Sample]) -> Figure:
    """Plot memory, files and threads, and latency over the time."""
    figure = Figure(figsize=(7, 7), layout="constrained")
    memory, held, latency = figure.subplots(3, sharex=True)
    minutes = [one.at / 60 for one in samples]
    memory.plot(minutes, [one.resident_mib for one in samples])
    memory.set(ylabel="resident, MiB", ylim=(0, 1.1 * max(one.resident_mib for one in samples)))
    held.plot(minutes, [one.files for one in samples], label="open files")
    held.plot(minutes, [one.threads for one in samples], label="threads")
    held.set(ylabel="count", ylim=(0, None))
    end = max(one.due for one in done)
    edges = np.linspace(0, end, _WINDOWS + 1)
    for name in ("segment: point, RLE", "inspect: fast", "semantic", "gRPC: Segment"):
        middles, heights = [], []
        for start, stop in pairwise(edges):
            seconds = [one.seconds for one in done if one.kind == name and start <= one.due < stop]
            if seconds:
                middles.append((start + stop) / 120)
                heights.append(1e3 * float(np.percentile(seconds, 95)))
        latency.plot(middles, heights, label=f"{name}")
    latency.set(xlabel="minutes", ylabel="95th percentile, ms", yscale="log")
    for axes in (held, latency):
        axes.legend(fontsize=8)
    for axes in (memory, held, latency):
        axes.axvline(WARM_UP * samples[-1].at / 60, color="grey", linestyle=":")
    return figure


def lines_of(data: Mapping[str, Any]) -> list[str]:
    """Return the report as Markdown."""
    states = (
        ("before, at rest", data["before"]),
        ("first fifth after the warm-up", data["first_fifth"]),
        ("last fifth", data["last_fifth"]),
        ("after, at rest", data["after_rest"]),
    )
    held = [(name, f"{found['resident_mib']:g} MiB", found["files"], found["threads"]) for name, found in states]
    rows = [
        (
            name,
            ", ".join(f"{count} x {outcome}" for outcome, count in found["outcomes"].items()),
            *(f"{milliseconds} ms" for milliseconds in found["ms"]),
            " / ".join("-" if half is None else f"{half} ms" for half in found["halves_p95_ms"]),
        )
        for name, found in data["kinds"].items()
    ]
    heads = ("action", "outcomes", "median", "95 %", "99 %", "95 % in both halves")
    return [
        f"{data['minutes']:g} minutes, {data['actions']:,} actions at {data['offered_per_s']:g} per second, "
        f"{SHARE:g} of the {data['capacity_per_s']:g} that {MEASURING} callers completed who waited for their answers. "
        f"Longest: {data['longest_s']:g} s. {len(data['failures'])} failures.",
        "",
        *table(("", "resident", "open files", "threads"), held),
        "",
        f"Slope of memory after the warm-up: {data['slope_mib_per_hour']:+g} MiB per hour.",
        "",
        *table(heads, rows, left=2),
        "",
        "![Memory, open files, threads and latency over the time](soak.png)",
    ]
