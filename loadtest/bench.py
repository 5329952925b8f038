"""One image's whole path on both backends, memory, the second start, and what input size and padding cost and keep.

    make bench

The path is measured in one process, a new image each time (the cache is off), the backends taking turns, so that both
meet the same noise of the machine. Memory and start are a real server's, whose files lie ready from a start before.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import httpx
from tqdm import tqdm

from loadtest import dials
from loadtest.drawn import draw
from loadtest.machine import REPORTS, footer, machine
from loadtest.server import running
from models.backends.base import BackendName
from models.types import Size
from service.lifecycle import load_pipeline
from service.messages import SegmentRequest
from service.pipeline import Pipeline
from service.settings import Settings

BACKENDS: Final[tuple[BackendName, ...]] = ("openvino", "torch")
IMAGE: Final = Size(1200, 1800)
ROUNDS: Final = 15
STARTS: Final = 3
PARTS: Final = ("decode", "encode", "prompt", "postprocess", "total")


def main() -> None:
    """Measure, print, write `loadtest/reports/one_image.json` and `.md`."""
    figures: dict[str, Any] = {
        "machine": machine(),
        "image": f"{IMAGE.width} x {IMAGE.height} JPEG, one point, three masks as RLE",
        "path_ms": asyncio.run(_measure_path()),
        "server": {backend: _measure_server(backend) for backend in BACKENDS},
        "dials_ms": asyncio.run(_measure_dials()),
        "agreement": dials.measure_agreement(Settings().model_store),
    }
    REPORTS.mkdir(exist_ok=True)
    (REPORTS / "one_image.json").write_text(json.dumps(figures, indent=2) + "\n")
    (REPORTS / "one_image.md").write_text(_table(figures))
    print(_table(figures))


async def _measure_path() -> dict[str, dict[str, dict[str, float]]]:
    """Median, and the lower and upper quartile, in milliseconds by backend and part."""
    pipelines: dict[BackendName, Pipeline] = {
        backend: await load_pipeline(Settings(backend=backend, embedding_cache_mib=0), device_index=0)
        for backend in BACKENDS
    }
    image = draw(3, IMAGE)
    request = SegmentRequest([image.prompt], data=image.data)
    seconds: dict[BackendName, dict[str, list[float]]] = {backend: {part: [] for part in PARTS} for backend in BACKENDS}
    for _ in tqdm(range(ROUNDS), desc="whole path, backends in turn"):
        for backend, pipeline in pipelines.items():
            timings = asdict((await pipeline.segment(request)).timings)
            for part in PARTS:
                seconds[backend][part].append(timings[part])
    for pipeline in pipelines.values():
        await pipeline.close(10)
    return {backend: {part: _spread(values) for part, values in parts.items()} for backend, parts in seconds.items()}


async def _measure_dials() -> dict[str, dict[str, Any]]:
    settings = Settings(backend="openvino", embedding_cache_mib=0)
    pipeline = await load_pipeline(settings, device_index=0)
    try:
        return await dials.measure_times(pipeline, settings.model_store)
    finally:
        await pipeline.close(10)


def _measure_server(backend: BackendName) -> dict[str, float]:
    """Start to readiness, and resident memory when idle and after requests."""
    ready, idle, used = [], [], []
    image = draw(3, IMAGE)
    point = image.prompt.points[0]
    body = {"request": json.dumps({"prompts": [{"points": [[point.x, point.y]]}]})}
    for _ in tqdm(range(STARTS), desc=f"starts on {backend}"):
        with tempfile.TemporaryDirectory() as folder, running(Path(folder), backend=backend) as server:
            ready.append(server.ready_s)
            idle.append(server.resident_mib())
            for _ in range(3):
                answer = httpx.post(f"{server.address}/v1/segment", files={"image": image.data}, data=body, timeout=60)
                answer.raise_for_status()
            used.append(server.resident_mib())
    return {
        "ready_s": round(statistics.median(ready), 2),
        "idle_mib": round(statistics.median(idle)),
        "after_requests_mib": round(statistics.median(used)),
    }


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(seconds, n=4)
    return {
        "median": round(middle * 1000, 1),
        "low": round(low * 1000, 1),
        "high": round(high * 1000, 1),
    }


def _table(figures: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    rows = [
        f"{figures['image']}; {ROUNDS} rounds, the backends taking turns; milliseconds, median (quartiles).",
        "",
        "| backend | " + " | ".join(PARTS) + " |",
        "|---|" + "---:|" * len(PARTS),
    ]
    for backend, parts in figures["path_ms"].items():
        cells = [f"{part['median']:g} ({part['low']:g} to {part['high']:g})" for part in parts.values()]
        rows.append(f"| {backend} | " + " | ".join(cells) + " |")
    rows += [
        "",
        f"Server, median of {STARTS} starts with all files ready.",
        "",
        "| backend | ready after | resident, idle | resident, after requests |",
        "|---|---:|---:|---:|",
    ]
    for backend, server in figures["server"].items():
        rows.append(
            f"| {backend} | {server['ready_s']:g} s | {server['idle_mib']} MiB | {server['after_requests_mib']} MiB |"
        )
    rows += ["", *dials.table(figures["dials_ms"], figures["agreement"])]
    rows += [
        "",
        footer(figures["machine"]),
        "",
    ]
    return "\n".join(rows)


if __name__ == "__main__":
    main()
