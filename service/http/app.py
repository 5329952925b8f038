"""The ASGI application: routes, operations, errors as problems (RFC 9457)."""

from __future__ import annotations

import asyncio
import base64
import functools
import importlib.resources
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel

from service.api import openapi
from service.api.context import RequestContext, deadline_of, request_id_of, urgency_of
from service.api.handler import CLIENT_CLOSED, CallerLeft, Ending, Refusal, RequestHandler
from service.api.operations import OPERATIONS, Operation
from service.api.parsing import parse_json
from service.api.schema import Problem
from service.errors import MethodNotAllowed, NotFound, NotReady
from service.http.body import Parts, read_body
from service.http.messages import HttpRequest, HttpResponse, Receive, Scope, Send
from service.memory import MemoryBudget
from service.observability.metrics import EXPOSITION_TYPE, exposition
from service.observability.observer import Observer
from service.observability.tracing import Tracing
from service.pipelines import Pipelines
from service.pipelines.source import encoded
from service.settings import Settings

Endpoint = Callable[[HttpRequest], Awaitable[HttpResponse]]
ProblemResponse = Callable[[Refusal, str], HttpResponse]
"""How an error is answered: the refusal and the request's id."""

_LOG = logging.getLogger("pomona.http")
_MAX_LOGGED_PATH: Final = 200
_PARTS: Final[Mapping[str, frozenset[str]]] = {
    "required": frozenset({"image", "request"}),
    "or_id": frozenset({"image", "image_id", "request"}),
}

_ASSETS: Final[Mapping[str, str]] = {
    "swagger-ui.css": "text/css",
    "index.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui-standalone-preset.js": "text/javascript",
    "swagger-initializer.js": "text/javascript",
}
"""Files of the page and their types."""

# Swagger UI as BentoML ships it, without the tracker of BentoML's own page: a factory floor has no internet.
_PAGE: Final = b"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Pomona</title>
<link rel="stylesheet" href="./static_content/swagger-ui.css">
<link rel="stylesheet" href="./static_content/index.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="./static_content/swagger-ui-bundle.js"></script>
<script src="./static_content/swagger-ui-standalone-preset.js"></script>
<script src="./static_content/swagger-initializer.js"></script>
</body>
</html>
"""


def problem_response(refusal: Refusal, request_id: str) -> HttpResponse:
    """Return an error as problem+json, with the request's id."""
    kind = refusal.problem
    problem = Problem.model_construct(
        type=f"urn:pomona:problem:{kind.code}",
        title=kind.title,
        status=kind.status,
        detail=refusal.detail,
        code=kind.code,
        request_id=request_id,
    )
    body = problem.model_dump_json().encode()
    return HttpResponse(body, kind.status, "application/problem+json", refusal_headers(refusal))


def refusal_headers(refusal: Refusal) -> dict[str, str]:
    """Return the headers of an error, whatever its body."""
    headers: dict[str, str] = {}
    if refusal.retry_after is not None:
        headers["retry-after"] = str(refusal.retry_after)
    if refusal.problem.status == 413:
        headers["connection"] = "close"  # the rest of the body is not read
    return headers


@dataclass(frozen=True, slots=True)
class Route:
    """What answers a path.

    Attributes:
        name: label of metrics, and name of spans: the path without parameters.
        endpoint: answers.
        methods: it allows.
        problem: how its errors are answered.
    """

    name: str
    endpoint: Endpoint
    methods: tuple[str, ...] = ("GET", "HEAD")
    problem: ProblemResponse = problem_response


Router = Callable[[str], "Route | None"]
"""Finds the route of a path."""


class HttpApp:
    """The application; answers that the models are loading until `pipelines` is set.

    Args:
        settings: limits.
        observer: receives what is measured.
        tracing: begins a trace per request.
        memory: what all requests may hold.
    """

    def __init__(
        self,
        settings: Settings,
        observer: Observer | None = None,
        tracing: Tracing | None = None,
        memory: MemoryBudget | None = None,
    ) -> None:
        self.settings = settings
        self.pipelines: Pipelines | None = None
        self._memory = memory or MemoryBudget()
        self._observer = observer or Observer()
        self._handler = RequestHandler(self._observer, tracing or Tracing(), settings.request_timeout_s)
        self._routes = {operation.path: self._operation(operation) for operation in OPERATIONS}
        self._unhandled: dict[str, Callable[[], Awaitable[HttpResponse]]] = {
            "/": self._page,
            "/docs.json": self._openapi,
            "/metrics": self._metrics,
            **{f"/static_content/{name}": functools.partial(self._asset, name) for name in _ASSETS},
        }
        self._routers: dict[str, tuple[Router, ProblemResponse]] = {}
        self._described: list[openapi.DescribePaths] = []

    def mount(self, prefix: str, router: Router, problem: ProblemResponse, described: openapi.DescribePaths) -> None:
        """Add another protocol under a prefix, such as `/v2`.

        Args:
            prefix: of its paths.
            router: finds their routes.
            problem: how its errors are answered.
            described: describes them for OpenAPI.
        """
        self._routers[prefix] = (router, problem)
        self._described.append(described)

    def ready(self) -> Pipelines:
        """Return the pipelines.

        Raises:
            NotReady: the models are still loading.
        """
        if self.pipelines is None:
            raise NotReady("The models are still loading; /readyz says when they are ready.")
        return self.pipelines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request (ASGI)."""
        if scope["type"] != "http":
            raise RuntimeError(f"ASGI scopes must be http, got {scope['type']}")
        path: str = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
        method: str = scope["method"]
        if method in ("GET", "HEAD") and path in self._unhandled:
            await (await self._unhandled[path]()).send(send)
            return
        clock = time.monotonic if self.pipelines is None else self.pipelines.engine.clock
        now = clock()
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        route = self._route(path, method)
        context = RequestContext(
            endpoint=route.name,
            request_id=request_id_of(headers.get("x-request-id", "")),
            received=now,
            arrived=now,
            clock=clock,
            observer=self._observer,
            memory=self._memory,
        )
        request = HttpRequest(method, path, headers, scope.get("query_string", b""), receive, context)
        response = await self._answer(route, request)
        if response is None:
            # The caller left. BentoML's middleware waits for an answer to begin, for a minute and a half, also when the
            # server stops; uvicorn drops it.
            await send({"type": "http.response.start", "status": CLIENT_CLOSED, "headers": []})
            return
        response.headers["x-request-id"] = context.request_id
        if context.trace is not None:
            response.headers.update(context.trace.headers)
        await response.send(send, self._memory)

    async def _answer(self, route: Route, request: HttpRequest) -> HttpResponse | None:
        context = request.context

        def fields(ending: Ending) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
            line = {"method": request.method, "path": request.path[:_MAX_LOGGED_PATH], "status": ending.status}
            attributes = {
                "http.request.method": request.method,
                "http.route": route.name,
                "http.response.status_code": ending.status,
            }
            return line, attributes

        try:
            return await self._handler.handle(
                context,
                lambda: route.endpoint(request),
                span=f"{request.method} {route.name}",
                headers=request.headers,
                logger=_LOG,
                fields=fields,
            )
        except Refusal as refusal:
            return route.problem(refusal, context.request_id)
        except CallerLeft:
            return None

    def _route(self, path: str, method: str) -> Route:
        route = self._routes.get(path)
        problem: ProblemResponse = problem_response
        if route is None:
            for prefix, (router, other) in self._routers.items():
                if path == prefix or path.startswith(f"{prefix}/"):
                    route, problem = router(path), other
        if path in self._unhandled:
            route = Route(path, _never, ("GET", "HEAD"))
        if route is None:
            return Route("other", _refusing(NotFound(f"There is no path {path}; / describes the API.")), (), problem)
        if method not in route.methods:
            allowed = ", ".join(route.methods)
            error = MethodNotAllowed(f"{path} allows {allowed}, got {method}.")

            def refuse(refusal: Refusal, request_id: str) -> HttpResponse:
                response = problem(refusal, request_id)
                response.headers["allow"] = allowed
                return response

            return Route("other", _refusing(error), (), refuse)
        return route

    def _operation(self, operation: Operation) -> Route:
        async def answer(request: HttpRequest) -> HttpResponse:
            pipelines, context = self.ready(), request.context
            context.deadline = deadline_of(request.headers, context.received)
            context.urgency = urgency_of(request.headers)
            parts = Parts()
            if operation.image != "none":
                parts = await read_body(request, _PARTS[operation.image], self.settings.max_upload_bytes)
            asked = parse_json(parts.request, operation.request, self.settings.max_values)
            context.arrived = context.clock()
            image = encoded(parts.image, parts.image_id)
            del parts
            work = operation.answer(pipelines, asked, image, context)
            found = await (work if operation.image == "none" else request.while_connected(work))
            return HttpResponse(_dumped(found))

        methods = ("GET", "HEAD") if operation.image == "none" else ("POST",)
        return Route(operation.path, answer, methods)

    async def _page(self) -> HttpResponse:
        return HttpResponse(_PAGE, media_type="text/html; charset=utf-8")

    async def _asset(self, name: str) -> HttpResponse:
        file = importlib.resources.files("bentoml._internal.server") / "static_content" / name
        return HttpResponse(await asyncio.to_thread(file.read_bytes), media_type=_ASSETS[name])

    async def _openapi(self) -> HttpResponse:
        return HttpResponse(json.dumps(openapi.describe(self.settings, self._described)).encode())

    async def _metrics(self) -> HttpResponse:
        return HttpResponse(await asyncio.to_thread(exposition), media_type=EXPOSITION_TYPE)


def _dumped(answer: BaseModel) -> list[bytes]:
    """Return an answer as JSON, in parts: a large overlay is never copied into the text around it."""
    overlay: bytes | None = getattr(answer, "overlay", None)
    if overlay is None:
        return [answer.__pydantic_serializer__.to_json(answer, by_alias=True)]
    rest = answer.model_copy(update={"overlay": b""})
    text: bytes = rest.__pydantic_serializer__.to_json(rest, by_alias=True)
    # In no string of the JSON can this occur: there quotes are escaped.
    before, mark, after = text.partition(b'"overlay":""')
    return [before, mark[:-1], base64.b64encode(overlay), mark[-1:], after]


def _refusing(error: Exception) -> Endpoint:
    async def refuse(request: HttpRequest) -> HttpResponse:  # noqa: ARG001
        raise error

    return refuse


async def _never(request: HttpRequest) -> HttpResponse:
    raise RuntimeError(f"{request.path} is answered before routing")
