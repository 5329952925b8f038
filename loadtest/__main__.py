"""All benchmarks: `python -m loadtest COMMAND`. Reports go to `loadtest/reports`.

A benchmark is a function of a module, which is imported only when it runs: each needs other libraries.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from loadtest.plan import add_options, read_options
from loadtest.report import REPORTS, Effort


@dataclass(frozen=True, slots=True)
class Command:
    """A benchmark.

    Attributes:
        function: module and function.
        effort: how long it runs by default.
        meaning: what it measures.
        in_all: whether `all` runs it.
        seconds: what those of the effort are.
        options: further ones, each with its default and meaning; the function's arguments by name.
    """

    function: str
    effort: Effort
    meaning: str
    in_all: bool = True
    seconds: str = "of a window"
    options: Mapping[str, tuple[str | float, str]] = field(default_factory=dict)


COMMANDS: Final = {
    "image": Command("single_image.main", Effort(15), "path of one image, memory and start, input sizes"),
    "deadlines": Command("single_image.deadlines", Effort(40), "automatic input size under a deadline"),
    "automatic": Command("automatic.main", Effort(1), "masks of everything in an image, beside segment-anything's"),
    "saturation": Command("saturation.main", Effort(5, 5.0), "throughput and latency, bare model and served"),
    "server": Command("cost.main", Effort(5, 2.0), "CPU time per no-op request, beside other servers"),
    "admission": Command("admission.main", Effort(5), "CPU time of one admission by the queue's length"),
    "doors": Command("doors.main", Effort(5, 1.5), "all endpoints and client libraries"),
    "client": Command("doors.client", Effort(3), "what the Python client adds to its library"),
    "overload": Command("overload.main", Effort(2, 4.0), "goodput at 0.5 to 4 times the capacity"),
    "burst": Command("overload.burst", Effort(2, 3.0), "lone requests before and after a burst"),
    "fairness": Command(
        "fairness.main", Effort(2, 15.0), "inspections with a deadline beside a crowd without", in_all=False
    ),
    "fairness-simulated": Command(
        "fairness.simulated", Effort(2, 15.0), "the same with models that only wait", in_all=False
    ),
    "soak": Command(
        "soak.main",
        Effort(0, 60.0),
        "half an hour of all operations at 0.8 of the capacity: memory, files, threads, latency, errors",
        in_all=False,
        seconds="for which the capacity is measured",
        options={"minutes": (30.0, "of load")},
    ),
    "fuzz": Command(
        "fuzz.main",
        Effort(100),
        "thousands of mutated inputs to every reader and to a server",
        in_all=False,
        options={"input": ("", "use one input again: TARGET:NUMBER, such as images:123")},
    ),
    "memory": Command(
        "memory.main",
        Effort(1, 60.0),
        "memory under attack, in 3 GiB where possible",
        in_all=False,
        seconds="of rest after each attack",
        options={"image": ("", "attack a container of this image, in 3 GiB, instead of a server of this tree")},
    ),
    "gpu": Command("gpu.main", Effort(1, 10.0), "SAM and U-Net on a CUDA device", in_all=False),
}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    root = argparse.ArgumentParser(prog="python -m loadtest", description="Measure Pomona.")
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.meaning, description=command.meaning)
        effort = command.effort
        if effort.rounds:
            sub.add_argument("--rounds", type=int, default=effort.rounds, help="at least 1 (default %(default)s)")
        if effort.seconds:
            meaning = f"{command.seconds} (default %(default)g)"
            sub.add_argument("--seconds", type=float, default=effort.seconds, help=meaning)
        sub.add_argument("--out", type=Path, default=REPORTS, help="folder of the report")
        for option, (default, meaning) in command.options.items():
            sub.add_argument(
                f"--{option}", type=type(default), default=default, help=f"{meaning} (default %(default)s)"
            )
    locust = commands.add_parser("locust", help="steps of load on a running service", allow_abbrev=False)
    locust.add_argument("--host", default="http://localhost:3000", help="the service (default %(default)s)")
    add_options(locust)
    measured = ", ".join(name for name, command in COMMANDS.items() if command.in_all)
    commands.add_parser("all", help=f"in turn, each in a process of its own: {measured}")
    return root


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a benchmark."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parsed = parser().parse_args(arguments)
    if parsed.command == "all":
        sys.exit(_all())
    elif parsed.command == "locust":
        sys.exit(_locust(parsed, arguments[1:]))
    else:
        command = COMMANDS[parsed.command]
        rounds = getattr(parsed, "rounds", 0)
        if rounds < 1 and command.effort.rounds:
            parser().error(f"--rounds must be at least 1, got {rounds}")
        module, _, function = command.function.partition(".")
        effort = replace(command.effort, rounds=rounds, seconds=getattr(parsed, "seconds", 0.0))
        options = {name: getattr(parsed, name) for name in command.options}
        getattr(importlib.import_module(f"loadtest.{module}"), function)(effort, parsed.out, **options)


def _all() -> int:
    """Run the benchmarks one after the other; return 1 if any failed, after the others."""
    # A process each: tritonclient's messages and the server's own cannot be in one, and memory is not shared.
    failed = [
        name
        for name, command in COMMANDS.items()
        if command.in_all and subprocess.run([sys.executable, "-m", "loadtest", name], check=False).returncode
    ]
    if failed:
        sys.stderr.write(f"Failed: {', '.join(failed)}\n")
    return 1 if failed else 0


def _locust(parsed: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Check the options, run Locust with them, and return its exit status."""
    out = read_options(parsed).out
    out.mkdir(parents=True, exist_ok=True)
    here = Path(__file__).parent
    command = [sys.executable, "-m", "locust", "-f", str(here / "locustfile.py"), "--headless", "--only-summary"]
    command += ["--csv", str(out / "locust"), "--html", str(out / "locust.html"), "--exit-code-on-error", "0"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LOCUST_")}
    return subprocess.run([*command, "--host", parsed.host, *arguments], env=environment, check=False).returncode


if __name__ == "__main__":
    main()
