"""`/v2`, the Open Inference Protocol: requests in, the pipeline, answers out."""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route, Router

from service.callers import Refusal
from service.errors import MalformedRequest
from service.http import tensors
from service.http.answers import headers_of, timings_ms
from service.http.guard import Endpoint, guarded, note_model, ready, settings_of
from service.http.headers import when_of
from service.http.presence import while_connected
from service.http.reading import limited
from service.http.schema import SegmentTimings
from service.http.semantic_schema import SemanticTimings
from service.oip import models
from service.oip.asking import wanted
from service.oip.inference import infer
from service.pipeline import Pipeline

PREFIX: Final = "/v2"
CODE: Final = "x-pomona-code"
"""Header of an error: the code that a problem of `/v1` has."""

_MODEL: Final = "/models/{model}"
_LONG: Final = 64 * 1024
"""Bytes of JSON that take a noticeable part of a millisecond."""


def routes() -> list[BaseRoute]:
    """What is under `/v2`."""
    of_a_model = [
        route
        for model in (_MODEL, f"{_MODEL}/versions/{{version}}")
        for route in (
            _route(model, _metadata, "GET", _MODEL),
            _route(f"{model}/ready", _model_ready, "GET", f"{_MODEL}/ready"),
            _route(f"{model}/infer", _infer, "POST", f"{_MODEL}/infer"),
        )
    ]
    health = [_route("/health/live", _live, "GET"), _route("/health/ready", _ready, "GET")]
    server = guarded(_server, PREFIX, error)
    return [
        Route(PREFIX, server, methods=["GET"]),
        Mount(PREFIX, Router([Route("/", server, methods=["GET"]), *health, *of_a_model], redirect_slashes=False)),
    ]


def error(refusal: Refusal, request_id: str) -> Response:  # noqa: ARG001 (the guard tells the id)
    """An error as the protocol has it."""
    headers = {CODE: refusal.problem.code, **headers_of(refusal)}
    return JSONResponse({"error": refusal.detail}, refusal.problem.status, headers)


def _route(path: str, endpoint: Endpoint, method: str, name: str | None = None) -> Route:
    """A route whose name in the metrics is without versions."""
    return Route(path, guarded(endpoint, PREFIX + (name or path), error), methods=[method])


async def _live(request: Request) -> Response:
    live = models.is_live(request.app.state.pipeline)
    return JSONResponse({"live": live}, 200 if live else 503)


async def _ready(request: Request) -> Response:
    there = models.all_ready(request.app.state.pipeline)
    return JSONResponse({"ready": there}, 200 if there else 503)


async def _model_ready(request: Request) -> Response:
    name, version = _named(request)
    pipeline: Pipeline | None = request.app.state.pipeline
    there = models.is_ready(pipeline, name, version)
    return JSONResponse({"name": name, "ready": there}, 200 if there else 503)


async def _server(request: Request) -> Response:  # noqa: ARG001 (an endpoint's signature)
    return JSONResponse({"name": models.SERVER_NAME, "version": models.SERVER_VERSION, "extensions": models.EXTENSIONS})


async def _metadata(request: Request) -> Response:
    return tensors.metadata(models.metadata(ready(request), *_named(request)))


async def _infer(request: Request) -> Response:
    pipeline, (name, version) = ready(request), _named(request)
    model = models.find(pipeline, name, version)
    family = model.architecture.family
    note_model(request, pipeline, name, family)
    raw = await _read(request)
    length = tensors.json_length(request.headers.get(tensors.JSON_LENGTH), len(raw))
    body = tensors.read(raw, length) if length <= _LONG else await asyncio.to_thread(tensors.read, raw, length)
    headers, arrived = request.headers, request.state.arrived
    work = infer(pipeline, model, body.asked, lambda: wanted(body.asked.parameters, when_of(headers, arrived), arrived))
    answer = await while_connected(request, work)
    timings = timings_ms(answer.timings, SegmentTimings if family == "sam" else SemanticTimings)
    request.state.log |= {**answer.facts, "timing_ms": timings}
    return await asyncio.to_thread(tensors.inferred, answer, body)


async def _read(request: Request) -> bytes:
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise MalformedRequest(f"The body is encoded as {encoding!r}; send it as it is.")
    return b"".join([chunk async for chunk in limited(request, settings_of(request).max_upload_bytes)])


def _named(request: Request) -> tuple[str, str]:
    """The model and its version, which is empty where the path has none."""
    return request.path_params["model"], request.path_params.get("version", "")
