"""CPU time, throughput and latency per request, of servers that take turns: `python -m loadtest server`."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

from tqdm import tqdm

from loadtest.load import Pool, Send, closed_loop, post_ok, run
from loadtest.peers import BATCH, STRIP, Work
from loadtest.report import Effort, Report, table
from loadtest.server import (
    BARE_ASGI,
    BARE_GRPC,
    BENTOML,
    LITSERVE,
    MODEL,
    MOSEC,
    POMONA,
    POMONA_RAW,
    STRIP_POINT,
    Server,
    calls,
    installed,
    serving,
)
from loadtest.summary import Percentiles, Spread
from loadtest.wire import Call, Masks

BODY_BYTES: Final = 300_000
NUMBERS_OF_CALLERS: Final = (1, 8, 32)
RATIO_CALLERS: Final = 8
POMONA_GRPC: Final = "Pomona, gRPC"

TARGETS: Final = {(POMONA_RAW, BARE_ASGI): 1.5, (POMONA, BARE_ASGI): 2.0, (POMONA_GRPC, BARE_GRPC): 2.5}
"""Most CPU time per request, as a multiple of what the server framework takes by itself."""

_WARM_UP_S: Final = 1.0
_ORDER: Final = (POMONA, POMONA_RAW, POMONA_GRPC, BARE_ASGI, BARE_GRPC, LITSERVE, MOSEC, BENTOML)

OpenSend: TypeAlias = Callable[[], AbstractAsyncContextManager[Send]]
"""Opens connections; its value sends a request."""


@dataclass(frozen=True, slots=True)
class Lane:
    """A way of calling a server.

    Attributes:
        name: in the report.
        server: whose CPU time is counted.
        open_send: how it is called.
        masks: format of the masks in the answers.
    """

    name: str
    server: Server
    open_send: OpenSend
    masks: Masks = "RLE"


@dataclass(frozen=True, slots=True)
class Window:
    """One lane under a number of callers for a while.

    Attributes:
        per_s: requests answered per second.
        p50_ms: median time of an answer.
        p99_ms: 99th percentile.
        server_cpu_ms: CPU milliseconds per request of all the server's processes.
        caller_cpu_ms: CPU milliseconds per request of the callers' process.
    """

    per_s: float
    p50_ms: float
    p99_ms: float
    server_cpu_ms: float
    caller_cpu_ms: float


@dataclass(frozen=True, slots=True)
class Cost:
    """All rounds of a lane under a number of callers."""

    name: str
    masks: Masks
    callers: int
    per_s: Spread
    p50_ms: Spread
    p99_ms: Spread
    server_cpu_ms: Spread
    caller_cpu_ms: Spread

    @classmethod
    def of(cls, name: str, masks: Masks, callers: int, windows: Sequence[Window]) -> Cost:
        """Compute the spread of each figure over the rounds."""
        columns = zip(*(asdict(window).values() for window in windows), strict=True)
        return cls(name, masks, callers, *(Spread.of(column) for column in columns))


Windows: TypeAlias = Mapping[tuple[str, Masks, int], Sequence[Window]]
"""By lane, masks and number of callers, a window for each round."""


def measure(
    lanes: Sequence[Lane], callers: Sequence[int], effort: Effort
) -> dict[tuple[str, Masks, int], list[Window]]:
    """Measure all lanes in turn, so that all meet the same noise of the machine.

    Raises:
        ExceptionGroup: of `Unanswered`, where a server failed.
    """
    windows: dict[tuple[str, Masks, int], list[Window]] = {}
    for lane in lanes:
        run(_window(lane, callers[-1], min(_WARM_UP_S, effort.seconds)))
    for _ in tqdm(range(effort.rounds), desc="servers in turn"):
        for count in callers:
            for lane in lanes:
                window = run(_window(lane, count, effort.seconds))
                windows.setdefault((lane.name, lane.masks, count), []).append(window)
    return windows


def costs_of(windows: Windows) -> list[Cost]:
    """Compute the cost of each lane under each number of callers."""
    return [Cost.of(*key, measured) for key, measured in windows.items()]


async def _window(lane: Lane, callers: int, seconds: float) -> Window:
    async with lane.open_send() as send:
        await send()  # connects, and fills the embedding cache
        started, server_cpu, caller_cpu = time.perf_counter(), lane.server.cpu_s(), time.process_time()
        taken = await closed_loop(send, callers, seconds)
        elapsed = time.perf_counter() - started
        server_cpu, caller_cpu = lane.server.cpu_s() - server_cpu, time.process_time() - caller_cpu
    percentiles, count = Percentiles.of(taken), len(taken)
    if percentiles is None:
        raise ValueError(f"a window must be long enough for one request, got {seconds} s")
    return Window(
        per_s=count / elapsed,
        p50_ms=percentiles.p50,
        p99_ms=percentiles.p99,
        server_cpu_ms=1000 * server_cpu / count,
        caller_cpu_ms=1000 * caller_cpu / count,
    )


def main(effort: Effort, folder: Path) -> None:
    """Measure the CPU time per request of servers around a model that does nothing, and write `server`."""
    from loadtest.callers import CALLERS, GRPC, Target
    from loadtest.images import padded_jpeg

    image = padded_jpeg(STRIP, BODY_BYTES)
    requests = calls(image)
    with serving(installed([POMONA, BARE_ASGI, BARE_GRPC, LITSERVE, MOSEC, BENTOML]), Work()) as servers:
        over_http = {POMONA_RAW: servers[POMONA]} | {name: one for name, one in servers.items() if name in requests}
        lanes = [Lane(name, one, partial(_posts, one, requests[name])) for name, one in over_http.items()]
        grpc, _ = CALLERS[GRPC]
        for name, one in {POMONA_GRPC: servers[POMONA], BARE_GRPC: servers[BARE_GRPC]}.items():
            target = Target(one.port, one.grpc_port, MODEL, image, STRIP_POINT, multimask=False)
            lanes.append(Lane(name, one, partial(grpc, target, "RLE")))
        windows = measure(lanes, NUMBERS_OF_CALLERS, effort)
    costs = sorted(costs_of(windows), key=lambda cost: (cost.callers, _ORDER.index(cost.name)))
    compared = ratios(windows, RATIO_CALLERS)
    data = {
        "body_bytes": BODY_BYTES,
        "ratios": [{"server": name, "to": bare, "ratio": asdict(ratio)} for (name, bare), ratio in compared.items()],
        "costs": [asdict(cost) for cost in costs],
    }
    packages = tuple(name for name in ("litserve", "mosec") if name in " ".join(servers).lower())
    Report("server", data, lines_of(costs, compared, effort), packages=("grpcio", *packages)).write(folder)


@contextlib.asynccontextmanager
async def _posts(server: Server, call: Call) -> AsyncIterator[Send]:
    pool = Pool(server.port)
    try:
        yield partial(post_ok, pool, call)
    finally:
        pool.close()


def ratios(windows: Windows, callers: int) -> dict[tuple[str, str], Spread]:
    """Compute the ratios of server CPU time that have targets, round by round."""

    def spent(name: str) -> list[float]:
        return [window.server_cpu_ms for window in windows[name, "RLE", callers]]

    return {
        (name, bare): Spread.of(
            [one / other if other else math.nan for one, other in zip(spent(name), spent(bare), strict=True)]
        )
        for name, bare in TARGETS
    }


def lines_of(costs: Sequence[Cost], compared: Mapping[tuple[str, str], Spread], effort: Effort) -> list[str]:
    """Return the report as Markdown."""
    return [
        f"A model that does nothing and finds nothing, an image of {BODY_BYTES // 1000} KB (a strip of "
        f"{STRIP.width} x {STRIP.height} pixels, the rest is padding) that is in Pomona's embedding cache; one worker "
        f"per server, batches up to {BATCH}; each caller sends its next request when it has its answer. CPU time of "
        f"all processes of a server, user and kernel. {effort.rounds} rounds of {effort.seconds:g} s, the servers "
        "taking turns: median (lowest to highest). The bare servers only read the request and always give the same "
        "answer: what the framework takes by itself.",
        "",
        *table(
            ("server", "callers", "CPU ms per request", "requests per second", "median ms"),
            ((cost.name, cost.callers, cost.server_cpu_ms, cost.per_s, cost.p50_ms) for cost in costs),
        ),
        "",
        f"CPU time per request at {RATIO_CALLERS} callers as a multiple of the bare server's, round by round:",
        "",
        *table(
            ("server", "compared with", "ratio", "target"),
            ((name, bare, ratio, f"{TARGETS[name, bare]:g}") for (name, bare), ratio in compared.items()),
            left=2,
        ),
    ]
