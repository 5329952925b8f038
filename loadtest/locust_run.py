"""Increase the load on a running service step by step, and report latency and goodput: `python -m loadtest locust`.

Writes Locust's CSV files and HTML report, `loadtest.json`, `.md` and `.png`. Locust runs in a process of its own; this
one reads the records that it writes.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, TextIO

import httpx
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator
from tqdm import tqdm

from loadtest.plan import Options, read_options
from loadtest.report import Report, table
from loadtest.summary import Kind, Outcome, Percentiles, Record, Summary, summarise

_HERE: Final = Path(__file__).parent
_START_AND_END_S: Final = 120
_READ_EVERY_S: Final = 0.5

_PERCENTILES: Final = (("p50", "#9ecae1", "o"), ("p95", "#4292c6", "s"), ("p99", "#08306b", "^"))
_COLOURS: Final = {
    Outcome.IN_TIME: "#2e8b57",
    Outcome.LATE: "#f0b429",
    Outcome.REFUSED: "#8e7cc3",
    Outcome.SKIPPED: "#c9ced6",
    Outcome.FAILED: "#c0392b",
}
_BAR: Final = 0.6
_TEXT: Final = "#1d6b40"


def main(parsed: argparse.Namespace, folder: Path) -> None:
    """Load the service at `parsed.host`, and write the report into `folder`.

    Raises:
        SystemExit: no service is ready there, Locust failed, or no frame was answered.
    """
    options = read_options(parsed)
    models = _loaded_models(parsed.host)
    folder.mkdir(parents=True, exist_ok=True)
    busy_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        records = _run_locust(parsed.host, options, folder.resolve(), Path(scratch))
    by_step = [
        {
            kind: summarise([one for one in records if (one.kind, one.step) == (kind, number)], options.step_seconds)
            for kind in Kind
        }
        for number in range(len(options.rates))
    ]
    frames = [summaries[Kind.FRAME] for summaries in by_step]
    data = {
        "host": parsed.host,
        "models": models,
        "generator": {
            "cores": os.cpu_count(),
            "load_average_before_and_after": [round(average, 2) for average in (busy_before, os.getloadavg()[0])],
            "python": platform.python_version(),
            "locust": version("locust"),
        },
        "options": asdict(options) | {"images": options.images.name if options.images else "rendered"},
        "steps": [
            {"rate": rate} | {str(kind): asdict(summary) for kind, summary in step.items() if summary.offered}
            for rate, step in zip(options.rates, by_step, strict=True)
        ],
    }
    title = _title(options, models)
    figure = plot(options.rates, frames, options.deadline_ms, title)
    Report("loadtest", data, [title, "", *lines_of(options.rates, frames)], figure, ("locust",)).write(folder)
    if not any(summary.in_time + summary.late for summary in frames):
        sys.exit("No frame was answered.")


def http_address(text: str) -> str:
    """Check the address of a service given on the command line."""
    url = httpx.URL(text)
    if url.scheme not in ("http", "https") or not url.host:
        raise argparse.ArgumentTypeError(f"must be an address like http://localhost:3000, got {text}")
    return text.rstrip("/")


def _loaded_models(host: str) -> list[dict[str, Any]]:
    """Return the loaded models of a service that is ready; exit with one line if there is none."""
    try:
        with httpx.Client(base_url=host, timeout=10, trust_env=False) as client:
            ready = client.get("/readyz").status_code
            if ready != 200:
                sys.exit(f"The service at {host} is not ready: /readyz answered {ready}.")
            models: list[dict[str, Any]] = client.get("/v1/models").raise_for_status().json()["models"]
    except httpx.TransportError as error:
        sys.exit(f"No service answers at {host} ({error}); start one with `make serve`, or set HOST.")
    except (httpx.HTTPStatusError, ValueError, LookupError, TypeError):
        sys.exit(f"What answers at {host} is not this service: /v1/models returned no models.")
    return [model for model in models if model.get("loaded")]


def _run_locust(host: str, options: Options, out: Path, scratch: Path) -> list[Record]:
    """Run Locust, show its progress, and return its records; exit with its log if it fails."""
    file, log = scratch / "records.jsonl", scratch / "locust.log"
    file.touch()
    command = [sys.executable, "-m", "locust", "-f", str(_HERE / "locustfile.py"), "--headless", "--only-summary"]
    command += ["--host", host, "--csv", str(out / "locust"), "--html", str(out / "locust.html")]
    command += ["--exit-code-on-error", "0", "--records", str(file), *options.arguments()]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LOCUST_")}
    with log.open("wb") as output, file.open() as lines:
        process = subprocess.Popen(
            command, cwd=_HERE.parent, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        try:
            records = _follow(process, options, lines)
        except KeyboardInterrupt:
            sys.exit("Stopped.")
        finally:
            process.kill()
            process.wait()
    if process.returncode != 0 or not records:
        sys.exit(f"Locust exited with {process.returncode}:\n{log.read_text(errors='replace')}")
    return records


def _follow(process: subprocess.Popen[bytes], options: Options, lines: TextIO) -> list[Record]:
    """Read records and show progress until Locust ends or is overdue."""
    plan, started, records = options.plan, time.monotonic(), list[Record]()
    counts: Counter[Outcome] = Counter()
    unfinished = ""
    with tqdm(total=len(plan.steps), bar_format="{l_bar}{bar}{postfix}", desc="starting") as bar:
        running = True
        while running and time.monotonic() < started + plan.duration_s + _START_AND_END_S:
            running = process.poll() is None
            *whole, unfinished = (unfinished + lines.read()).split("\n")
            new = [Record.parse(line) for line in whole]
            records += new
            counts.update(record.outcome for record in new if record.kind is Kind.FRAME)
            if new and (number := new[-1].step) is not None:
                bar.n = number
                bar.set_description(f"step {number + 1} of {len(plan.steps)}, {plan.rates[number]:g}x", refresh=False)
            bar.set_postfix_str(", ".join(f"{counts[outcome]} {outcome}" for outcome in Outcome))
            time.sleep(_READ_EVERY_S)
        bar.n = len(plan.steps)
        bar.refresh()
    return records


def _title(options: Options, models: list[dict[str, Any]]) -> str:
    """Describe what was loaded, and with what."""
    names = ", ".join(f"{model['name']} on {model['device']} ({model['backend']})" for model in models)
    size = options.image_size
    images = "images of a folder" if options.images else f"rendered images of {size.width} x {size.height}"
    cameras = "1 camera," if options.cameras == 1 else f"{options.cameras} cameras, each"
    others = [(options.annotators, "annotators"), (options.batch_jobs, "batch jobs")]
    beside = "".join(f", {name}: {number}" for number, name in others if number)
    return (
        f"{names}\n{cameras} {options.fps:g} frames/s at 1x, {images}{beside}\n"
        f"deadline {options.deadline_ms:g} ms, at most {options.in_flight} in flight per camera, "
        f"{options.step_seconds:g} s per step"
    )


def lines_of(rates: Sequence[float], steps: Sequence[Summary]) -> list[str]:
    """Return the frames of each step as Markdown."""
    rows = []
    for rate, step in zip(rates, steps, strict=True):
        latency = step.latency_ms
        times = [f"{value:.0f}" for value in (latency.p50, latency.p95, latency.p99)] if latency else ["-"] * 3
        per_s = (f"{value:.2f}" for value in (step.offered_per_s, step.answered_per_s, step.goodput_per_s))
        rows.append((f"{rate:g}x", *per_s, *times, step.in_time, step.late, step.refused, step.failed, step.skipped))
    columns = ("rate", "offered/s", "answered/s", "goodput/s", "p50 ms", "p95 ms", "p99 ms", "in time", "late")
    return table((*columns, "refused", "failed", "skipped"), rows)


def plot(rates: Sequence[float], steps: Sequence[Summary], deadline_ms: float, title: str) -> Figure:
    """Plot latency, and what became of the frames, over the offered load.

    Args:
        rates: of the steps, as multiples of the cameras' frame rate.
        steps: summaries of the frames.
        deadline_ms: of each frame.
        title: of the figure.
    """
    figure = Figure(figsize=(8, 7), layout="constrained")
    figure.suptitle(title, fontsize=10)
    places = list(range(len(steps)))
    above, below = figure.subplots(2, 1, sharex=True)

    for name, colour, marker in _PERCENTILES:
        values = [_of(step.latency_ms, name) for step in steps]
        above.plot(places, values, color=colour, marker=marker, label=f"{name} of answers")
    if any(step.refused for step in steps):
        values = [_of(step.refused_after_ms, "p99") for step in steps]
        above.plot(places, values, color=_COLOURS[Outcome.REFUSED], marker="x", linestyle=":", label="p99 of refusals")
    above.axhline(deadline_ms, color="#c0392b", linestyle="--", linewidth=1, label="deadline", zorder=1)
    above.set_yscale("log")
    above.set_ylim(*_round_limits([*above.get_ylim(), deadline_ms]))
    above.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5), numticks=30))
    above.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    above.minorticks_off()
    above.set_ylabel("milliseconds from when a frame is due")
    above.grid(axis="y", alpha=0.3)
    above.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)

    bottoms = [0.0] * len(steps)
    for outcome, colour in _COLOURS.items():
        heights = [_per_s(step, outcome) for step in steps]
        label = "in time (goodput)" if outcome is Outcome.IN_TIME else str(outcome)
        below.bar(places, heights, _BAR, bottom=bottoms, color=colour, label=label)
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
    for place, step in zip(places, steps, strict=True):
        text, above_bar = f"{step.goodput_per_s:.2f} in time", (place, step.offered_per_s)
        below.annotate(text, above_bar, (0, 3), textcoords="offset points", ha="center", fontsize=9, color=_TEXT)
    below.set_ylim(0, max((step.offered_per_s for step in steps), default=0) * 1.12 or 1)
    below.set_ylabel("frames per second")
    below.set_xticks(
        places, [f"{step.offered_per_s:.3g}/s\n({rate:g}x)" for step, rate in zip(steps, rates, strict=True)]
    )
    below.set_xlabel("offered load: frames per second (multiple of the frame rate)")
    below.grid(axis="y", alpha=0.3)
    below.set_axisbelow(True)
    handles, labels = below.get_legend_handles_labels()
    below.legend(handles[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def _of(percentiles: Percentiles | None, name: str) -> float:
    return float("nan") if percentiles is None else float(getattr(percentiles, name))


def _round_limits(values: Sequence[float]) -> tuple[float, float]:
    """Return the nearest 1, 2 or 5 times a power of ten below and above all values."""
    steps = [digit * 10.0**power for power in range(-4, 9) for digit in (1, 2, 5)]
    below = [step for step in steps if step < min(values)]
    above = [step for step in steps if step > max(values)]
    return max(below, default=min(values)), min(above, default=max(values))


def _per_s(step: Summary, outcome: Outcome) -> float:
    count: int = getattr(step, outcome.name.lower())
    return count / step.offered * step.offered_per_s if step.offered else 0.0
