"""`pomona bench`: a short check of throughput against a running service."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import click
import numpy as np

from pomona.asks import Ask, Embed, Inspect, Mode, Segment, Semantic
from pomona.cli.inputs import Service, picture, service_options
from pomona.cli.inputs import seconds as seconds_of
from pomona.cli.outcome import FAILED, UNREACHABLE, code_of
from pomona.errors import ConnectionFailed, PomonaError
from pomona.images import Picture, jpeg, open_image, picture_of
from pomona.shapes import Point

_EXAMPLES = """\b
Examples:
  pomona bench orange.jpg
  pomona bench orange.jpg --task inspect --mode fast -j 8 --seconds 30
  pomona bench --task embed --deadline 0.5 --json
"""

_DRAWN: Final = (768, 1024)


@dataclass
class Measured:
    """What came of the requests."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    unreachable: int = 0

    @property
    def figures(self) -> dict[str, Any]:
        """As JSON has it; times in milliseconds."""
        failed = sum(self.failures.values())
        percentiles = np.percentile(self.latencies, (50, 95, 99, 100)) * 1000 if self.latencies else [0.0] * 4
        named = zip(("p50_ms", "p95_ms", "p99_ms", "worst_ms"), percentiles, strict=True)
        return {
            "answered": len(self.latencies),
            "failed": failed,
            "failures": dict(self.failures),
            "seconds": round(self.seconds, 3),
            "per_second": round(len(self.latencies) / self.seconds, 2) if self.seconds else 0.0,
            **{name: round(float(value), 2) for name, value in named},
        }


@click.command(epilog=_EXAMPLES)
@click.argument("image", required=False)
@click.option(
    "--task",
    type=click.Choice(["segment", "inspect", "semantic", "embed"]),
    default="segment",
    show_default=True,
    help="segment prompts the picture's middle.",
)
@click.option("--mode", type=click.Choice(["auto", "fast", "accurate"]), default="auto", help="Of inspect.")
@click.option("--seconds", type=seconds_of, metavar="SECONDS", default=5.0, show_default=True, help="How long.")
@click.option("-j", "--jobs", type=click.IntRange(1, 256), default=4, show_default=True, help="Requests at once.")
@click.option("--same", is_flag=True, help="Send the same bytes always, so that the service finds the embedding.")
@click.option("--deadline", type=seconds_of, metavar="SECONDS", help="After which an answer is too late.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@service_options(retries=False)
def bench(
    *,
    image: str | None,
    task: str,
    mode: Mode,
    seconds: float,
    jobs: int,
    same: bool,
    deadline: float | None,
    as_json: bool,
    service: Service,
) -> None:
    """Requests per second and their times. Without IMAGE a drawn picture of 1024 x 768 pixels is sent."""
    try:
        sent = picture_of(_drawn() if image is None else picture(image))
        ask = _ask(task, sent, mode)
    except PomonaError as error:
        raise click.UsageError(error.detail) from error
    # A retry would hide what is to be measured.
    with service.client() as client:
        numbers = itertools.count()

        def request() -> None:
            # Decoders pass over what follows the picture's end, but its hash is another.
            tail = b"" if same else next(numbers).to_bytes(8, "big")
            client.ask(ask, sent.data + tail, deadline=deadline)

        measured = measure(request, seconds=seconds, jobs=jobs)
    _tell(measured, as_json=as_json)


def measure(request: Callable[[], None], *, seconds: float, jobs: int) -> Measured:
    """Call from several threads for some time.

    Args:
        request: called again and again; a `PomonaError` is counted.
        seconds: how long new ones are begun.
        jobs: threads.
    """
    measured, lock = Measured(), threading.Lock()
    began = time.perf_counter()

    def work() -> None:
        while time.perf_counter() < began + seconds and not stopped.is_set():
            started = time.perf_counter()
            try:
                request()
            except PomonaError as error:
                with lock:
                    measured.failures[code_of(error)] += 1
                    measured.unreachable += isinstance(error, ConnectionFailed)
                if isinstance(error, ConnectionFailed):
                    return
            else:
                with lock:
                    measured.latencies.append(time.perf_counter() - started)

    stopped = threading.Event()
    threads = [threading.Thread(target=work, daemon=True) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    finally:
        stopped.set()
    measured.seconds = time.perf_counter() - began
    return measured


def _ask(task: str, sent: Picture, mode: Mode) -> Ask[Any]:
    if task == "segment":
        shown = open_image(sent.data)
        return Segment(Point(shown.width / 2, shown.height / 2))
    if task == "inspect":
        return Inspect(mode=mode)
    return Semantic() if task == "semantic" else Embed()


def _drawn() -> bytes:
    height, width = _DRAWN
    ys, xs = np.mgrid[:height, :width]
    inside = (xs - width / 2) ** 2 + (ys - height / 2) ** 2 < (height / 4) ** 2
    pixels = np.where(inside[..., None], (240, 140, 20), (60, 90, 60)).astype(np.uint8)
    return jpeg(pixels)


def _tell(measured: Measured, *, as_json: bool) -> None:
    figures = measured.figures
    if as_json:
        click.echo(json.dumps(figures))
    else:
        click.echo(
            f"{figures['answered']} answered in {figures['seconds']:.1f} s: {figures['per_second']:g} per second"
        )
        click.echo(
            f"p50 {figures['p50_ms']:g} ms, p95 {figures['p95_ms']:g} ms, p99 {figures['p99_ms']:g} ms, "
            f"worst {figures['worst_ms']:g} ms"
        )
        for code, count in measured.failures.most_common():
            click.echo(f"{count} failed: {code}", err=True)
    if measured.failures:
        raise SystemExit(UNREACHABLE if measured.unreachable and not measured.latencies else FAILED)
