"""`pomona bench`: a quick measurement of throughput and latency against a running service."""

from __future__ import annotations

import itertools
import json
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import click
import numpy as np

from pomona._requests import Embed, Inspect, Mode, Request, Segment, Semantic
from pomona.cli import common
from pomona.errors import ConnectionFailed, PomonaError
from pomona.images import EncodedImage, encode_image, jpeg, open_image
from pomona.prompts import Point

_EXAMPLES = """\b
Examples:
  pomona bench orange.jpg
  pomona bench orange.jpg --task inspect --mode fast -j 8 --seconds 30
  pomona bench --task embed --deadline 0.5 --json
"""

_SIZE: Final = (768, 1024)


@dataclass
class Measurement:
    """Latencies and failures of the requests."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    unreachable: int = 0

    @property
    def figures(self) -> dict[str, Any]:
        """The figures for JSON; times in milliseconds."""
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
    help="segment prompts the centre of the image.",
)
@click.option("--mode", type=click.Choice(["auto", "fast", "accurate"]), default="auto", help="Of inspect.")
@click.option("--seconds", type=common.seconds, metavar="SECONDS", default=5.0, show_default=True, help="How long.")
@common.jobs_option
@click.option(
    "--same", is_flag=True, help="Send the same bytes each time, so that the service has the embedding cached."
)
@common.deadline_option
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@common.service_options(retries=False)  # retries would hide failures
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
    service: common.Service,
) -> None:
    """Measure requests per second and latencies. Without IMAGE a synthetic image of 1024 x 768 pixels is sent."""
    try:
        encoded = encode_image(_synthetic_image() if image is None else common.read_image(image))
        request = _request(task, encoded, mode)
    except PomonaError as error:
        raise click.UsageError(error.detail) from error
    with service.client() as client:
        numbers = itertools.count()

        def send() -> None:
            # Decoders ignore what follows the end of an image, but its hash changes.
            tail = b"" if same else next(numbers).to_bytes(8, "big")
            client.send(request, encoded.data + tail, deadline=deadline)

        measurement = measure(send, seconds=seconds, jobs=jobs)
    _show(measurement, as_json=as_json)


def measure(send: Callable[[], None], *, seconds: float, jobs: int) -> Measurement:
    """Send requests from several threads for some time.

    Args:
        send: called again and again; a `PomonaError` is counted.
        seconds: how long new requests are started.
        jobs: number of threads.
    """
    measurement, lock = Measurement(), threading.Lock()
    began = time.perf_counter()

    def work() -> None:
        while time.perf_counter() < began + seconds and not stopped.is_set():
            started = time.perf_counter()
            try:
                send()
            except PomonaError as error:
                with lock:
                    measurement.failures[common.code_of(error)] += 1
                    measurement.unreachable += isinstance(error, ConnectionFailed)
                if isinstance(error, ConnectionFailed):
                    return
            else:
                with lock:
                    measurement.latencies.append(time.perf_counter() - started)

    stopped = threading.Event()
    done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def work_and_tell() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 (raised in the main thread)
            done.put(error)
        else:
            done.put(None)

    for _ in range(jobs):
        threading.Thread(target=work_and_tell, daemon=True).start()
    try:
        for _ in range(jobs):
            error = common.next_of(done)
            if error is not None:
                raise error
    finally:
        stopped.set()
    measurement.seconds = time.perf_counter() - began
    return measurement


def _request(task: str, encoded: EncodedImage, mode: Mode) -> Request[Any]:
    if task == "segment":
        opened = open_image(encoded.data)
        return Segment(Point(opened.width / 2, opened.height / 2))
    if task == "inspect":
        return Inspect(mode=mode)
    return Semantic() if task == "semantic" else Embed()


def _synthetic_image() -> bytes:
    height, width = _SIZE
    ys, xs = np.mgrid[:height, :width]
    inside = (xs - width / 2) ** 2 + (ys - height / 2) ** 2 < (height / 4) ** 2
    pixels = np.where(inside[..., None], (240, 140, 20), (60, 90, 60)).astype(np.uint8)
    return jpeg(pixels)


def _show(measurement: Measurement, *, as_json: bool) -> None:
    figures = measurement.figures
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
        for code, count in measurement.failures.most_common():
            click.echo(f"{count} failed: {code}", err=True)
    if measurement.failures:
        raise SystemExit(common.UNREACHABLE if measurement.unreachable and not measurement.latencies else common.FAILED)
