"""gRPC's standard services, health and reflection: grpcio's own, but for messages that cannot be decoded.

grpcio ends such a call with UNKNOWN and the name of a Python class, as if the server had failed.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from typing import Any, NoReturn, TypeAlias

import grpc
from google.protobuf.message import DecodeError

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class StandardServices(grpc.GenericRpcHandler):
    """Collects services as a server does, and serves them."""

    def __init__(self) -> None:
        self._methods: dict[str, _Handler] = {}

    def add_generic_rpc_handlers(self, handlers: tuple[grpc.GenericRpcHandler, ...]) -> None:
        """Take nothing of what is registered by name as well."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, _Handler]) -> None:
        """Take the methods of a service by their names, as generated code gives them."""
        for name, handler in handlers.items():
            self._methods[f"/{service}/{name}"] = _checked(handler)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> _Handler | None:
        """Return the handler of one call, if it is of these services."""
        return self._methods.get(handler_call_details.method)


def _checked(handler: Any) -> _Handler:
    """Return the same handler, which refuses messages that cannot be decoded."""
    decode, encode = handler.request_deserializer, handler.response_serializer
    if handler.unary_unary is not None:

        async def unary(raw: bytes, context: _Context) -> Any:
            return await handler.unary_unary(await _decoded(raw, decode, context), context)

        return grpc.unary_unary_rpc_method_handler(unary, None, encode)
    if handler.unary_stream is not None:

        async def stream(raw: bytes, context: _Context) -> AsyncGenerator[Any, None]:
            async for reply in handler.unary_stream(await _decoded(raw, decode, context), context):
                yield reply

        return grpc.unary_stream_rpc_method_handler(stream, None, encode)

    async def streams(raws: AsyncIterator[bytes], context: _Context) -> AsyncGenerator[Any, None]:
        async def messages() -> AsyncGenerator[Any, None]:
            async for raw in raws:
                yield await _decoded(raw, decode, context)

        async for reply in handler.stream_stream(messages(), context):
            yield reply

    return grpc.stream_stream_rpc_method_handler(streams, None, encode)


async def _decoded(raw: bytes, decode: Callable[[bytes], Any], context: _Context) -> Any:
    try:
        return decode(raw)
    except DecodeError:
        await _refuse(context)


async def _refuse(context: _Context) -> NoReturn:
    """End the call.

    Raises:
        grpc.aio.AbortError: always.
    """
    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "The message must be of the method's type.")
