"""Whether a burst leaves something behind: lone requests before it and after.

python -m loadtest.burst
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Final

from tqdm import tqdm

from loadtest.figures import Spread
from loadtest.loops import ask_alone, keep_busy, pool_of, run
from loadtest.machine import REPORTS, footer, machine
from loadtest.peers.model import BATCH, Work
from loadtest.peers.servers import BENTOML, LITSERVE, MOSEC, POMONA, STRIP, Call, calls, padded_jpeg, serving
from loadtest.server import Server

BODY_BYTES: Final = 30_000
WORK: Final = Work(fixed_ms=10, per_item_ms=1)
ROUNDS: Final = 2
WARM_UP: Final = 30
LONE: Final = 60
THINK_S: Final = 0.02
CALLERS: Final = 32
BURST_S: Final = 3.0
REST_S: Final = 1.0
_SERVERS: Final = (POMONA, LITSERVE, MOSEC, BENTOML)


@dataclass(frozen=True, slots=True)
class Recovery:
    """One server, over rounds with a fresh start each.

    Attributes:
        before_ms: median of lone requests before the burst.
        after_ms: the same from a second after it.
        ratio: after by before.
    """

    server: str
    before_ms: Spread
    after_ms: Spread
    ratio: Spread

    @classmethod
    def of(cls, server: str, rounds: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Recovery:
        """Out of the seconds before and after, for each round."""
        before = [1000 * median(taken) for taken, _ in rounds]
        after = [1000 * median(taken) for _, taken in rounds]
        ratios = [late / early for early, late in zip(before, after, strict=True)]
        return cls(server, Spread.of(before), Spread.of(after), Spread.of(ratios))


def main() -> None:
    """Measure, print, write `loadtest/reports/burst.json` and `.md`."""
    told = machine("litserve", "mosec")
    recoveries = measure()
    REPORTS.mkdir(exist_ok=True)
    report = {"machine": told, "work": asdict(WORK), "servers": [asdict(recovery) for recovery in recoveries]}
    (REPORTS / "burst.json").write_text(json.dumps(report, indent=2) + "\n")
    text = table(recoveries, told)
    (REPORTS / "burst.md").write_text(text)
    print(text)


def measure() -> list[Recovery]:
    """The servers take turns; each starts afresh, as a burst may leave something behind for long."""
    asked = calls(padded_jpeg(STRIP, BODY_BYTES))
    rounds: dict[str, list[tuple[list[float], list[float]]]] = {}
    for _ in tqdm(range(ROUNDS), desc="burst, servers in turn"):
        for name in _SERVERS:
            with serving((name,), WORK) as servers:
                rounds.setdefault(name, []).append(run(_burst(servers[name], asked[name])))
    return [Recovery.of(name, rounds[name]) for name in _SERVERS]


async def _burst(server: Server, call: Call) -> tuple[list[float], list[float]]:
    pool = pool_of(server)
    await ask_alone(pool, call, WARM_UP, THINK_S)
    before = await ask_alone(pool, call, LONE, THINK_S)
    await keep_busy(pool, call, CALLERS, BURST_S)
    await asyncio.sleep(REST_S)
    after = await ask_alone(pool, call, LONE, THINK_S)
    pool.close()
    return before, after


def table(recoveries: Sequence[Recovery], told: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    rows = [
        f"{LONE} lone requests, {THINK_S * 1000:g} ms apart; then {CALLERS} callers for {BURST_S:g} s; {REST_S:g} s "
        f"of rest; {LONE} lone requests again. A batch of n takes {WORK.fixed_ms:g} + {WORK.per_item_ms:g} n ms, up "
        f"to {BATCH} in a batch. Medians of a round's requests; {ROUNDS} rounds with a fresh start each, the servers "
        "taking turns: median (least to greatest).",
        "",
        "| server | before, ms | after, ms | after / before |",
        "|---|---:|---:|---:|",
    ]
    rows += [f"| {row.server} | {row.before_ms} | {row.after_ms} | {row.ratio} |" for row in recoveries]
    rows += ["", footer(told), ""]
    return "\n".join(rows)


if __name__ == "__main__":
    main()
