"""More than a device can do: what is answered in time, what is refused and how soon, at 0.5 to 4 times its capacity.

python -m loadtest.overload
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm import tqdm

from loadtest.arrivals import poisson
from loadtest.figures import Figures, Percentiles, Spread, summarise
from loadtest.loops import keep_busy, offer, pool_of, run
from loadtest.machine import REPORTS, footer, machine
from loadtest.outcomes import Outcome, Record
from loadtest.peers.model import BATCH, Work
from loadtest.peers.servers import BENTOML, COLOURS, LITSERVE, MOSEC, POMONA, STRIP, Call, calls, padded_jpeg, serving
from loadtest.server import Server

BODY_BYTES: Final = 30_000
DEADLINE_MS: Final = 250
WORK: Final = Work(fixed_ms=40, per_item_ms=5, timeout_ms=DEADLINE_MS)
LOADS: Final = (0.5, 0.8, 1.0, 2.0, 4.0)
ROUNDS: Final = 2
WINDOW_S: Final = 4.0
PAUSE_S: Final = 1.0
GIVE_UP_S: Final = 1.0
SATURATION_S: Final = 3.0
CALLERS_AT_SATURATION: Final = 2 * BATCH
_WARM_UP_SEED: Final = 1000
_SERVERS: Final = (POMONA, LITSERVE, MOSEC, BENTOML)


@dataclass(frozen=True, slots=True)
class Load:
    """One server at one offered load, all rounds together.

    Attributes:
        server: which.
        load: multiple of the capacity by formula.
        goodput_per_s: over the rounds.
        refused_early_share: of those offered: refused before their deadline.
        figures: of all rounds together; `latency_ms` is of what was not refused, given-up requests among them.
    """

    server: str
    load: float
    goodput_per_s: Spread
    refused_early_share: float
    figures: Figures

    @classmethod
    def of(cls, server: str, load: float, rounds: Sequence[Sequence[Record]]) -> Load:
        """Account for all rounds."""
        records = [record for one in rounds for record in one]
        early = sum(record.outcome is Outcome.REFUSED and record.seconds < DEADLINE_MS / 1000 for record in records)
        goodput = [sum(record.outcome is Outcome.IN_TIME for record in one) / WINDOW_S for one in rounds]
        return cls(
            server,
            load,
            Spread.of(goodput),
            round(early / max(1, len(records)), 4),
            summarise(records, WINDOW_S * len(rounds)),
        )


def main() -> None:
    """Measure, print, write `loadtest/reports/overload.json`, `.md` and `.png`."""
    told = machine("litserve", "mosec")
    capacity, loads = measure()
    report = {
        "machine": told,
        "work": asdict(WORK),
        "deadline_ms": DEADLINE_MS,
        "capacity_per_s": WORK.capacity_per_s,
        "saturated_per_s": capacity,
        "loads": [asdict(load) for load in loads],
    }
    REPORTS.mkdir(exist_ok=True)
    (REPORTS / "overload.json").write_text(json.dumps(report, indent=2) + "\n")
    text = table(capacity, loads, told)
    (REPORTS / "overload.md").write_text(text)
    draw(REPORTS / "overload.png", loads)
    print(text)


def measure() -> tuple[dict[str, float], list[Load]]:
    """Capacity measured at saturation, by servers without timeouts; then every load; the servers take turns."""
    asked = calls(padded_jpeg(STRIP, BODY_BYTES))
    capacity: dict[str, float] = {}
    rounds: dict[tuple[str, float], list[list[Record]]] = {}
    with serving(_SERVERS, replace(WORK, timeout_ms=None)) as servers:
        for name in _SERVERS:
            capacity[name] = run(_saturate(servers[name], asked[name]))
    with serving(_SERVERS, WORK) as servers:
        for name in _SERVERS:
            run(_offer(servers[name], asked[name], poisson(LOADS[0] * WORK.capacity_per_s, WINDOW_S, _WARM_UP_SEED)))
        for number in tqdm(range(ROUNDS), desc="overload, servers in turn"):
            for load in LOADS:
                dues = poisson(load * WORK.capacity_per_s, WINDOW_S, seed=number)
                for name in _SERVERS:
                    records = run(_offer(servers[name], asked[name], dues))
                    rounds.setdefault((name, load), []).append(records)
    return capacity, [Load.of(name, load, rounds[name, load]) for name in _SERVERS for load in LOADS]


async def _saturate(server: Server, call: Call) -> float:
    """Answers per second to just so many callers that there always is a full batch, after as long a warm-up."""
    pool = pool_of(server)
    for _ in range(2):
        taken = await keep_busy(pool, call, CALLERS_AT_SATURATION, SATURATION_S)
    pool.close()
    return round(len(taken) / SATURATION_S, 1)


async def _offer(server: Server, call: Call, dues: Sequence[float]) -> list[Record]:
    pool = pool_of(server)
    records = await offer(pool, call, dues, DEADLINE_MS / 1000, GIVE_UP_S)
    pool.close()
    # What a server still has of this load must not burden the next.
    await asyncio.sleep(PAUSE_S)
    return records


def table(capacity: Mapping[str, float], loads: Sequence[Load], told: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    saturated = ", ".join(f"{name} {per_s:g}" for name, per_s in capacity.items())
    rows = [
        f"A model whose batch of n takes {WORK.fixed_ms:g} + {WORK.per_item_ms:g} n ms, up to {BATCH} in a batch: "
        f"{WORK.capacity_per_s:g} requests per second at most (measured with {CALLERS_AT_SATURATION} callers, "
        f"per second: {saturated}). Arrivals are Poisson's and wait for nobody; each has a deadline of {DEADLINE_MS} "
        "ms, told to Pomona in `X-Deadline-Ms` and to the others as their own timeout. All times count from when a "
        f"request was due; what had no answer after {GIVE_UP_S:g} s was given up and counts as late. Bodies of "
        f"{BODY_BYTES // 1000} KB. {ROUNDS} rounds of {WINDOW_S:g} s, the servers taking turns; goodput is the median "
        "(least to greatest), all else is of all rounds together.",
        "",
        "| server | load | offered per s | in time per s | p50 ms | p99 ms | refused early | "
        "refusals p50 ms | p99 ms | late | failed | generator's lag p99 ms |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for load in loads:
        of = load.figures
        rows.append(
            f"| {load.server} | {load.load:g} x | {of.offered_per_s:.0f} | {load.goodput_per_s} | "
            f"{_of(of.latency_ms, 'p50')} | {_of(of.latency_ms, 'p99')} | {100 * load.refused_early_share:.0f} % | "
            f"{_of(of.refused_after_ms, 'p50')} | {_of(of.refused_after_ms, 'p99')} | {of.late} | {of.failed} | "
            f"{_of(of.lag_ms, 'p99')} |"
        )
    rows += ["", footer(told), ""]
    return "\n".join(rows)


def draw(path: Path, loads: Sequence[Load]) -> None:
    """Goodput and p99 of what was not refused, over the offered load."""
    figure = Figure(figsize=(8, 7), layout="constrained")
    figure.suptitle(
        f"Batches of n take {WORK.fixed_ms:g} + {WORK.per_item_ms:g} n ms, up to {BATCH}; deadline {DEADLINE_MS} ms",
        fontsize=10,
    )
    above, below = figure.subplots(2, 1, sharex=True)
    for name in _SERVERS:
        own = [load for load in loads if load.server == name]
        places = [load.load for load in own]
        above.plot(places, [load.goodput_per_s.median for load in own], color=COLOURS[name], marker="o", label=name)
        p99 = [load.figures.latency_ms.p99 if load.figures.latency_ms else float("nan") for load in own]
        below.plot(places, p99, color=COLOURS[name], marker="o", label=name)
    above.axhline(WORK.capacity_per_s, color="#555555", linestyle=":", linewidth=1, label="capacity")
    below.axhline(DEADLINE_MS, color="#c0392b", linestyle="--", linewidth=1, label="deadline")
    above.set_ylabel("goodput: answers in time per second")
    above.set_ylim(bottom=0)
    below.set_ylabel("p99 of what was not refused, ms")
    below.set_ylim(0, 1000 * GIVE_UP_S * 1.05)
    below.set_xlabel("offered load, multiples of the capacity")
    for axes in (above, below):
        _finish(axes)
    figure.savefig(path, dpi=120)


def _finish(axes: Axes) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(LOADS, [f"{load:g}" for load in LOADS])
    axes.minorticks_off()
    axes.grid(axis="y", alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _of(percentiles: Percentiles | None, name: str) -> str:
    return "" if percentiles is None else f"{getattr(percentiles, name):.0f}"


if __name__ == "__main__":
    main()
