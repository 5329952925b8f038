"""The gRPC door's start and end, health, reflection, ids, logs and metrics."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from service.grpc.server import GrpcServer, PortTaken
from service.observability.observer import Observer, Outcome
from service.proto.generated.pomona.v1 import segmentation_pb2 as pb
from tests.contract.grpc_door import BOX, IMAGE, PEEL, Caller, frames_of, only, open_grpc, refused
from tests.fakes import LOADED, LOADED_UNET, PATIENCE_S, image_bytes, make_settings

SERVICE = "pomona.v1.Segmentation"
SERVING, NOT_SERVING, UNKNOWN = (
    health_pb2.HealthCheckResponse.SERVING,
    health_pb2.HealthCheckResponse.NOT_SERVING,
    health_pb2.HealthCheckResponse.SERVICE_UNKNOWN,
)


def health_stub(channel: Any) -> Any:
    stub: Any = health_pb2_grpc.HealthStub  # its types know no calls
    return stub(channel)


async def health_of(caller: Caller, service: str = SERVICE) -> int:
    stub = health_stub(caller.channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
    return int(answer.status)


async def test_health_follows_readiness_for_the_server_and_each_service() -> None:
    async with open_grpc(ready=False) as caller:
        assert [await health_of(caller, name) for name in ("", SERVICE)] == [NOT_SERVING] * 2
        caller.server.open(caller.door.pipeline)
        assert [await health_of(caller, name) for name in ("", SERVICE)] == [SERVING] * 2
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health_of(caller, "pomona.v2.Segmentation")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_every_watcher_hears_that_the_server_ends_and_holds_up_nobody() -> None:
    async with open_grpc(ready=False) as caller:
        stub = health_stub(caller.channel)
        names = [SERVICE, "", "pomona.v2.Segmentation"]
        watching = [stub.Watch(health_pb2.HealthCheckRequest(service=name)) for name in names]
        left = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        assert (await left.read()).status == NOT_SERVING
        left.cancel()
        assert [(await watch.read()).status for watch in watching] == [NOT_SERVING, NOT_SERVING, UNKNOWN]
        caller.server.open(caller.door.pipeline)
        assert [(await watch.read()).status for watch in watching] == [SERVING, SERVING, UNKNOWN]
        async with asyncio.timeout(PATIENCE_S / 2):
            await caller.server.drain(PATIENCE_S)
        assert [(await watch.read()).status for watch in watching] == [NOT_SERVING, NOT_SERVING, UNKNOWN]
        assert [await watch.read() for watch in watching] == [grpc.aio.EOF] * 3


async def test_reflection_lists_the_services_and_describes_them(caller: Caller) -> None:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(caller.channel)

    async def ask(**request: Any) -> Any:
        call = stub.ServerReflectionInfo(frames_of([reflection_pb2.ServerReflectionRequest(**request)]))
        return await call.read()

    listed = {service.name for service in (await ask(list_services="")).list_services_response.service}
    standard = {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    assert listed == {SERVICE, "inference.GRPCInferenceService", *standard}
    described = (await ask(file_containing_symbol=SERVICE)).file_descriptor_response.file_descriptor_proto
    assert pb.DESCRIPTOR.serialized_pb in list(described)


async def test_a_call_in_flight_is_answered_when_the_server_stops_and_a_new_one_is_not_taken() -> None:
    async with open_grpc() as caller:
        busy = await caller.hold()
        waiting = caller.start(caller.stub.Segment(pb.SegmentRequest(image=image_bytes(1), prompts=[BOX])))
        await caller.door.runner.images.reach(2)
        watch = health_stub(caller.channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        assert (await watch.read()).status == SERVING
        draining = asyncio.create_task(caller.server.drain(PATIENCE_S))
        assert (await watch.read()).status == NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await caller.stub.ListModels(pb.ListModelsRequest())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert not draining.done()
        caller.door.let_go()
        assert only(await waiting).area == 1024
        await asyncio.gather(busy, draining)


async def test_a_server_waits_no_longer_for_a_call_than_it_may() -> None:
    async with open_grpc() as caller:
        busy = await caller.hold()
        waiting = caller.start(caller.stub.Segment(pb.SegmentRequest(image=image_bytes(1), prompts=[BOX])))
        await caller.door.runner.images.reach(2)
        async with asyncio.timeout(PATIENCE_S / 2):
            await caller.server.drain(0.1)
        with pytest.raises(grpc.aio.AioRpcError):
            await waiting
        caller.door.let_go()
        await busy
        assert caller.door.sam.encoded[1:] == []


async def test_a_port_that_another_server_has_is_refused_unless_workers_share_it(caller: Caller) -> None:
    other = GrpcServer(make_settings())
    with pytest.raises(PortTaken, match="POMONA_GRPC_PORT"):
        await other.start("127.0.0.1", caller.port)
    workers = [GrpcServer(make_settings(), shared_port=True) for _ in range(2)]
    port = await workers[0].start("127.0.0.1", 0)
    assert await workers[1].start("127.0.0.1", port) == port
    for worker in workers:
        await worker.drain(PATIENCE_S)


async def test_an_ipv6_address_is_listened_on() -> None:
    server = GrpcServer(make_settings())
    port = await server.start("::1", 0)
    async with grpc.aio.insecure_channel(f"[::1]:{port}") as channel:
        answer = await health_stub(channel).Check(health_pb2.HealthCheckRequest())
        assert answer.status == NOT_SERVING
    await server.drain(PATIENCE_S)


@pytest.mark.parametrize("request_id", ["belt-7:frame_00.1", "7" * 128])
async def test_a_request_id_and_the_trace_context_are_taken_and_returned(caller: Caller, request_id: str) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    metadata = (("x-request-id", request_id), ("traceparent", trace))
    call = caller.stub.Segment(pb.SegmentRequest(image=IMAGE, prompts=[BOX]), metadata=metadata)
    assert (await call).request_id == request_id
    assert dict(await call.trailing_metadata() or ()) == dict(metadata)
    told = await refused(caller.stub.Segment(pb.SegmentRequest(), metadata=metadata), "no_image")
    assert told.request_id == request_id


@pytest.mark.parametrize("request_id", [None, "", "two words", "7" * 129, "<b>"])
async def test_a_missing_or_odd_request_id_is_replaced(caller: Caller, request_id: str | None) -> None:
    metadata = () if request_id is None else (("x-request-id", request_id),)
    call = caller.stub.Embed(pb.EmbedRequest(image=IMAGE), metadata=metadata)
    made = (await call).request_id
    assert dict(await call.trailing_metadata() or ()) == {"x-request-id": made}
    assert re.fullmatch("[0-9a-f]{32}", made)


async def test_a_trace_context_that_is_none_is_left_alone(caller: Caller) -> None:
    call = caller.stub.ListModels(pb.ListModelsRequest(), metadata=(("traceparent", "my trace"),))
    await call
    assert (await call.trailing_metadata()).keys() == {"x-request-id"}


async def test_a_method_that_is_not_there_is_named_in_the_log(caller: Caller, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="pomona.grpc")
    await refused(caller.channel.unary_unary("/oranges/1")(b""), "not_found")
    (line,) = (vars(record) for record in caplog.records)
    assert (line["path"], line["method"], line["grpc_status"]) == ("other", "/oranges/1", "UNIMPLEMENTED")


async def test_an_answer_leaves_one_line_with_its_facts(caller: Caller, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="pomona.grpc")
    metadata = (("x-request-id", "frame-1"),)
    request = pb.InspectRequest(image=PEEL, mode=pb.INSPECT_MODE_FAST, frame=pb.Frame(frame_id="f1", trigger_id="t1"))
    answer = await caller.stub.Inspect(request, metadata=metadata)
    (line,) = (vars(record) for record in caplog.records)
    assert line["message"] == "request"
    assert (line["request_id"], line["path"], line["grpc_status"]) == ("frame-1", f"/{SERVICE}/Inspect", "OK")
    assert (line["model"], line["fruits"], line["mode"], line["degraded"]) == (LOADED_UNET.name, 2, "fast", False)
    assert (line["frame_id"], line["trigger_id"]) == ("f1", "t1")
    assert line["timing_ms"]["infer"] == pytest.approx(answer.timing.infer_ms, abs=0.01)
    assert line["ms"] >= line["timing_ms"]["total"]


async def test_no_line_carries_any_of_the_image(caller: Caller, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="pomona")
    await caller.segment(overlay=True)
    await refused(caller.segment(b"a secret photograph " * 4), "not_an_image")
    await refused(caller.channel.unary_unary(f"/{SERVICE}/Segment")(b"\xff secret"), "malformed_request")
    assert len(caplog.records) == 3
    for record in caplog.records:
        assert "secret" not in str(vars(record))
        assert len(str(vars(record))) < 2000


class Listener(Observer):
    """Keeps what it hears of requests."""

    def __init__(self) -> None:
        self.began_at: list[str] = []
        self.ended: list[tuple[str, str, Outcome]] = []
        self.codes: list[str] = []

    def began(self, endpoint: str) -> None:
        self.began_at.append(endpoint)

    def requested(self, endpoint: str, model: str, outcome: Outcome, seconds: float) -> None:
        assert 0 <= seconds < PATIENCE_S
        self.ended.append((endpoint, model, outcome))

    def refused(self, code: str) -> None:
        self.codes.append(code)


async def test_calls_and_frames_are_counted_by_what_became_of_them_and_health_is_not() -> None:
    listener = Listener()
    async with open_grpc(observer=listener) as caller:
        await caller.segment()
        await refused(caller.stub.Segment(pb.SegmentRequest()), "no_image")
        late = caller.stub.Embed(pb.EmbedRequest(image=image_bytes(2)), metadata=(("x-deadline-ms", "0.001"),))
        await refused(late, "deadline_unreachable")
        caller.door.sam.fails = ZeroDivisionError()
        await refused(caller.stub.Embed(pb.EmbedRequest(image=image_bytes(3))), "internal_error")
        await refused(caller.channel.unary_unary("/oranges/1")(b""), "not_found")
        await health_of(caller)
        good, bad = (pb.InspectRequest(image=data, mode=pb.INSPECT_MODE_FAST) for data in (PEEL, b""))
        for request in (good, bad):
            messages = frames_of([pb.InspectStreamRequest(request=request)])
            assert len([reply async for reply in caller.stub.InspectStream(messages)]) == 1
        odd = pb.InspectStreamRequest(settings=pb.StreamSettings(max_in_flight=65))
        await refused(caller.stub.InspectStream(frames_of([odd])).read(), "malformed_request")
        segment, embed, stream = (f"/{SERVICE}/{name}" for name in ("Segment", "Embed", "InspectStream"))
        assert listener.ended == [
            (segment, LOADED.name, "ok"),
            (segment, "", "refused"),
            (embed, LOADED.name, "shed"),
            (embed, LOADED.name, "failed"),
            ("other", "", "refused"),
            (stream, LOADED_UNET.name, "ok"),
            (stream, LOADED_UNET.name, "refused"),
        ]
        assert listener.began_at == [endpoint for endpoint, _, _ in listener.ended]
        assert listener.codes == [
            "no_image",
            "deadline_unreachable",
            "internal_error",
            "not_found",
            "not_an_image",
            "malformed_request",
        ]
