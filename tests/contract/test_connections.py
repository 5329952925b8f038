"""The service while it stops, as all doors show it, and gRPC connections that callers keep."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Final

import grpc
import pytest
from grpc_health.v1 import health_pb2

from service.proto.generated.pomona.v1 import segmentation_pb2 as pb
from tests.contract.door import BOX, image, problem, prompted
from tests.contract.doors import Request, doors, embed, inspect, oip_doors, refusal_by, segment, semantic
from tests.contract.grpc_door import Caller, open_grpc
from tests.contract.test_lifecycle import NOT_SERVING, SERVICE, SERVING, got, health_of, health_stub
from tests.fakes import PATIENCE_S, image_bytes

REQUESTS: Final = (segment(BOX), embed(), semantic(), inspect())
GARBAGE: Final = b"\xff\xff\xff"


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: request.operation)
async def test_a_server_that_stops_refuses_new_work_at_every_door_and_says_so(request_: Request) -> None:
    async with open_grpc() as caller:
        caller.server.halt()
        for send in (doors(request_) | oip_doors(request_)).values():
            refusal = await refusal_by(send, caller, request_)
            assert refusal.code == "not_ready"
        assert (await caller.door.client.get("/livez")).status_code == 200
        assert problem(await caller.door.client.get("/readyz"), "not_ready").detail == "The server is stopping."
        assert await got(caller, "/v2/health/ready") == (503, {"ready": False})
        assert await health_of(caller) == await health_of(caller, "") == NOT_SERVING


async def test_work_that_was_admitted_is_finished_and_waited_for() -> None:
    async with open_grpc() as caller:
        busy = await caller.door.hold()
        over_http = caller.door.start(image(image_bytes(1)), prompted(BOX))
        await caller.door.runner.images.reach(2)
        caller.server.halt()
        finished = asyncio.create_task(caller.door.app.drain.finished())
        with pytest.raises(grpc.aio.AioRpcError):
            await caller.stub.ListModels(pb.ListModelsRequest())
        assert not finished.done()
        caller.door.let_go()
        assert (await over_http).status_code == 200
        assert await finished
        await busy


async def test_a_batch_that_does_not_end_holds_up_no_stop() -> None:
    async with open_grpc() as caller:
        busy = await caller.door.hold()
        async with asyncio.timeout(PATIENCE_S / 2):
            await caller.door.pipelines.engine.close(0.05)
        busy.cancel()


# Connections.


@pytest.mark.slow
async def test_a_caller_may_ping_every_ten_seconds_without_a_call(caller: Caller) -> None:
    pings = [
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{caller.port}", options=pings) as channel:
        watch = health_stub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        assert (await watch.read()).status == SERVING
        with pytest.raises(TimeoutError):  # nothing more is to be said, and the third ping too many would end it
            await asyncio.wait_for(watch.read(), 65)


@pytest.mark.parametrize("method", ["grpc.health.v1.Health/Check", "grpc.health.v1.Health/Watch"])
async def test_bytes_that_are_no_message_are_refused_by_health(caller: Caller, method: str) -> None:
    call: Any = caller.channel.unary_unary if method.endswith("Check") else caller.channel.unary_stream
    answers = call(f"/{method}")(GARBAGE)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (answers if method.endswith("Check") else answers.read())
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_bytes_that_are_no_message_are_refused_by_reflection(caller: Caller) -> None:
    def sent() -> Iterator[bytes]:
        yield GARBAGE

    answers = caller.channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")(sent())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await answers.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
