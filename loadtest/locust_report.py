"""The report of a Locust run: latency and goodput of frames over the offered load."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import httpx
from matplotlib.figure import Figure

from loadtest.plan import Options
from loadtest.report import Report, table
from loadtest.summary import Kind, Outcome, Percentiles, Record, Summary, summarise

_PERCENTILES: Final = {"p50": "#9ecae1", "p95": "#4292c6", "p99": "#08306b"}
_COLOURS: Final = {
    Outcome.IN_TIME: "#2e8b57",
    Outcome.LATE: "#f0b429",
    Outcome.REFUSED: "#8e7cc3",
    Outcome.SKIPPED: "#c9ced6",
    Outcome.FAILED: "#c0392b",
}


def loaded_models(host: str) -> list[dict[str, Any]]:
    """Return the loaded models of a service that is ready.

    Raises:
        SystemExit: there is none at `host`; one line says why.
    """
    try:
        with httpx.Client(base_url=host, timeout=10, trust_env=False) as client:
            ready = client.get("/readyz").status_code
            if ready != 200:
                sys.exit(f"The service at {host} is not ready: /readyz answered {ready}.")
            models: list[dict[str, Any]] = client.get("/v1/models").raise_for_status().json()["models"]
    except (httpx.TransportError, httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
        sys.exit(f"No service answers at {host} ({error}); start one with `make serve`, or set HOST.")
    except (httpx.HTTPStatusError, ValueError, LookupError, TypeError):
        sys.exit(f"What answers at {host} is not this service: /v1/models returned no models.")
    return [model for model in models if model.get("loaded")]


def write(host: str, models: list[dict[str, Any]], options: Options, records: Sequence[Record], folder: Path) -> bool:
    """Write `loadtest`, and return whether any frame was answered."""
    steps = [
        {
            kind: summarise([one for one in records if (one.kind, one.step) == (kind, number)], options.step_seconds)
            for kind in Kind
        }
        for number in range(len(options.rates))
    ]
    frames = [step[Kind.FRAME] for step in steps]
    data = {
        "host": host,
        "models": models,
        "options": options.model_dump(mode="json"),
        "steps": [
            {"rate": rate} | {str(kind): asdict(summary) for kind, summary in step.items() if summary.offered}
            for rate, step in zip(options.rates, steps, strict=True)
        ],
    }
    title = _title(options, models)
    figure = plot(options.rates, frames, options.deadline_ms, title)
    Report("loadtest", data, [title, "", *lines_of(options.rates, frames)], figure, ("locust",)).write(folder)
    return any(summary.in_time + summary.late for summary in frames)


def _title(options: Options, models: list[dict[str, Any]]) -> str:
    """Describe what was loaded, and with what."""
    names = ", ".join(f"{model['name']} on {model['device']} ({model['backend']})" for model in models)
    images = "images of a folder" if options.images else f"rendered images of {options.image_size}"
    return (
        f"{names}\ncameras: {options.cameras}, each {options.fps:g} frames/s at 1x, {images}; annotators: "
        f"{options.annotators}; batch jobs: {options.batch_jobs}\ndeadline {options.deadline_ms:g} ms, at most "
        f"{options.in_flight} in flight per camera, {options.step_seconds:g} s per step"
    )


def lines_of(rates: Sequence[float], steps: Sequence[Summary]) -> list[str]:
    """Return the frames of each step as Markdown."""
    rows = []
    for rate, step in zip(rates, steps, strict=True):
        latency = [f"{_of(step.latency_ms, name):.0f}" for name in _PERCENTILES] if step.latency_ms else ["-"] * 3
        per_s = (f"{value:.2f}" for value in (step.offered_per_s, step.answered_per_s, step.goodput_per_s))
        rows.append((f"{rate:g}x", *per_s, *latency, step.in_time, step.late, step.refused, step.failed, step.skipped))
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
    places = range(len(steps))
    above, below = figure.subplots(2, 1, sharex=True)
    for name, colour in _PERCENTILES.items():
        above.plot(places, [_of(step.latency_ms, name) for step in steps], color=colour, marker="o", label=name)
    refusals = [_of(step.refused_after_ms, "p99") for step in steps]
    above.plot(places, refusals, color=_COLOURS[Outcome.REFUSED], marker="x", linestyle=":", label="p99 of refusals")
    above.axhline(deadline_ms, color="#c0392b", linestyle="--", linewidth=1, label="deadline")
    above.set_yscale("log")
    above.set_ylabel("milliseconds from when a frame is due")
    bottoms = [0.0] * len(steps)
    for outcome, colour in _COLOURS.items():
        heights = [_per_s(step, outcome) for step in steps]
        below.bar(places, heights, 0.6, bottom=bottoms, color=colour, label=str(outcome))
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
    below.set_ylabel("frames per second")
    below.set_xlabel("offered load: frames per second (multiple of the frame rate)")
    labels = [f"{step.offered_per_s:.3g}/s\n({rate:g}x)" for step, rate in zip(steps, rates, strict=True)]
    below.set_xticks(places, labels)
    below.set_axisbelow(True)
    for axes in (above, below):
        axes.grid(axis="y", alpha=0.3)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def _of(percentiles: Percentiles | None, name: str) -> float:
    return float("nan") if percentiles is None else float(getattr(percentiles, name))


def _per_s(step: Summary, outcome: Outcome) -> float:
    count: int = getattr(step, outcome.name.lower())
    return count / step.offered * step.offered_per_s if step.offered else 0.0
