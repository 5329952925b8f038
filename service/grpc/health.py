"""The standard health service, which follows readiness; and how the standard services refuse what they cannot read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

_Response = health_pb2.HealthCheckResponse
_Context = grpc.aio.ServicerContext[Any, Any]

SERVICE_NAME: Final = "grpc.health.v1.Health"

_STANDARD: Final = (f"/{SERVICE_NAME}/", f"/{reflection.SERVICE_NAME}/")
_UNREADABLE: Final = object()


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


class ReadableRequests(grpc.aio.ServerInterceptor):
    """Answers INVALID_ARGUMENT to bytes that are not a message of a standard service; grpcio answers INTERNAL."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Return the handler of one call."""
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith(_STANDARD):
            return handler
        deserialize = handler.request_deserializer

        def read(raw: bytes) -> Any:
            try:
                return deserialize(raw)
            except DecodeError:
                return _UNREADABLE

        async def unary(request: Any, context: _Context) -> Any:
            await _check(request, context)
            return await handler.unary_unary(request, context)

        async def answers(request: Any, context: _Context) -> AsyncIterator[Any]:
            await _check(request, context)
            async for answer in handler.unary_stream(request, context):
                yield answer

        async def stream(requests: AsyncIterator[Any], context: _Context) -> AsyncIterator[Any]:
            async def readable() -> AsyncIterator[Any]:
                async for request in requests:
                    await _check(request, context)
                    yield request

            async for answer in handler.stream_stream(readable(), context):
                yield answer

        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(unary, read, handler.response_serializer)
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(answers, read, handler.response_serializer)
        return grpc.stream_stream_rpc_method_handler(stream, read, handler.response_serializer)


async def _check(request: Any, context: _Context) -> None:
    if request is _UNREADABLE:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "The message must be of the method's type.")
