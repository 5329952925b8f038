"""What became of each picture, and the exit code that scripts see.

0  all was answered
1  something failed, or was late; the rest was done
2  wrong usage
3  the service cannot be reached, or is not ready
130  interrupted
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

import click

from pomona.errors import ConnectionFailed, NotReady, PomonaError

T = TypeVar("T")

FAILED: Final = 1
UNREACHABLE: Final = 3


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """Of one picture: a result or an error."""

    name: str
    result: T | None = None
    error: PomonaError | None = None


@dataclass
class Tally:
    """Counts what failed, by code.

    Attributes:
        quiet: what failed is told elsewhere; only the number is said at the end.
    """

    quiet: bool = False
    answered: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    reached: bool = False
    """Whether the service ever answered anything."""
    _complaints: list[str] = field(default_factory=list)

    def add(self, outcome: Outcome[Any]) -> None:
        """Count one."""
        if outcome.error is None:
            self.answered += 1
        else:
            self.failures[code_of(outcome.error)] += 1
            if not self.quiet:
                self._complaints.append(f"{outcome.name}: {outcome.error}")
        self.reached |= not isinstance(outcome.error, (ConnectionFailed, NotReady))

    def finish(self) -> None:
        """Say what failed and how many, below any progress bar, and end with the exit code that tells it.

        Raises:
            SystemExit: something failed.
        """
        failed = self.failures.total()
        if not failed:
            return
        for complaint in self._complaints:
            click.echo(complaint, err=True)
        kinds = ", ".join(f"{count} {code}" for code, count in self.failures.most_common())
        click.echo(f"{failed} of {failed + self.answered} failed: {kinds}", err=True)
        raise SystemExit(FAILED if self.reached else UNREACHABLE)


def code_of(error: PomonaError) -> str:
    """The service's code, or the name of the class for what happened here."""
    return error.code or type(error).__name__


def run(names: Sequence[str], work: Callable[[str], T], *, jobs: int, progress: bool) -> Iterator[Outcome[T]]:
    """Do the same with every picture, several at once; outcomes come in the order of the pictures.

    Args:
        names: of pictures.
        work: called from threads.
        jobs: how many at once.
        progress: show a bar, where standard error is a terminal.
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


def as_json(outcome: Outcome[Any], result: dict[str, Any] | None) -> str:
    """One line of JSON."""
    fields: dict[str, Any] = {"image": outcome.name, "ok": outcome.error is None}
    if outcome.error is None:
        fields["result"] = result
    else:
        fields["error"] = {
            "code": code_of(outcome.error),
            "detail": outcome.error.detail,
            "request_id": outcome.error.request_id,
        }
    return json.dumps(fields)
