"""`pomona models`, `pomona ping`."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace

import click

from pomona.cli.inputs import Service, service_options
from pomona.cli.outcome import FAILED, UNREACHABLE
from pomona.errors import ConnectionFailed, NotReady, PomonaError

_OF_MODELS = """\b
Examples:
  pomona models
  pomona models --json | jq -r '.[] | select(.loaded) | .name'
"""


@click.command(epilog=_OF_MODELS)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@service_options()
def models(*, as_json: bool, service: Service) -> None:
    """What the service has loaded, and what it could."""
    with service.client() as client:
        try:
            listed = client.models()
        except PomonaError as error:
            raise _ended(error) from error
    if as_json:
        click.echo(json.dumps([asdict(model) for model in listed], indent=2))
        return
    width = max((len(model.name) for model in listed), default=0)
    for model in listed:
        where = f"{model.backend} on {model.device}" if model.loaded else "not loaded"
        click.echo(f"{model.name:<{width}}  {model.family:<4}  {model.revision}  {where}  ({model.licence})")


@click.command(epilog="\b\nExamples:\n  pomona ping && pomona inspect frame.jpg\n  pomona ping --wait 60\n")
@click.option("--wait", type=click.FloatRange(min=0), default=0.0, help="Seconds to wait until it is ready.")
@service_options()
def ping(*, wait: float, service: Service) -> None:
    """Whether the service is ready: exit code 0 if it is, 3 if it is not or cannot be reached."""
    until = time.monotonic() + wait
    with replace(service, timeout=service.timeout or 5.0).client() as client:
        while True:
            began = time.monotonic()
            try:
                ready, told = client.ready(), "the models are still loading"
            except PomonaError as error:
                ready, told = False, str(error)
            if ready:
                click.echo(f"{service.url} is ready ({(time.monotonic() - began) * 1000:.1f} ms)")
                return
            if time.monotonic() >= until:
                click.echo(f"{service.url} is not ready: {told}", err=True)
                raise SystemExit(UNREACHABLE)
            time.sleep(min(0.5, max(0.0, until - time.monotonic())))


def _ended(error: PomonaError) -> SystemExit:
    click.echo(str(error), err=True)
    return SystemExit(UNREACHABLE if isinstance(error, (ConnectionFailed, NotReady)) else FAILED)
