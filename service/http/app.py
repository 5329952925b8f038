"""The ASGI application: routes, operations, errors as problems (RFC 9457)."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel

from service.access import Scope as KeyScope
from service.api import openapi
from service.api.context import RequestContext, deadline_of, request_id_of, urgency_of
from service.api.drain import Drain
from service.api.handler import CLIENT_CLOSED, CallerLeft, Ending, Refusal, RequestHandler, refusal_of
from service.api.operations import OPERATIONS, Operation
from service.api.parsing import parse_json
from service.api.schema import Problem
from service.errors import MethodNotAllowed, NotFound, NotReady, Overloaded, RequestError
from service.http.body import Parts, read_body, read_json
from service.http.messages import HttpRequest, HttpResponse, Receive, Scope, Send
from service.http.page import load_files
from service.memory import MemoryBudget
from service.observability.metrics import EXPOSITION_TYPE, exposition
from service.pipelines import Pipelines
from service.pipelines.source import encoded
from service.settings import Settings

Endpoint = Callable[[HttpRequest], Awaitable[HttpResponse]]
ProblemResponse = Callable[[Refusal, str], HttpResponse]
"""How an error is answered: the refusal and the request's id."""

_LOG = logging.getLogger("pomona.http")
_MAX_LOGGED_PATH: Final = 200
_METRICS: Final = "/metrics"
_MAX_JSON: Final = 64 * 1024
"""Bytes of a request without an image."""
_READ: Final = ("GET", "HEAD")
_PARTS: Final[Mapping[str, frozenset[str]]] = {
    "required": frozenset({"image", "request"}),
    "or_id": frozenset({"image", "image_id", "request"}),
}


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
    if refusal.problem.status == 401:
        headers["www-authenticate"] = 'Bearer realm="pomona"'
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
        needs: scope that a caller's API key must have; None where everybody is answered.
    """

    name: str
    endpoint: Endpoint
    methods: tuple[str, ...] = _READ
    problem: ProblemResponse = problem_response
    needs: KeyScope | None = "infer"


PROBES_ONLY: Final = "pomona.probes_only"
"""Is in the ASGI scope of a request that may be a probe only: `full` if its connection is one beyond the limit, `admin`
if it came to the port for probes."""

Router = Callable[[str], "Route | None"]
"""Finds the route of a path."""


class HttpApp:
    """The application; answers that the models are loading until `pipelines` is set.

    Args:
        settings: limits.
        handler: handles requests.
        memory: what all requests may hold.

    Attributes:
        failed: whether the server cannot start, so that the process should be replaced.
        probes: what platforms ask, by path: connections that are kept for them, and `admin_port`, answer nothing else.
    """

    def __init__(self, settings: Settings, handler: RequestHandler, memory: MemoryBudget | None = None) -> None:
        self.settings = settings
        self.pipelines: Pipelines | None = None
        self.failed = False
        self._memory = memory or MemoryBudget()
        self.handler = handler
        self.probes: dict[str, Callable[[], Awaitable[HttpResponse]]] = {
            "/livez": self._livez,
            "/healthz": self._livez,
            "/readyz": self._readyz,
            _METRICS: self._metrics,
        }
        self._routes = {operation.path: self._operation(operation) for operation in OPERATIONS}
        self._unhandled: dict[str, Callable[[], Awaitable[HttpResponse]]] = {
            "/docs.json": self._openapi,
            **self.probes,
        }
        self._files = load_files()
        self._routers: dict[str, tuple[Router, ProblemResponse]] = {}
        self._described: list[openapi.DescribePaths] = []
        self._description = b""

    @property
    def drain(self) -> Drain:
        """Of the server."""
        return self.handler.drain

    @property
    def serving(self) -> Pipelines | None:
        """The pipelines while new requests are taken, else None."""
        return None if self.drain.stopping else self.pipelines

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
            NotReady: the models are still loading, or the server is stopping.
        """
        self.drain.check()
        if self.pipelines is None:
            raise NotReady("The models are still loading; /readyz says when they are ready.")
        return self.pipelines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request (ASGI)."""
        if scope["type"] != "http":
            raise RuntimeError(f"ASGI scopes must be http, got {scope['type']}")
        path: str = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
        method: str = scope["method"]
        restricted: str | None = scope.get(PROBES_ONLY)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if method in _READ and restricted is None and path in self._files:
            await self._files[path].answer(headers).send(send)
            return
        answered = self._unhandled if restricted is None else self.probes
        if method in _READ and path in answered and (restricted == "admin" or self._shows(path, headers)):
            await (await self._unhandled[path]()).send(send)
            return
        clock = time.monotonic if self.pipelines is None else self.pipelines.engine.clock
        now = clock()
        route = self._route(path, method) if restricted is None else _RESTRICTED[restricted]
        context = RequestContext(
            endpoint=route.name,
            request_id=request_id_of(headers.get("x-request-id", "")),
            needs=route.needs,
            received=now,
            arrived=now,
            clock=clock,
            observer=self.handler.observer,
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
            return await self.handler.handle(
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
        if path in self._unhandled or path in self._files:
            route = Route(path, _never, needs="admin" if path == _METRICS else None)
        if route is None:
            shown = path if len(path) <= _MAX_LOGGED_PATH else f"{path[:_MAX_LOGGED_PATH]}…"
            return Route(
                "other", _refusing(NotFound(f"There is no path {shown}; /docs describes the API.")), (), problem
            )
        if method not in route.methods:
            allowed = ", ".join(route.methods)
            error = MethodNotAllowed(f"{path} allows {allowed}, got {method}.")

            def refuse(refusal: Refusal, request_id: str) -> HttpResponse:
                response = problem(refusal, request_id)
                response.headers["allow"] = allowed
                return response

            return Route("other", _refusing(error), (), refuse, route.needs)
        return route

    def _operation(self, operation: Operation) -> Route:
        async def answer(request: HttpRequest) -> HttpResponse:
            pipelines, context = self.ready(), request.context
            context.deadline = deadline_of(request.headers, context.received)
            context.urgency = urgency_of(request.headers)
            parts = Parts()
            if operation.image != "none":
                async with self.drain.uploading():
                    parts = await read_body(request, _PARTS[operation.image], self.settings.max_upload_bytes)
            elif operation.posts:
                async with self.drain.uploading():
                    parts = await read_json(request, min(_MAX_JSON, self.settings.max_upload_bytes))
            asked = parse_json(parts.request, operation.request, self.settings.max_values)
            context.arrived = context.clock()
            image = encoded(parts.image, parts.image_id)
            del parts
            work = operation.answer(pipelines, asked, image, context)
            found = await (work if operation.image == "none" else request.while_connected(work))
            return HttpResponse(_dumped(found))

        methods = ("POST",) if operation.posts else _READ
        return Route(operation.path, answer, methods)

    async def _livez(self) -> HttpResponse:
        if self.failed or (self.pipelines is not None and self.pipelines.engine.broken):
            return _unwell("The server cannot work any more; it must be started again.")
        return _well()

    async def _readyz(self) -> HttpResponse:
        if self.drain.stopping:
            return _unwell("The server is stopping.")
        if self.failed or self.pipelines is None or self.pipelines.engine.broken:
            return _unwell("The models are still loading, or cannot be loaded; the server's log says more.")
        return _well()

    def _shows(self, path: str, headers: Mapping[str, str]) -> bool:
        """Return whether a caller may see a path that is not handled as a request."""
        if path != _METRICS or self.settings.metrics_access == "open":
            return True
        try:
            key = self.handler.access.caller(headers)
            if key is not None:
                self.handler.access.permit(key, "admin")
        except RequestError:
            return False
        return True

    async def _openapi(self) -> HttpResponse:
        if not self._description:  # it takes tens of milliseconds of the event loop
            self._description = json.dumps(openapi.describe(self.settings, self._described)).encode()
        return HttpResponse(self._description)

    async def _metrics(self) -> HttpResponse:
        return HttpResponse(await asyncio.to_thread(exposition), media_type=EXPOSITION_TYPE)


def _well() -> HttpResponse:
    return HttpResponse(b"\n", media_type="text/plain; charset=utf-8")


def _unwell(detail: str) -> HttpResponse:
    request_id = request_id_of("")
    response = problem_response(refusal_of(NotReady(detail)), request_id)
    response.headers["x-request-id"] = request_id
    return response


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


async def _full(request: HttpRequest) -> HttpResponse:  # noqa: ARG001
    raise Overloaded("As many connections as POMONA_MAX_CONNECTIONS allows are in use.", retry_after=1)


async def _admin(request: HttpRequest) -> HttpResponse:  # noqa: ARG001
    raise NotFound("This port answers GET /livez, /readyz and /metrics only.")


_RESTRICTED: Final = {"full": Route("other", _full, needs=None), "admin": Route("other", _admin, needs=None)}
"""What answers all but probes."""


async def _never(request: HttpRequest) -> HttpResponse:
    raise RuntimeError(f"{request.path} is answered before routing")
