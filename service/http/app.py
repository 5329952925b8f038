"""The HTTP door: its routes."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route, Router

from service.errors import MethodNotAllowed, NotFound
from service.http import answers, inference
from service.http.guard import guarded, note_model, ready, settings_of
from service.http.headers import when_of
from service.http.inspect_schema import InspectIn, InspectTimings
from service.http.openapi import PAGE, openapi
from service.http.presence import while_connected
from service.http.reading import (
    image_of,
    inspect_request,
    parse_json,
    read_body,
    segment_request,
    semantic_request,
)
from service.http.schema import EmbedIn, EmbedTimings, SegmentIn, SegmentTimings
from service.http.semantic_schema import SemanticIn, SemanticTimings
from service.messages import InputChoice
from service.observability.metrics import EXPOSITION_TYPE, exposition
from service.observability.observer import Observer
from service.observability.tracing import Tracing
from service.settings import Settings


def create_app(settings: Settings, observer: Observer | None = None, tracing: Tracing | None = None) -> Starlette:
    """The routes of the door, observed and traced; `app.state.pipeline` is None until the models are ready."""
    api = [
        Route("/segment", guarded(_segment, "/v1/segment"), methods=["POST"]),
        Route("/embed", guarded(_embed, "/v1/embed"), methods=["POST"]),
        Route("/semantic", guarded(_semantic, "/v1/semantic"), methods=["POST"]),
        Route("/inspect", guarded(_inspect, "/v1/inspect"), methods=["POST"]),
        Route("/models", guarded(_models, "/v1/models"), methods=["GET"]),
    ]
    app = Starlette(
        routes=[
            Mount("/v1", Router(api, redirect_slashes=False)),
            *inference.routes(),
            Route("/docs.json", _openapi, methods=["GET"]),
            Route("/metrics", _metrics, methods=["GET"]),
            Route("/", _page, methods=["GET"]),
        ],
        exception_handlers={HTTPException: _http_exception},
    )
    app.state.settings = settings
    app.state.observer = observer or Observer()
    app.state.tracing = tracing or Tracing()
    app.state.pipeline = None
    return app


async def _segment(request: Request) -> Response:
    pipeline, settings = ready(request), settings_of(request)
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
    note_model(request, pipeline, body.model, "sam")
    when = when_of(request.headers, request.state.arrived)
    answer = await while_connected(request, pipeline.segment(replace(asked, when=when)))
    request.state.log |= {
        "prompts": len(asked.prompts),
        "degraded": answer.degraded,
        "timing_ms": answers.timings_ms(answer.timings, SegmentTimings),
    }
    return answers.segmented(answer, request.state.request_id)


async def _embed(request: Request) -> Response:
    pipeline, settings = ready(request), settings_of(request)
    parts = await read_body(request, allowed=frozenset({"image", "request"}), max_bytes=settings.max_upload_bytes)
    body = parse_json(parts.request, EmbedIn)
    data = image_of(parts)
    note_model(request, pipeline, body.model, "sam")
    choice = InputChoice(body.input_size, body.padding)
    when = when_of(request.headers, request.state.arrived)
    answer = await while_connected(request, pipeline.embed(data, body.model, choice, when))
    request.state.log["timing_ms"] = answers.timings_ms(answer.timings, EmbedTimings)
    return answers.embedded(answer, request.state.request_id)


async def _semantic(request: Request) -> Response:
    pipeline, settings = ready(request), settings_of(request)
    parts = await read_body(request, allowed=frozenset({"image", "request"}), max_bytes=settings.max_upload_bytes)
    body = parse_json(parts.request, SemanticIn)
    asked = semantic_request(parts, body)
    note_model(request, pipeline, body.model, "unet")
    when = when_of(request.headers, request.state.arrived)
    answer = await while_connected(request, pipeline.semantic(replace(asked, when=when)))
    request.state.log |= {
        "objects": len(answer.objects),
        "timing_ms": answers.timings_ms(answer.timings, SemanticTimings),
    }
    return answers.classified(answer, request.state.request_id)


async def _inspect(request: Request) -> Response:
    pipeline, settings = ready(request), settings_of(request)
    parts = await read_body(request, allowed=frozenset({"image", "request"}), max_bytes=settings.max_upload_bytes)
    body = parse_json(parts.request, InspectIn)
    asked = inspect_request(parts, body)
    note_model(request, pipeline, body.model, "unet")
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
    pipeline = ready(request)
    return answers.models(pipeline.runners, pipeline.catalogue)


async def _openapi(request: Request) -> Response:
    return JSONResponse(openapi(settings_of(request)))


async def _metrics(request: Request) -> Response:  # noqa: ARG001 (an endpoint's signature)
    return Response(await asyncio.to_thread(exposition), media_type=EXPOSITION_TYPE)


async def _page(request: Request) -> Response:  # noqa: ARG001 (an endpoint's signature)
    return HTMLResponse(PAGE)


async def _http_exception(request: Request, error: Exception) -> Response:
    """What Starlette refuses by itself: a path that is not there, a method that a path does not take."""
    headers = (isinstance(error, HTTPException) and error.headers) or {}

    async def refuse(request: Request) -> Response:
        if "Allow" in headers:
            raise MethodNotAllowed(f"{request.method} is not taken here; {headers['Allow']} would be right.")
        raise NotFound(f"There is nothing at {request.url.path}; the API is described at /.")

    told = inference.error if request.url.path.startswith(inference.PREFIX) else answers.problem
    response = await guarded(refuse, "other", told)(request)
    response.headers.update(headers)
    return response
