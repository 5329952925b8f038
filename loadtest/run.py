"""Steps the load on a running service and reports latency and goodput over it.

    make loadtest HOST=http://localhost:3000

Writes Locust's CSV files and HTML report, `figures.json` and `loadtest.png`. Locust runs in a process of its own; this
one watches the records that it writes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, TextIO

import httpx
from tqdm import tqdm

from loadtest.figures import Figures, summarise
from loadtest.options import Options, add_options, read_options
from loadtest.outcomes import Kind, Outcome, Record
from loadtest.plot import draw

_HERE: Final = Path(__file__).parent
_START_AND_END_S: Final = 120
_LOOK_EVERY_S: Final = 0.5


def main(arguments: Sequence[str] | None = None) -> None:
    """Check that a service answers, load it, write and print the figures."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(
        prog="make loadtest", description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    parser.add_argument(
        "--host", type=_address, default="http://localhost:3000", help="the service (default %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=_HERE / "reports" / "loadtest", help="folder of the report")
    add_options(parser)
    parsed = parser.parse_args(given)
    options = read_options(parsed)
    models = _models_of(parsed.host)
    parsed.out.mkdir(parents=True, exist_ok=True)
    busy_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        records = _load(parsed.host, options, parsed.out.resolve(), Path(folder))
    generator = {
        "cores": os.cpu_count(),
        "load_average_before_and_after": [round(average, 2) for average in (busy_before, os.getloadavg()[0])],
        "python": platform.python_version(),
        "locust": version("locust"),
    }
    about = {"host": parsed.host, "models": models, "generator": generator}
    _report(about, options, records, parsed.out)


def _address(text: str) -> str:
    url = httpx.URL(text)
    if url.scheme not in ("http", "https") or not url.host:
        raise argparse.ArgumentTypeError(f"{text} is not an address like http://localhost:3000")
    return text.rstrip("/")


def _models_of(host: str) -> list[dict[str, Any]]:
    """The loaded models of the service, which is ready then; else this ends with one line."""
    try:
        with httpx.Client(base_url=host, timeout=10, trust_env=False) as client:
            ready = client.get("/readyz").status_code
            if ready != 200:
                sys.exit(f"The service at {host} is not ready: /readyz answered {ready}.")
            models: list[dict[str, Any]] = client.get("/v1/models").raise_for_status().json()["models"]
    except httpx.TransportError as error:
        sys.exit(f"No service answers at {host} ({error}); start one with `make serve`, or set HOST.")
    except (httpx.HTTPStatusError, ValueError, LookupError, TypeError):
        sys.exit(f"What answers at {host} is not this service: /v1/models gave no models.")
    return [model for model in models if model.get("loaded")]


def as_arguments(options: Options) -> list[str]:
    """The options as they are given on the command line."""
    size = options.image_size
    texts = {
        **{name: str(getattr(options, name)) for name in Options.__slots__},
        "rates": ",".join(str(rate) for rate in options.rates),
        "image_size": f"{size.width}x{size.height}",
    }
    if options.images is None:
        del texts["images"]
    return [part for name, text in texts.items() for part in (f"--{name.replace('_', '-')}", text)]


def _load(host: str, options: Options, out: Path, folder: Path) -> list[Record]:
    """Run Locust, showing progress, and return what it recorded; this ends with its log where it fails."""
    file, log = folder / "records.jsonl", folder / "locust.log"
    file.touch()
    command = [sys.executable, "-m", "locust", "-f", str(_HERE / "locustfile.py"), "--headless", "--only-summary"]
    command += ["--host", host, "--csv", str(out / "locust"), "--html", str(out / "locust.html")]
    command += ["--exit-code-on-error", "0", "--records", str(file), *as_arguments(options)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LOCUST_")}
    with log.open("wb") as output, file.open() as lines:
        process = subprocess.Popen(
            command, cwd=_HERE.parent, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        try:
            records = _watch(process, options, lines)
        except KeyboardInterrupt:
            sys.exit("Stopped.")
        finally:
            process.kill()
            process.wait()
    if process.returncode != 0 or not records:
        sys.exit(f"Locust ended with {process.returncode}:\n{log.read_text(errors='replace')}")
    return records


def _watch(process: subprocess.Popen[bytes], options: Options, lines: TextIO) -> list[Record]:
    """Show how the run goes until Locust ends or should have, and gather its records."""
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
            time.sleep(_LOOK_EVERY_S)
        bar.n = len(plan.steps)
        bar.refresh()
    return records


def _report(about: Mapping[str, Any], options: Options, records: Sequence[Record], out: Path) -> None:
    """Write `figures.json`, which begins with `about`, and `loadtest.png`, and print a table."""
    by_step = [
        {
            kind: summarise(
                [record for record in records if (record.kind, record.step) == (kind, number)], options.step_seconds
            )
            for kind in Kind
        }
        for number in range(len(options.rates))
    ]
    frames = [figures[Kind.FRAME] for figures in by_step]
    steps = [
        {"rate": rate} | {str(kind): asdict(figures) for kind, figures in step.items() if figures.offered}
        for rate, step in zip(options.rates, by_step, strict=True)
    ]
    chosen = asdict(options) | {"images": options.images.name if options.images else "drawn"}
    content = {**about, "options": chosen, "steps": steps}
    (out / "figures.json").write_text(json.dumps(content, indent=2) + "\n")
    draw(out / "loadtest.png", options.rates, frames, options.deadline_ms, _title(options, about["models"]))
    print(_table(options.rates, frames))
    print(f"\nWritten to {out}: figures.json, loadtest.png, locust.html, locust_*.csv")
    if not any(figures.in_time + figures.late for figures in frames):
        sys.exit("No frame was answered.")


def _title(options: Options, models: list[dict[str, Any]]) -> str:
    """What was loaded, with what."""
    names = ", ".join(f"{model['name']} on {model['device']} ({model['backend']})" for model in models)
    size = options.image_size
    images = "images of a folder" if options.images else f"drawn images of {size.width} x {size.height}"
    cameras = "1 camera," if options.cameras == 1 else f"{options.cameras} cameras, each"
    others = [(options.annotators, "annotators"), (options.batch_jobs, "batch jobs")]
    beside = "".join(f", {name}: {number}" for number, name in others if number)
    return (
        f"{names}\n{cameras} {options.fps:g} frames/s at 1x, {images}{beside}\n"
        f"deadline {options.deadline_ms:g} ms, at most {options.in_flight} in flight per camera, "
        f"{options.step_seconds:g} s per step"
    )


def _table(rates: Sequence[float], steps: Sequence[Figures]) -> str:
    rows = [
        "   rate  offered/s  answered/s  goodput/s  p50 ms  p95 ms  p99 ms  in time  late  refused  failed  skipped"
    ]
    for rate, step in zip(rates, steps, strict=True):
        latency = step.latency_ms
        times = [f"{value:.0f}" for value in (latency.p50, latency.p95, latency.p99)] if latency else ["-"] * 3
        rows.append(
            f"{rate:>6g}x {step.offered_per_s:>10.2f} {step.answered_per_s:>11.2f} {step.goodput_per_s:>10.2f} "
            + " ".join(f"{text:>7}" for text in times)
            + f" {step.in_time:>8} {step.late:>5} {step.refused:>8} {step.failed:>7} {step.skipped:>8}"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    main()
