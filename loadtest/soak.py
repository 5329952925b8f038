"""Thousands of requests with changing images: does the server's memory grow? `python -m loadtest soak`.

The images are narrow, so that each takes tens of milliseconds; their sizes differ, as each shape makes the backend
allocate. Among them are requests that fail: damaged images, prompts outside the image, deadlines that cannot be met,
callers that disconnect. The embedding cache is small, so that it is full long before the first thousand requests.
"""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import httpx
from matplotlib.figure import Figure
from tqdm import tqdm

from loadtest import wire
from loadtest.images import RenderedImage, render_image
from loadtest.report import Effort, Report, table
from loadtest.server import Server, post_image, running
from models.types import Size

EVERY: Final = 100
"""Requests of a round; memory is read after each."""

FULL_AFTER: Final = 1_000
IN_FLIGHT: Final = 4
CACHE_MIB: Final = 32
SIZES: Final = (Size(96, 512), Size(512, 96), Size(140, 512), Size(64, 480), Size(200, 512), Size(512, 160))
ALLOWED_GROWTH: Final = 0.05
LEFT: Final = "left"


def main(effort: Effort, folder: Path) -> None:
    """Send rounds of 100 requests and write `soak`.

    Raises:
        SystemExit: memory grew by more than 5 % after the first 1,000 requests.
    """
    images = [render_image(seed, SIZES[seed % len(SIZES)]) for seed in range(60)]
    with (
        tempfile.TemporaryDirectory() as scratch,
        running(Path(scratch), embedding_cache_mib=str(CACHE_MIB), input_size="512") as server,
    ):
        resident, outcomes = _send_all(server, images, effort.rounds)
    before = resident[min(FULL_AFTER // EVERY, len(resident) - 1)]
    growth = resident[-1] / before - 1
    data = {
        "requests": effort.rounds * EVERY,
        "resident_mib": {number * EVERY: round(value, 1) for number, value in enumerate(resident)},
        "outcomes": outcomes,
        "after_first_thousand_mib": round(before, 1),
        "at_end_mib": round(resident[-1], 1),
        "growth": round(growth, 4),
    }
    Report("soak", data, lines_of(data), plot(resident)).write(folder)
    if growth > ALLOWED_GROWTH:
        raise SystemExit(f"Memory must grow by at most {ALLOWED_GROWTH:.0%}, it grew by {growth:.1%}.")


def _send_all(server: Server, images: Sequence[RenderedImage], rounds: int) -> tuple[list[float], dict[str, int]]:
    """Return resident MiB before and after every round, and the number of answers by status."""
    resident = [server.resident_mib()]
    outcomes: Counter[str] = Counter()
    with httpx.Client() as client, ThreadPoolExecutor(IN_FLIGHT) as callers:
        for first in tqdm(range(0, rounds * EVERY, EVERY), desc="requests, by hundreds"):
            numbers = range(first, first + EVERY)
            outcomes.update(callers.map(lambda number: _send(client, server, images, number), numbers))
            resident.append(server.resident_mib())
    return resident, dict(outcomes)


def _send(client: httpx.Client, server: Server, images: Sequence[RenderedImage], number: int) -> str:
    """Send a request whose kind depends on its number; return the status of its answer, or `LEFT`."""
    dice = random.Random(number)  # noqa: S311 (a reproducible mixture)
    image = images[dice.randrange(len(images))]
    # Bytes after the end of the JPEG: the same pixels, but another image to the cache.
    data = image.data + number.to_bytes(4, "big")
    request = wire.point_request(image.point)
    deadline_ms = None
    timeout_s = 60.0
    match dice.choices(("plain", "format", "damaged", "outside", "late", "leaves"), (70, 14, 4, 4, 4, 4))[0]:
        case "format":
            request["format"] = dice.choice(("png", "polygons", "logits"))
        case "damaged":
            data = data[: len(data) // 2]
        case "outside":
            request["prompts"][0]["points"] = [[9999, 9999]]
        case "late":
            deadline_ms = 2
        case "leaves":
            timeout_s = 0.02
    try:
        answer = post_image(client, server, data, request, deadline_ms=deadline_ms, timeout_s=timeout_s)
    except httpx.TimeoutException:
        return LEFT
    return str(answer.status_code)


def plot(resident: Sequence[float]) -> Figure:
    """Plot resident memory over requests."""
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([number * EVERY for number in range(len(resident))], resident)
    axes.axvline(FULL_AFTER, color="grey", linestyle=":", label="growth is counted from here")
    axes.set(xlabel="requests", ylabel="resident, MiB", ylim=(0, max(resident) * 1.1), title="Memory of the server")
    axes.legend(loc="lower right")
    return figure


def lines_of(data: Mapping[str, Any]) -> list[str]:
    """Return the report as Markdown."""
    outcomes = ", ".join(f"{count} x {status}" for status, count in sorted(data["outcomes"].items()))
    row = (f"{data['after_first_thousand_mib']:g} MiB", f"{data['at_end_mib']:g} MiB", f"{data['growth']:.1%}")
    return [
        f"{data['requests']} requests, {IN_FLIGHT} in flight, each image new, embedding cache of {CACHE_MIB} MiB: "
        f"{outcomes}.",
        "",
        *table(("resident after 1,000 requests", "at the end", "growth"), [row], left=0),
        "",
        "![Resident memory over requests](soak.png)",
    ]
