"""The interceptor that every call of ours passes: its id, its limits, its line in the log, its status if it fails."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final, TypeAlias

import grpc
from google.protobuf.message import DecodeError, Message

from service.callers import Refusal
from service.errors import MalformedRequest, NotFound
from service.grpc.attempts import Attempts
from service.grpc.calls import Call
from service.grpc.status import refuse

_STANDARD: Final = "/grpc."
_LONGEST_NAME: Final = 200
_Context = grpc.aio.ServicerContext[Any, Any]
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"  # no generic class where the code runs


class Guard(grpc.aio.ServerInterceptor):
    """See the module. Health and reflection are let through: they are asked often and say nothing of fruit.

    Args:
        attempts: counts, times and limits what is called; the frames of a stream instead of the stream.
    """

    def __init__(self, attempts: Attempts) -> None:
        self._attempts = attempts

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler:
        """The handler that is to answer, guarded."""
        arrived = time.monotonic()
        path = handler_call_details.method
        handler: Any = await continuation(handler_call_details)  # its types are those of the threaded server
        if path.startswith(_STANDARD) and handler is not None:
            standard: _Handler = handler
            return standard
        pairs = handler_call_details.invocation_metadata or ()
        metadata = {name: value for name, value in pairs if isinstance(value, str)}

        def call_of(context: _Context, path: str = path) -> Call:
            call = Call.of(path, metadata, arrived, context.time_remaining())
            call.make_current()
            context.set_trailing_metadata(call.echo)
            return call

        if handler is None:
            return self._refusing(call_of, path)
        if handler.unary_unary is not None:
            return self._unary(handler, call_of)
        return self._stream(handler, call_of)

    def _unary(self, handler: Any, call_of: Callable[[_Context], Call]) -> _Handler:
        async def answer(raw: bytes, context: _Context) -> Message:
            call = call_of(context)

            async def work() -> Message:
                context.set_trailing_metadata(call.echo)  # by now with the trace context of the call's own span
                reply: Message = await handler.unary_unary(_parsed(handler, raw), context)
                return reply

            try:
                return await self._attempts.make(call, work)
            except Refusal as refusal:
                await refuse(context, refusal, call)

        return grpc.unary_unary_rpc_method_handler(answer, None, handler.response_serializer)

    def _stream(self, handler: Any, call_of: Callable[[_Context], Call]) -> _Handler:
        async def answer(_: AsyncIterator[bytes], context: _Context) -> None:
            call = call_of(context)

            async def work() -> None:
                requests = _Messages(handler, context)
                # Closed here and now where the caller leaves, and not when the garbage is collected.
                async with aclosing(handler.stream_stream(requests, context)) as replies:
                    async for reply in replies:
                        await context.write(reply)

            try:
                await self._attempts.host(call, work)
            except Refusal as refusal:
                await refuse(context, refusal, call)

        return grpc.stream_stream_rpc_method_handler(answer, None, handler.response_serializer)

    def _refusing(self, call_of: Callable[[_Context, str], Call], path: str) -> _Handler:
        async def answer(_: AsyncIterator[bytes], context: _Context) -> None:
            async def work() -> None:
                raise NotFound(f"There is no method {path}.")

            call = call_of(context, "other")  # for the metrics, which count no names that callers make up
            call.facts["method"] = path[:_LONGEST_NAME]
            try:
                await self._attempts.make(call, work)
            except Refusal as refusal:
                await refuse(context, refusal, call)

        return grpc.stream_stream_rpc_method_handler(answer)


class _Messages(AsyncIterator[Message]):
    """The messages of a stream, read one by one: the iterator of the library does not like to be left half-way."""

    def __init__(self, handler: Any, context: _Context) -> None:
        self._handler = handler
        self._context = context

    async def __anext__(self) -> Message:
        raw: Any = await self._context.read()
        if raw is grpc.aio.EOF:
            raise StopAsyncIteration
        return _parsed(self._handler, raw)


def _parsed(handler: Any, raw: bytes) -> Message:
    parse = handler.request_deserializer
    try:
        message: Message = parse(raw)
    except DecodeError as error:
        raise MalformedRequest("The message is not of the type that the method takes.") from error
    return message
