"""The HTTP door: routes, request ids, time limit, one log line per request."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route, Router

from models.entries import Family
from models.errors import PomonaError
from service.callers import CLIENT_CLOSED, outcome_of, refusal_of, request_id_of
from service.errors import MethodNotAllowed, NotFound, NotReady, TimedOut
from service.http import answers
from service.http.headers import when_of
from service.http.inspect_schema import InspectIn, InspectTimings
from service.http.openapi import PAGE, openapi
from service.http.presence import while_connected
from service.http.reading import (
    inspect_request,
    parse_json,
    picture_of,
    read_body,
    segment_request,
    semantic_request,
)
from service.http.schema import EmbedIn, EmbedTimings, SegmentIn, SegmentTimings
from service.http.semantic_schema import SemanticIn, SemanticTimings
from service.messages import InputChoice
from service.observability.metrics import EXPOSITION_TYPE, exposition
from service.observability.observer import Observer
from service.pipeline import Pipeline
from service.settings import Settings

Endpoint = Callable[[Request], Awaitable[Response]]

_LOG = logging.getLogger("pomona.http")


def create_app(settings: Settings, observer: Observer | None = None) -> Starlette:
    """The routes of the door, observed; `app.state.pipeline` is None until the models are ready."""
    api = [
        Route("/segment", _guarded(_segment, "/v1/segment"), methods=["POST"]),
        Route("/embed", _guarded(_embed, "/v1/embed"), methods=["POST"]),
        Route("/semantic", _guarded(_semantic, "/v1/semantic"), methods=["POST"]),
        Route("/inspect", _guarded(_inspect, "/v1/inspect"), methods=["POST"]),
        Route("/models", _guarded(_models, "/v1/models"), methods=["GET"]),
    ]
    app = Starlette(
        routes=[
            Mount("/v1", Router(api, redirect_slashes=False)),
            Route("/docs.json", _openapi, methods=["GET"]),
            Route("/metrics", _metrics, methods=["GET"]),
            Route("/", _page, methods=["GET"]),
        ],
        exception_handlers={HTTPException: _http_exception},
    )
    app.state.settings = settings
    app.state.observer = observer or Observer()
    app.state.pipeline = None
    return app


async def _segment(request: Request) -> Response:
    pipeline, settings = _ready(request), _settings(request)
    parts = await read_body(
        request,
        allowed=frozenset({"image", "image_id", "request"}),
        max_bytes=settings.max_upload_bytes,
    )
    body = parse_json(parts.request, SegmentIn)
    if any(prompt.mask is not None for prompt in body.prompts):
        asked = await asyncio.to_thread(segment_request, parts, body, max_pixels=settings.max_pixels)
    else:
        asked = segment_request(parts, body, max_pixels=settings.max_pixels)
    _note_model(request, pipeline, body.model, "sam")
    when = when_of(request.headers, request.state.arrived)
    answer = await while_connected(request, pipeline.segment(replace(asked, when=when)))
    request.state.log |= {
        "prompts": len(asked.prompts),
        "degraded": answer.degraded,
        "timing_ms": answers.timings_ms(answer.timings, SegmentTimings),
    }
    return answers.segmented(answer, request.state.request_id)


async def _embed(request: Request) -> Response:
    pipeline, settings = _ready(request), _settings(request)
    parts = await read_body(request, allowed=frozenset({"image", "request"}), max_bytes=settings.max_upload_bytes)
    body = parse_json(parts.request, EmbedIn)
    data = picture_of(parts)
    _note_model(request, pipeline, body.model, "sam")
    choice = InputChoice(body.input_size, body.padding)
    when = when_of(request.headers, request.state.arrived)
    answer = await while_connected(request, pipeline.embed(data, body.model, choice, when))
    request.state.log["timing_ms"] = answers.timings_ms(answer.timings, EmbedTimings)
    return answers.embedded(answer, request.state.request_id)


async def _semantic(request: Request) -> Response:
    pipeline, settings = _ready(request), _settings(request)
    parts = await read_body(request, allowed=frozenset({"image", "request"}), max_bytes=settings.max_upload_bytes)
    body = parse_json(parts.request, SemanticIn)
    asked = semantic_request(parts, body)
    _note_model(request, pipeline, body.model, "unet")
    when = when_of(request.headers, request.state.arrived)
    answer = await while_connected(request, pipeline.semantic(replace(asked, when=when)))
    request.state.log |= {
        "objects": len(answer.objects),
        "timing_ms": answers.timings_ms(answer.timings, SemanticTimings),
    }
    return answers.classified(answer, request.state.request_id)


async def _inspect(request: Request) -> Response:
    pipeline, settings = _ready(request), _settings(request)
    parts = await read_body(request, allowed=frozenset({"image", "request"}), max_bytes=settings.max_upload_bytes)
    body = parse_json(parts.request, InspectIn)
    asked = inspect_request(parts, body)
    _note_model(request, pipeline, body.model, "unet")
    request.state.log |= body.model_dump(include={"frame_id", "trigger_id"}, exclude_none=True)
    when = when_of(request.headers, request.state.arrived)
    answer = await while_connected(request, pipeline.inspect(replace(asked, when=when)))
    request.state.log |= {
        "fruits": len(answer.fruits),
        "mode": answer.mode,
        "degraded": answer.degraded,
        "timing_ms": answers.timings_ms(answer.timings, InspectTimings),
    }
    return answers.inspected(answer, request.state.request_id)


async def _models(request: Request) -> Response:
    pipeline = _ready(request)
    return answers.models(pipeline.runners, pipeline.catalogue)


async def _openapi(request: Request) -> Response:
    return JSONResponse(openapi(_settings(request)))


async def _metrics(request: Request) -> Response:  # noqa: ARG001 (an endpoint's signature)
    return Response(await asyncio.to_thread(exposition), media_type=EXPOSITION_TYPE)


async def _page(request: Request) -> Response:  # noqa: ARG001 (an endpoint's signature)
    return HTMLResponse(PAGE)


def _guarded(endpoint: Endpoint, endpoint_name: str) -> Endpoint:
    """Give a request its id, its time limit, its problem where it fails, and its line in the log."""

    async def guarded(request: Request) -> Response:
        started = time.monotonic()
        request.state.arrived = started
        request_id = request_id_of(request.headers.get("x-request-id", ""))
        request.state.request_id = request_id
        request.state.log = {}
        response: Response | None = None
        observer: Observer = request.app.state.observer
        observer.began(endpoint_name)
        try:
            limit = _settings(request).request_timeout_s
            response = await _answer(endpoint, request, limit)
            response.headers["x-request-id"] = request_id
            return response
        finally:
            status = response.status_code if response else CLIENT_CLOSED
            seconds = time.monotonic() - started
            observer.requested(endpoint_name, request.state.log.get("model", ""), outcome_of(status), seconds)
            if "code" in request.state.log:
                observer.refused(request.state.log["code"])
            line = {
                "request_id": request_id,
                "method": request.method,
                "path": request.url.path,
                "status": status,
                "ms": round(seconds * 1000, 2),
            }
            _LOG.info("request", extra=line | request.state.log)

    return guarded


async def _answer(endpoint: Endpoint, request: Request, limit: float) -> Response:
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
    return answers.problem(refusal, request_id)


async def _http_exception(request: Request, error: Exception) -> Response:
    """What Starlette refuses by itself: a path that is not there, a method that a path does not take."""
    headers = (isinstance(error, HTTPException) and error.headers) or {}

    async def refuse(request: Request) -> Response:
        if "Allow" in headers:
            raise MethodNotAllowed(f"{request.method} is not taken here; {headers['Allow']} would be right.")
        raise NotFound(f"There is nothing at {request.url.path}; the API is described at /.")

    response = await _guarded(refuse, "other")(request)
    response.headers.update(headers)
    return response


def _note_model(request: Request, pipeline: Pipeline, asked: str | None, family: Family) -> None:
    """For the log and the metrics, also where no answer comes; a name that is not loaded is left out."""
    name = pipeline.default(family) if asked is None else asked
    if name in pipeline.runners:
        request.state.log["model"] = name


def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


def _ready(request: Request) -> Pipeline:
    pipeline: Pipeline | None = request.app.state.pipeline
    if pipeline is None:
        raise NotReady("Models are still loading; /readyz tells when they are ready.")
    return pipeline
