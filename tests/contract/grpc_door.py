"""gRPC as callers see it: a real server on a port of its own, over the pipelines of HTTP's tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from service.access import Access
from service.errors import PROBLEMS
from service.grpc.server import GrpcServer
from service.memory import MemoryBudget
from service.observability.observer import Observer
from service.observability.tracing import Tracing
from service.oip import grpc as oip_grpc
from service.proto.generated.pomona.v1 import segmentation_pb2 as pb
from service.proto.generated.pomona.v1.segmentation_pb2_grpc import SegmentationStub
from tests.contract.door import BOX, Door, open_door
from tests.contract.messages import to_message
from tests.contract.scenes import IMAGE
from tests.fakes import PATIENCE_S, make_settings

_ANY_SIZE: Final = (("grpc.max_receive_message_length", -1),)


@dataclass
class Caller:
    """A caller's channel and stub, the server, and the door of HTTP over the same pipelines.

    Without types, as what is read from a stream may also be its end.
    """

    channel: Any
    stub: Any
    server: GrpcServer
    door: Door
    port: int

    async def segment(self, data: bytes = IMAGE, *prompts: Mapping[str, Any], **fields: Any) -> pb.SegmentResponse:
        answer: pb.SegmentResponse = await self.stub.Segment(segment_request(data, *prompts, **fields))
        return answer

    def start(self, call: Awaitable[Any]) -> asyncio.Task[Any]:
        async def done() -> Any:
            return await call

        return asyncio.create_task(done())


def segment_request(data: bytes = IMAGE, *prompts: Mapping[str, Any], **fields: Any) -> Any:
    """The message of prompts, by default of a box, on an image."""
    return to_message("SegmentRequest", {"prompts": prompts or [BOX], **fields}, image=data)


@asynccontextmanager
async def open_grpc(
    *,
    ready: bool = True,
    observer: Observer | None = None,
    tracing: Tracing | None = None,
    access: Access | None = None,
    memory: MemoryBudget | None = None,
    **settings: Any,
) -> AsyncIterator[Caller]:
    """Serve HTTP and gRPC over the same pipelines."""
    async with open_door(observer=observer, tracing=tracing, access=access, memory=memory, **settings) as door:
        server = GrpcServer(make_settings(**settings), door.app.handler, memory=memory, others=(oip_grpc.service,))
        port = await server.start("127.0.0.1", 0)
        if ready:
            server.open(door.pipelines)
        else:
            door.app.pipelines = None
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=_ANY_SIZE) as channel:
                yield Caller(channel, SegmentationStub(channel), server, door, port)
        finally:
            door.let_go()
            await server.drain(PATIENCE_S)


@dataclass(frozen=True)
class CallError:
    """An error of a call, in the documented shape."""

    code: str
    status: grpc.StatusCode
    detail: str
    request_id: str
    retry_after_s: int | None


async def refused(call: Any, code: str) -> CallError:
    """Return the error of a call, which must have the documented shape and this code."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = call_error(caught.value)
    assert error.code == code, error
    return error


def call_error(error: grpc.aio.AioRpcError) -> CallError:
    status = rpc_status.from_call(error)  # also checks that it says what the call says
    assert status is not None, error
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(info)
    code = info.metadata["code"]
    row = next(row for row in PROBLEMS.values() if row.code == code)
    assert (info.reason, info.domain, info.metadata["title"]) == (code.upper(), "pomona", row.title), error
    assert error.code() is grpc.StatusCode[row.grpc]
    again = status.details[1:]
    assert len(again) <= 1
    assert all(one.Unpack(retry) for one in again)
    detail, metadata = error.details(), dict(error.trailing_metadata() or ())
    assert detail
    assert metadata["x-request-id"] == info.metadata["request_id"]
    seconds = retry.retry_delay.seconds if again else None
    return CallError(code, error.code(), detail, info.metadata["request_id"], seconds)


async def frames_of(messages: Iterable[Any], until: asyncio.Event | None = None) -> AsyncGenerator[Any, None]:
    """Messages of a stream, which stays open until the event."""
    for message in messages:
        yield message
    if until is not None:
        await until.wait()


def only(answer: pb.SegmentResponse) -> pb.ScoredMask:
    assert [len(result.masks) for result in answer.results] == [1]
    return answer.results[0].masks[0]


def corners(box: pb.PixelBox) -> tuple[int, int, int, int]:
    return box.x0, box.y0, box.x1, box.y1
