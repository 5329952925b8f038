"""Request ids, the line that each request leaves in the log, and what metrics count, at both doors."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from typing import Any, Final

import numpy as np
import pytest

from models.errors import BackendError
from service.api import schema
from service.observability.observer import Observer, Outcome
from service.proto.generated.pomona.v1 import segmentation_pb2 as pb
from tests.contract.door import BOX, POINT, Door, checked, image, open_door, problem, prompted, scope_of
from tests.contract.grpc_door import Caller, frames_of, open_grpc, refused
from tests.contract.oip_door import GRPC_RAW, HTTP_BINARY, Inputs, Refused, boxed, infer
from tests.contract.scenes import IMAGE, PEEL, TWO
from tests.contract.test_lifecycle import health_of
from tests.fakes import LOADED, LOADED_UNET, PATIENCE_S, image_bytes

SERVICE: Final = "pomona.v1.Segmentation"
TRACE: Final = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize("request_id", ["belt-7:frame_00.1", "x", "7" * 128])
async def test_a_request_id_is_returned_with_answers_and_errors(caller: Caller, request_id: str) -> None:
    headers = {"x-request-id": request_id}
    client = caller.door.client
    answer = await caller.door.post(image(), prompted(POINT), headers=headers)
    assert checked(answer, schema.SegmentResponse).request_id == answer.headers["x-request-id"] == request_id
    assert (await client.get("/v1/models", headers=headers)).headers["x-request-id"] == request_id
    for bad in (
        await caller.door.post(prompted(POINT), headers=headers),
        await client.get("/v1/segment", headers=headers),
        await client.get("/v1/oranges", headers=headers),
    ):
        assert bad.json()["request_id"] == bad.headers["x-request-id"] == request_id
    metadata = (*headers.items(), ("traceparent", TRACE))
    call = caller.stub.Embed(pb.EmbedRequest(image=IMAGE), metadata=metadata)
    assert (await call).request_id == request_id
    assert dict(await call.trailing_metadata() or ()) == dict(metadata)
    error = await refused(caller.stub.Segment(pb.SegmentRequest(), metadata=metadata), "no_prompt")
    assert error.request_id == request_id


@pytest.mark.parametrize("request_id", [None, "", "two words", "7" * 129, "or\tange", "<b>", "größe"])
async def test_a_missing_or_odd_request_id_is_replaced(caller: Caller, request_id: str | None) -> None:
    headers = {} if request_id is None else {b"x-request-id": request_id.encode()}
    answers = [
        await caller.door.post(image(), prompted(POINT), headers=headers),
        await caller.door.post(headers=headers),
    ]
    made = [answer.headers["x-request-id"] for answer in answers]
    assert made == [answer.json()["request_id"] for answer in answers]
    assert len(set(made)) == 2
    if request_id is None or (request_id.isprintable() and request_id.isascii()):  # grpcio sends no others
        metadata = () if request_id is None else (("x-request-id", request_id),)
        call = caller.stub.Embed(pb.EmbedRequest(image=IMAGE), metadata=metadata)
        made.append((await call).request_id)
        assert dict(await call.trailing_metadata() or ()) == {"x-request-id": made[-1]}
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in made)


async def test_a_malformed_trace_context_is_not_returned(caller: Caller) -> None:
    call = caller.stub.ListModels(pb.ListModelsRequest(), metadata=(("traceparent", "my trace"),))
    await call
    assert (await call.trailing_metadata()).keys() == {"x-request-id"}


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    found = [vars(record) for record in caplog.records if record.getMessage() == "request"]
    caplog.clear()
    return found


async def test_an_answer_leaves_one_line(caller: Caller, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="pomona")
    door, headers = caller.door, {"x-request-id": "frame-1"}

    def check(path: str, model: str, timing: Any, **fields: Any) -> dict[str, Any]:
        (line,) = lines(caplog)
        assert {"path": path, "model": model, **fields}.items() <= line.items()
        total = timing.total
        assert line["timing_ms"] == {name: value for name, value in timing if value}
        assert line["ms"] >= total
        return line

    segmented = await door.segment(image(), prompted(BOX, POINT), headers=headers)
    common = {"method": "POST", "status": 200}
    check("/v1/segment", LOADED.name, segmented.timing_ms, prompts=2, degraded=False, request_id="frame-1", **common)
    check("/v1/embed", LOADED.name, (await door.embed()).timing_ms, **common)
    check("/v1/semantic", LOADED_UNET.name, (await door.semantic()).timing_ms, objects=2, **common)
    inspected = await door.inspect(TWO, mode="fast", frame_id="cam-1")
    of_fruit = {"fruits": 2, "mode": "fast", "degraded": False, "frame_id": "cam-1"}
    assert "trigger_id" not in check("/v1/inspect", LOADED_UNET.name, inspected.timing_ms, **of_fruit, **common)
    message = pb.InspectRequest(image=TWO, mode=pb.INSPECT_MODE_FAST, frame_id="cam-1", trigger_id="t1")
    answer = await caller.stub.Inspect(message, metadata=tuple(headers.items()))
    timing = schema.Timings(
        **{field.name: getattr(answer.timing_ms, field.name) for field in pb.Timings.DESCRIPTOR.fields}
    )
    check(
        f"/{SERVICE}/Inspect",
        LOADED_UNET.name,
        timing,
        grpc_status="OK",
        trigger_id="t1",
        request_id="frame-1",
        **of_fruit,
    )


async def test_an_inference_leaves_one_line(caller: Caller, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="pomona")
    for way in (HTTP_BINARY, GRPC_RAW):
        await infer(caller, way, boxed(), headers={"x-request-id": f"belt-7.{way[:4]}"})
    over_http, over_grpc = lines(caplog)
    assert over_http["path"] == f"/v2/models/{LOADED.name}/infer"
    assert over_grpc["path"] == "/inference.GRPCInferenceService/ModelInfer"
    for line in (over_http, over_grpc):
        assert line["request_id"].startswith("belt-7.")
        assert (line["model"], line["prompts"], line["degraded"]) == (LOADED.name, 1, False)
        assert line["timing_ms"]["total"] > 0


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("POST", "/v1/segment", "malformed_request"),
        ("GET", "/v1/segment", "method_not_allowed"),
        ("GET", "/v1/oranges", "not_found"),
    ],
)
async def test_an_error_leaves_one_line_with_its_code(
    door: Door, caplog: pytest.LogCaptureFixture, method: str, path: str, code: str
) -> None:
    caplog.set_level(logging.INFO, logger="pomona")
    answer = await door.client.request(method, path)
    (line,) = lines(caplog)
    assert (line["status"], line["code"], line["method"], line["path"]) == (answer.status_code, code, method, path)
    assert line["request_id"] == answer.headers["x-request-id"]


async def test_an_unknown_method_is_named_in_the_log(caller: Caller, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="pomona.grpc")
    await refused(caller.channel.unary_unary("/oranges/1")(b""), "not_found")
    (line,) = lines(caplog)
    assert (line["path"], line["method"], line["grpc_status"]) == ("other", "/oranges/1", "UNIMPLEMENTED")


async def test_a_caller_who_left_leaves_a_line_too(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="pomona")
    door.sam.blocks = threading.Event()
    call = asyncio.create_task(door.post(image(), prompted(BOX)))
    assert await asyncio.to_thread(door.sam.entered.wait, PATIENCE_S)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    (line,) = lines(caplog)
    assert line["status"] == 499


async def test_a_caller_who_hangs_up_while_sending_leaves_a_line_and_no_error(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="pomona")
    messages = iter([{"type": "http.request", "body": b"--belt\r\n", "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        assert message["type"].startswith("http.response")

    headers = [(b"content-type", b"multipart/form-data; boundary=belt")]
    await door.app(scope_of("/v1/segment", headers), receive, send)
    assert [record.levelname for record in caplog.records] == ["INFO"]
    (line,) = lines(caplog)
    assert (line["status"], line["path"]) == (499, "/v1/segment")


async def test_no_line_contains_any_of_the_image(caller: Caller, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    door, text = caller.door, b"a secret photograph " * 4
    await door.segment(image(), prompted(BOX, format="png", overlay=True))
    problem(await door.post(image(text), prompted(POINT)), "not_an_image")
    problem(await door.post(image(IMAGE[:-40]), prompted(POINT)), "truncated_image")
    await caller.segment(overlay=True)
    await refused(caller.segment(text), "not_an_image")
    await refused(caller.channel.unary_unary(f"/{SERVICE}/Segment")(b"\xff secret"), "malformed_request")
    door.sam.fails = BackendError("the device failed")
    problem(await door.post(image(image_bytes(9)), prompted(POINT)), "internal_error")
    ours = [vars(record) for record in caplog.records if record.name.startswith("pomona")]
    assert len(ours) == 8
    for line in ours:
        assert "secret" not in str(line)
        assert len(str(line)) < 2000
        assert not any(isinstance(value, bytes | np.ndarray) for value in line.values())


class Listener(Observer):
    """Remembers how requests began and ended."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.finished: list[tuple[str, str, Outcome]] = []
        self.codes: list[str] = []

    def request_started(self, endpoint: str) -> None:
        self.started.append(endpoint)

    def request_finished(self, endpoint: str, model: str, outcome: Outcome, seconds: float) -> None:
        assert 0 <= seconds < PATIENCE_S
        self.finished.append((endpoint, model, outcome))

    def problem_answered(self, code: str) -> None:
        self.codes.append(code)


async def test_calls_and_frames_are_counted_by_outcome_and_health_is_not() -> None:
    listener = Listener()
    async with open_grpc(observer=listener) as caller:
        await caller.segment()
        await refused(caller.segment(b""), "not_an_image")
        late = caller.stub.Embed(pb.EmbedRequest(image=image_bytes(2)), metadata=(("x-deadline-ms", "0.001"),))
        await refused(late, "deadline_exceeded")
        caller.door.sam.fails = ZeroDivisionError()
        await refused(caller.stub.Embed(pb.EmbedRequest(image=image_bytes(3))), "internal_error")
        await refused(caller.channel.unary_unary("/oranges/1")(b""), "not_found")
        await health_of(caller)
        for data in (PEEL, b""):
            message = pb.InspectStreamRequest(request=pb.InspectRequest(image=data, mode=pb.INSPECT_MODE_FAST))
            assert len([reply async for reply in caller.stub.InspectStream(frames_of([message]))]) == 1
        odd = pb.InspectStreamRequest(settings=pb.StreamSettings(max_in_flight=65))
        await refused(caller.stub.InspectStream(frames_of([odd])).read(), "malformed_request")
    segment, embed, stream = (f"/{SERVICE}/{name}" for name in ("Segment", "Embed", "InspectStream"))
    assert listener.finished == [
        (segment, LOADED.name, "ok"),
        (segment, LOADED.name, "refused"),
        (embed, LOADED.name, "shed"),
        (embed, LOADED.name, "failed"),
        ("other", "", "refused"),
        (stream, LOADED_UNET.name, "ok"),
        (stream, LOADED_UNET.name, "refused"),
    ]
    assert listener.started == [endpoint for endpoint, _, _ in listener.finished]
    assert listener.codes == [
        "not_an_image",
        "deadline_exceeded",
        "internal_error",
        "not_found",
        "not_an_image",
        "malformed_request",
    ]


async def test_requests_are_counted_under_paths_and_models_that_callers_cannot_invent() -> None:
    listener = Listener()
    async with open_grpc(observer=listener) as caller:
        client = caller.door.client
        await caller.door.inspect(mode="fast")
        await client.get("/v1/oranges")
        await infer(caller, HTTP_BINARY, boxed())
        peel: Inputs = {"image": PEEL}
        await infer(caller, HTTP_BINARY, peel, model=LOADED_UNET.name, version=LOADED_UNET.revision)
        with pytest.raises(Refused, match="unknown_model"):
            await infer(caller, HTTP_BINARY, boxed(), model="plum", version="7")
        await client.get("/v2/models/plum/versions/7/ready")
        await client.get("/v2/oranges")
        problem(await caller.door.post(image(), prompted(POINT, model="plum")), "unknown_model")
    assert listener.finished == [
        ("/v1/inspect", LOADED_UNET.name, "ok"),
        ("other", "", "refused"),
        ("/v2/models/{model}/infer", LOADED.name, "ok"),
        ("/v2/models/{model}/infer", LOADED_UNET.name, "ok"),
        ("/v2/models/{model}/infer", "", "refused"),
        ("/v2/models/{model}/ready", "", "refused"),
        ("other", "", "refused"),
        ("/v1/segment", "", "refused"),
    ]
    assert listener.codes == ["not_found", "unknown_model", "unknown_model", "not_found", "unknown_model"]


async def test_the_metrics_are_served_as_prometheus_reads_them() -> None:
    async with open_door() as door:
        answer = await door.client.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=")
