"""All doors side by side: requests per second, times, and what a request costs server and caller in CPU.

python -m loadtest.doors

Once around a model that does nothing, with a body of 300 KB: what the doors themselves cost, beside a server of
grpcio's that has nothing behind it. And once with MobileSAM: what is left of the difference when there is work to do.
The caller's process is this one, on the same machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import grpc
from tqdm import tqdm

from loadtest.door_callers import BARE, DOORS, Ask, Caller, Masks, Target
from loadtest.drawn import draw
from loadtest.figures import Percentiles, Spread
from loadtest.loops import run
from loadtest.machine import REPORTS, footer, machine
from loadtest.peers.model import Work
from loadtest.peers.servers import STRIP, padded_jpeg
from loadtest.server import Server, environment_of, free_port, launched, running
from models.types import Point, Size

BODY_BYTES: Final = 300_000
IMAGE: Final = Size(1200, 1800)
MODEL: Final = "mobile-sam"
BARE_WITHIN_S: Final = 30.0
NO_OP_CALLERS: Final = (1, 8)
REAL_CALLERS: Final = (1, 4)


@dataclass(frozen=True, slots=True)
class Plan:
    """How long is measured.

    Attributes:
        rounds: in each, all doors take their turn.
        window_s: of one door under so many callers.
        warm_up_s: before the first round.
    """

    rounds: int = 5
    window_s: float = 1.5
    warm_up_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Lane:
    """One way to one server.

    Attributes:
        door: its name.
        masks: of what kind.
        caller: who asks there.
        server: whose CPU is counted.
        target: what is asked where.
    """

    door: str
    masks: Masks
    caller: Caller
    server: Server
    target: Target


@dataclass(frozen=True, slots=True)
class Window:
    """One door under so many callers for a while.

    Attributes:
        per_s: requests answered per second.
        p50_ms: median time of an answer.
        p99_ms: of the slowest hundredth.
        server_cpu_ms: CPU milliseconds of all the server's processes per request.
        caller_cpu_ms: of the callers' process.
    """

    per_s: float
    p50_ms: float
    p99_ms: float
    server_cpu_ms: float
    caller_cpu_ms: float


@dataclass(frozen=True, slots=True)
class Cost:
    """All rounds of a door with masks of one kind, under so many callers."""

    door: str
    masks: Masks
    callers: int
    per_s: Spread
    p50_ms: Spread
    p99_ms: Spread
    server_cpu_ms: Spread
    caller_cpu_ms: Spread

    @classmethod
    def of(cls, door: str, masks: Masks, callers: int, windows: Sequence[Window]) -> Cost:
        """Spread over the rounds."""
        columns = zip(*(asdict(window).values() for window in windows), strict=True)
        return cls(door, masks, callers, *(Spread.of(column) for column in columns))


def main() -> None:
    """Measure, print, write `loadtest/reports/doors.json` and `.md`."""
    told, plan = machine("grpcio", "tritonclient"), Plan()
    with no_op() as lanes, bare(lanes[0].target) as lower_bound:
        nothing = measure([*lanes, lower_bound], NO_OP_CALLERS, plan)
    with real() as lanes:
        masked = measure(lanes, REAL_CALLERS, plan)
    REPORTS.mkdir(exist_ok=True)
    report = {
        "machine": told,
        "body_bytes": BODY_BYTES,
        "plan": asdict(plan),
        "no_op": [asdict(cost) for cost in nothing],
        "mobile_sam": [asdict(cost) for cost in masked],
    }
    (REPORTS / "doors.json").write_text(json.dumps(report, indent=2) + "\n")
    text = table(nothing, masked, plan, told)
    (REPORTS / "doors.md").write_text(text)
    print(text)


@contextlib.contextmanager
def no_op() -> Iterator[list[Lane]]:
    """The service around a model that does nothing and finds nothing.

    Raises:
        ServerFailed: it did not start, or did not end well.
    """
    port, grpc_port = free_port(), free_port()
    environment = environment_of(port, grpc_port=str(grpc_port), models=MODEL) | Work().environment()
    served = ["-m", "bentoml", "serve", "loadtest.peers.serve_pomona:Pomona"]
    middle = Point(STRIP.width / 2, STRIP.height / 2)
    with tempfile.TemporaryDirectory() as folder, launched(Path(folder), port, served, environment) as server:
        image = padded_jpeg(STRIP, BODY_BYTES)
        yield _lanes(server, Target(port, grpc_port, MODEL, image, middle, multimask=False))
        server.stop()


@contextlib.contextmanager
def bare(target: Target) -> Iterator[Lane]:
    """Grpcio's own server, with nothing behind it, asked the same.

    Raises:
        grpc.FutureTimeoutError: it did not start.
    """
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "loadtest.peers.serve_grpc", str(port)])
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            grpc.channel_ready_future(channel).result(BARE_WITHIN_S)
        server = Server(f"127.0.0.1:{port}", Path(os.devnull), process)
        caller, (masks, *_) = DOORS[BARE]
        yield Lane(f"{BARE}, nothing behind it", masks, caller, server, replace(target, grpc_port=port))
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def real() -> Iterator[list[Lane]]:
    """The service with MobileSAM.

    Raises:
        ServerFailed: it did not start, or did not end well.
    """
    grpc_port, image = free_port(), draw(3, IMAGE)
    with (
        tempfile.TemporaryDirectory() as folder,
        running(Path(folder), grpc_port=str(grpc_port), models=MODEL) as server,
    ):
        port = int(server.address.rpartition(":")[2])
        yield _lanes(server, Target(port, grpc_port, MODEL, image.data, image.prompt.points[0], multimask=True))


def _lanes(server: Server, target: Target) -> list[Lane]:
    return [Lane(door, masks, caller, server, target) for door, (caller, kinds) in DOORS.items() for masks in kinds]


def measure(lanes: Sequence[Lane], callers: Sequence[int], plan: Plan) -> list[Cost]:
    """All in turn, so that all meet the same noise of the machine.

    Raises:
        ExceptionGroup: of `Unanswered`, where a door failed.
    """
    windows: dict[tuple[str, Masks, int], list[Window]] = {}
    for lane in lanes:
        run(_load(lane, callers[-1], plan.warm_up_s))
    for _ in tqdm(range(plan.rounds), desc="doors in turn"):
        for count in callers:
            for lane in lanes:
                window = run(_load(lane, count, plan.window_s))
                windows.setdefault((lane.door, lane.masks, count), []).append(window)
    return [
        Cost.of(lane.door, lane.masks, count, windows[lane.door, lane.masks, count])
        for count in callers
        for lane in lanes
    ]


async def _load(lane: Lane, callers: int, seconds: float) -> Window:
    async with lane.caller(lane.target, lane.masks) as ask:
        await ask()  # connected, and the image's embedding is at hand
        started, server_cpu, caller_cpu = time.perf_counter(), lane.server.cpu_s(), time.process_time()
        taken = await _keep_busy(ask, callers, seconds)
        elapsed = time.perf_counter() - started
        server_cpu, caller_cpu = lane.server.cpu_s() - server_cpu, time.process_time() - caller_cpu
    percentiles, count = Percentiles.of(taken), len(taken)
    if percentiles is None:
        raise ValueError("the window is too short for a request")
    return Window(
        per_s=count / elapsed,
        p50_ms=percentiles.p50,
        p99_ms=percentiles.p99,
        server_cpu_ms=1000 * server_cpu / count,
        caller_cpu_ms=1000 * caller_cpu / count,
    )


async def _keep_busy(ask: Ask, callers: int, seconds: float) -> list[float]:
    """Seconds of each answer to callers who ask one request after another."""
    until = time.monotonic() + seconds
    taken: list[float] = []

    async def caller() -> None:
        while (sent := time.monotonic()) < until:
            await ask()
            taken.append(time.monotonic() - sent)

    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(caller())
    return taken


def table(nothing: Sequence[Cost], masked: Sequence[Cost], plan: Plan, told: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    rows = [
        "As many callers as said, each sending its next request when it has its answer; the callers of gRPC share a "
        "connection, those of the stream one stream. One point in an image that is known to the embedding cache, sent "
        "anew each time; messages are built and answers parsed for every request, RLE and PNG are not decoded. HTTP is "
        "asked with a bare client of the load test and with httpx, gRPC with grpcio, both with Pomona's asyncio client "
        "too; the Open Inference Protocol (OIP) with tritonclient's asyncio clients. CPU of all processes of the "
        "server, and of the callers' process on the same machine, user's and kernel's. \"Nothing behind it\" is a "
        "server of grpcio's own that reads the same message and has one answer for all: what the library takes. "
        f"{plan.rounds} rounds of {plan.window_s:g} s, the doors taking turns: medians, and of the server's CPU the "
        "least and the greatest too.",
        "",
        f"A model that does nothing, a body of {BODY_BYTES // 1000} KB, one empty mask of {STRIP.width} x "
        f"{STRIP.height} pixels:",
        "",
        *_rows(nothing),
        "",
        f"MobileSAM, a JPEG of {IMAGE.width} x {IMAGE.height}, three masks:",
        "",
        *_rows(masked),
        "",
        footer(told),
        "",
    ]
    return "\n".join(rows)


def _rows(costs: Sequence[Cost]) -> list[str]:
    return [
        "| door | masks | callers | requests per second | p50, ms | p99, ms | server's CPU ms | callers' CPU ms |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
        *(
            f"| {cost.door} | {cost.masks} | {cost.callers} | {cost.per_s.median:.3g} | {cost.p50_ms.median:.3g} "
            f"| {cost.p99_ms.median:.3g} | {cost.server_cpu_ms} | {cost.caller_cpu_ms.median:.3g} |"
            for cost in costs
        ),
    ]


if __name__ == "__main__":
    main()
