"""The service from start to stop: readiness, health, reflection, draining, limits of what is read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from models.errors import DeviceBroken
from service.api.handler import RequestHandler
from service.errors import PortTaken
from service.grpc.server import GrpcServer
from service.oip.models import TENSORS
from service.proto.generated.inference import open_inference_pb2 as oip
from service.proto.generated.inference.open_inference_pb2_grpc import GRPCInferenceServiceStub
from service.proto.generated.pomona.v1 import segmentation_pb2 as pb
from tests.contract.door import BOX, MIB, POINT, Door, image, only, open_door, problem, prompted
from tests.contract.doors import Request, doors, embed, everywhere, inspect, oip_doors, refusal_by, segment, semantic
from tests.contract.grpc_door import Caller, frames_of, open_grpc, refused, segment_request
from tests.contract.grpc_door import only as only_mask
from tests.contract.oip_door import Refused, boxed, http_answer, infer
from tests.contract.scenes import IMAGE
from tests.fakes import LOADED, LOADED_UNET, NOT_LOADED, PATIENCE_S, SECOND, image_bytes, make_settings, peel_image

SERVICE: Final = "pomona.v1.Segmentation"
INFERENCE: Final = "inference.GRPCInferenceService"
MODEL: Final = f"/v2/models/{LOADED.name}"
SERVING, NOT_SERVING, UNKNOWN = (
    health_pb2.HealthCheckResponse.SERVING,
    health_pb2.HealthCheckResponse.NOT_SERVING,
    health_pb2.HealthCheckResponse.SERVICE_UNKNOWN,
)
REQUESTS: Final = (segment(POINT), embed(), semantic(), inspect())


def health_stub(channel: Any) -> Any:
    stub: Any = health_pb2_grpc.HealthStub  # its types are those of the threaded client
    return stub(channel)


async def health_of(caller: Caller, service: str = SERVICE) -> int:
    answer = await health_stub(caller.channel).Check(health_pb2.HealthCheckRequest(service=service))
    return int(answer.status)


def inference(caller: Caller) -> Any:
    return GRPCInferenceServiceStub(caller.channel)


async def got(caller: Caller, path: str) -> tuple[int, Any]:
    answer = await caller.door.client.get(path)
    return answer.status_code, answer.json()


# Readiness.


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: request.operation)
async def test_before_the_models_are_loaded_every_door_says_when_to_retry(request_: Request) -> None:
    async with open_grpc(ready=False) as caller:
        for send in (doors(request_) | oip_doors(request_)).values():
            refusal = await refusal_by(send, caller, request_)
            assert (refusal.code, refusal.retry_after_s) == ("not_ready", 2)
        problem(await caller.door.client.get("/v1/models"), "not_ready")
        await refused(caller.stub.ListModels(pb.ListModelsRequest()), "not_ready")
        assert (await caller.door.client.get("/docs.json")).status_code == 200
        caller.door.app.pipelines = caller.door.pipelines
        caller.server.open(caller.door.pipelines)
        await everywhere(caller, request_)


async def test_health_follows_readiness_for_the_server_and_each_service() -> None:
    names = ("", SERVICE, INFERENCE)
    async with open_grpc(ready=False) as caller:
        assert [await health_of(caller, name) for name in names] == [NOT_SERVING] * 3
        caller.server.open(caller.door.pipelines)
        assert [await health_of(caller, name) for name in names] == [SERVING] * 3
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health_of(caller, "pomona.v2.Segmentation")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_every_watcher_learns_that_the_server_stops_and_none_delays_it() -> None:
    async with open_grpc(ready=False) as caller:
        stub = health_stub(caller.channel)
        names = [SERVICE, "", "pomona.v2.Segmentation"]
        watching = [stub.Watch(health_pb2.HealthCheckRequest(service=name)) for name in names]
        left = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        assert (await left.read()).status == NOT_SERVING
        left.cancel()
        assert [(await watch.read()).status for watch in watching] == [NOT_SERVING, NOT_SERVING, UNKNOWN]
        caller.server.open(caller.door.pipelines)
        assert [(await watch.read()).status for watch in watching] == [SERVING, SERVING, UNKNOWN]
        async with asyncio.timeout(PATIENCE_S / 2):
            await caller.server.drain(PATIENCE_S)
        assert [(await watch.read()).status for watch in watching] == [NOT_SERVING, NOT_SERVING, UNKNOWN]
        assert [await watch.read() for watch in watching] == [grpc.aio.EOF] * 3


async def test_a_loaded_server_is_live_and_ready(caller: Caller) -> None:
    assert await got(caller, "/v2/health/live") == (200, {"live": True})
    assert await got(caller, "/v2/health/ready") == (200, {"ready": True})
    assert (await inference(caller).ServerLive(oip.ServerLiveRequest())).live
    assert (await inference(caller).ServerReady(oip.ServerReadyRequest())).ready
    for version, path in (("", f"{MODEL}/ready"), (LOADED.revision, f"{MODEL}/versions/{LOADED.revision}/ready")):
        assert await got(caller, path) == (200, {"name": LOADED.name, "ready": True})
        assert (await inference(caller).ModelReady(oip.ModelReadyRequest(name=LOADED.name, version=version))).ready


async def test_a_loading_server_is_live_and_not_ready() -> None:
    async with open_grpc(ready=False) as caller:
        assert await got(caller, "/v2/health/live") == (200, {"live": True})
        assert await got(caller, "/v2/health/ready") == (503, {"ready": False})
        assert await got(caller, f"{MODEL}/ready") == (503, {"name": LOADED.name, "ready": False})
        assert (await inference(caller).ServerLive(oip.ServerLiveRequest())).live
        assert not (await inference(caller).ServerReady(oip.ServerReadyRequest())).ready
        assert not (await inference(caller).ModelReady(oip.ModelReadyRequest(name=LOADED.name))).ready
        assert (await got(caller, "/v2"))[0] == 200
        with pytest.raises(Refused, match="not_ready"):
            http_answer(await caller.door.client.get(MODEL))
        await refused(inference(caller).ModelMetadata(oip.ModelMetadataRequest(name=LOADED.name)), "not_ready")


async def test_a_server_whose_device_broke_is_neither_live_nor_ready(caller: Caller) -> None:
    caller.door.sam.fails = DeviceBroken("gone")
    problem(await caller.door.post(image(), prompted(BOX)), "internal_error")
    assert await got(caller, "/v2/health/live") == (503, {"live": False})
    assert await got(caller, "/v2/health/ready") == (503, {"ready": False})
    assert await got(caller, f"{MODEL}/ready") == (503, {"name": LOADED.name, "ready": False})
    assert not (await inference(caller).ServerLive(oip.ServerLiveRequest())).live


async def test_a_model_that_is_not_loaded_is_not_ready_and_an_unknown_one_is_refused(caller: Caller) -> None:
    path = f"/v2/models/{NOT_LOADED.name}"
    assert await got(caller, f"{path}/ready") == (503, {"name": NOT_LOADED.name, "ready": False})
    assert not (await inference(caller).ModelReady(oip.ModelReadyRequest(name=NOT_LOADED.name))).ready
    with pytest.raises(Refused, match="model_not_loaded"):
        http_answer(await caller.door.client.get(path))
    await refused(inference(caller).ModelMetadata(oip.ModelMetadataRequest(name=NOT_LOADED.name)), "model_not_loaded")
    for name, version in (("plum-sam", ""), (LOADED.name, "3")):
        path = f"/v2/models/{name}" + (f"/versions/{version}" if version else "")
        for what in ("", "/ready"):
            with pytest.raises(Refused, match="unknown_model"):
                http_answer(await caller.door.client.get(path + what))
        await refused(inference(caller).ModelReady(oip.ModelReadyRequest(name=name, version=version)), "unknown_model")
        metadata = oip.ModelMetadataRequest(name=name, version=version)
        await refused(inference(caller).ModelMetadata(metadata), "unknown_model")


# Metadata.


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
async def test_the_servers_metadata_are_the_same_at_both_doors(caller: Caller, path: str) -> None:
    status, body = await got(caller, path)
    assert (status, body["name"], body["extensions"]) == (200, "pomona", ["binary_tensor_data", "schedule_policy"])
    over_grpc = await inference(caller).ServerMetadata(oip.ServerMetadataRequest())
    assert (over_grpc.name, over_grpc.version, list(over_grpc.extensions)) == tuple(body.values())
    assert body["version"] == (await got(caller, "/docs.json"))[1]["info"]["version"]


@pytest.mark.parametrize("entry", [LOADED, SECOND, LOADED_UNET], ids=lambda entry: entry.name)
async def test_a_models_metadata_describe_what_it_takes_and_returns(caller: Caller, entry: Any) -> None:
    status, body = await got(caller, f"/v2/models/{entry.name}")
    assert (status, body["name"], body["versions"]) == (200, entry.name, [entry.revision])
    assert body["platform"] == caller.door.pipelines.engine.runners[entry.name].backend_name
    assert (await got(caller, f"/v2/models/{entry.name}/versions/{entry.revision}"))[1] == body
    over_grpc = await inference(caller).ModelMetadata(oip.ModelMetadataRequest(name=entry.name, version=entry.revision))
    assert (over_grpc.name, list(over_grpc.versions), over_grpc.platform) == tuple(body.values())[:3]
    for way, tensors in (("inputs", over_grpc.inputs), ("outputs", over_grpc.outputs)):
        listed = [{"name": one.name, "datatype": one.datatype, "shape": list(one.shape)} for one in tensors]
        assert listed == body[way]
    inputs = {"image": peel_image()} if entry is LOADED_UNET else boxed()
    outputs = (await infer(caller, "HTTP, listed", inputs, model=entry.name)).outputs
    assert list(outputs) == [output["name"] for output in body["outputs"]]
    for output in body["outputs"]:
        pairs = zip(outputs[output["name"]].shape, output["shape"], strict=True)
        assert all(wanted in (-1, length) for length, wanted in pairs)


async def test_every_family_has_its_tensors(caller: Caller) -> None:
    families = {entry.architecture.family for entry in caller.door.pipelines.engine.catalogue.values()}
    assert set(TENSORS) == families | {"sam2"}  # as a SAM's


async def test_reflection_lists_and_describes_the_services(caller: Caller) -> None:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(caller.channel)

    async def reflect(**request: Any) -> Any:
        return await stub.ServerReflectionInfo(frames_of([reflection_pb2.ServerReflectionRequest(**request)])).read()

    listed = {service.name for service in (await reflect(list_services="")).list_services_response.service}
    assert listed == {SERVICE, INFERENCE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    described = (await reflect(file_containing_symbol=SERVICE)).file_descriptor_response.file_descriptor_proto
    assert pb.DESCRIPTOR.serialized_pb in list(described)


# Start and stop.


async def test_a_call_in_flight_is_answered_when_the_server_stops_and_a_new_one_is_not_taken() -> None:
    async with open_grpc() as caller:
        busy = await caller.door.hold()
        waiting = caller.start(caller.segment(image_bytes(1)))
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
        assert only_mask(await waiting).area == 1024
        await asyncio.gather(busy, draining)


async def test_a_server_waits_for_calls_no_longer_than_the_drain_timeout() -> None:
    async with open_grpc() as caller:
        busy = await caller.door.hold()
        waiting = caller.start(caller.segment(image_bytes(1)))
        await caller.door.runner.images.reach(2)
        async with asyncio.timeout(PATIENCE_S / 2):
            await caller.server.drain(0.01)
        with pytest.raises(grpc.aio.AioRpcError):
            await waiting
        caller.door.let_go()
        await busy
        assert caller.door.sam.encoded[1:] == []


async def test_a_port_that_another_server_has_is_refused_unless_workers_share_it(caller: Caller) -> None:
    other = GrpcServer(make_settings(), RequestHandler())
    with pytest.raises(PortTaken, match="POMONA_GRPC_PORT"):
        await other.start("127.0.0.1", caller.port)
    workers = [GrpcServer(make_settings(), RequestHandler(), shared_port=True) for _ in range(2)]
    port = await workers[0].start("127.0.0.1", 0)
    assert await workers[1].start("127.0.0.1", port) == port
    for worker in workers:
        await worker.drain(PATIENCE_S)


async def test_an_ipv6_address_is_listened_on() -> None:
    server = GrpcServer(make_settings(), RequestHandler())
    port = await server.start("::1", 0)
    async with grpc.aio.insecure_channel(f"[::1]:{port}") as channel:
        answer = await health_stub(channel).Check(health_pb2.HealthCheckRequest())
        assert answer.status == NOT_SERVING
    await server.drain(PATIENCE_S)


# Limits of what is read.


@dataclass
class Upload:
    """A multipart body of many chunks that counts the bytes that were taken."""

    size: int
    taken: int = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        head = b'--belt\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
        for chunk in (head, *[b"\0" * 65536] * (self.size // 65536), b"\r\n--belt--\r\n"):
            self.taken += len(chunk)
            yield chunk


MULTIPART: Final = {"content-type": "multipart/form-data; boundary=belt"}


async def test_a_body_beyond_the_limit_is_refused_at_every_door() -> None:
    async with open_grpc(max_upload_mib=0.1) as caller:
        for good in REQUESTS:
            large = Request(good.operation, good.fields, bytes(MIB))
            for send in (doors(large) | oip_doors(large)).values():  # one by one: a refused body is not read to its end
                assert (await refusal_by(send, caller, large)).code == "upload_too_large"
        await everywhere(caller, REQUESTS[0])


async def test_a_body_without_a_length_is_read_no_further_than_the_limit(door: Door) -> None:
    for path, headers in (("/v1/segment", MULTIPART), (f"{MODEL}/infer", {})):
        upload = Upload(64 * MIB)
        answer = await door.client.post(path, content=upload, headers=headers)
        assert answer.status_code == 413
        assert "1 MiB" in answer.text
        assert MIB < upload.taken <= MIB + 65536
        assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("path", ["/v1/segment", "/v1/embed", "/v1/semantic", "/v1/inspect"])
async def test_a_body_that_announces_too_much_is_not_read(door: Door, path: str) -> None:
    upload = Upload(MIB // 2)
    answer = await door.client.post(path, content=upload, headers=MULTIPART | {"content-length": str(MIB + 1)})
    problem(answer, "upload_too_large")
    assert upload.taken == 0


@pytest.mark.parametrize("length", ["10", "-1", "many", "²"])
async def test_a_body_with_a_wrong_length_is_held_to_the_limit_too(door: Door, length: str) -> None:
    upload = Upload(2 * MIB)
    headers = {b"content-type": MULTIPART["content-type"].encode(), b"content-length": length.encode("latin-1")}
    problem(await door.client.post("/v1/segment", content=upload, headers=headers), "upload_too_large")
    assert upload.taken <= MIB + 65536


async def test_a_body_of_exactly_the_limit_is_taken() -> None:
    parts = [image(), prompted(BOX)]
    length = int(httpx.Request("POST", "http://pomona", files=parts).headers["content-length"])
    async with open_door(max_upload_mib=length / MIB) as door:
        assert only(await door.segment(*parts)).box == (32, 16, 64, 48)
    async with open_door(max_upload_mib=(length - 1) / MIB) as door:
        problem(await door.post(*parts), "upload_too_large")
    message = segment_request(IMAGE)
    async with open_grpc(max_upload_mib=message.ByteSize() / MIB) as caller:
        assert only_mask(await caller.stub.Segment(message)).area == 1024
        message.model = "x"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await caller.stub.Segment(message)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_the_time_limit_covers_the_reading_of_the_body() -> None:
    never = asyncio.Event()

    async def stuck() -> AsyncIterator[bytes]:
        yield b"--belt\r\n"
        await never.wait()

    async with open_door(request_timeout_s=0.1) as door:
        problem(await door.client.post("/v1/segment", content=stuck(), headers=MULTIPART), "timed_out")
