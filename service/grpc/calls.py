"""Calls: their metadata, their messages, and how they are refused; generic handlers for whole services."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn, TypeAlias

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from service.access import Scope
from service.api.context import LEAST_URGENT, RequestContext, deadline_of, deadline_seconds, request_id_of, urgency_of
from service.api.drain import Drain
from service.api.handler import Ending, Refusal, RequestHandler
from service.errors import MalformedRequest, NotFound, NotReady, RequestError
from service.grpc.structure import count_fields
from service.memory import Holding, Kind, MemoryBudget
from service.observability.tracing import context_of
from service.pipelines import Pipelines
from service.settings import Settings

DOMAIN: Final = "pomona"

_LOG = logging.getLogger("pomona.grpc")
_DETAILS: Final = "grpc-status-details-bin"
_MAX_LOGGED_PATH: Final = 200

_OWN_BYTES: Final = 64 * 1024
_COPIES: Final = 3
"""How often a message is held: as it came, parsed, and the image of it."""

_FIELD_BYTES: Final = 8
"""Of an element of a packed list in a parsed message."""

ServicerContext: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"


@dataclass(slots=True)
class Door:
    """What all services share.

    Attributes:
        settings: limits.
        handler: handles calls and frames.
        memory: what all requests may hold.
        pipelines: None until the models are loaded.
    """

    settings: Settings
    handler: RequestHandler = field(default_factory=RequestHandler)
    memory: MemoryBudget = field(default_factory=MemoryBudget)
    pipelines: Pipelines | None = None

    @property
    def drain(self) -> Drain:
        """Of the server."""
        return self.handler.drain

    @property
    def serving(self) -> Pipelines | None:
        """The pipelines while new calls are taken, else None."""
        return None if self.drain.stopping else self.pipelines

    def ready(self) -> Pipelines:
        """Return the pipelines.

        Raises:
            NotReady: the models are still loading, or the server is stopping.
        """
        self.drain.check()
        if self.pipelines is None:
            raise NotReady("The models are still loading; the health service says when they are ready.")
        return self.pipelines

    def count_fields(self, method: Method, raw: bytes) -> int:
        """Count the fields of a message before it is parsed.

        Raises:
            TooManyPrompts, MalformedRequest: see `service.grpc.structure`.
        """
        most = method.max_fields or self.settings.max_values
        return count_fields(raw, method.request.DESCRIPTOR, most)  # type: ignore[arg-type]

    @property
    def clock(self) -> Callable[[], float]:
        """Seconds, monotonic."""
        return time.monotonic if self.pipelines is None else self.pipelines.engine.clock


@dataclass(frozen=True, slots=True)
class Call:
    """A call, unary or a stream.

    Attributes:
        door: what all services share.
        path: service and method.
        metadata: without what is binary.
        context: of the call itself; frames of a stream have their own.
        expires: the call's own deadline, seconds on the clock, or None.
        servicer: grpcio's context.
    """

    door: Door
    path: str
    metadata: Mapping[str, str]
    context: RequestContext
    expires: float | None
    servicer: ServicerContext

    def frame(self, number: int) -> RequestContext:
        """Return the context of a frame of this stream that arrived just now."""
        now = self.door.clock()
        return RequestContext(
            endpoint=self.path,
            request_id=f"{self.context.request_id}.{number}",
            received=now,
            arrived=now,
            clock=self.door.clock,
            observer=self.door.handler.observer,
            memory=self.door.memory,
        )

    def set_deadline(
        self, context: RequestContext, *, deadline_ms: float | None = None, urgency: int | None = None
    ) -> None:
        """Set deadline and urgency of a context, of which the earliest deadline counts.

        Args:
            context: of this call, or of a frame.
            deadline_ms: of a frame, from its arrival; as in the metadata where None.
            urgency: of a frame; as in the metadata where None.

        Raises:
            MalformedRequest: a deadline or an urgency is out of range.
        """
        if deadline_ms is None:
            wanted = deadline_of(self.metadata, context.received)
        else:
            wanted = context.received + deadline_seconds(deadline_ms, "deadline_ms", deadline_ms)
        if urgency is None:
            urgency = urgency_of(self.metadata)
        elif urgency > LEAST_URGENT:
            raise MalformedRequest(f"urgency must be 0, the most urgent, to {LEAST_URGENT}, got {urgency}.")
        context.urgency = urgency
        context.deadline = min((limit for limit in (wanted, self.expires) if limit is not None), default=None)

    async def handle(self, context: RequestContext, work: Callable[[], Awaitable[Any]]) -> Any:
        """Handle the call, or a frame; see `RequestHandler.handle`."""
        return await self.door.handler.handle(
            context, work, span=self.path.removeprefix("/"), headers=self.metadata, logger=_LOG, fields=self.fields
        )

    def fields(self, ending: Ending) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Return the fields of the log line and the attributes of the span."""
        attributes = {
            "rpc.system.name": "grpc",
            "rpc.method": self.path[1:],
            "rpc.response.status_code": ending.grpc,
        }
        return {"path": self.context.endpoint, "grpc_status": ending.grpc}, attributes

    def echo(self) -> tuple[tuple[str, str], ...]:
        """Return the metadata that go back: the request's id and its trace context."""
        trace = self.context.trace
        headers = context_of(self.metadata) if trace is None else trace.headers
        return (("x-request-id", self.context.request_id), *headers.items())

    async def refuse(self, refusal: Refusal) -> NoReturn:
        """End the call with the status of a refusal, with details as of `google.rpc.Status`.

        These are an `ErrorInfo`, whose reason is the code in capitals, as that message wants it, and whose metadata
        hold code, title and request id as HTTP's problem has them, and a `RetryInfo` where that is known.

        Raises:
            grpc.aio.AbortError: always, or
            asyncio.CancelledError: where the call has ended meanwhile.
        """
        problem = refusal.problem
        code = grpc.StatusCode[problem.grpc]
        number: int = code.value[0]
        details: list[Message] = [
            error_details_pb2.ErrorInfo(
                reason=problem.code.upper(),
                domain=DOMAIN,
                metadata={"code": problem.code, "title": problem.title, "request_id": self.context.request_id},
            )
        ]
        if refusal.retry_after is not None:
            details.append(error_details_pb2.RetryInfo(retry_delay=Duration(seconds=refusal.retry_after)))
        status = status_pb2.Status(code=number, message=refusal.detail)
        for detail in details:
            packed = AnyMessage()
            packed.Pack(detail)
            status.details.append(packed)
        trailing = ((_DETAILS, status.SerializeToString()), *self.echo())
        try:
            await self.servicer.abort(code, refusal.detail, trailing)
        except grpc.aio.InternalError:  # the call ended first: its own deadline passed at the caller too
            raise asyncio.CancelledError from None


UnaryMethod = Callable[[Any, Call], Awaitable[Message]]
"""Answers a message."""

StreamMethod = Callable[["Messages", Call], AsyncIterator[Message]]
"""Answers messages as they come."""


@dataclass(frozen=True, slots=True)
class Method:
    """A method of a service.

    Attributes:
        request: its message.
        answer: answers a message, or
        stream: answers a stream of them.
        needs: scope that a caller's API key must have; None where everybody is answered.
        max_fields: in a message, see `service.grpc.structure`; None for as many as a request has in JSON.
    """

    request: type[Message]
    answer: UnaryMethod | None = None
    stream: StreamMethod | None = None
    needs: Scope | None = "infer"
    max_fields: int | None = None


class Services(grpc.GenericRpcHandler):
    """Answers the methods of our services, and refuses all others but the standard ones of health and reflection.

    Those are served by grpcio's own servicers, which must be added before: they are called often and are not logged.

    Args:
        door: what all services share.
        methods: by path.
    """

    def __init__(self, door: Door, methods: Mapping[str, Method]) -> None:
        self._door = door
        self._methods = methods

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler:
        """Return the handler of one call."""
        path: str = handler_call_details.method
        received = self._door.clock()
        pairs = handler_call_details.invocation_metadata or ()
        metadata = {name: value for name, value in pairs if isinstance(value, str)}
        method = self._methods.get(path)

        def call_of(servicer: ServicerContext, endpoint: str = path) -> Call:
            clock = self._door.clock
            now = clock()
            context = RequestContext(
                endpoint=endpoint,
                request_id=request_id_of(metadata.get("x-request-id", "")),
                needs="infer" if method is None else method.needs,
                received=received,
                arrived=now,
                clock=clock,
                observer=self._door.handler.observer,
                memory=self._door.memory,
            )
            remaining = servicer.time_remaining()
            expires = None if remaining is None else now + remaining
            context.deadline = expires
            return Call(self._door, path[:_MAX_LOGGED_PATH], metadata, context, expires, servicer)

        if method is None:
            return self._unread(call_of, "other", path)  # metrics count no names that callers make up
        if not self._lets_in(method, metadata):
            return self._unread(call_of, path, path)
        if method.answer is not None:
            return self._unary(method, method.answer, call_of)
        if method.stream is not None:
            return self._stream(method, method.stream, call_of)
        return None

    def _unary(self, method: Method, answer: UnaryMethod, call_of: Callable[[ServicerContext], Call]) -> Handler:
        # As a stream of one message, which is then read once there is memory for it, and not before the call begins.
        async def handle(_: AsyncIterator[bytes], servicer: ServicerContext) -> None:
            call = call_of(servicer)

            async def work() -> bytes:
                servicer.set_trailing_metadata(call.echo())
                message = await self._only(method, call)
                return (await answer(message, call)).SerializeToString()

            try:
                await servicer.write(await call.handle(call.context, work))
            except Refusal as refusal:
                await call.refuse(refusal)

        return grpc.stream_stream_rpc_method_handler(handle)

    async def _only(self, method: Method, call: Call) -> Message:
        """Read the message of a unary call, which may be of any size up to the limit until it is there."""
        context, door = call.context, self._door
        async with context.hold(Kind.READING, door.settings.max_upload_bytes):
            raw: Any = await call.servicer.read()
            if raw is grpc.aio.EOF:
                raise MalformedRequest("A call must have a message.")
            fields = door.count_fields(method, raw)
            await context.keep(Kind.INPUT, size_of(raw, fields))
            return _parsed(method.request, raw)

    def _stream(self, method: Method, answer: StreamMethod, call_of: Callable[[ServicerContext], Call]) -> Handler:
        async def handle(_: AsyncIterator[bytes], servicer: ServicerContext) -> None:
            call = call_of(servicer)
            servicer.set_trailing_metadata(call.echo())

            async def work() -> None:
                # The message that is being read may be of any size up to the limit, as long as the stream is open.
                async with self._door.memory.place(self._door.settings.max_upload_bytes):
                    messages = Messages(method, call)
                    try:
                        # Closed where the caller leaves, and not when the garbage is collected.
                        async with aclosing(answer(messages, call)) as replies:  # type: ignore[type-var]
                            async for reply in replies:
                                await servicer.write(reply.SerializeToString())
                    finally:
                        messages.release()

            try:
                await self._door.handler.handle_stream(
                    call.context, work, headers=call.metadata, logger=_LOG, fields=call.fields
                )
            except Refusal as refusal:
                await call.refuse(refusal)

        return grpc.stream_stream_rpc_method_handler(handle)

    def _lets_in(self, method: Method, metadata: Mapping[str, str]) -> bool:
        """Return whether the caller may send its message; for what key it is counted is decided with the call."""
        access = self._door.handler.access
        try:
            key = None if method.needs is None else access.caller(metadata)
            if key is not None and method.needs is not None:
                access.permit(key, method.needs)
        except RequestError:
            return False
        return True

    def _unread(self, call_of: Callable[[ServicerContext, str], Call], endpoint: str, path: str) -> Handler:
        """Return the handler of a call that is refused without reading its message."""

        async def handle(_: AsyncIterator[bytes], servicer: ServicerContext) -> None:
            call = call_of(servicer, endpoint)
            if endpoint != path:
                call.context.log["method"] = path[:_MAX_LOGGED_PATH]

            async def work() -> None:
                raise NotFound(f"There is no method {path[:_MAX_LOGGED_PATH]}.")

            try:
                await call.handle(call.context, work)
            except Refusal as refusal:
                await call.refuse(refusal)

        return grpc.stream_stream_rpc_method_handler(handle)


@dataclass(slots=True)
class Received:
    """A message of a stream, and the memory that is held for it until its answer is ready."""

    message: Any
    held: Holding


class Messages(AsyncIterator[Received]):
    """The messages of a stream, read one by one: grpcio's own iterator must not be left half-way.

    No more are read while there is no memory for the last one.
    """

    def __init__(self, method: Method, call: Call) -> None:
        self._method = method
        self._call = call
        self._held: set[Holding] = set()

    async def __anext__(self) -> Received:
        raw: Any = await self._call.servicer.read()
        if raw is grpc.aio.EOF:
            raise StopAsyncIteration
        door = self._call.door
        size = size_of(raw, door.count_fields(self._method, raw))
        held = await door.memory.take(Kind.INPUT, size, urgency=self._call.context.urgency, deadline=math.inf)
        self._held = {other for other in self._held if other.nbytes} | {held}
        return Received(_parsed(self._method.request, raw), held)

    def release(self) -> None:
        """Give back what is held for messages that were never answered: the stream ended."""
        for held in self._held:
            held.release()


def size_of(raw: bytes, fields: int) -> int:
    """Return what a message takes until it is answered."""
    return _OWN_BYTES + _COPIES * len(raw) + _FIELD_BYTES * fields


def _parsed(request: type[Message], raw: bytes) -> Message:
    try:
        return request.FromString(raw)
    except DecodeError as error:
        raise MalformedRequest("The message must be of the method's type.") from error
