"""What the commands share: their arguments, and how the outcome of each image is counted and shown."""

from __future__ import annotations

import functools
import glob
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import click

from pomona.client import DEFAULT_URL, Client
from pomona.errors import ConnectionFailed, InvalidArgument, MissingPackage, NotReady, PomonaError
from pomona.retries import NO_RETRY, Retry

T = TypeVar("T")

STDIN: Final = "-"

# Exit codes beside 0, click's 2 for wrong usage and 130 for an interrupt.
FAILED: Final = 1
UNREACHABLE: Final = 3


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
    return sys.stdin.buffer.read() if name == STDIN else name


def output_files(names: Sequence[str], folder: str, option: str) -> dict[str, Path]:
    """Make a folder and return the PNG in it for each image.

    Raises:
        click.UsageError: two images have the same name, or the folder cannot be made.
    """
    stems = {name: "stdin" if name == STDIN else Path(name).stem for name in names}
    duplicate = next((stem for stem, count in Counter(stems.values()).items() if count > 1), None)
    if duplicate is not None:
        raise click.UsageError(f"{option}: several images would be written to {Path(folder) / duplicate}.png.")
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.UsageError(f"{option}: the folder {folder} cannot be made: {error}.") from error
    return {name: Path(folder) / f"{stem}.png" for name, stem in stems.items()}


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


def run(names: Sequence[str], work: Callable[[str], T], *, jobs: int, progress: bool) -> Iterator[Outcome[T]]:
    """Do the same with every image, several at a time; outcomes come in the order of the images.

    Args:
        names: of images.
        work: called from threads.
        jobs: how many at a time.
        progress: show a bar if standard error is a terminal.
    """

    def one(name: str) -> Outcome[T]:
        try:
            return Outcome(name, work(name))
        except PomonaError as error:
            return Outcome(name, error=error)

    pool = ThreadPoolExecutor(jobs)
    bar = click.progressbar(length=len(names), file=sys.stderr, show_pos=True)
    shown = progress and sys.stderr.isatty()
    try:
        if shown:
            bar.render_progress()
        for outcome in pool.map(one, names):
            if shown:
                bar.update(1)
            yield outcome
        if shown:
            bar.render_finish()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


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
