"""What the commands share: their arguments, and how the outcome of each image is counted and shown."""

from __future__ import annotations

import contextlib
import functools
import glob
import itertools
import json
import math
import os
import queue
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import click

from pomona._calling import DEFAULT_URL
from pomona.client import Client
from pomona.errors import ConnectionFailed, InvalidArgument, MissingPackage, NotReady, PomonaError
from pomona.images import may_replace
from pomona.prompts import Box, Point
from pomona.retries import NO_RETRY, Retry

T = TypeVar("T")

STDIN: Final = "-"

# Exit codes beside 0 and click's 2 for wrong usage.
FAILED: Final = 1
UNREACHABLE: Final = 3
INTERRUPTED: Final = 130

_POLL_S: Final = 0.2
_STDIN_PIECE: Final = 1 << 20  # bytes
_AHEAD: Final = 4  # images begun or finished for each job, while an earlier one is not


@dataclass(frozen=True)
class Service:
    """The service that a command uses.

    Attributes:
        url: its address.
        timeout: seconds for a call with all its attempts; None for the client's default.
        retry: whether to try again.
    """

    url: str
    timeout: float | None
    retry: bool

    def client(self) -> Client:
        """Return a client.

        Raises:
            click.UsageError: the URL cannot be used, or needs an extra that is not installed.
        """
        try:
            return Client(self.url, timeout=self.timeout, retry=Retry() if self.retry else NO_RETRY)
        except (InvalidArgument, MissingPackage) as error:
            raise click.UsageError(error.detail) from error


def service_options(*, retries: bool = True) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the options of every command, which it gets as one argument `service`.

    Args:
        retries: whether the command tries again.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def with_service(*, url: str, timeout: float | None, retry: bool = retries, **others: Any) -> None:
            command(service=Service(url, timeout, retry), **others)

        options = [
            click.option(
                "--url",
                default=DEFAULT_URL,
                envvar="POMONA_URL",
                show_default=True,
                show_envvar=True,
                help="Of the service: http://, https://, grpc:// or grpcs://.",
            ),
            click.option("--timeout", type=seconds, metavar="SECONDS", help="For a call with all its attempts."),
        ]
        if retries:
            once = click.option("--no-retry", "retry", is_flag=True, flag_value=False, default=True, help="Try once.")
            options.append(once)
        decorated: Callable[..., None] = with_service
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return decorate


def seconds(value: str | float) -> float:
    """Parse a number of seconds.

    Raises:
        click.BadParameter: it is not a number above 0.
    """
    try:
        parsed = float(value)
    except ValueError:
        parsed = math.nan
    if not 0 < parsed < math.inf:
        raise click.BadParameter(f"seconds must be a number above 0, got {value!r}.")
    return parsed


def _point(value: str) -> Point:
    try:
        x, y, *label = value.split(",")
        return Point(float(x), float(y), *map(int, label))
    except (ValueError, TypeError, PomonaError) as error:
        raise click.BadParameter(
            f"a point must be X,Y or X,Y,LABEL, as 500,375 or for background 20,20,0, got {value!r}."
        ) from error


def _box(value: str) -> Box:
    try:
        x0, y0, x1, y1 = map(float, value.split(","))
        return Box(x0, y0, x1, y1)
    except (ValueError, PomonaError) as error:
        raise click.BadParameter(f"a box must be left,top,right,bottom, as 426,74,669,306, got {value!r}.") from error


def point_option(meaning: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add `--point`, which the command gets as `points`."""
    return click.option("--point", "points", type=_point, metavar="X,Y[,LABEL]", multiple=True, help=meaning)


def box_option(meaning: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add `--box`, which the command gets as `boxes`."""
    return click.option("--box", "boxes", type=_box, metavar="X0,Y0,X1,Y1", multiple=True, help=meaning)


deadline_option = click.option("--deadline", type=seconds, metavar="SECONDS", help="After which an answer is too late.")
jobs_option = click.option(
    "-j", "--jobs", type=click.IntRange(1, 256), default=4, show_default=True, help="Requests at a time."
)
json_option = click.option("--json", "json_lines", is_flag=True, help="A line of JSON per image, masks as COCO RLE.")


def expand(arguments: Sequence[str]) -> list[str]:
    """Return the names of images, with patterns expanded that the shell left; `-` is standard input.

    Raises:
        click.UsageError: a pattern matches nothing, or standard input is named twice.
    """
    names: list[str] = []
    for argument in arguments:
        if glob.has_magic(argument) and not Path(argument).exists():
            found = sorted(glob.glob(argument, recursive=True))  # noqa: PTH207 (absolute patterns too)
            if not found:
                raise click.UsageError(f"No file matches {argument}.")
            names += found
        else:
            names.append(argument)
    if names.count(STDIN) > 1:
        raise click.UsageError("Standard input (-) can be given once.")
    return names


def read_image(name: str) -> str | bytes:
    """Return the image of that name, as the client takes it; `-` is read from standard input."""
    if name != STDIN:
        return name
    try:
        descriptor = sys.stdin.fileno()
    except (OSError, ValueError):  # not a file: a test's
        return sys.stdin.buffer.read()
    # Without Python's buffer, whose lock a thread that still waits would hold when the program ends.
    return in_thread(lambda: b"".join(iter(lambda: os.read(descriptor, _STDIN_PIECE), b"")))


def check_output(path: str | Path, option: str, inputs: Sequence[str]) -> None:
    """Check that writing a file destroys no image of the caller's.

    A shell that expands `-o *.png` names an image where the output should be.

    Args:
        path: of the file to write; `-` is standard output.
        option: that named it.
        inputs: names of the files that are read.

    Raises:
        click.UsageError: the file is one of the inputs, or an image that pomona did not write.
    """
    target = Path(path)
    if str(path) == STDIN or not target.exists():
        return
    if any(name != STDIN and Path(name).exists() and target.samefile(name) for name in inputs):
        raise click.UsageError(f"{option}: {path} is one of the images to read: name another file.")
    if not may_replace(target):
        raise click.UsageError(
            f"{option}: {path} is an image that pomona did not write, and is not replaced: name another file, or "
            "remove it first."
        )


def output_files(names: Sequence[str], folder: str, option: str) -> dict[str, Path]:
    """Make a folder and return the PNG in it for each image.

    Raises:
        click.UsageError: two images have the same name, the folder cannot be made, or a PNG is not to be replaced.
    """
    stems = {name: "stdin" if name == STDIN else Path(name).stem for name in names}
    duplicate = next((stem for stem, count in Counter(stems.values()).items() if count > 1), None)
    if duplicate is not None:
        raise click.UsageError(f"{option}: several images would be written to {Path(folder) / duplicate}.png.")
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.UsageError(f"{option}: the folder {folder} cannot be made: {error}.") from error
    files = {name: Path(folder) / f"{stem}.png" for name, stem in stems.items()}
    for file in files.values():
        check_output(file, option, names)
    return files


def targets_of(names: Sequence[str], output: str | None, option: str) -> dict[str, Path]:
    """Return the file to write for each image: `output` itself for one, else files in the folder of that name.

    Raises:
        click.UsageError: see `output_files` and `check_output`.
    """
    if output is None:
        return {}
    if len(names) > 1 or Path(output).is_dir() or output.endswith("/"):
        return output_files(names, output, option)
    check_output(output, option, names)
    return {names[0]: Path(output)}


def next_of(done: queue.SimpleQueue[T]) -> T:
    """Wait for the next item, and for an interrupt: one that comes just as a wait begins ends only a short one."""
    while True:
        with contextlib.suppress(queue.Empty):
            return done.get(timeout=_POLL_S)


def in_thread(call: Callable[[], T]) -> T:
    """Return the result of a call that may take long; an interrupt does not wait for it.

    Raises:
        PomonaError: the call's.
    """
    done: queue.SimpleQueue[T | BaseException] = queue.SimpleQueue()

    def work() -> None:
        try:
            done.put(call())
        except BaseException as error:  # noqa: BLE001 (raised in the main thread)
            done.put(error)

    threading.Thread(target=work, daemon=True).start()
    result = next_of(done)
    if isinstance(result, BaseException):
        raise result
    return result


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """A result or an error, for one image."""

    name: str
    result: T | None = None
    error: PomonaError | None = None

    def to_json(self) -> str:
        """Return one line of JSON."""
        fields: dict[str, Any] = {"image": self.name, "ok": self.error is None}
        if self.error is None:
            result: Any = self.result
            fields["result"] = result.to_dict()
        else:
            error = self.error
            fields["error"] = {"code": code_of(error), "detail": error.detail, "request_id": error.request_id}
        return json.dumps(fields)


def run(
    names: Sequence[str], work: Callable[[str, str | bytes], T], *, jobs: int, progress: bool
) -> Iterator[Outcome[T]]:
    """Do the same with every image, several at a time; outcomes come in the order of the images.

    Args:
        names: of images.
        work: called from threads with an image's name, and what the client takes for it.
        jobs: how many at a time.
        progress: show a bar if standard error is a terminal.
    """
    todo: queue.SimpleQueue[tuple[int, str, str | bytes] | None] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, Outcome[T] | BaseException]] = queue.SimpleQueue()

    def keep_working() -> None:
        while (given := todo.get()) is not None:
            number, name, source = given
            try:
                done.put((number, Outcome(name, work(name, source))))
            except PomonaError as error:
                done.put((number, Outcome(name, error=error)))
            except BaseException as error:  # noqa: BLE001 (raised in the main thread)
                done.put((number, error))

    images = ((number, name, read_image(name)) for number, name in enumerate(names))
    # Not a pool: after an interrupt its threads would keep the program until the service has answered them all.
    for _ in range(min(jobs, len(names))):
        threading.Thread(target=keep_working, name="pomona-image", daemon=True).start()
    bar = click.progressbar(length=len(names), file=sys.stderr, show_pos=True)
    shown = progress and sys.stderr.isatty()
    finished: dict[int, Outcome[T]] = {}
    try:
        if shown:
            bar.render_progress()
        for image in itertools.islice(images, _AHEAD * jobs):
            todo.put(image)
        for number in range(len(names)):
            while number not in finished:
                which, outcome = next_of(done)
                if isinstance(outcome, BaseException):
                    raise outcome
                finished[which] = outcome
            if shown:
                bar.update(1)
            yield finished.pop(number)
            for image in itertools.islice(images, 1):
                todo.put(image)
        if shown:
            bar.render_finish()
    finally:
        for _ in range(jobs):
            todo.put(None)


@dataclass
class Summary:
    """Counts outcomes.

    Attributes:
        quiet: errors are shown elsewhere; only their number is shown at the end.
    """

    quiet: bool = False
    _answered: int = 0
    _failures: Counter[str] = field(default_factory=Counter)
    _reached: bool = False
    _messages: list[str] = field(default_factory=list)

    def add(self, outcome: Outcome[Any]) -> None:
        """Count an outcome."""
        if outcome.error is None:
            self._answered += 1
        else:
            self._failures[code_of(outcome.error)] += 1
            if not self.quiet:
                self._messages.append(f"{outcome.name}: {outcome.error}")
        self._reached |= not isinstance(outcome.error, (ConnectionFailed, NotReady))

    def finish(self) -> None:
        """Show the errors and their number, below any progress bar, and exit with the code for them.

        Raises:
            SystemExit: something failed.
        """
        failed = self._failures.total()
        if not failed:
            return
        for message in self._messages:
            click.echo(message, err=True)
        kinds = ", ".join(f"{count} {code}" for code, count in self._failures.most_common())
        click.echo(f"{failed} of {failed + self._answered} failed: {kinds}", err=True)
        raise SystemExit(FAILED if self._reached else UNREACHABLE)


def code_of(error: PomonaError) -> str:
    """Return the service's code, or the name of the class for an error that was found here."""
    return error.code or type(error).__name__
