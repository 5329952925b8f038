"""`"input_size": "auto"` under a deadline and light load: which size it takes, and whether it is in time."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

import httpx
from tqdm import tqdm

from loadtest.drawn import DrawnImage, draw
from loadtest.machine import REPORTS, footer, machine
from loadtest.server import Server, running
from models.types import Size

DEADLINE_MS: Final = 300
PAUSE_S: Final = 0.5
"""Between a request's answer and the next request: light load."""

REQUESTS: Final = 40
SIZES: Final = (Size(768, 1024), Size(1200, 1800), Size(1800, 4160))
CAMERAS: Final = ",".join(f"{size.width}x{size.height}" for size in SIZES)


def main() -> None:
    """Measure, print, write `loadtest/reports/promptness.json` and `.md`."""
    with (
        tempfile.TemporaryDirectory() as folder,
        running(Path(folder), embedding_cache_mib="0", camera_sizes=CAMERAS) as server,
        httpx.Client(timeout=60) as client,
    ):
        rows = [_measure(client, server, size) for size in SIZES]
    figures = {"machine": machine(), "deadline_ms": DEADLINE_MS, "requests": REQUESTS, "images": rows}
    REPORTS.mkdir(exist_ok=True)
    (REPORTS / "promptness.json").write_text(json.dumps(figures, indent=2) + "\n")
    (REPORTS / "promptness.md").write_text(table(figures))
    print(table(figures))


def _measure(client: httpx.Client, server: Server, size: Size) -> dict[str, Any]:
    images = [draw(seed, size) for seed in range(4)]
    milliseconds: list[float] = []
    sizes: Counter[int] = Counter()
    in_time = 0
    problems: Counter[str] = Counter()
    for number in tqdm(range(REQUESTS), desc=images[0].name):
        image = images[number % len(images)]
        started = time.perf_counter()
        answer = _ask(client, server, image)
        milliseconds.append((time.perf_counter() - started) * 1000)
        if answer.is_success:
            sizes[answer.json()["model"]["input_size"]] += 1
            in_time += milliseconds[-1] <= DEADLINE_MS
        else:
            problems[answer.json()["code"]] += 1
        time.sleep(PAUSE_S)
    return {
        "image": images[0].name,
        "in_time": in_time,
        "input_sizes": dict(sizes),
        "problems": dict(problems),
        "p50_ms": round(statistics.median(milliseconds), 1),
        "worst_ms": round(max(milliseconds), 1),
    }


def _ask(client: httpx.Client, server: Server, image: DrawnImage) -> httpx.Response:
    point = image.prompt.points[0]
    asked = {"prompts": [{"points": [[point.x, point.y]]}], "input_size": "auto"}
    return client.post(
        f"{server.address}/v1/segment",
        content=image.data,
        params={"request": json.dumps(asked)},
        headers={"Content-Type": "image/jpeg", "X-Deadline-Ms": str(DEADLINE_MS)},
    )


def table(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    rows = [
        f'One point to masks, `"input_size": "auto"`, a deadline of {figures["deadline_ms"]} ms,',
        f"{figures['requests']} requests one at a time with pauses of {PAUSE_S:g} s, no embedding cache.",
        "The sizes were named in `POMONA_CAMERA_SIZES`.",
        "",
        "| image | in time | input sizes taken | not answered | p50, ms | worst, ms |",
        "|---|---:|---|---|---:|---:|",
    ]
    for row in figures["images"]:
        sizes = ", ".join(f"{size}: {count}" for size, count in row["input_sizes"].items())
        problems = ", ".join(f"{code}: {count}" for code, count in row["problems"].items())
        rows.append(
            f"| {row['image']} | {row['in_time']} of {figures['requests']} | {sizes} | {problems} "
            f"| {row['p50_ms']:g} | {row['worst_ms']:g} |"
        )
    return "\n".join([*rows, "", footer(figures["machine"]), ""])


if __name__ == "__main__":
    main()
