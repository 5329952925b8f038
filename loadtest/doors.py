"""All endpoints and client libraries side by side: `python -m loadtest doors` and `python -m loadtest client`.

The callers' process is this one, on the same machine as the server.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Final

from tqdm import tqdm

from loadtest.callers import CALLERS, GRPC, GRPC_CLIENT, HTTP_CLIENT, HTTPX, Target
from loadtest.cost import BODY_BYTES, Cost, Lane, costs_of, measure
from loadtest.images import IMAGE, padded_jpeg, render_image
from loadtest.load import run
from loadtest.peers import STRIP, Work
from loadtest.report import Effort, Report, table
from loadtest.server import BARE_GRPC, MODEL, POMONA, STRIP_POINT, Server, free_port, running, serving
from loadtest.summary import Spread

NO_OP_CALLERS: Final = (1, 8)
REAL_CALLERS: Final = (1, 4)

PAIRS: Final = {"HTTP": (HTTPX, HTTP_CLIENT), "gRPC": (GRPC, GRPC_CLIENT)}
"""The library by itself, and the Python client that is built on it."""

CALLS: Final = 500
"""Of each caller in a round."""

_WARM_UP_CALLS: Final = 50


def main(effort: Effort, folder: Path) -> None:
    """Measure every endpoint around a model that does nothing and around MobileSAM, and write `doors`."""
    with no_op_lanes() as lanes:
        no_op = costs_of(measure(lanes, NO_OP_CALLERS, effort))
    with real_lanes() as lanes:
        real = costs_of(measure(lanes, REAL_CALLERS, effort))
    data = {
        "body_bytes": BODY_BYTES,
        "plan": asdict(effort),
        "no_op": [asdict(cost) for cost in no_op],
        "mobile_sam": [asdict(cost) for cost in real],
    }
    Report("doors", data, lines_of(no_op, real, effort), packages=("grpcio", "tritonclient")).write(folder)


@contextlib.contextmanager
def no_op_lanes() -> Iterator[list[Lane]]:
    """Start the service around a model that does nothing, and a bare grpcio server.

    Raises:
        ServerFailed: one did not start.
    """
    with serving((POMONA, BARE_GRPC), Work()) as servers:
        pomona, bare = servers[POMONA], servers[BARE_GRPC]
        caller, _ = CALLERS[GRPC]
        yield [*_lanes(pomona, no_op_target(pomona)), Lane(BARE_GRPC, bare, partial(caller, no_op_target(bare), "RLE"))]


def no_op_target(server: Server) -> Target:
    """Return the request of a server whose model does nothing."""
    image = padded_jpeg(STRIP, BODY_BYTES)
    return Target(server.port, server.grpc_port, MODEL, image, STRIP_POINT, multimask=False)


@contextlib.contextmanager
def real_lanes() -> Iterator[list[Lane]]:
    """Start the service with MobileSAM.

    Raises:
        ServerFailed: it did not start, or did not stop properly.
    """
    image = render_image(3, IMAGE)
    with (
        tempfile.TemporaryDirectory() as folder,
        running(Path(folder), grpc_port=str(free_port()), models=MODEL) as server,
    ):
        yield _lanes(server, Target(server.port, server.grpc_port, MODEL, image.data, image.point, multimask=True))


def _lanes(server: Server, target: Target) -> list[Lane]:
    return [
        Lane(name, server, partial(caller, target, masks), masks)
        for name, (caller, formats) in CALLERS.items()
        for masks in formats
    ]


def lines_of(no_op: Sequence[Cost], real: Sequence[Cost], effort: Effort) -> list[str]:
    """Return the report as Markdown."""
    return [
        "Each caller sends its next request when it has its answer; gRPC callers share a connection, those of the "
        "stream one stream. One point in an image that is in the embedding cache but sent each time; messages are "
        "built and answers parsed for every request, RLE and PNG are not decoded. HTTP is called with the load "
        "test's own minimal client and with httpx, gRPC with grpcio, both with Pomona's asyncio client too, and the "
        "Open Inference Protocol (OIP) with tritonclient's asyncio clients. CPU time of all processes of the server, "
        f"and of the callers' process on the same machine, user and kernel. The {BARE_GRPC} reads the same message "
        f"and has one answer for all: what the library takes by itself. {effort.rounds} rounds of {effort.seconds:g} "
        "s, in turn: medians, and for the server's CPU time the lowest and highest too.",
        "",
        f"A model that does nothing, a body of {BODY_BYTES // 1000} KB, one empty mask of {STRIP.width} x "
        f"{STRIP.height} pixels:",
        "",
        *_table(no_op),
        "",
        f"MobileSAM, a JPEG of {IMAGE.width} x {IMAGE.height}, three masks:",
        "",
        *_table(real),
    ]


def _table(costs: Sequence[Cost]) -> list[str]:
    columns = ("endpoint", "masks", "callers", "requests per second", "p50, ms", "p99, ms", "server CPU ms")
    rows = (
        (
            *(cost.name, cost.masks, cost.callers),
            *(f"{spread.median:.3g}" for spread in (cost.per_s, cost.p50_ms, cost.p99_ms)),
            *(cost.server_cpu_ms, f"{cost.caller_cpu_ms.median:.3g}"),
        )
        for cost in costs
    )
    return table((*columns, "caller CPU ms"), rows, left=2)


def client(effort: Effort, folder: Path) -> None:
    """Measure what the Python client adds to the library below it, call by call in turn, and write `client`."""
    with serving((POMONA,), Work()) as servers:
        target = no_op_target(servers[POMONA])
        rounds = [run(_medians_ms(target)) for _ in tqdm(range(effort.rounds), desc="callers in turn")]
    data = {"body_bytes": BODY_BYTES, "rounds_ms": rounds}
    Report("client", data, client_lines(rounds), packages=("grpcio",)).write(folder)


async def _medians_ms(target: Target) -> dict[str, float]:
    """Return the median time of each caller's calls."""
    taken: dict[str, list[float]] = {}
    async with AsyncExitStack() as stack:
        senders = {}
        for name in (name for pair in PAIRS.values() for name in pair):
            caller, _ = CALLERS[name]
            senders[name] = await stack.enter_async_context(caller(target, "RLE"))
        for number in range(_WARM_UP_CALLS + CALLS):
            for name, send in senders.items():
                started = time.perf_counter()
                await send()
                if number >= _WARM_UP_CALLS:
                    taken.setdefault(name, []).append(1000 * (time.perf_counter() - started))
    return {name: Spread.of(times).median for name, times in taken.items()}


def client_lines(rounds: Sequence[dict[str, float]]) -> list[str]:
    """Return what the client adds as Markdown."""
    rows = []
    for protocol, (library, with_client) in PAIRS.items():
        alone, whole = ([each[name] for each in rounds] for name in (library, with_client))
        added = [one - other for one, other in zip(whole, alone, strict=True)]
        rows.append((protocol, Spread.of(alone), Spread.of(whole), Spread.of(added)))
    return [
        f"One caller, {BODY_BYTES // 1000} KB of body, one empty mask; {len(rounds)} rounds of {CALLS} calls of each, "
        "in turn call by call. Medians of a round's calls: median (lowest to highest) of the rounds, and of their "
        "differences.",
        "",
        *table(("protocol", "library alone, ms", "Python client, ms", "it adds, ms"), rows),
    ]
