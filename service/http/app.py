"""The HTTP door: routes, request ids, time limit, one log line per request."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route, Router

from models.entries import Family
from models.errors import PomonaError
from service.errors import MethodNotAllowed, NotFound, NotReady, TimedOut, problem_of
from service.http import answers
from service.http.headers import when_of
from service.http.openapi import PAGE, openapi
from service.http.presence import while_connected
from service.http.reading import parse_json, picture_of, read_body, segment_request, semantic_request
from service.http.schema import EmbedIn, EmbedTimings, SegmentIn, SegmentTimings
from service.http.semantic_schema import SemanticIn, SemanticTimings
from service.messages import InputChoice
from service.observability.metrics import EXPOSITION_TYPE, exposition
from service.observability.observer import Observer, Outcome
from service.pipeline import Pipeline
from service.settings import Settings

Endpoint = Callable[[Request], Awaitable[Response]]

_LOG = logging.getLogger("pomona.http")
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_CLIENT_CLOSED: Final = 499  # nginx's status for a caller who left; nobody reads it but the log


def create_app(settings: Settings, observer: Observer | None = None) -> Starlette:
    """The routes of the door, observed; `app.state.pipeline` is None until the models are ready."""
    api = [
        Route("/segment", _guarded(_segment, "/v1/segment"), methods=["POST"]),
        Route("/embed", _guarded(_embed, "/v1/embed"), methods=["POST"]),
        Route("/semantic", _guarded(_semantic, "/v1/semantic"), methods=["POST"]),
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
        request_id = _request_id(request)
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
            status = response.status_code if response else _CLIENT_CLOSED
            seconds = time.monotonic() - started
            observer.requested(endpoint_name, request.state.log.get("model", ""), _outcome(status), seconds)
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
        return Response(status_code=_CLIENT_CLOSED)
    except TimeoutError:
        error = TimedOut(f"No answer within {limit:g} s (POMONA_REQUEST_TIMEOUT_S).")
    except PomonaError as known:
        error = known
    except Exception as unknown:  # noqa: BLE001 (nothing may leak; it is logged with its traceback)
        _LOG.exception("internal error", extra={"request_id": request_id})
        error = PomonaError(type(unknown).__name__)
    row = problem_of(error)
    request.state.log["code"] = row.code
    if row.status == 500:
        if type(error) is not PomonaError:
            _LOG.error("internal error", extra={"request_id": request_id, "detail": error.detail})
        return answers.problem(error, request_id, detail="Something failed on the server; its log has the request id.")
    return answers.problem(error, request_id)


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


def _outcome(status: int) -> Outcome:
    if status < 400:
        return "ok"
    if status == _CLIENT_CLOSED:
        return "gone"
    if status in (429, 504):
        return "shed"
    return "refused" if status < 500 else "failed"


def _request_id(request: Request) -> str:
    """The caller's `X-Request-Id` where it is a plain token, else a new one."""
    asked = request.headers.get("x-request-id", "")
    return asked if _REQUEST_ID.fullmatch(asked) else uuid.uuid4().hex


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
