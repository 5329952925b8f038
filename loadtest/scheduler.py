"""The scheduler by itself: `python -m loadtest admission`, and a fast simulated device for `overload`.

Both call the batching policy in this process: over a network, the load generator could not keep a device busy that
serves 2,000 items per second, on the same two cores.
"""

from __future__ import annotations

import asyncio
import importlib
import random
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from tqdm import tqdm

from loadtest.load import poisson, run
from loadtest.peers import BATCH, Work
from loadtest.report import Effort, Report, table
from loadtest.summary import Percentiles, Spread
from service.errors import DeadlineUnreachable, Overloaded

WAITING: Final = (1, 128, 256, 512)
ADMISSIONS: Final = 100
"""Timed in a round, for each length of the queue."""

TARGET_MS: Final = 0.1
"""Most milliseconds of one admission, however many items wait."""

DEVICE: Final = Work(per_item_ms=0.5)
"""A wait that serves 2,000 items per second."""

DEVICE_LOADS: Final = (1.0, 2.0, 4.0)
DEADLINE_S: Final = 0.25
TARGET_SHARE: Final = 0.9
"""Of the best goodput, at every load."""

_KEY: Final = "item"
_MAX_QUEUED: Final = 2048


class Queue:
    """The batching policy for `DEVICE`; the only code here that knows its interface.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        # Imported by name, and untyped, so that the rest of this module does not depend on it.
        self._module: Any = importlib.import_module("service.scheduler.policy")
        model: Any = importlib.import_module("service.scheduler.latency").LatencyModel()
        for _ in range(3):
            for items in range(1, BATCH + 1):
                model.learn(_KEY, float(items), DEVICE.seconds(items))
        self._clock = clock
        limits = self._module.Limits(BATCH, float(BATCH))
        options = self._module.QueueOptions(max_queued=_MAX_QUEUED)
        self._policy: Any = self._module.BatchPolicy(lambda _: limits, model, clock=clock, options=options)

    def admit(self, deadline: float) -> object:
        """Queue an item that is ready to run.

        Raises:
            Overloaded, DeadlineUnreachable: by the policy.
        """
        item = self.item(deadline)
        self.admit_item(item)
        return item

    def item(self, deadline: float) -> Any:
        """Return an item that is ready to run."""
        request = SimpleNamespace(arrived=self._clock(), deadline=deadline, priority=3, urgency=3, spare=0.0)
        item = self._module.WorkItem(_KEY, request, deadline=deadline, cost=1.0)
        item.payload = item
        return item

    def admit_item(self, item: Any) -> None:
        """Queue an item, see `admit`."""
        self._policy.admit(item)

    def drop(self, item: Any) -> None:
        """Remove an item that waits."""
        self._policy.drop(item)

    def take(self) -> list[float]:
        """Start the next batch, and return the deadlines of its items."""
        return [item.deadline for item in self._policy.take().items]

    def finished(self, seconds: float) -> None:
        """End the batch that was started last."""
        self._policy.finished(seconds)


def main(effort: Effort, folder: Path) -> None:
    """Measure the time of one admission by the number of waiting items, and write `admission`."""
    rounds: dict[int, list[float]] = {waiting: [] for waiting in WAITING}
    for number in tqdm(range(effort.rounds), desc="admission, queues in turn"):
        for waiting in WAITING:
            rounds[waiting].append(_admission_ms(waiting, seed=number))
    costs = {waiting: Spread.of(medians) for waiting, medians in rounds.items()}
    data = {
        "admissions": ADMISSIONS,
        "target_ms": TARGET_MS,
        "admission_ms": {waiting: asdict(cost) for waiting, cost in costs.items()},
    }
    Report("admission", data, admission_lines(costs, effort)).write(folder)


def _admission_ms(waiting: int, seed: int) -> float:
    """Return the median time of one admission with `waiting` items queued behind a running batch."""
    queue = Queue(lambda: 0.0)
    total = waiting + BATCH
    backlog_s = 2 * DEVICE.seconds(total)
    deadlines = random.Random(seed)  # noqa: S311 (reproducible deadlines)
    for _ in range(total):
        queue.admit(deadlines.uniform(backlog_s, 2 * backlog_s))
    queue.take()
    taken = []
    for _ in range(ADMISSIONS):
        item = queue.item(deadlines.uniform(backlog_s, 2 * backlog_s))
        started = time.perf_counter()
        queue.admit_item(item)
        taken.append(time.perf_counter() - started)
        queue.drop(item)
    return 1000 * statistics.median(taken)


def admission_lines(costs: dict[int, Spread], effort: Effort) -> list[str]:
    """Return the report of `admission` as Markdown."""
    return [
        f"Admission of one item with a deadline while a batch runs and others wait, which have deadlines too. Median "
        f"of {ADMISSIONS} admissions; {effort.rounds} rounds: median (lowest to highest). Target: under {TARGET_MS:g} "
        "ms.",
        "",
        *table(("items waiting", "one admission, ms"), costs.items(), left=0),
    ]


@dataclass(frozen=True, slots=True)
class DeviceLoad:
    """The simulated device at one offered load, all rounds together.

    Attributes:
        load: multiple of its capacity.
        offered_per_s: over the rounds.
        goodput_per_s: items that ended within their deadline, over the rounds.
        refused_share: share of the offered items that were refused.
        late: items that ended after their deadline, or were dropped.
        lag_p99_ms: delay of the load generator.
    """

    load: float
    offered_per_s: Spread
    goodput_per_s: Spread
    refused_share: float
    late: int
    lag_p99_ms: float


@dataclass(frozen=True, slots=True)
class _Window:
    offered: int
    in_time: int
    refused: int
    lags: list[float]


def measure_device(effort: Effort) -> list[DeviceLoad]:
    """Measure the goodput of the simulated device at 1 to 4 times its capacity, the loads taking turns."""
    windows: dict[float, list[_Window]] = {load: [] for load in DEVICE_LOADS}
    for number in tqdm(range(effort.rounds), desc="simulated device, loads in turn"):
        for load in DEVICE_LOADS:
            dues = poisson(load * DEVICE.capacity_per_s, effort.seconds, seed=number)
            windows[load].append(run(_device_window(dues)))
    return [_device_load(load, rounds, effort.seconds) for load, rounds in windows.items()]


async def _device_window(dues: Sequence[float]) -> _Window:
    """Offer items when they fall due; the device is a thread that waits, as the service's is one that computes."""
    queue, ready = Queue(time.monotonic), asyncio.Event()
    start = time.monotonic()
    lags: list[float] = []
    in_time = refused = 0

    async def serve() -> None:
        nonlocal in_time
        with ThreadPoolExecutor(1) as thread:
            while True:
                if not (deadlines := queue.take()):
                    ready.clear()
                    await ready.wait()
                    continue
                started = time.monotonic()
                await asyncio.get_running_loop().run_in_executor(thread, DEVICE.run, len(deadlines))
                ended = time.monotonic()
                queue.finished(ended - started)
                in_time += sum(ended <= deadline for deadline in deadlines)

    device = asyncio.create_task(serve())
    for due in dues:
        # Without a wait too, so that the device gets its turn.
        await asyncio.sleep(max(0.0, start + due - time.monotonic()))
        lags.append(time.monotonic() - start - due)
        try:
            queue.admit(start + due + DEADLINE_S)
        except (Overloaded, DeadlineUnreachable):
            refused += 1
        ready.set()
    await asyncio.sleep(DEADLINE_S)
    device.cancel()
    await asyncio.wait({device})
    return _Window(len(dues), in_time, refused, lags)


def _device_load(load: float, rounds: Sequence[_Window], seconds: float) -> DeviceLoad:
    offered = sum(one.offered for one in rounds)
    lag = Percentiles.of([lag for one in rounds for lag in one.lags])
    return DeviceLoad(
        load,
        Spread.of([one.offered / seconds for one in rounds]),
        Spread.of([one.in_time / seconds for one in rounds]),
        round(sum(one.refused for one in rounds) / max(1, offered), 4),
        sum(one.offered - one.in_time - one.refused for one in rounds),
        lag.p99 if lag else 0.0,
    )


def device_lines(loads: Sequence[DeviceLoad], effort: Effort) -> list[str]:
    """Return the goodput of the simulated device as Markdown."""
    best = max(load.goodput_per_s.median for load in loads)
    rows = (
        (
            *(f"{load.load:g} x", f"{load.offered_per_s.median:.0f}", load.goodput_per_s),
            *(f"{load.goodput_per_s.median / best:.2f}" if best else "", f"{load.refused_share:.0%}"),
            *(load.late, f"{load.lag_p99_ms:.0f}"),
        )
        for load in loads
    )
    columns = ("load", "offered per s", "in time per s", "share of the best", "refused", "late or dropped")
    return [
        f"The scheduler in this process, without HTTP, around a device that waits: {DEVICE.capacity_per_s:g} items per "
        f"second, up to {BATCH} in a batch, Poisson arrivals with deadlines of {DEADLINE_S * 1000:g} ms, the callers "
        f"on the same event loop. {effort.rounds} rounds of {effort.seconds:g} s. Target: {TARGET_SHARE:g} of the "
        "best goodput at every load.",
        "",
        *table((*columns, "generator's lag p99 ms"), rows),
    ]
