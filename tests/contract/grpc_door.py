"""The gRPC door as callers see it: a real server on a port of its own, over the pipeline of the HTTP door's tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from service.errors import PROBLEMS
from service.grpc.server import GrpcServer
from service.observability.observer import Observer
from service.observability.tracing import Tracing
from service.oip import grpc as oip_grpc
from service.proto.generated.pomona.v1 import segmentation_pb2 as pb
from service.proto.generated.pomona.v1.segmentation_pb2_grpc import SegmentationStub
from tests.contract.door import Door, open_door
from tests.fakes import PATIENCE_S, image_bytes, make_settings, peel_image

IMAGE: Final = image_bytes()
PEEL: Final = peel_image()
POINT: Final = pb.Prompt(points=[pb.Point(x=64, y=48)])
BOX: Final = pb.Prompt(box=pb.Box(x0=32, y0=16, x1=64, y1=48), multimask=False)

_ANY_SIZE: Final = (("grpc.max_receive_message_length", -1),)


@dataclass
class Caller:
    """A caller's channel and stub, the server, and the door of HTTP over the same pipeline.

    What is read from a stream may be its end as well, which no test wants to hear of every time: hence no types.
    """

    channel: Any
    stub: Any
    server: GrpcServer
    door: Door
    port: int

    async def segment(self, data: bytes = IMAGE, *prompts: pb.Prompt, **fields: Any) -> pb.SegmentResponse:
        answer: pb.SegmentResponse = await self.stub.Segment(
            pb.SegmentRequest(image=data, prompts=prompts or [BOX], **fields)
        )
        return answer

    def start(self, call: Awaitable[Any]) -> asyncio.Task[Any]:
        async def done() -> Any:
            return await call

        return asyncio.create_task(done())

    async def hold(self) -> asyncio.Task[Any]:
        """Keep the SAM's device busy with an image until it is let go."""
        return await self.door.hold()

    async def hold_unet(self) -> asyncio.Task[Any]:
        """Keep the U-Net's device busy with an image until it is let go."""
        return await self.door.hold_unet()


@asynccontextmanager
async def open_grpc(
    *, ready: bool = True, observer: Observer | None = None, tracing: Tracing | None = None, **settings: Any
) -> AsyncIterator[Caller]:
    async with open_door(**settings) as door:
        server = GrpcServer(make_settings(**settings), observer, tracing, others=(oip_grpc.service,))
        port = await server.start("127.0.0.1", 0)
        if ready:
            server.open(door.pipelines)
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=_ANY_SIZE) as channel:
                yield Caller(channel, SegmentationStub(channel), server, door, port)
        finally:
            door.let_go()
            await server.drain(PATIENCE_S)


@dataclass(frozen=True)
class Told:
    """What a caller is told of an error."""

    status: grpc.StatusCode
    detail: str
    request_id: str
    retry_after_s: int | None


async def refused(call: Any, code: str) -> Told:
    """The error of a call, in the documented shape and of this code."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return told(caught.value, code)


def told(error: grpc.aio.AioRpcError, code: str) -> Told:
    row = next(row for row in PROBLEMS.values() if row.code == code)
    status = rpc_status.from_call(error)  # also checks that it says what the call says
    assert status is not None, error
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain) == (code.upper(), "pomona"), error
    assert (info.metadata["code"], info.metadata["title"]) == (code, row.title)
    assert error.code() is grpc.StatusCode[row.grpc]
    detail = error.details()
    assert detail
    again = status.details[1:]
    assert len(again) <= 1
    assert all(one.Unpack(retry) for one in again)
    metadata = dict(error.trailing_metadata() or ())
    assert metadata["x-request-id"] == info.metadata["request_id"]
    return Told(error.code(), detail, info.metadata["request_id"], retry.retry_delay.seconds if again else None)


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
