"""The service at saturation against the bare model, and a lone request against the bare path: `make bench`.

Bare model and service take turns in one run, on the same images. The bare model gets prepared images in its best
batch size and does nothing else; the service gets JPEGs over HTTP and answers with encoded masks. The bare path is the
same work as the service's in one thread: JPEG in, encoded masks out, no server.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import httpx
from tqdm import tqdm

from loadtest.bare import Bare, bare_models
from loadtest.drawn import DrawnImage, draw
from loadtest.machine import REPORTS, footer, machine
from loadtest.server import Server, running
from models.types import Size

IMAGE: Final = Size(1200, 1800)
IMAGES: Final = 8
"""Different ones, so that none is encoded for two requests in flight."""

IN_FLIGHT: Final = 4
ROUNDS: Final = 5
SECONDS: Final = 5.0
"""About, of each measurement of throughput."""

LATENCY_ROUNDS: Final = 15


def main() -> None:
    """Measure, print, write `loadtest/reports/saturation.json` and `.md`."""
    images = [draw(seed, IMAGE) for seed in range(IMAGES)]
    with tempfile.TemporaryDirectory() as folder:
        bare = bare_models(images)
        with running(Path(folder), embedding_cache_mib="0") as server:
            figures = {
                "machine": machine(),
                "image": f"{IMAGE.width} x {IMAGE.height} JPEG",
                "work": [
                    {"work": work.name, **_throughput(work, server, images), **_latency(work, server, images)}
                    for work in bare
                ],
            }
    REPORTS.mkdir(exist_ok=True)
    (REPORTS / "saturation.json").write_text(json.dumps(figures, indent=2) + "\n")
    (REPORTS / "saturation.md").write_text(table(figures))
    print(table(figures))


def _throughput(work: Bare, server: Server, images: Sequence[DrawnImage]) -> dict[str, Any]:
    """Medians of items per second, bare and served in turn, and their ratio in each round."""
    sizes = {size: _bare_rate(work, size, 1.0) for size in work.batches}
    best = max(sizes, key=lambda size: sizes[size])
    count = max(2 * IN_FLIGHT, round(SECONDS * sizes[best]))
    bare, served = [], []
    for _ in tqdm(range(ROUNDS), desc=f"{work.name}: bare and served in turn"):
        bare.append(_bare_rate(work, best, SECONDS))
        served.append(_served_rate(work, server, images, count))
    ratios = [one / other for one, other in zip(served, bare, strict=True)]
    return {
        "best_batch": best,
        "bare_per_s": round(statistics.median(bare), 2),
        "served_per_s": round(statistics.median(served), 2),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_low": round(min(ratios), 3),
        "ratio_high": round(max(ratios), 3),
    }


def _bare_rate(work: Bare, size: int, seconds: float) -> float:
    """Items per second of the bare model in batches of `size`."""
    work.run_model(size)
    started = time.perf_counter()
    done = 0
    while (spent := time.perf_counter() - started) < seconds:
        work.run_model(size)
        done += size
    return done / spent


def _served_rate(work: Bare, server: Server, images: Sequence[DrawnImage], count: int) -> float:
    """Answers per second, between the first and the last of `count`, with `IN_FLIGHT` requests in flight."""
    done: list[float] = []

    def ask(number: int) -> None:
        _ask(client, work, server, images[number % len(images)])
        done.append(time.perf_counter())

    with httpx.Client(timeout=60) as client, ThreadPoolExecutor(IN_FLIGHT) as callers:
        list(callers.map(ask, range(count)))
    return (count - 1) / (max(done) - min(done))


def _latency(work: Bare, server: Server, images: Sequence[DrawnImage]) -> dict[str, Any]:
    """Medians in milliseconds of the bare path and of a lone request, taking turns, and the median of their ratios."""
    bare, served = [], []
    with httpx.Client(timeout=60) as client:
        for number in tqdm(range(LATENCY_ROUNDS), desc=f"{work.name}: one at a time"):
            image = images[number % len(images)]
            started = time.perf_counter()
            work.run_path(image)
            middle = time.perf_counter()
            _ask(client, work, server, image)
            bare.append(middle - started)
            served.append(time.perf_counter() - middle)
    ratios = [one / other for one, other in zip(served, bare, strict=True)]
    return {
        "bare_path_ms": round(statistics.median(bare) * 1000, 1),
        "alone_ms": round(statistics.median(served) * 1000, 1),
        "alone_ratio": round(statistics.median(ratios), 3),
    }


def _ask(client: httpx.Client, work: Bare, server: Server, image: DrawnImage) -> None:
    answer = client.post(
        f"{server.address}{work.endpoint}",
        content=image.data,
        params={"request": json.dumps(work.request_of(image))},
        headers={"Content-Type": "image/jpeg"},
    )
    answer.raise_for_status()


def table(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    rows = [
        f"{figures['image']}s, no embedding cache. Throughput: {ROUNDS} rounds of about {SECONDS:g} s, bare model",
        f"and service ({IN_FLIGHT} requests in flight) in turn; median, and the ratio's median (lowest to highest).",
        f"Alone: {LATENCY_ROUNDS} requests one at a time, each after the same work without a server.",
        "",
        "| work | bare model, per s (batch) | served, per s | served / bare | bare path, ms | alone, ms | ratio |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    rows += [
        f"| {row['work']} | {row['bare_per_s']:g} ({row['best_batch']}) | {row['served_per_s']:g} "
        f"| {row['ratio']:g} ({row['ratio_low']:g} to {row['ratio_high']:g}) "
        f"| {row['bare_path_ms']:g} | {row['alone_ms']:g} | {row['alone_ratio']:g} |"
        for row in figures["work"]
    ]
    return "\n".join([*rows, "", footer(figures["machine"]), ""])


if __name__ == "__main__":
    main()
