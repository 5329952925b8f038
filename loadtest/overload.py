"""More load than a device can take, beside other servers: `python -m loadtest overload` and `burst`.

A fast device is simulated by a wait in this process: over a network, the load generator could not keep a device busy
that serves 2,000 items per second, on the same two cores.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

from matplotlib.figure import Figure
from tqdm import tqdm

from loadtest.admission import DEVICE, device_policy, ready_item
from loadtest.images import padded_jpeg
from loadtest.load import Pool, closed_loop, lone_requests, offer, poisson, post_ok, run
from loadtest.peers import BATCH, STRIP, Work
from loadtest.report import Effort, Report, table
from loadtest.server import BENTOML, LITSERVE, MOSEC, PEERS, POMONA, Server, calls, installed, serving
from loadtest.summary import Kind, Outcome, Percentiles, Record, Spread, Summary, summarise
from loadtest.wire import Call
from service.errors import DeadlineUnreachable, Overloaded

BODY_BYTES: Final = 30_000
DEADLINE_MS: Final = 250
WORK: Final = Work(fixed_ms=40, per_item_ms=5, timeout_ms=DEADLINE_MS)
LOADS: Final = (0.5, 0.8, 1.0, 2.0, 4.0)
PAUSE_S: Final = 1.0
GIVE_UP_S: Final = 1.0
SATURATION_CALLERS: Final = 2 * BATCH
_COLOURS: Final = {POMONA: "#2e8b57", LITSERVE: "#f0b429", MOSEC: "#4292c6", BENTOML: "#8e7cc3"}
_WARM_UP_SEED: Final = 1000

DEVICE_LOADS: Final = (1.0, 2.0, 4.0)
DEVICE_SHARE: Final = 0.9
"""Least goodput at every load, as a share of the best."""

BURST_WORK: Final = Work(fixed_ms=10, per_item_ms=1)
BURST_CALLERS: Final = 32
LONE: Final = 60
THINK_S: Final = 0.02
REST_S: Final = 1.0
_LONE_WARM_UP: Final = 30


@dataclass(frozen=True, slots=True)
class Load:
    """One server at one offered load, all rounds together.

    Attributes:
        server: name.
        load: multiple of the computed capacity.
        goodput_per_s: over the rounds.
        refused_early_share: share of the offered requests that were refused before their deadline.
        summary: of all rounds together; its latency includes requests that were given up.
    """

    server: str
    load: float
    goodput_per_s: Spread
    refused_early_share: float
    summary: Summary

    @classmethod
    def of(cls, server: str, load: float, rounds: Sequence[Sequence[Record]], seconds: float) -> Load:
        """Summarise rounds of `seconds` each."""
        records = [record for one in rounds for record in one]
        early = sum(record.outcome is Outcome.REFUSED and record.seconds < DEADLINE_MS / 1000 for record in records)
        goodput = [sum(record.outcome is Outcome.IN_TIME for record in one) / seconds for one in rounds]
        summary = summarise(records, seconds * len(rounds))
        return cls(server, load, Spread.of(goodput), round(early / max(1, len(records)), 4), summary)


def main(effort: Effort, folder: Path) -> None:
    """Measure goodput and refusals at 0.5 to 4 times the capacity, and write `overload`."""
    names = installed(PEERS)
    capacity, loads = measure(names, effort)
    device = measure_device(effort)
    data = {
        "work": asdict(WORK),
        "deadline_ms": DEADLINE_MS,
        "capacity_per_s": WORK.capacity_per_s,
        "saturated_per_s": capacity,
        "loads": [asdict(load) for load in loads],
        "device": [asdict(load) for load in device],
    }
    lines = [*lines_of(capacity, loads, effort), "", *device_lines(device, effort)]
    Report("overload", data, lines, plot(loads), _packages(names)).write(folder)


def measure(names: Sequence[str], effort: Effort) -> tuple[dict[str, float], list[Load]]:
    """Measure the capacity at saturation, of servers without timeouts; then every load, the servers taking turns."""
    requests = calls(padded_jpeg(STRIP, BODY_BYTES))
    capacity: dict[str, float] = {}
    rounds: dict[tuple[str, float], list[list[Record]]] = {}
    with serving(names, replace(WORK, timeout_ms=None)) as servers:
        for name in names:
            capacity[name] = run(_saturate(servers[name], requests[name], effort.seconds))
    with serving(names, WORK) as servers:
        warm_up = poisson(LOADS[0] * WORK.capacity_per_s, effort.seconds, _WARM_UP_SEED)
        for name in names:
            run(_offer(servers[name], requests[name], warm_up))
        for number in tqdm(range(effort.rounds), desc="overload, servers in turn"):
            for load in LOADS:
                dues = poisson(load * WORK.capacity_per_s, effort.seconds, seed=number)
                for name in names:
                    records = run(_offer(servers[name], requests[name], dues))
                    rounds.setdefault((name, load), []).append(records)
    return capacity, [Load.of(name, load, rounds[name, load], effort.seconds) for name in names for load in LOADS]


async def _saturate(server: Server, call: Call, seconds: float) -> float:
    """Return the answers per second to enough callers for full batches, after a warm-up of the same length."""
    pool = Pool(server.port)
    send = partial(post_ok, pool, call)
    await closed_loop(send, SATURATION_CALLERS, seconds)
    taken = await closed_loop(send, SATURATION_CALLERS, seconds)
    pool.close()
    return round(len(taken) / seconds, 1)


async def _offer(server: Server, call: Call, dues: Sequence[float]) -> list[Record]:
    pool = Pool(server.port)
    records = await offer(pool, call, dues, DEADLINE_MS / 1000, GIVE_UP_S)
    pool.close()
    # What the server still has of this load must not burden the next.
    await asyncio.sleep(PAUSE_S)
    return records


def lines_of(capacity: Mapping[str, float], loads: Sequence[Load], effort: Effort) -> list[str]:
    """Return the comparison of the servers as Markdown."""
    saturated = ", ".join(f"{name} {per_s:g}" for name, per_s in capacity.items())
    rows = []
    for load in loads:
        of = load.summary
        rows.append(
            (
                *(load.server, f"{load.load:g} x", f"{of.offered_per_s:.0f}", load.goodput_per_s),
                *(_of(of.latency_ms, "p50"), _of(of.latency_ms, "p99"), f"{100 * load.refused_early_share:.0f} %"),
                *(_of(of.refused_after_ms, "p50"), _of(of.refused_after_ms, "p99")),
                *(of.late, of.failed, _of(of.lag_ms, "p99")),
            )
        )
    columns = ("server", "load", "offered per s", "in time per s", "p50 ms", "p99 ms", "refused early")
    refusals = ("refusals p50 ms", "p99 ms", "late", "failed", "generator's lag p99 ms")
    return [
        f"A model whose batch of n takes {WORK.fixed_ms:g} + {WORK.per_item_ms:g} n ms, up to {BATCH} in a batch: "
        f"{WORK.capacity_per_s:g} requests per second at most (measured with {SATURATION_CALLERS} callers, per "
        f"second: {saturated}). Poisson arrivals that wait for no answer; each has a deadline of {DEADLINE_MS} ms, "
        "sent to Pomona in `X-Deadline-Ms` and set as the others' own timeout. All times count from when a request "
        f"was due; a request without an answer after {GIVE_UP_S:g} s is given up and counts as late. Bodies of "
        f"{BODY_BYTES // 1000} KB. {effort.rounds} rounds of {effort.seconds:g} s, the servers taking turns; goodput "
        "is the median (lowest to highest), everything else is of all rounds together.",
        "",
        *table((*columns, *refusals), rows),
    ]


def measure_device(effort: Effort) -> list[Load]:
    """Measure the scheduler with a simulated device at 1 to 4 times its capacity, the loads taking turns."""
    rounds: dict[float, list[list[Record]]] = {load: [] for load in DEVICE_LOADS}
    for number in tqdm(range(effort.rounds), desc="simulated device, loads in turn"):
        for load, records in rounds.items():
            dues = poisson(load * DEVICE.capacity_per_s, effort.seconds, seed=number)
            records.append(run(_offer_to_device(dues)))
    return [Load.of("simulated device", load, records, effort.seconds) for load, records in rounds.items()]


async def _offer_to_device(dues: Sequence[float]) -> list[Record]:
    """Offer items when they fall due; the device is a thread that waits, as the service's is one that computes."""
    policy, ready = device_policy(time.monotonic), asyncio.Event()
    start, records, lags = time.monotonic(), list[Record](), list[float]()

    def record(outcome: Outcome, due: float) -> None:
        records.append(Record(Kind.FRAME, 0, outcome, time.monotonic() - due, lags[len(records)]))

    async def serve() -> None:
        with ThreadPoolExecutor(1) as thread:
            while True:
                batch = policy.take()
                for item in batch.late:
                    record(Outcome.LATE, item.payload)
                if not batch.items:
                    ready.clear()
                    await ready.wait()
                    continue
                started = time.monotonic()
                await asyncio.get_running_loop().run_in_executor(thread, DEVICE.run, len(batch.items))
                ended = time.monotonic()
                policy.finished(ended - started)
                for item in batch.items:
                    record(Outcome.IN_TIME if ended <= item.deadline else Outcome.LATE, item.payload)

    device = asyncio.create_task(serve())
    for due in dues:
        # Yields even if the item is overdue, so that the device gets its turn.
        await asyncio.sleep(max(0.0, start + due - time.monotonic()))
        lags.append(time.monotonic() - start - due)
        try:
            policy.admit(ready_item(start + due, start + due + DEADLINE_MS / 1000))
        except (Overloaded, DeadlineUnreachable) as refusal:
            records.append(Record(Kind.FRAME, 0, Outcome.REFUSED, lags[-1], lags[len(records)], type(refusal).__name__))
        ready.set()
    await asyncio.sleep(DEADLINE_MS / 1000)
    device.cancel()
    await asyncio.wait({device})
    return records


def device_lines(loads: Sequence[Load], effort: Effort) -> list[str]:
    """Return the goodput of the simulated device as Markdown."""
    best = max(load.goodput_per_s.median for load in loads) or float("nan")
    rows = [
        (
            *(f"{load.load:g} x", f"{load.summary.offered_per_s:.0f}", load.goodput_per_s),
            *(f"{load.goodput_per_s.median / best:.2f}", f"{load.summary.refused_share:.0%}"),
            *(load.summary.late, _of(load.summary.lag_ms, "p99")),
        )
        for load in loads
    ]
    columns = ("load", "offered per s", "in time per s", "share of the best", "refused", "late")
    return [
        f"The scheduler in this process, without HTTP, around a device that waits: {DEVICE.capacity_per_s:g} items per "
        f"second, up to {BATCH} in a batch; Poisson arrivals with deadlines of {DEADLINE_MS} ms from the same event "
        f"loop. {effort.rounds} rounds of {effort.seconds:g} s. Target: {DEVICE_SHARE:g} of the best goodput at every "
        "load.",
        "",
        *table((*columns, "generator's lag p99 ms"), rows),
    ]


def plot(loads: Sequence[Load]) -> Figure:
    """Plot goodput, and p99 of what was not refused, over the offered load."""
    figure = Figure(figsize=(8, 7), layout="constrained")
    figure.suptitle(
        f"Batches of n take {WORK.fixed_ms:g} + {WORK.per_item_ms:g} n ms, up to {BATCH}; deadline {DEADLINE_MS} ms",
        fontsize=10,
    )
    above, below = figure.subplots(2, 1, sharex=True)
    for name in dict.fromkeys(load.server for load in loads):
        own = [load for load in loads if load.server == name]
        places = [load.load for load in own]
        above.plot(places, [load.goodput_per_s.median for load in own], color=_COLOURS[name], marker="o", label=name)
        p99 = [load.summary.latency_ms.p99 if load.summary.latency_ms else float("nan") for load in own]
        below.plot(places, p99, color=_COLOURS[name], marker="o", label=name)
    above.axhline(WORK.capacity_per_s, color="#555555", linestyle=":", linewidth=1, label="capacity")
    below.axhline(DEADLINE_MS, color="#c0392b", linestyle="--", linewidth=1, label="deadline")
    above.set_ylabel("goodput: answers in time per second")
    above.set_ylim(bottom=0)
    below.set_ylabel("p99 of what was not refused, ms")
    below.set_ylim(0, 1000 * GIVE_UP_S * 1.05)
    below.set_xlabel("offered load, multiples of the capacity")
    for axes in (above, below):
        axes.set_xscale("log", base=2)
        axes.set_xticks(LOADS, [f"{load:g}" for load in LOADS])
        axes.minorticks_off()
        axes.grid(axis="y", alpha=0.3)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def _of(percentiles: Percentiles | None, name: str) -> str:
    return "" if percentiles is None else f"{getattr(percentiles, name):.0f}"


def _packages(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(package for name, package in ((LITSERVE, "litserve"), (MOSEC, "mosec")) if name in names)


@dataclass(frozen=True, slots=True)
class Recovery:
    """One server, over rounds with a fresh start each.

    Attributes:
        server: name.
        before_ms: median of lone requests before the burst.
        after_ms: the same, from a second after it.
        ratio: after / before.
    """

    server: str
    before_ms: Spread
    after_ms: Spread
    ratio: Spread

    @classmethod
    def of(cls, server: str, rounds: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Recovery:
        """Compare the seconds of lone requests before and after, for each round."""
        before = [1000 * median(taken) for taken, _ in rounds]
        after = [1000 * median(taken) for _, taken in rounds]
        quotients = [late / early for early, late in zip(before, after, strict=True)]
        return cls(server, Spread.of(before), Spread.of(after), Spread.of(quotients))


def burst(effort: Effort, folder: Path) -> None:
    """Measure lone requests before and after a burst, and write `burst`."""
    requests = calls(padded_jpeg(STRIP, BODY_BYTES))
    names = installed(PEERS)
    rounds: dict[str, list[tuple[list[float], list[float]]]] = {}
    for _ in tqdm(range(effort.rounds), desc="burst, servers in turn"):
        for name in names:
            # A fresh start each time: a burst may affect a server for long.
            with serving((name,), BURST_WORK) as servers:
                taken = run(_burst(servers[name], requests[name], effort.seconds))
                rounds.setdefault(name, []).append(taken)
    recoveries = [Recovery.of(name, rounds[name]) for name in names]
    data = {"work": asdict(BURST_WORK), "servers": [asdict(recovery) for recovery in recoveries]}
    Report("burst", data, burst_lines(recoveries, effort), packages=_packages(names)).write(folder)


async def _burst(server: Server, call: Call, seconds: float) -> tuple[list[float], list[float]]:
    pool = Pool(server.port)
    send = partial(post_ok, pool, call)
    await lone_requests(send, _LONE_WARM_UP, THINK_S)
    before = await lone_requests(send, LONE, THINK_S)
    await closed_loop(send, BURST_CALLERS, seconds)
    await asyncio.sleep(REST_S)
    after = await lone_requests(send, LONE, THINK_S)
    pool.close()
    return before, after


def burst_lines(recoveries: Sequence[Recovery], effort: Effort) -> list[str]:
    """Return what a burst leaves behind as Markdown."""
    return [
        f"{LONE} lone requests, {THINK_S * 1000:g} ms apart; then {BURST_CALLERS} callers for {effort.seconds:g} s; "
        f"{REST_S:g} s of rest; {LONE} lone requests again. A batch of n takes {BURST_WORK.fixed_ms:g} + "
        f"{BURST_WORK.per_item_ms:g} n ms, up to {BATCH} in a batch. Medians of a round's requests; {effort.rounds} "
        "rounds with a fresh start each, the servers taking turns: median (lowest to highest).",
        "",
        *table(
            ("server", "before, ms", "after, ms", "after / before"),
            ((row.server, row.before_ms, row.after_ms, row.ratio) for row in recoveries),
        ),
    ]
