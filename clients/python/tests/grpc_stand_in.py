"""A gRPC service that is not there, on a real socket: it answers what a test says."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2
from stand_in import INSPECTED, MODELS, SEGMENTED

from pomona._proto import segmentation_pb2 as pb

PATIENCE_S: Final = 10.0

_SAM: Final = pb.SamModel(name="mobile-sam", revision="6dbb", input_size=1024, padding=pb.PADDING_NONE)
_IMAGE: Final = pb.Image(id="6ae3", width=16, height=8)


def _rle(counts: str) -> pb.EncodedMask:
    return pb.EncodedMask(rle=pb.RleMask(height=8, width=16, counts=counts.encode()))


INSPECTED_MESSAGE: Final = pb.InspectResponse(
    request_id=INSPECTED["request_id"],
    image=_IMAGE,
    unet=pb.UnetModel(name="my-unet", revision="0f5c", input_width=448, input_height=224),
    fruits=[
        pb.Fruit(
            id=1,
            box=pb.PixelBox(x0=2, y0=1, x1=6, y1=6),
            area=20,
            mask=_rle("a05300000_2"),
            infected_mask=_rle("k0170e2"),
            infected_fraction=0.1,
            pixel_class=pb.PIXEL_CLASS_INFECTED,
            confidence=0.98,
            grade="B",
        )
    ],
    mode=pb.INSPECT_MODE_FAST,
    frame=pb.Frame(),
    batch=pb.Batch(infer=1),
    timing=pb.Timing(decode_ms=1, queue_ms=1, infer_ms=18, postprocess_ms=2, total_ms=22.4),
)
SEGMENTED_MESSAGE: Final = pb.SegmentResponse(
    request_id=SEGMENTED["request_id"],
    image=_IMAGE,
    model=_SAM,
    results=[
        pb.PromptResult(
            masks=[
                pb.ScoredMask(
                    mask=_rle("a05300000_2"),
                    score=0.9,
                    stability_score=0.95,
                    box=pb.PixelBox(x0=2, y0=1, x1=6, y1=6),
                    area=20,
                )
            ]
        )
    ],
    batch=pb.Batch(encode=1, prompt=1),
    timing=pb.Timing(decode_ms=1, queue_ms=1, encode_ms=400, prompt_ms=30, postprocess_ms=2, total_ms=434),
)
MODELS_MESSAGE: Final = pb.ListModelsResponse(
    models=[
        pb.Model(**{name: value for name, value in model.items() if name != "family"}, family=pb.MODEL_FAMILY_SAM)
        for model in MODELS["models"]
    ]
)
ANSWERS: Final[Mapping[str, Any]] = {
    "Inspect": INSPECTED_MESSAGE,
    "Segment": SEGMENTED_MESSAGE,
    "ListModels": MODELS_MESSAGE,
    "Embed": pb.EmbedResponse(request_id="e", image=_IMAGE, model=_SAM),
}
_REQUESTS: Final[Mapping[str, Any]] = {
    "Inspect": pb.InspectRequest,
    "Segment": pb.SegmentRequest,
    "ListModels": pb.ListModelsRequest,
    "Embed": pb.EmbedRequest,
    "Semantic": pb.SemanticRequest,
    "InspectStream": pb.InspectStreamRequest,
    "SegmentStream": pb.SegmentStreamRequest,
}


@dataclass(frozen=True)
class Got:
    """A call as it came in; `left` are the seconds of its gRPC deadline."""

    method: str
    message: Any
    metadata: dict[str, str]
    left: float


@dataclass
class Told(Exception):
    """Ends a call with a status, with details where there is a code."""

    status: grpc.StatusCode
    words: str = "no luck"
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
        status = status_pb2.Status(code=self.status.value[0], message=self.words)
        for detail in details:
            packed = AnyMessage()
            packed.Pack(detail)
            status.details.append(packed)
        return (("grpc-status-details-bin", status.SerializeToString()),)


@dataclass
class Frames:
    """One camera's stream as it came in: its settings, and its frames as far as they were read."""

    settings: pb.StreamSettings
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
        """Read until a frame is there, and tell its number: threads send frames in an order of their own."""
        while frame_id not in self.numbers:
            message = self.next()
            self.numbers[message.request.frame.frame_id] = self.read
        return self.numbers[frame_id]

    def rest(self) -> Iterator[Any]:
        for message in self.messages:
            self.read += 1
            yield message

    def reply(self, number: int, **fields: Any) -> pb.InspectStreamResponse:
        if not fields:
            fields = {"outcome": pb.FRAME_OUTCOME_ANSWERED, "response": INSPECTED_MESSAGE}
        return pb.InspectStreamResponse(request_id=f"{self.request_id}.{number}", **fields)


@dataclass
class GrpcStandIn:
    """Attributes: where it answers; what came in; how it answers calls and streams; whether a call was cancelled."""

    address: str
    server: grpc.Server
    got: list[Got] = field(default_factory=list)
    streams: list[Frames] = field(default_factory=list)
    answer: Callable[[Got], Any] = lambda got: ANSWERS[got.method]
    stream: Callable[[Frames], Iterator[Any]] = lambda frames: (
        frames.reply(number) for number, _ in enumerate(frames.rest(), start=1)
    )
    cancelled: threading.Event = field(default_factory=threading.Event)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def always(self, told: Exception) -> None:
        """End every call like this."""

        def refuse(got: Got) -> Any:
            raise told

        self.answer = refuse

    def wait_for(self, done: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(done, PATIENCE_S)


class _Handler(grpc.GenericRpcHandler):
    stand_in: GrpcStandIn

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        name = handler_call_details.method.rpartition("/")[2]
        if name not in _REQUESTS or not handler_call_details.method.startswith("/pomona.v1.Segmentation/"):
            return None
        metadata = {key: str(value) for key, value in handler_call_details.invocation_metadata or ()}

        def unary(message: Any, context: grpc.ServicerContext) -> bytes:
            got = Got(name, message, metadata, context.time_remaining())
            with self.stand_in.changed:
                self.stand_in.got.append(got)
                self.stand_in.changed.notify_all()
            context.add_callback(self.stand_in.cancelled.set)
            try:
                answer = self.stand_in.answer(got)
            except Told as told:
                context.set_trailing_metadata(told.trailing())
                context.abort(told.status, told.words)
            return answer if isinstance(answer, bytes) else answer.SerializeToString()

        def streamed(messages: Iterator[Any], context: grpc.ServicerContext) -> Iterator[bytes]:
            frames = Frames(next(messages).settings, metadata, messages)
            context.add_callback(frames.cancelled.set)
            with self.stand_in.changed:
                self.stand_in.streams.append(frames)
                self.stand_in.changed.notify_all()
            try:
                for reply in self.stand_in.stream(frames):
                    yield reply if isinstance(reply, bytes) else reply.SerializeToString()
            except Told as told:
                context.set_trailing_metadata(told.trailing())
                context.abort(told.status, told.words)

        read = _REQUESTS[name].FromString
        if name.endswith("Stream"):
            return grpc.stream_stream_rpc_method_handler(streamed, request_deserializer=read)
        return grpc.unary_unary_rpc_method_handler(unary, request_deserializer=read)


@contextmanager
def grpc_standing_in(
    credentials: grpc.ServerCredentials | None = None, largest: int = 1 << 20
) -> Iterator[GrpcStandIn]:
    """A service on a free port, until the block ends, that takes messages of so many bytes."""
    handler = _Handler()
    pool = ThreadPoolExecutor(16)
    server = grpc.server(pool, [handler], options=[("grpc.max_receive_message_length", largest)])
    where = "127.0.0.1:0"
    port = server.add_insecure_port(where) if credentials is None else server.add_secure_port(where, credentials)
    scheme = "grpc" if credentials is None else "grpcs"
    handler.stand_in = GrpcStandIn(f"{scheme}://localhost:{port}", server)
    server.start()
    try:
        yield handler.stand_in
    finally:
        server.stop(None).wait()
        pool.shutdown()
