"""The service of `stand_in` over gRPC, and streams of frames."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2
from stand_in import INSPECTED, PATIENCE_S, Problem, Received, StandIn

from pomona._proto import segmentation_pb2 as pb
from pomona.grpc_codec import decode, encode

_METHODS: Final = pb.DESCRIPTOR.services_by_name["Segmentation"].methods_by_name
_OPERATIONS: Final = {
    "ListModels": "models",
    "LoadModel": "load",
    "PromoteModel": "promote",
    "UnloadModel": "unload",
    "ReportShadows": "shadow",
}
_LARGEST_MESSAGE: Final = 1 << 20


@dataclass
class Status(Exception):
    """Ends a call or a stream with a status, and with details where there is a code."""

    status: grpc.StatusCode
    details: str = "no luck"
    code: str | None = None
    retry_after: float | None = None
    raw: bytes | None = None

    def trailing(self) -> tuple[tuple[str, bytes], ...]:
        if self.raw is not None:
            return (("grpc-status-details-bin", self.raw),)
        if self.code is None:
            return ()
        details: list[Any] = [
            error_details_pb2.ErrorInfo(reason=self.code, metadata={"code": self.code, "request_id": "r1"})
        ]
        if self.retry_after is not None:
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromMilliseconds(int(1000 * self.retry_after))
            details.append(retry)
        status = status_pb2.Status(code=self.status.value[0], message=self.details)
        for detail in details:
            packed = AnyMessage()
            packed.Pack(detail)
            status.details.append(packed)
        return (("grpc-status-details-bin", status.SerializeToString()),)


@dataclass
class Frames:
    """One stream as the service reads it: its settings, and its frames so far."""

    settings: Any
    metadata: dict[str, str]
    messages: Iterator[Any]
    request_id: str = "s"
    read: int = 0
    numbers: dict[str, int] = field(default_factory=dict)
    cancelled: threading.Event = field(default_factory=threading.Event)

    def next(self) -> Any:
        message = next(self.messages)
        self.read += 1
        return message

    def find(self, frame_id: str) -> int:
        """Read until a frame is there, and return its number: threads send frames in an order of their own."""
        while frame_id not in self.numbers:
            message = self.next()
            self.numbers[message.request.frame_id] = self.read
        return self.numbers[frame_id]

    def rest(self) -> Iterator[Any]:
        for message in self.messages:
            self.read += 1
            yield message

    def reply(self, number: int, **fields: Any) -> Any:
        fields = fields or {"outcome": "answered", "response": INSPECTED}
        return encode({"request_id": f"{self.request_id}.{number}", **fields}, pb.InspectStreamResponse.DESCRIPTOR)


@dataclass
class GrpcStandIn(StandIn):
    """Also: the server; the streams; how it answers a stream."""

    server: Any = None
    streams: list[Frames] = field(default_factory=list)
    stream: Callable[[Frames], Iterator[Any]] = lambda frames: (
        frames.reply(number) for number, _ in enumerate(frames.rest(), start=1)
    )


class _Handler(grpc.GenericRpcHandler):
    service_: GrpcStandIn

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        name = handler_call_details.method.rpartition("/")[2]
        if handler_call_details.method != f"/pomona.v1.Segmentation/{name}" or name not in _METHODS:
            return None
        method, service = _METHODS[name], self.service_
        metadata = {key: str(value) for key, value in handler_call_details.invocation_metadata or ()}

        def end(context: grpc.ServicerContext, status: Status) -> Any:
            context.set_trailing_metadata(status.trailing())
            context.abort(status.status, status.details)

        def unary(message: Any, context: grpc.ServicerContext) -> bytes:
            fields = {key: value for key, value in decode(message).items() if value not in (None, [], False)}
            image, image_id = fields.pop("image", None), fields.pop("image_id", None)
            operation = _OPERATIONS.get(name, name.lower())
            left = context.time_remaining()
            context.add_callback(service.cancelled.set)
            answer = service.receive(Received(operation, fields, metadata, image, image_id, name, left))
            if isinstance(answer, Problem):
                later = None if answer.retry_after is None else float(answer.retry_after)
                answer = Status(grpc.StatusCode.FAILED_PRECONDITION, answer.detail, answer.code, later)
            if isinstance(answer, Status):
                end(context, answer)
            if not isinstance(answer, bytes):
                answer = (
                    encode(answer, method.output_type) if isinstance(answer, dict) else answer
                ).SerializeToString()
            return bytes(answer)

        def streamed(messages: Iterator[Any], context: grpc.ServicerContext) -> Iterator[bytes]:
            frames = Frames(next(messages).settings, metadata, messages)
            context.add_callback(frames.cancelled.set)
            with service.changed:
                service.streams.append(frames)
                service.changed.notify_all()
            try:
                for reply in service.stream(frames):
                    yield reply if isinstance(reply, bytes) else reply.SerializeToString()
            except Status as status:
                end(context, status)

        read = GetMessageClass(method.input_type).FromString
        if name.endswith("Stream"):
            return grpc.stream_stream_rpc_method_handler(streamed, request_deserializer=read)
        return grpc.unary_unary_rpc_method_handler(unary, request_deserializer=read)


@contextmanager
def serve_grpc(credentials: grpc.ServerCredentials | None = None) -> Iterator[GrpcStandIn]:
    """Serve on a free port until the block ends."""
    handler = _Handler()
    pool = ThreadPoolExecutor(16)
    server = grpc.server(pool, [handler], options=[("grpc.max_receive_message_length", _LARGEST_MESSAGE)])
    where = "127.0.0.1:0"
    port = server.add_insecure_port(where) if credentials is None else server.add_secure_port(where, credentials)
    scheme = "grpc" if credentials is None else "grpcs"
    handler.service_ = GrpcStandIn(f"{scheme}://localhost:{port}", server=server)
    server.start()
    try:
        yield handler.service_
    finally:
        server.stop(None).wait()
        pool.shutdown()


__all__ = ["PATIENCE_S", "Frames", "GrpcStandIn", "Status", "serve_grpc"]
