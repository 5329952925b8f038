"""The batching policy by itself, without a server: `python -m loadtest admission`.

The policy is imported by name, so that these few functions are all that depends on its interface.
"""

from __future__ import annotations

import importlib
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from tqdm import tqdm

from loadtest.peers import BATCH, Work
from loadtest.report import Effort, Report, table
from loadtest.summary import Spread

WAITING: Final = (1, 128, 256, 512)
ADMISSIONS: Final = 100
TARGET_MS: Final = 0.1
ORDERS: Final = ("rising", "random")

DEVICE: Final = Work(per_item_ms=0.5)
"""A wait that serves 2,000 items per second."""

_KEY: Final = "item"
_MAX_QUEUED: Final = 2048


def device_policy(clock: Callable[[], float]) -> Any:
    """Return a batching policy that has learned the times of `DEVICE`."""
    policy: Any = importlib.import_module("service.scheduler.policy")
    latency: Any = importlib.import_module("service.scheduler.latency").LatencyModel()
    limits = importlib.import_module("service.scheduler.work").Limits(BATCH, float(BATCH))
    options = policy.QueueOptions(max_queued=_MAX_QUEUED)
    made: Any = policy.BatchPolicy(lambda _: limits, latency, clock=clock, options=options)
    for items in range(1, BATCH + 1):
        made.learn(_KEY, float(items), DEVICE.seconds(items))
    return made


def ready_item(arrived: float, deadline: float) -> Any:
    """Return a work item that is ready to run; its payload is when it arrived."""
    request = SimpleNamespace(arrived=arrived, urgency=3, recording=None)
    item = importlib.import_module("service.scheduler.work").WorkItem(_KEY, request, deadline=deadline, cost=1.0)
    item.payload = arrived
    return item


def main(effort: Effort, folder: Path) -> None:
    """Measure the time of one admission by the number of waiting items, and write `admission`."""
    rounds: dict[tuple[int, str], list[float]] = {(waiting, order): [] for waiting in WAITING for order in ORDERS}
    for number in tqdm(range(effort.rounds), desc="admission, queues in turn"):
        for (waiting, order), medians in rounds.items():
            medians.append(_admission_ms(waiting, order, seed=number))
    costs = {key: Spread.of(medians) for key, medians in rounds.items()}
    rows = [{"waiting": waiting, "deadlines": order, **asdict(cost)} for (waiting, order), cost in costs.items()]
    Report("admission", {"target_ms": TARGET_MS, "admission_ms": rows}, lines_of(costs, effort)).write(folder)


def _admission_ms(waiting: int, order: str, seed: int) -> float:
    """Return the median time of one admission with `waiting` items queued behind a running batch."""
    policy = device_policy(lambda: 0.0)
    backlog_s = 2 * DEVICE.seconds(waiting + BATCH)
    rng = random.Random(seed)  # noqa: S311 (reproducible deadlines)
    deadlines = [rng.uniform(backlog_s, 2 * backlog_s) for _ in range(waiting + BATCH + ADMISSIONS)]
    items = [ready_item(0.0, deadline) for deadline in (sorted(deadlines) if order == "rising" else deadlines)]
    for item in items[:-ADMISSIONS]:
        policy.admit(item)
    policy.take()
    taken = []
    for item in items[-ADMISSIONS:]:
        started = time.perf_counter()
        policy.admit(item)
        taken.append(time.perf_counter() - started)
        policy.drop(item)
    return 1000 * statistics.median(taken)


def lines_of(costs: Mapping[tuple[int, str], Spread], effort: Effort) -> list[str]:
    """Return the report as Markdown."""
    return [
        "Admission of one item while a batch runs and others wait, all with deadlines, which rise in the order of "
        "arrival or are random, so that items are inserted anywhere in the queue. "
        f"Medians of {ADMISSIONS} admissions; {effort.rounds} rounds: median (lowest to highest). "
        f"Target: at most {TARGET_MS:g} ms.",
        "",
        *table(
            ("items waiting", *(f"{order} deadlines, ms" for order in ORDERS)),
            ((waiting, *(costs[waiting, order] for order in ORDERS)) for waiting in WAITING),
            left=0,
        ),
    ]
