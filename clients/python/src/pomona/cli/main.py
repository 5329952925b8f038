"""The command line: `pomona`, with the commands that have no images."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from dataclasses import replace
from typing import Any

import click

from pomona import __version__
from pomona.cli.automatic import automatic
from pomona.cli.bench import bench
from pomona.cli.common import FAILED, INTERRUPTED, UNREACHABLE, Service, in_thread, service_options
from pomona.cli.detect import detect
from pomona.cli.edges import edges
from pomona.cli.inspect import inspect
from pomona.cli.models import models
from pomona.cli.segment import segment
from pomona.cli.track import track
from pomona.errors import PomonaError

_EPILOG = """\b
Examples:
  pomona ping
  pomona segment orange.jpg --point 500,375 -o mask.png
  pomona inspect 'frames/*.jpg' --csv out.csv
  pomona detect oranges.jpg --text oranges --overlay overlays/

\b
Exit codes:
  0    everything was answered
  1    something failed or was late; the rest was done
  2    wrong usage
  3    the service cannot be reached, or is not ready
  130  interrupted
"""
_PING_EPILOG = """\b
Examples:
  pomona ping && pomona inspect frame.jpg
  pomona ping --wait 60
"""


class _Group(click.Group):
    """Ends a command that was interrupted, or that cannot write, with a sentence and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            try:
                return super().invoke(ctx)
            finally:
                sys.stdout.flush()
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            raise SystemExit(INTERRUPTED) from None
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader of a pipe left, which click ends quietly
                raise
            _discard_output()
            click.echo(f"Reading or writing failed: {error.strerror or error}.", err=True)
            raise SystemExit(FAILED) from error


def _discard_output() -> None:
    """Let what could not be written go, so that Python does not try again, and fail, when it ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@click.group(
    cls=_Group, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="pomona")
def pomona() -> None:
    """Use a Pomona service: masks for prompts, grades for fruit."""


@pomona.command(epilog=_PING_EPILOG)
@click.option("--wait", type=click.FloatRange(min=0), default=0.0, help="Seconds to wait until it is ready.")
@service_options()
def ping(*, wait: float, service: Service) -> None:
    """Check whether the service is ready: exit code 0 if it is, 3 if it is not or cannot be reached."""
    until = time.monotonic() + wait
    with replace(service, timeout=service.timeout or 5.0).client() as client:
        while True:
            began = time.monotonic()
            try:
                ready, reason = in_thread(client.ready), "the models are still loading"
            except PomonaError as error:
                ready, reason = False, str(error)
            if ready:
                click.echo(f"{service.url} is ready ({(time.monotonic() - began) * 1000:.1f} ms)")
                return
            if time.monotonic() >= until:
                click.echo(f"{service.url} is not ready: {reason}", err=True)
                raise SystemExit(UNREACHABLE)
            time.sleep(min(0.5, max(0.0, until - time.monotonic())))


for _command in (segment, inspect, automatic, edges, detect, track, models, bench):
    pomona.add_command(_command)
