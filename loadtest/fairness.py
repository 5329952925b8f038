"""A crowd of `segment` callers without deadlines beside one line that inspects: `python -m loadtest fairness`.

The crowd has waited long enough for its oldest work to be due for a turn before the line begins.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

from tqdm import tqdm

from loadtest.images import IMAGE, RenderedImage, render_image, unique
from loadtest.load import Answer, Pool, run
from loadtest.report import Effort, Report, table
from loadtest.server import running
from loadtest.wire import as_form, point_request, problem_code

CROWD: Final = 64
CALLS: Final = 14
DEADLINE_S: Final = 1.0
PAUSE_S: Final = 0.3
"""Of the line, after each answer."""

_INSPECT: Final = "/v1/inspect"
_PATIENCE_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Line:
    """What became of the line's images.

    Attributes:
        in_time: answers within the deadline.
        calls: images.
        median_ms: of the answers in time; 0 if there is none.
        outcomes: number of images by status, code of the problem and mode.
    """

    in_time: int
    calls: int
    median_ms: float
    outcomes: Mapping[str, int]


def main(effort: Effort, folder: Path) -> None:
    """Let a crowd wait, inspect beside it, and write `fairness`."""
    _measure(effort, folder, "fairness", "service.app:Pomona")


def simulated(effort: Effort, folder: Path) -> None:
    """Do the same with models that only wait, for machines that others use too, and write `fairness-simulated`."""
    _measure(effort, folder, "fairness-simulated", "loadtest.peers.serve_slow:Pomona")


def _measure(effort: Effort, folder: Path, name: str, bento: str) -> None:
    rounds = []
    for _ in tqdm(range(effort.rounds), desc="rounds, each with a fresh server"):
        with (
            tempfile.TemporaryDirectory() as scratch,
            running(Path(scratch), bento=bento, drain_timeout_s="5") as server,
        ):
            rounds.append(run(_round(server.port, effort.seconds)))
    data = {
        "crowd": CROWD,
        "deadline_s": DEADLINE_S,
        "rounds": [
            {"alone": asdict(alone), "beside": asdict(beside), "crowd_per_s": rate} for alone, beside, rate in rounds
        ],
    }
    Report(name, data, lines_of(data)).write(folder)


async def _round(port: int, seconds: float) -> tuple[Line, Line, float]:
    """Return the line alone, the line beside the crowd, and the crowd's answers a second meanwhile."""
    image, pool = render_image(0, IMAGE), Pool(port)
    line = partial(_inspect, pool, image.data)
    await _line(line)  # learns the times
    alone = await _line(line)
    answers: list[float] = []
    async with asyncio.TaskGroup() as group:
        crowd = [group.create_task(_crowd(pool, image, answers)) for _ in range(CROWD)]
        await asyncio.sleep(seconds)
        started = time.monotonic()
        beside = await _line(line)
        rate = sum(at >= started for at in answers) / (time.monotonic() - started)
        for caller in crowd:
            caller.cancel()
    pool.close()
    return alone, beside, rate


async def _crowd(pool: Pool, image: RenderedImage, answers: list[float]) -> None:
    """Send one image after another, each unseen; a refused caller waits a second."""
    request = json.dumps(point_request(image.point))
    while True:
        answer: Answer | None = None
        with contextlib.suppress(OSError):
            answer = await pool.post(as_form(request, unique(image.data)).chunks(), _PATIENCE_S)
        if answer is not None and answer.status == 200:
            answers.append(answer.at)
        else:
            await asyncio.sleep(1.0)


async def _inspect(pool: Pool, jpeg: bytes) -> tuple[Answer | None, float]:
    call = replace(as_form("{}", unique(jpeg)), path=_INSPECT)
    sent = time.monotonic()
    try:
        answer = await pool.post(call.chunks(1000 * DEADLINE_S), _PATIENCE_S)
    except OSError:
        return None, time.monotonic() - sent
    return answer, answer.at - sent


async def _line(inspect: Callable[[], Awaitable[tuple[Answer | None, float]]]) -> Line:
    outcomes: Counter[str] = Counter()
    taken = []
    for _ in range(CALLS):
        answer, seconds = await inspect()
        if answer is None:
            outcomes["no answer"] += 1
        elif answer.status != 200:
            outcomes[f"{answer.status} {problem_code(answer.body)}"] += 1
        else:
            outcomes[f"200 {json.loads(answer.body)['mode']}" + (", late" if seconds > DEADLINE_S else "")] += 1
            if seconds <= DEADLINE_S:
                taken.append(seconds)
        await asyncio.sleep(PAUSE_S)
    return Line(len(taken), CALLS, round(1000 * median(taken), 1) if taken else 0.0, dict(outcomes))


def lines_of(data: Mapping[str, Any]) -> list[str]:
    """Return the report as Markdown."""
    rows = [
        (
            f"{number}, {where}",
            f"{line['in_time']} of {line['calls']}",
            f"{line['median_ms']:.0f}",
            ", ".join(f"{count} x {outcome}" for outcome, count in sorted(line["outcomes"].items())),
        )
        for number, each in enumerate(data["rounds"], 1)
        for where, line in (("alone", each["alone"]), ("beside", each["beside"]))
    ]
    rates = ", ".join(f"{each['crowd_per_s']:.2f}" for each in data["rounds"])
    return [
        f"One line inspects {CALLS} images of {IMAGE.width} x {IMAGE.height}, one after another, each with a deadline "
        f"of {data['deadline_s']:g} s: alone, and beside {data['crowd']} callers of `segment` without deadlines whose "
        f"images are all new. The crowd got {rates} answers a second meanwhile.",
        "",
        *table(("round", "in time", "median, ms", "outcomes"), rows),
    ]
