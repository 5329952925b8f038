"""Health, metadata, time and what is told of calls: the Open Inference Protocol apart from tensors."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
import time
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from models.errors import BackendError, DeviceBroken
from service.observability.observer import Observer, Outcome
from service.oip.models import TENSORS
from service.proto.generated.inference import open_inference_pb2 as pb
from service.proto.generated.inference.open_inference_pb2_grpc import GRPCInferenceServiceStub
from tests.contract.door import HELD, IMAGE, LIMITS
from tests.contract.grpc_door import Caller, open_grpc, refused
from tests.contract.oip_door import (
    GRPC_RAW,
    GRPC_TYPED,
    HTTP_BINARY,
    HTTP_JSON,
    WAYS,
    Inputs,
    Refused,
    grpc_message,
    http_answer,
    http_body,
    infer,
)
from tests.contract.test_http_deadlines import Caller as Leaving
from tests.fakes import LOADED, LOADED_UNET, NOT_LOADED, PATIENCE_S, SECOND, image_bytes, peel_image

MODEL = f"/v2/models/{LOADED.name}"


def stub(caller: Caller) -> Any:
    return GRPCInferenceServiceStub(caller.channel)


def boxed(data: bytes = IMAGE) -> Inputs:
    return {"image": data, "boxes": np.array([[32, 16, 64, 48]], np.float32), "multimask": np.array([False])}


async def got(caller: Caller, path: str) -> tuple[int, Any]:
    answer = await caller.door.client.get(path)
    return answer.status_code, answer.json()


async def test_a_server_that_is_loaded_says_so(caller: Caller) -> None:
    assert await got(caller, "/v2/health/live") == (200, {"live": True})
    assert await got(caller, "/v2/health/ready") == (200, {"ready": True})
    for path in (f"{MODEL}/ready", f"{MODEL}/versions/{LOADED.revision}/ready"):
        assert await got(caller, path) == (200, {"name": LOADED.name, "ready": True})
    assert (await stub(caller).ServerLive(pb.ServerLiveRequest())).live
    assert (await stub(caller).ServerReady(pb.ServerReadyRequest())).ready
    for version in ("", LOADED.revision):
        assert (await stub(caller).ModelReady(pb.ModelReadyRequest(name=LOADED.name, version=version))).ready


async def test_a_model_that_is_not_loaded_is_not_ready_and_one_that_is_not_there_is_refused(caller: Caller) -> None:
    path = f"/v2/models/{NOT_LOADED.name}/ready"
    assert await got(caller, path) == (503, {"name": NOT_LOADED.name, "ready": False})
    assert not (await stub(caller).ModelReady(pb.ModelReadyRequest(name=NOT_LOADED.name))).ready
    for name, version in (("plum-sam", ""), (LOADED.name, "3")):
        path = f"/v2/models/{name}/versions/{version}/ready" if version else f"/v2/models/{name}/ready"
        with pytest.raises(Refused, match="unknown_model"):
            http_answer(await caller.door.client.get(path))
        await refused(stub(caller).ModelReady(pb.ModelReadyRequest(name=name, version=version)), "unknown_model")


async def test_before_the_models_are_loaded_the_server_lives_and_nothing_is_ready() -> None:
    async with open_grpc(ready=False) as caller:
        caller.door.app.pipelines = None
        assert await got(caller, "/v2/health/live") == (200, {"live": True})
        assert await got(caller, "/v2/health/ready") == (503, {"ready": False})
        assert await got(caller, f"{MODEL}/ready") == (503, {"name": LOADED.name, "ready": False})
        assert (await stub(caller).ServerLive(pb.ServerLiveRequest())).live
        assert not (await stub(caller).ServerReady(pb.ServerReadyRequest())).ready
        assert not (await stub(caller).ModelReady(pb.ModelReadyRequest(name=LOADED.name))).ready
        assert (await got(caller, "/v2"))[0] == 200
        answer = await caller.door.client.get(MODEL)
        assert answer.headers["retry-after"] == "2"
        with pytest.raises(Refused, match="not_ready"):
            http_answer(answer)
        told = await refused(stub(caller).ModelMetadata(pb.ModelMetadataRequest(name=LOADED.name)), "not_ready")
        assert told.retry_after_s == 2
        for way in WAYS:
            with pytest.raises(Refused, match="not_ready"):
                await infer(caller, way, boxed())


async def test_a_device_that_failed_for_good_is_neither_live_nor_ready(caller: Caller) -> None:
    caller.door.sam.fails = DeviceBroken("gone")
    with pytest.raises(Refused, match="internal_error"):
        await infer(caller, GRPC_RAW, boxed())
    assert await got(caller, "/v2/health/live") == (503, {"live": False})
    assert await got(caller, "/v2/health/ready") == (503, {"ready": False})
    assert await got(caller, f"{MODEL}/ready") == (503, {"name": LOADED.name, "ready": False})
    assert not (await stub(caller).ServerLive(pb.ServerLiveRequest())).live


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
async def test_the_server_tells_what_it_is(caller: Caller, path: str) -> None:
    status, told = await got(caller, path)
    assert (status, told["name"], told["extensions"]) == (200, "pomona", ["binary_tensor_data", "schedule_policy"])
    over_grpc = await stub(caller).ServerMetadata(pb.ServerMetadataRequest())
    assert (over_grpc.name, over_grpc.version, list(over_grpc.extensions)) == tuple(told.values())
    described = (await got(caller, "/docs.json"))[1]
    assert told["version"] == described["info"]["version"]


@pytest.mark.parametrize("entry", [LOADED, SECOND, LOADED_UNET], ids=lambda entry: entry.name)
async def test_the_metadata_of_a_model_are_those_of_what_it_takes_and_gives(caller: Caller, entry: Any) -> None:
    status, told = await got(caller, f"/v2/models/{entry.name}")
    assert (status, told["name"], told["versions"]) == (200, entry.name, [entry.revision])
    assert told["platform"] == caller.door.pipeline.runners[entry.name].backend_name
    assert (await got(caller, f"/v2/models/{entry.name}/versions/{entry.revision}"))[1] == told
    over_grpc = await stub(caller).ModelMetadata(pb.ModelMetadataRequest(name=entry.name, version=entry.revision))
    assert (over_grpc.name, list(over_grpc.versions), over_grpc.platform) == tuple(told.values())[:3]
    for way, tensors in (("inputs", over_grpc.inputs), ("outputs", over_grpc.outputs)):
        plain = [{"name": one.name, "datatype": one.datatype, "shape": list(one.shape)} for one in tensors]
        assert plain == told[way]
    # What it says of its outputs is what it gives.
    inputs = boxed() if entry is not LOADED_UNET else {"image": peel_image()}
    answer = await caller.door.client.post(
        f"/v2/models/{entry.name}/infer",
        json={"inputs": _json_of(inputs), "parameters": {"binary_data_output": False}},
    )
    given = {output["name"]: output for output in answer.json()["outputs"]}
    assert list(given) == [output["name"] for output in told["outputs"]]
    for output in told["outputs"]:
        assert given[output["name"]]["datatype"] == output["datatype"]
        pairs = zip(given[output["name"]]["shape"], output["shape"], strict=True)
        assert all(wanted in (-1, length) for length, wanted in pairs)


def _json_of(inputs: Inputs) -> Any:
    return json.loads(http_body(inputs, (), {}, request_id="", raw=False)[0])["inputs"]


async def test_a_model_that_is_not_loaded_has_no_metadata(caller: Caller) -> None:
    for name, version, code in (
        ("plum-sam", "", "unknown_model"),
        (LOADED.name, "3", "unknown_model"),
        (NOT_LOADED.name, "", "model_not_loaded"),
    ):
        path = f"/v2/models/{name}/versions/{version}" if version else f"/v2/models/{name}"
        with pytest.raises(Refused, match=code):
            http_answer(await caller.door.client.get(path))
        await refused(stub(caller).ModelMetadata(pb.ModelMetadataRequest(name=name, version=version)), code)


async def test_the_service_has_its_health_and_every_family_its_tensors(caller: Caller) -> None:
    health: Any = health_pb2_grpc.HealthStub(caller.channel)
    told = await health.Check(health_pb2.HealthCheckRequest(service="inference.GRPCInferenceService"))
    assert told.status == health_pb2.HealthCheckResponse.SERVING
    assert set(TENSORS) == {entry.architecture.family for entry in caller.door.pipeline.catalogue.values()}


@pytest.mark.parametrize(
    ("way", "headers", "microseconds"),
    [
        (HTTP_JSON, {}, 200_000),
        (HTTP_BINARY, {"x-deadline-ms": "60000"}, 200_000),
        (HTTP_BINARY, {"x-deadline-ms": "200"}, 60_000_000),
        (GRPC_TYPED, {}, 200_000),
        (GRPC_RAW, {"x-deadline-ms": "60000"}, 200_000),
        (GRPC_RAW, {"x-deadline-ms": "200"}, 60_000_000),
    ],
)
async def test_the_earlier_of_timeout_and_deadline_is_answered_at_once_and_nothing_is_run(
    caller: Caller, way: str, headers: dict[str, str], microseconds: int
) -> None:
    busy = await caller.hold()
    began = time.monotonic()
    # On a machine that is busy otherwise it may have passed at the door already.
    with pytest.raises(Refused, match=r"deadline_(exceeded|unreachable)"):
        await infer(caller, way, boxed(image_bytes(1)), headers=headers, timeout=microseconds)
    assert 0.2 <= time.monotonic() - began < PATIENCE_S / 2
    assert not busy.done()
    caller.door.let_go()
    await busy
    assert caller.door.sam.encoded == [HELD]


@pytest.mark.parametrize("way", WAYS)
async def test_a_timeout_of_zero_is_none(caller: Caller, way: str) -> None:
    assert (await infer(caller, way, boxed(), "areas", timeout=0)).outputs["areas"].tolist() == [[1024]]


async def in_which_order(caller: Caller, way: str, *asked: dict[str, Any]) -> list[int]:
    """Requests with these parameters and headers, numbered from 0, come while the device is busy."""
    busy = await caller.hold()
    calls = []
    for number, told in enumerate(asked):
        call = infer(caller, way, boxed(image_bytes(number)), "areas", **told)
        calls.append(asyncio.create_task(call))
        await caller.door.runner.images.reach(1 + len(calls))
    caller.door.let_go()
    await asyncio.gather(busy, *calls)
    held, *others = caller.door.sam.encoded
    assert held == HELD
    return others


@pytest.mark.parametrize("way", WAYS)
async def test_a_priority_of_one_goes_first_and_zero_is_the_default(caller: Caller, way: str) -> None:
    asked: list[dict[str, Any]] = [{"priority": priority} for priority in (900, 1, 5, 0, 4)]
    assert await in_which_order(caller, way, *asked) == [1, 3, 4, 2, 0]


@pytest.mark.parametrize("way", [HTTP_BINARY, GRPC_RAW])
async def test_a_priority_goes_before_what_a_header_says(caller: Caller, way: str) -> None:
    urgent = {"headers": {"priority": "u=1"}}
    asked: list[dict[str, Any]] = [{**urgent, "priority": 6}, {}, urgent, {**urgent, "priority": 0}]
    assert await in_which_order(caller, way, *asked) == [2, 3, 1, 0]


async def test_a_timeout_that_cannot_be_met_is_refused_before_anything_is_run(caller: Caller) -> None:
    caller.door.sam.encode_s_per_megapixel = 100
    await caller.door.learn()
    for way in WAYS:
        with pytest.raises(Refused, match="deadline_unreachable"):
            await infer(caller, way, boxed(), timeout=60_000_000)
    assert (caller.door.sam.prepares, caller.door.sam.encodes) == (0, [])


async def test_a_caller_who_leaves_is_dropped_before_anything_is_run(caller: Caller) -> None:
    busy = await caller.hold()
    message = grpc_message(boxed(image_bytes(1)), (), {}, raw=True)
    message.model_name = LOADED.name
    leaving = stub(caller).ModelInfer(message)
    await caller.door.runner.images.reach(2)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    # Whoever comes after it finds that it left.
    assert (await stub(caller).ServerReady(pb.ServerReadyRequest())).ready
    caller.door.let_go()
    await busy
    assert (await infer(caller, GRPC_RAW, boxed(), "areas")).outputs["areas"].tolist() == [[1024]]
    assert caller.door.sam.encoded == [HELD, 0]


async def test_a_caller_who_hangs_up_is_dropped_before_anything_is_run(caller: Caller) -> None:
    busy = await caller.hold()
    content, _ = http_body(boxed(image_bytes(1)), (), {}, request_id="", raw=False)
    leaving = Leaving(path=f"{MODEL}/infer", content=content)
    call = asyncio.create_task(caller.door.app(leaving.scope, leaving.receive, leaving.send))
    await caller.door.runner.images.reach(2)
    leaving.hang_up()
    await call
    caller.door.let_go()
    await busy
    assert (await infer(caller, HTTP_BINARY, boxed(), "areas")).outputs["areas"].tolist() == [[1024]]
    assert caller.door.sam.encoded == [HELD, 0]


async def test_a_request_that_takes_too_long_is_told_so() -> None:
    async with open_grpc(request_timeout_s=0.2) as caller:
        caller.door.sam.blocks = threading.Event()
        for way in WAYS:
            with pytest.raises(Refused, match="timed_out"):
                await infer(caller, way, boxed())
        caller.door.let_go()


@pytest.mark.parametrize("way", WAYS)
async def test_a_failure_of_the_server_leaks_nothing(caller: Caller, way: str) -> None:
    caller.door.sam.fails = BackendError("CUDA: secret path")
    with pytest.raises(Refused) as caught:
        await infer(caller, way, boxed())
    assert caught.value.code == "internal_error"
    assert "secret" not in caught.value.detail


class Heard(Observer):
    """Remembers which requests ended how."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, Outcome]] = []
        self.codes: list[str] = []

    def requested(self, endpoint: str, model: str, outcome: Outcome, _: float) -> None:
        self.requests.append((endpoint, model, outcome))

    def refused(self, code: str) -> None:
        self.codes.append(code)


async def test_metrics_have_no_names_that_callers_make_up(caller: Caller) -> None:
    heard = Heard()
    caller.door.app.state.observer = heard
    for model, version in ((LOADED.name, ""), (LOADED_UNET.name, LOADED_UNET.revision), ("plum", "7")):
        inputs: Inputs = {"image": peel_image()} if model == LOADED_UNET.name else boxed()
        with contextlib.suppress(Refused):
            await infer(caller, HTTP_BINARY, inputs, model=model, version=version)
    await caller.door.client.get("/v2/models/plum/versions/7/ready")
    await caller.door.client.get("/v2/oranges")
    assert heard.requests == [
        ("/v2/models/{model}/infer", LOADED.name, "ok"),
        ("/v2/models/{model}/infer", LOADED_UNET.name, "ok"),
        ("/v2/models/{model}/infer", "", "refused"),
        ("/v2/models/{model}/ready", "", "refused"),
        ("other", "", "refused"),
    ]
    assert heard.codes == ["unknown_model", "unknown_model", "not_found"]


async def test_a_call_leaves_one_line_in_the_log(caller: Caller, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="pomona")
    for way in (HTTP_BINARY, GRPC_RAW):
        await infer(caller, way, boxed(), headers={"x-request-id": f"belt-7.{way[:4]}"})
    over_http, over_grpc = (vars(record) for record in caplog.records if record.message == "request")
    assert over_http["path"] == f"{MODEL}/infer"
    assert over_grpc["path"] == "/inference.GRPCInferenceService/ModelInfer"
    for line in (over_http, over_grpc):
        assert line["request_id"].startswith("belt-7.")
        assert (line["model"], line["prompts"], line["degraded"]) == (LOADED.name, 1, False)
        assert line["timing_ms"]["total"] > 0


async def test_bytes_that_are_no_message_are_refused(caller: Caller) -> None:
    call = caller.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(b"\xff\xff\xff")
    told = await refused(call, "malformed_request")
    assert told.status is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_message_beyond_the_limit_is_refused() -> None:
    limits: dict[str, Any] = {**LIMITS}
    async with open_grpc(**limits) as caller:
        message = grpc_message(boxed(bytes(2 << 20)), (), {}, raw=True)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub(caller).ModelInfer(message)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
