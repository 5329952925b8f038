"""The group of commands."""

from __future__ import annotations

from typing import Any, Final

import click

from pomona import __version__
from pomona.cli.bench import bench
from pomona.cli.inspect import inspect
from pomona.cli.segment import segment
from pomona.cli.service import models, ping

_EPILOG = """\b
Examples:
  pomona ping
  pomona segment orange.jpg --point 500,375 -o mask.png
  pomona inspect 'frames/*.jpg' --csv out.csv

\b
Exit codes:
  0    all was answered
  1    something failed or was late; the rest was done
  2    wrong usage
  3    the service cannot be reached, or is not ready
  130  interrupted
"""


_INTERRUPTED: Final = 130


class _Group(click.Group):
    """Ends an interrupted command as shells expect it."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            raise SystemExit(_INTERRUPTED) from None


@click.group(
    cls=_Group, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="pomona")
def pomona() -> None:
    """Ask a Pomona service: masks for prompts, grades for fruits."""


for _command in (segment, inspect, models, ping, bench):
    pomona.add_command(_command)
