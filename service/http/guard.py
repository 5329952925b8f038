"""What every request passes: its id, its time limit, its problem where it fails, its line in the log."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from models.catalog import Family
from models.errors import PomonaError
from service.callers import CLIENT_CLOSED, Refusal, outcome_of, refusal_of, request_id_of
from service.errors import NotReady, TimedOut
from service.http import answers
from service.observability.observer import Observer
from service.observability.tracing import RequestTrace, Tracing
from service.pipeline import Pipeline
from service.settings import Settings

Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]
Told: TypeAlias = Callable[[Refusal, str], Response]
"""How a refusal is told, with the request's id."""

_LOG = logging.getLogger("pomona.http")


def guarded(endpoint: Endpoint, endpoint_name: str, told: Told = answers.problem) -> Endpoint:
    """An endpoint behind the guard.

    Args:
        endpoint: answers, or raises.
        endpoint_name: for the metrics.
        told: makes the answer where it raises.
    """

    async def answer(request: Request) -> Response:
        request.state.arrived = time.monotonic()
        request_id = request_id_of(request.headers.get("x-request-id", ""))
        request.state.request_id = request_id
        request.state.log = {}
        tracing: Tracing = request.app.state.tracing
        name = f"{request.method} {endpoint_name}"
        with tracing.request(name, request_id, request.headers) as traced:
            return await _watched(endpoint, endpoint_name, told, request, traced)

    return answer


async def _watched(
    endpoint: Endpoint, endpoint_name: str, told: Told, request: Request, traced: RequestTrace
) -> Response:
    """Attempt it; the observer, the trace and the log hear of it."""
    response: Response | None = None
    observer: Observer = request.app.state.observer
    observer.began(endpoint_name)
    try:
        limit = settings_of(request).request_timeout_s
        response = await _attempt(endpoint, request, limit, told)
        response.headers.update({"x-request-id": traced.request_id, **traced.headers})
        return response
    finally:
        status = response.status_code if response else CLIENT_CLOSED
        seconds = time.monotonic() - request.state.arrived
        observer.requested(endpoint_name, request.state.log.get("model", ""), outcome_of(status), seconds)
        if "code" in request.state.log:
            observer.refused(request.state.log["code"])
        line = {
            "request_id": traced.request_id,
            "method": request.method,
            "path": request.url.path,
            "status": status,
            "ms": round(seconds * 1000, 2),
        }
        _LOG.info("request", extra=line | request.state.log)
        traced.ended(
            {"request_id": traced.request_id} | request.state.log,
            {"http.request.method": request.method, "http.route": endpoint_name, "http.response.status_code": status},
            failed=status >= 500,
        )


async def _attempt(endpoint: Endpoint, request: Request, limit: float, told: Told) -> Response:
    request_id: str = request.state.request_id
    error: PomonaError
    try:
        async with asyncio.timeout(limit):
            return await endpoint(request)
    except ClientDisconnect:
        return Response(status_code=CLIENT_CLOSED)
    except TimeoutError:
        error = TimedOut(f"No answer within {limit:g} s (POMONA_REQUEST_TIMEOUT_S).")
    except PomonaError as known:
        error = known
    except Exception as unknown:  # noqa: BLE001 (nothing may leak; it is logged with its traceback)
        _LOG.exception("internal error", extra={"request_id": request_id})
        error = PomonaError(type(unknown).__name__)
    refusal = refusal_of(error)
    request.state.log["code"] = refusal.problem.code
    if refusal.problem.status == 500 and type(error) is not PomonaError:
        _LOG.error("internal error", extra={"request_id": request_id, "detail": error.detail})
    return told(refusal, request_id)


def note_model(request: Request, pipeline: Pipeline, asked: str | None, family: Family) -> None:
    """For the log and the metrics, also where no answer comes; a name that is not loaded is left out."""
    name = pipeline.default(family) if asked is None else asked
    if name in pipeline.runners:
        request.state.log["model"] = name


def settings_of(request: Request) -> Settings:
    """The limits in force."""
    settings: Settings = request.app.state.settings
    return settings


def ready(request: Request) -> Pipeline:
    """The pipeline.

    Raises:
        NotReady: the models are still loading.
    """
    pipeline: Pipeline | None = request.app.state.pipeline
    if pipeline is None:
        raise NotReady("Models are still loading; /readyz tells when they are ready.")
    return pipeline
