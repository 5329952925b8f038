"""What is typed -> pictures, prompts, limits."""

from __future__ import annotations

import functools
import glob
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from pomona.client import DEFAULT_URL, Client
from pomona.errors import InvalidArgument, MissingPackage, PomonaError
from pomona.masks import Mask
from pomona.retrying import NO_RETRY, Retry, Timeout
from pomona.shapes import Box, Point, Prompt

STDIN: Final = "-"


@dataclass(frozen=True)
class Service:
    """Where the service is and how patient to be with it.

    Attributes:
        url: its address.
        timeout: seconds for a call with all its attempts, or None for the usual.
        retry: whether to try again what is safe to.
    """

    url: str
    timeout: float | None
    retry: bool

    def client(self) -> Client:
        """A client of it.

        Raises:
            click.UsageError: the address is none, or needs an extra that is not installed.
        """
        timeout = None if self.timeout is None else Timeout(attempt=self.timeout, total=self.timeout)
        try:
            return Client(self.url, timeout=timeout, retry=Retry() if self.retry else NO_RETRY)
        except (InvalidArgument, MissingPackage) as error:
            raise click.UsageError(error.detail) from error


def service_options(*, retries: bool = True) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Options of every command; they come as one argument `service`.

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
    """Read a number of seconds.

    Raises:
        click.BadParameter: it is none above 0.
    """
    try:
        read = float(value)
    except ValueError:
        read = math.nan
    if not 0 < read < math.inf:
        raise click.BadParameter(f"{value!r} is no number of seconds above 0.")
    return read


def point(value: str) -> Point:
    """Read `x,y` or `x,y,label`.

    Raises:
        click.BadParameter: it is no point.
    """
    try:
        x, y, *label = (float(part) for part in value.split(","))
        return Point(x, y, *(int(each) for each in label))
    except (ValueError, TypeError, PomonaError) as error:
        raise click.BadParameter(
            f"{value!r} is no point; 500,375 would be one, 20,20,0 one on what is not wanted."
        ) from error


def box(value: str) -> Box:
    """Read `x0,y0,x1,y1`.

    Raises:
        click.BadParameter: it is no box.
    """
    try:
        x0, y0, x1, y1 = (float(part) for part in value.split(","))
        return Box(x0, y0, x1, y1)
    except (ValueError, PomonaError) as error:
        raise click.BadParameter(
            f"{value!r} is no box; 426,74,669,306 (left, top, right, bottom) would be one."
        ) from error


def pictures(arguments: Sequence[str]) -> list[str]:
    """Names of pictures, with the patterns that no shell has expanded; `-` is what comes in by the pipe.

    Raises:
        click.UsageError: a pattern that nothing matches.
    """
    names: list[str] = []
    for argument in arguments:
        if glob.has_magic(argument) and not Path(argument).exists():
            found = sorted(glob.glob(argument, recursive=True))  # noqa: PTH207 (absolute patterns too)
            if not found:
                raise click.UsageError(f"There is no file like {argument}.")
            names += found
        else:
            names.append(argument)
    if names.count(STDIN) > 1:
        raise click.UsageError("What comes in by the pipe (-) is one picture.")
    return names


def picture(name: str) -> str | bytes:
    """The picture of that name, or the one that comes in by the pipe."""
    return sys.stdin.buffer.read() if name == STDIN else name


def prompts(points: Sequence[Point], boxes: Sequence[Box], mask: str | None, *, multimask: bool) -> list[Prompt]:
    """What is to be segmented: points, a box and a mask mean one thing together; several boxes a thing each.

    Raises:
        click.UsageError: nothing, or what cannot be put together.
        PomonaError: the mask cannot be read.
    """
    guess = [] if mask is None else [Mask.open(mask)]
    if not (points or boxes or guess):
        raise click.UsageError("Say what to segment: --point 500,375 or --box 426,74,669,306.")
    if len(boxes) > 1 and (points or guess):
        raise click.UsageError("Several boxes are a thing each, so points and a mask cannot be added to them.")
    if len(boxes) > 1:
        return [Prompt.of(each, multimask=multimask) for each in boxes]
    return [Prompt.of(*points, *boxes, *guess, multimask=multimask)]
