"""Ten thousand requests with changing images: does the server's memory grow? `make soak`.

The images are narrow, so that each takes tens of milliseconds; their sizes differ, as each shape makes the backend
allocate anew. Among them are requests that fail: damaged images, prompts outside, deadlines that cannot be met,
callers who leave. The embedding cache is small, so that it is full long before the first thousand requests are.
"""

from __future__ import annotations

import json
import random
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import httpx
from matplotlib.figure import Figure
from tqdm import tqdm

from loadtest.drawn import DrawnImage, draw
from loadtest.machine import REPORTS, footer, machine
from loadtest.server import Server, running
from models.types import Size

REQUESTS: Final = 10_000
EVERY: Final = 100
"""Requests between two looks at the memory."""

FULL_AFTER: Final = 1_000
IN_FLIGHT: Final = 4
CACHE_MIB: Final = 32
SIZES: Final = (Size(96, 512), Size(512, 96), Size(140, 512), Size(64, 480), Size(200, 512), Size(512, 160))
ALLOWED_GROWTH: Final = 0.05


def main() -> None:
    """Send, watch, write `loadtest/reports/soak.json`, `.md` and `.png`; fails where memory grew by more than 5 %."""
    images = [draw(seed, SIZES[seed % len(SIZES)]) for seed in range(60)]
    with (
        tempfile.TemporaryDirectory() as folder,
        running(Path(folder), embedding_cache_mib=str(CACHE_MIB), input_size="512") as server,
    ):
        resident, outcomes = _soak(server, images)
    before = resident[FULL_AFTER // EVERY]
    growth = resident[-1] / before - 1
    figures = {
        "machine": machine(),
        "requests": REQUESTS,
        "resident_mib": {number * EVERY: round(value, 1) for number, value in enumerate(resident)},
        "outcomes": outcomes,
        "after_first_thousand_mib": round(before, 1),
        "at_end_mib": round(resident[-1], 1),
        "growth": round(growth, 4),
    }
    REPORTS.mkdir(exist_ok=True)
    (REPORTS / "soak.json").write_text(json.dumps(figures, indent=2) + "\n")
    (REPORTS / "soak.md").write_text(table(figures))
    _plot(resident).savefig(REPORTS / "soak.png", dpi=110)
    print(table(figures))
    if growth > ALLOWED_GROWTH:
        raise SystemExit(f"Memory grew by {growth:.1%}; {ALLOWED_GROWTH:.0%} are allowed.")


def _soak(server: Server, images: list[DrawnImage]) -> tuple[list[float], dict[str, int]]:
    """Resident MiB before, and after every `EVERY` requests; answers by status, 0 for callers who left."""
    resident = [server.resident_mib()]
    outcomes: dict[str, int] = {}
    with httpx.Client(base_url=server.address, timeout=60) as client, ThreadPoolExecutor(IN_FLIGHT) as callers:
        for first in tqdm(range(0, REQUESTS, EVERY), desc="requests, by hundreds"):
            numbers = range(first, first + EVERY)
            for status in callers.map(lambda number: _ask(client, images, number), numbers):
                outcomes[str(status)] = outcomes.get(str(status), 0) + 1
            resident.append(server.resident_mib())
    return resident, outcomes


def _ask(client: httpx.Client, images: list[DrawnImage], number: int) -> int:
    """One request, its kind drawn by its number; the status of its answer, or 0 where the caller left."""
    dice = random.Random(number)  # noqa: S311 (a reproducible mixture)
    image = images[dice.randrange(len(images))]
    # A few bytes after the end of the JPEG: the same pixels, but to the cache another image.
    data = image.data + number.to_bytes(4, "big")
    point = image.prompt.points[0]
    asked: dict[str, Any] = {"prompts": [{"points": [[point.x, point.y]]}]}
    headers = {"Content-Type": "image/jpeg"}
    timeout = 60.0
    match dice.choices(("plain", "format", "damaged", "outside", "late", "leaves"), (70, 14, 4, 4, 4, 4))[0]:
        case "format":
            asked["format"] = dice.choice(("png", "polygons", "logits"))
        case "damaged":
            data = data[: len(data) // 2]
        case "outside":
            asked["prompts"][0]["points"] = [[9999, 9999]]
        case "late":
            headers["X-Deadline-Ms"] = "2"
        case "leaves":
            timeout = 0.02
    try:
        answer = client.post(
            "/v1/segment", content=data, params={"request": json.dumps(asked)}, headers=headers, timeout=timeout
        )
    except httpx.TimeoutException:
        return 0
    return answer.status_code


def _plot(resident: list[float]) -> Figure:
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([number * EVERY for number in range(len(resident))], resident)
    axes.axvline(FULL_AFTER, color="grey", linestyle=":", label="level that counts")
    axes.set(xlabel="requests", ylabel="resident, MiB", ylim=(0, max(resident) * 1.1), title="Memory of the server")
    axes.legend(loc="lower right")
    return figure


def table(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    outcomes = ", ".join(
        f"{count} x {'left' if status == '0' else status}" for status, count in sorted(figures["outcomes"].items())
    )
    rows = [
        f"{figures['requests']} requests, {IN_FLIGHT} in flight, each image new, embedding cache of {CACHE_MIB} MiB:",
        f"{outcomes}.",
        "",
        "| resident after 1,000 requests | at the end | growth |",
        "|---:|---:|---:|",
        f"| {figures['after_first_thousand_mib']:g} MiB | {figures['at_end_mib']:g} MiB | {figures['growth']:.1%} |",
        "",
        "![Resident memory over requests](soak.png)",
        "",
        footer(figures["machine"]),
        "",
    ]
    return "\n".join(rows)


if __name__ == "__main__":
    main()
