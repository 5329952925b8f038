"""What a server itself costs: CPU time per request around a model that does nothing, a body of 300 KB.

python -m loadtest.noop
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from matplotlib.figure import Figure
from tqdm import tqdm

from loadtest.figures import Percentiles, Spread
from loadtest.loops import keep_busy, pool_of, run
from loadtest.machine import REPORTS, footer, machine
from loadtest.peers.model import BATCH, Work
from loadtest.peers.servers import (
    BENTOML,
    COLOURS,
    LITSERVE,
    MOSEC,
    POMONA,
    POMONA_RAW,
    STRIP,
    Call,
    calls,
    padded_jpeg,
    serving,
)
from loadtest.server import Server

BODY_BYTES: Final = 300_000
CALLERS: Final = (1, 8, 32)
ROUNDS: Final = 3
WINDOW_S: Final = 2.0
WARM_UP_S: Final = 1.0
_SHOWN: Final = (POMONA, POMONA_RAW, LITSERVE, MOSEC, BENTOML)


@dataclass(frozen=True, slots=True)
class Window:
    """One server under so many callers for a while.

    Attributes:
        cpu_ms: CPU milliseconds of all its processes per request.
        per_s: requests answered per second.
        p50_ms: median time of an answer.
    """

    cpu_ms: float
    per_s: float
    p50_ms: float


@dataclass(frozen=True, slots=True)
class Cost:
    """All rounds of a server under so many callers."""

    server: str
    callers: int
    cpu_ms: Spread
    per_s: Spread
    p50_ms: Spread

    @classmethod
    def of(cls, server: str, callers: int, windows: Sequence[Window]) -> Cost:
        """Spread over the rounds."""
        spreads = (Spread.of([getattr(window, name) for window in windows]) for name in ("cpu_ms", "per_s", "p50_ms"))
        return cls(server, callers, *spreads)


def main() -> None:
    """Measure, print, write `loadtest/reports/noop.json`, `.md` and `.png`."""
    told = machine("litserve", "mosec")
    costs = measure()
    REPORTS.mkdir(exist_ok=True)
    (REPORTS / "noop.json").write_text(
        json.dumps({"machine": told, "body_bytes": BODY_BYTES, "costs": [asdict(cost) for cost in costs]}, indent=2)
        + "\n"
    )
    text = table(costs, told)
    (REPORTS / "noop.md").write_text(text)
    draw(REPORTS / "noop.png", costs)
    print(text)


def measure() -> list[Cost]:
    """All servers run side by side and take turns, so that all meet the same noise of the machine."""
    asked = calls(padded_jpeg(STRIP, BODY_BYTES))
    windows: dict[tuple[str, int], list[Window]] = {}
    with serving((POMONA, LITSERVE, MOSEC, BENTOML), Work()) as servers:
        running = servers | {POMONA_RAW: servers[POMONA]}
        for name in _SHOWN:
            run(_load(running[name], asked[name], CALLERS[-1], WARM_UP_S))
        for _ in tqdm(range(ROUNDS), desc="no-op, servers in turn"):
            for callers in CALLERS:
                for name in _SHOWN:
                    window = run(_load(running[name], asked[name], callers, WINDOW_S))
                    windows.setdefault((name, callers), []).append(window)
    return [Cost.of(name, callers, windows[name, callers]) for callers in CALLERS for name in _SHOWN]


async def _load(server: Server, call: Call, callers: int, seconds: float) -> Window:
    pool = pool_of(server)
    started, spent = time.perf_counter(), server.cpu_s()
    taken = await keep_busy(pool, call, callers, seconds)
    spent, elapsed = server.cpu_s() - spent, time.perf_counter() - started
    pool.close()
    percentiles = Percentiles.of(taken)
    return Window(1000 * spent / len(taken), len(taken) / elapsed, percentiles.p50 if percentiles else 0.0)


def table(costs: Sequence[Cost], told: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    rows = [
        f"A model that does nothing and finds nothing, an image of {BODY_BYTES // 1000} KB (a strip of "
        f"{STRIP.width} x {STRIP.height} pixels, the rest is padding), known to Pomona's embedding cache; one worker "
        f"per server, batches up to {BATCH}, as many callers as said, each sending its next request when it has its "
        f"answer. CPU of all processes of a server, user's and kernel's. {ROUNDS} rounds of {WINDOW_S:g} s, the "
        "servers taking turns: median (least to greatest).",
        "",
        "| server | callers | CPU ms per request | requests per second | median ms |",
        "|---|---:|---:|---:|---:|",
    ]
    rows += [f"| {cost.server} | {cost.callers} | {cost.cpu_ms} | {cost.per_s} | {cost.p50_ms} |" for cost in costs]
    rows += ["", footer(told), ""]
    return "\n".join(rows)


def draw(path: Path, costs: Sequence[Cost]) -> None:
    """CPU per request, by server and number of callers; the lines are the range over the rounds."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(_SHOWN)
    for number, name in enumerate(_SHOWN):
        own = [cost for cost in costs if cost.server == name]
        places = [group + (number - (len(_SHOWN) - 1) / 2) * width for group in range(len(own))]
        heights = [cost.cpu_ms.median for cost in own]
        below = [cost.cpu_ms.median - cost.cpu_ms.low for cost in own]
        above = [cost.cpu_ms.high - cost.cpu_ms.median for cost in own]
        axes.bar(places, heights, width * 0.9, yerr=(below, above), color=COLOURS[name], label=name, ecolor="#555555")
    axes.set_xticks(range(len(CALLERS)), [f"{callers}" for callers in CALLERS])
    axes.set_xlabel("callers at the same time")
    axes.set_ylabel("CPU ms per request")
    axes.set_title(f"No-op model, body of {BODY_BYTES // 1000} KB: what the server itself costs", fontsize=10)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
