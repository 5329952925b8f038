"""`pomona models`: list them, and change which revisions a service has loaded."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Final, TypeVar

import click
from click.core import ParameterSource

from pomona._model_requests import LoadModel
from pomona.cli.common import FAILED, UNREACHABLE, Service, in_thread, service_options
from pomona.client import Client
from pomona.errors import ConnectionFailed, NotReady, PomonaError
from pomona.revisions import Revision

T = TypeVar("T")

_EPILOG = """\b
Examples:
  pomona models
  pomona models --json | jq -r '.[] | select(.loaded) | .name'
  pomona models load unet-mobilenetv2-citrus run-7 --shadow 0.1
  pomona models shadow
  pomona models promote unet-mobilenetv2-citrus 63faa6075a0d
  pomona models unload unet-mobilenetv2-citrus bbbecd2f061c

\b
What changes models needs an API key with the scope admin, in the variable POMONA_API_KEY.
"""
_POLL_S: Final = 1.0
_LOADING_S: Final = 120.0


def _answer(service: Service, ask: Callable[[Client], T]) -> T:
    """Return what the service answers, or end with what went wrong."""
    with service.client() as client:
        try:
            return in_thread(lambda: ask(client))
        except PomonaError as error:
            click.echo(str(error), err=True)
            raise SystemExit(UNREACHABLE if isinstance(error, (ConnectionFailed, NotReady)) else FAILED) from error


@click.group(invoke_without_command=True, epilog=_EPILOG)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@service_options()
@click.pass_context
def models(ctx: click.Context, *, as_json: bool, service: Service) -> None:
    """List the models of the catalogue, loaded ones first; or change which revisions are loaded."""
    if ctx.invoked_subcommand is not None:
        if any(ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE for name in ctx.params):
            raise click.UsageError(f"Options go after the command: pomona models {ctx.invoked_subcommand} …")
        return
    listed = _answer(service, lambda client: client.models())
    if as_json:
        click.echo(json.dumps([asdict(model) for model in listed], indent=2))
        return
    width = max((len(model.name) for model in listed), default=0)
    for model in listed:
        where = f"{model.backend} on {model.device}" if model.loaded else "not loaded"
        click.echo(f"{model.name:<{width}}  {model.family:<8}  {model.revision}  {where}  ({model.licence})")
        for other in model.revisions:
            if not other.active:
                click.echo(f"{'':<{width}}  {'':<8}  {_line(other)}")


@models.command()
@click.argument("model")
@click.argument("file")
@click.option("--sha256", help="Of the file; another file is then refused.")
@click.option("--architecture", help="Network of the checkpoint; by default that of the active revision.")
@click.option("--promote", is_flag=True, help="Let the new revision answer as soon as it is warmed up.")
@click.option(
    "--shadow", type=click.FloatRange(0, 1), default=0.0, help="Share of live frames that it answers too, in idle time."
)
@service_options()
def load(
    *,
    model: str,
    file: str,
    sha256: str | None,
    architecture: str | None,
    promote: bool,
    shadow: float,
    service: Service,
) -> None:
    """Load FILE, in the service's folder of models, as a new revision of MODEL; waits until it is loaded."""
    request = LoadModel(model, file, sha256=sha256, architecture=architecture, promote=promote, shadow=shadow)
    patient = replace(service, timeout=service.timeout or _LOADING_S)
    revision = _answer(patient, lambda client: client.send(request))
    while revision.state == "loading":
        time.sleep(_POLL_S)
        revision = _found(patient, model, revision)
    if revision.state == "failed":
        click.echo(f"{model} {revision.revision} was not loaded: {revision.error}", err=True)
        raise SystemExit(FAILED)
    click.echo(f"{model} {_line(revision)}")


@models.command()
@click.argument("model")
@click.argument("revision")
@service_options()
def promote(*, model: str, revision: str, service: Service) -> None:
    """Let a loaded REVISION of MODEL answer from the next request on."""
    found = _answer(service, lambda client: client.promote_model(model, revision))
    click.echo(f"{model} {_line(found)}")


@models.command()
@click.argument("model")
@click.argument("revision")
@service_options()
def unload(*, model: str, revision: str, service: Service) -> None:
    """Give up a REVISION of MODEL that does not answer any more."""
    freed = _answer(service, lambda client: client.unload_model(model, revision))
    click.echo(f"{model} {revision} unloaded, {freed} MiB freed")


@models.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@service_options()
def shadow(*, as_json: bool, service: Service) -> None:
    """Show how the answers of revisions that are loaded beside others differ from theirs."""
    reports = _answer(service, lambda client: client.shadows())
    if as_json:
        click.echo(json.dumps([asdict(report) for report in reports], indent=2))
        return
    for report in reports:
        click.echo(f"{report.model} {report.revision} beside {report.active_revision}: {report.share:g} of the frames")
        click.echo(f"  frames: {report.compared} compared, {report.skipped} skipped, {report.failed} failed")
        click.echo(f"  fruits: {report.fruits}, {report.grade_changes} with another grade or found by one alone")
        if report.mean_iou is not None:
            click.echo(f"  IoU of fruit: mean {report.mean_iou:.3f}, least {report.least_iou:.3f}")
        if report.mean_infected_fraction_difference is not None:
            mean, most = report.mean_infected_fraction_difference, report.largest_infected_fraction_difference
            click.echo(f"  difference of infected fractions: mean {mean:.4f}, largest {most:.4f}")
        for frame in report.worst:
            click.echo(
                f"  {frame.frame_id or frame.request_id}: IoU {frame.iou:.3f}, infected fraction "
                f"{frame.infected_fraction_difference:.4f}, {frame.grade_changes} grades"
            )


def _found(service: Service, model: str, loading: Revision) -> Revision:
    """Return the present state of a revision that is being loaded."""
    for each in _answer(service, lambda client: client.models()):
        for revision in each.revisions if each.name == model else ():
            if revision.revision == loading.revision:
                return revision
    click.echo(f"{model} {loading.revision} is not listed any more: the service was started again.", err=True)
    raise SystemExit(FAILED)


def _line(revision: Revision) -> str:
    active = "active" if revision.active else "beside the active one"
    shadow = f", answers {revision.shadow:g} of the frames too" if revision.shadow else ""
    return f"{revision.revision}  {revision.state if revision.state != 'loaded' else active}{shadow}"
