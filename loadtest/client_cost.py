"""What the Python client adds to the library below it, over HTTP and over gRPC, around a model that does nothing.

python -m loadtest.client_cost

All four callers ask one after the other, call by call, so that all meet the same noise of the machine.
"""

from __future__ import annotations

import json
import time
from contextlib import AsyncExitStack
from typing import Final

from tqdm import tqdm

from loadtest.door_callers import DOORS, Target
from loadtest.doors import BODY_BYTES, no_op
from loadtest.figures import Spread
from loadtest.loops import run
from loadtest.machine import REPORTS, footer, machine

PAIRS: Final = {"HTTP": ("HTTP, raw body by httpx", "HTTP, Python client"), "gRPC": ("gRPC", "gRPC, Python client")}
"""The library alone, and the client that is made with it."""

ROUNDS: Final = 3
CALLS: Final = 500
"""Of each caller in a round."""

WARM_UP: Final = 50


def main() -> None:
    """Measure, print, write `loadtest/reports/client_cost.json` and `.md`."""
    told = machine("grpcio")
    with no_op() as lanes:
        rounds = [run(_medians_ms(lanes[0].target)) for _ in tqdm(range(ROUNDS), desc="callers in turn")]
    report = {"machine": told, "body_bytes": BODY_BYTES, "rounds_ms": rounds}
    (REPORTS / "client_cost.json").write_text(json.dumps(report, indent=2) + "\n")
    text = "\n".join([*table(rounds), "", footer(told), ""])
    (REPORTS / "client_cost.md").write_text(text)
    print(text)


async def _medians_ms(target: Target) -> dict[str, float]:
    """The median time of each caller's calls."""
    taken: dict[str, list[float]] = {}
    async with AsyncExitStack() as stack:
        asks = {}
        for name in (name for pair in PAIRS.values() for name in pair):
            caller, _ = DOORS[name]
            asks[name] = await stack.enter_async_context(caller(target, "RLE"))
        for number in range(WARM_UP + CALLS):
            for name, ask in asks.items():
                started = time.perf_counter()
                await ask()
                if number >= WARM_UP:
                    taken.setdefault(name, []).append(1000 * (time.perf_counter() - started))
    return {name: Spread.of(times).median for name, times in taken.items()}


def table(rounds: list[dict[str, float]]) -> list[str]:
    """The figures as lines of Markdown."""
    lines = [
        f"One caller, {BODY_BYTES // 1000} KB of body, one empty mask; {ROUNDS} rounds of {CALLS} calls of each, "
        "in turn call by call. Medians of a round's calls: median (least to greatest) of the rounds, and of their "
        "differences.",
        "",
        "| door | library alone, ms | Python client, ms | it adds, ms |",
        "|---|---:|---:|---:|",
    ]
    for door, (library, client) in PAIRS.items():
        alone, whole = ([each[name] for each in rounds] for name in (library, client))
        added = Spread.of([one - other for one, other in zip(whole, alone, strict=True)])
        lines.append(f"| {door} | {Spread.of(alone)} | {Spread.of(whole)} | {added} |")
    return lines


if __name__ == "__main__":
    main()
