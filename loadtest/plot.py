"""One image of a load test: latency, and what became of the frames, over the offered load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from loadtest.figures import Figures, Percentiles
from loadtest.outcomes import Outcome

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


def draw(path: Path, rates: Sequence[float], steps: Sequence[Figures], deadline_ms: float, title: str) -> None:
    """Draw and save it.

    Args:
        path: file to write, by its name a PNG.
        rates: of the steps, as multiples of the cameras' frame rate.
        steps: the frames' figures.
        deadline_ms: of each frame.
        title: what was loaded, with what.
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
    figure.savefig(path, dpi=120)


def _of(percentiles: Percentiles | None, name: str) -> float:
    return float("nan") if percentiles is None else float(getattr(percentiles, name))


def _round_limits(values: Sequence[float]) -> tuple[float, float]:
    """The nearest 1, 2 or 5 times a power of ten below and above all values."""
    steps = [digit * 10.0**power for power in range(-4, 9) for digit in (1, 2, 5)]
    below = [step for step in steps if step < min(values)]
    above = [step for step in steps if step > max(values)]
    return max(below, default=min(values)), min(above, default=max(values))


def _per_s(step: Figures, outcome: Outcome) -> float:
    count = {
        Outcome.IN_TIME: step.in_time,
        Outcome.LATE: step.late,
        Outcome.REFUSED: step.refused,
        Outcome.FAILED: step.failed,
        Outcome.SKIPPED: step.skipped,
    }[outcome]
    return count / step.offered * step.offered_per_s if step.offered else 0.0
