"""`/label-studio` over HTTP: health, setup, predict and webhook."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, TypeVar

import httpx
from pydantic import BaseModel

from models.errors import ImageError, PromptError
from service.api.context import LEAST_URGENT, RequestContext
from service.api.openapi import EVERYBODY, Described
from service.api.operations import OPERATIONS
from service.api.schema import InspectRequest
from service.errors import MalformedRequest, NotReady, RequestError
from service.http.app import HttpApp, Route, problem_response
from service.http.messages import HttpRequest, HttpResponse
from service.label_studio.config import LabelConfig
from service.label_studio.images import LabelStudio, TaskImages
from service.label_studio.predictions import Drawn, inspected, model_version, segmented, tags_for
from service.label_studio.protocol import PredictBody, SetupBody, Task, parse
from service.memory import Kind
from service.pipelines import Pipelines, costs
from service.pipelines.source import encoded

PREFIX: Final = "/label-studio"

_LONG: Final = 64 * 1024
"""Bytes of JSON that take a noticeable part of a millisecond."""

_VALUE_BYTES: Final = 80
"""Of a value of JSON while it is parsed: drafts of brush masks are long lists of numbers."""

_COPIES: Final = 2
"""How often an image is held while it is fetched: in pieces and joined."""

_BY_NAME: Final = {operation.name: operation for operation in OPERATIONS}

B = TypeVar("B", bound=BaseModel)


def mount(app: HttpApp, transport: httpx.AsyncBaseTransport | None = None) -> None:
    """Add `/label-studio` to the application, where the settings name a Label Studio.

    Args:
        app: the application.
        transport: reaches Label Studio; None for the network.
    """
    settings = app.settings
    url, token = settings.label_studio_url, settings.label_studio_token
    if url is None or token is None:
        return
    studio = LabelStudio(url, token.get_secret_value())
    images = TaskImages(studio, settings.max_upload_bytes, transport=transport)
    app.mount(PREFIX, _Endpoints(app, images).route, problem_response, describe)


def describe(codes: Mapping[int, list[str]]) -> Described:  # noqa: ARG001 (the signature of further protocols)
    """Describe the paths for OpenAPI: that they are there, for what they take and return is Label Studio's to say."""
    answer = {"responses": {"200": {"description": "As Label Studio's protocol for models has it."}}}
    body = {"requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}}
    posts = {
        "setup": "Check a project's labelling configuration",
        "predict": "Regions for clicks and boxes, or for whole images",
        "webhook": "Accepts what happens in a project, and ignores it",
    }
    tags = {"tags": ["Label Studio"]}
    health = {"get": {"summary": "Whether the models are loaded", **tags, **answer, **EVERYBODY}}
    return {
        f"{PREFIX}/health": health,
        **{f"{PREFIX}/{name}": {"post": {"summary": what, **tags, **body, **answer}} for name, what in posts.items()},
    }, ()


@dataclass(frozen=True, slots=True)
class _Endpoints:
    app: HttpApp
    images: TaskImages

    def route(self, path: str) -> Route | None:
        """Find what answers a path."""
        if path == f"{PREFIX}/health":
            return Route(path, self._health, needs=None)
        posts = {"setup": self._setup, "predict": self._predict, "webhook": self._webhook}
        endpoint = posts.get(path.removeprefix(f"{PREFIX}/"))
        return None if endpoint is None else Route(path, endpoint, ("POST",))

    async def _health(self, request: HttpRequest) -> HttpResponse:  # noqa: ARG002 (an endpoint's signature)
        if self.app.serving is None:
            raise NotReady("The models are still loading, or the server is stopping.")
        return _json({"status": "UP", "model_class": "Pomona"})

    async def _setup(self, request: HttpRequest) -> HttpResponse:
        pipelines = self.app.ready()
        body = await self._read(request, SetupBody)
        LabelConfig.parse(body.label_config)
        return _json({"model_version": model_version(pipelines)})

    async def _webhook(self, request: HttpRequest) -> HttpResponse:
        await self._body(request)
        return _json({"status": "ignored"})

    async def _predict(self, request: HttpRequest) -> HttpResponse:
        pipelines = self.app.ready()
        body = await self._read(request, PredictBody)
        request.context.arrived = request.context.clock()
        return await request.while_connected(self._predicted(pipelines, body, request))

    async def _predicted(self, pipelines: Pipelines, body: PredictBody, request: HttpRequest) -> HttpResponse:
        config, drawn = LabelConfig.parse(body.label_config), None
        if (shown := body.params.context) is not None and shown.result:
            drawn = Drawn.of(shown.result)
            if len(body.tasks) > 1:
                raise MalformedRequest(f"With clicks or boxes there must be one task, got {len(body.tasks)}.")
        else:
            request.context.urgency = LEAST_URGENT  # no person waits for it, and lines go first
        pipelines = replace(pipelines, inspect=pipelines.inspect.unwatched())
        results = []
        for task in body.tasks:
            try:
                results.append(await self._predict_task(pipelines, task, config, drawn, request.context))
            except (RequestError, ImageError, PromptError) as error:
                raise type(error)(f"Task {task.id}: {error.detail}") from error
        answer = b'{"results":[' + b",".join(results) + b"]}"
        request.context.count_answer(len(answer))
        return HttpResponse(answer)

    async def _predict_task(
        self, pipelines: Pipelines, task: Task, config: LabelConfig, drawn: Drawn | None, context: RequestContext
    ) -> bytes:
        """Return the prediction for a task as JSON."""
        engine, tags = pipelines.engine, tags_for(config, drawn)
        reference = task.data.get(config.image_key(tags.to_name))
        async with AsyncExitStack() as stack:
            async with self.images.turns:
                held = await stack.enter_async_context(context.hold(Kind.INPUT, _COPIES * self.images.max_bytes))
                data = await self.images.fetch(reference)
                held.shrink(len(data))
            image = encoded(data)
            size = await engine.size(image.required())
            answer: Any
            if drawn is None:
                answer = await _BY_NAME["inspect"].answer(pipelines, InspectRequest(), image, context)
                convert = partial(inspected, answer, tags)
            else:
                answer = await _BY_NAME["segment"].answer(pipelines, drawn.request(size), image, context)
                convert = partial(segmented, answer, tags, drawn.label)
            async with context.hold(Kind.WORK, costs.encoding_classes(size, overlay=False)):
                return await engine.in_worker(_prediction, convert, model_version(pipelines))

    async def _read(self, request: HttpRequest, model: type[B]) -> B:
        """Read and parse a body; what it took is given back, as little of it is kept."""
        raw = await self._body(request)
        if len(raw) <= _LONG:
            parsed = parse(raw, model)
        else:
            cost = len(raw) + _VALUE_BYTES * (raw.count(b",") + raw.count(b"{"))
            async with request.context.hold(Kind.WORK, cost):
                parsed = await asyncio.to_thread(parse, raw, model)
        del raw
        request.context.release()
        return parsed

    async def _body(self, request: HttpRequest) -> bytes:
        async with self.app.drain.uploading():
            return await request.body(self.app.settings.max_upload_bytes)


def _prediction(convert: Callable[[], tuple[list[dict[str, Any]], float]], version: str) -> bytes:
    """Return a prediction as JSON; for a worker thread."""
    regions, score = convert()
    return json.dumps({"result": regions, "score": score, "model_version": version}).encode()


def _json(content: Mapping[str, Any]) -> HttpResponse:
    return HttpResponse(json.dumps(content).encode())
