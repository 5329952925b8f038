"""The standard health service, which follows readiness."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_Response = health_pb2.HealthCheckResponse
_Context = grpc.aio.ServicerContext[Any, Any]

SERVICE_NAME: Final = "grpc.health.v1.Health"


class Health(health_pb2_grpc.HealthServicer):
    """`Check` and `Watch`. Watchers are released when the server stops: grpcio's own servicer would hold it up.

    Args:
        services: full names of the services, which all become ready together; the empty name is the server's.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._services = frozenset(services) | {""}
        self._serving = False
        self._ended = False
        self._changed = asyncio.Event()

    def serve(self) -> None:
        """Report that the models are ready."""
        self._change(serving=True)

    def end(self) -> None:
        """Report that the server stops."""
        self._ended = True
        self._change(serving=False)

    async def Check(self, request: health_pb2.HealthCheckRequest, context: _Context) -> _Response:  # noqa: N802
        """Return whether a service is ready; NOT_FOUND for an unknown one."""
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"There is no service {request.service!r}.")
        return _Response(status=self._status(request.service))

    async def Watch(  # noqa: N802 (the protocol's names)
        self,
        request: health_pb2.HealthCheckRequest,
        context: _Context,  # noqa: ARG002
    ) -> AsyncGenerator[_Response, None]:
        """Return the same, and again whenever it changes; by the protocol an unknown service may become known."""
        while True:
            changed = self._changed
            yield _Response(status=self._status(request.service))
            if self._ended:
                return
            await changed.wait()

    def _status(self, service: str) -> Any:
        if service not in self._services:
            return _Response.SERVICE_UNKNOWN
        return _Response.SERVING if self._serving else _Response.NOT_SERVING

    def _change(self, *, serving: bool) -> None:
        self._serving = serving
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
