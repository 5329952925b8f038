"""Load at every door: full queues, priorities, callers who leave, failing devices, shared batches."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

import pytest

from models.errors import BackendError, DeviceBroken
from service.api import schema
from service.proto.generated.inference import open_inference_pb2 as oip
from service.proto.generated.inference.open_inference_pb2_grpc import GRPCInferenceServiceStub
from service.proto.generated.pomona.v1 import segmentation_pb2 as pb
from tests.contract.door import (
    BOX,
    HELD,
    POINT,
    Door,
    Visitor,
    checked,
    fields,
    image,
    only,
    open_door,
    plain,
    problem,
    prompted,
    within,
)
from tests.contract.doors import (
    Name,
    Request,
    device,
    doors,
    everywhere,
    good,
    hold,
    refused_everywhere,
    runner,
    slow,
)
from tests.contract.grpc_door import Caller, open_grpc, refused
from tests.contract.oip_door import (
    GRPC_RAW,
    HTTP_BINARY,
    WAYS,
    boxed,
    grpc_message,
    http_body,
    infer,
)
from tests.contract.scenes import BLACK, NO_FRUIT, TWO, fruit_image
from tests.fakes import (
    LOADED,
    PATIENCE_S,
    UNPADDED,
    DecodeCall,
    image_bytes,
    peel_image,
)

UPPER: Final = {"box": [16, 8, 48, 24], "multimask": False}
LOWER: Final = {"box": [64, 48, 96, 80], "multimask": False}
SECONDS: Final = UNPADDED.padded.pixels / 1e4
"""Of the encoder for an image of `image_bytes`, where a megapixel takes 100: about 80."""

every_operation = pytest.mark.parametrize("name", ["segment", "semantic", "inspect", "detect"])


@every_operation
async def test_a_full_queue_is_refused_with_the_time_after_which_to_retry(name: Name) -> None:
    # A request of segment takes two places, its image's and its prompts'.
    async with open_grpc(max_queued=2 if name == "segment" else 1) as caller:
        slow(caller.door)
        await caller.door.learn()
        busy = await hold(caller, name)
        admitted = asyncio.create_task(doors(good(name))["HTTP"](caller, good(name, 2)))
        await runner(caller, name).images.reach(2)
        refusals = await refused_everywhere(caller, good(name, 3), "overloaded")
        seconds = [refusal.retry_after_s or 0 for refusal in refusals.values()]
        # Minutes, for the requests came some moments apart.
        assert max(seconds) - min(seconds) <= PATIENCE_S < min(seconds)
        caller.door.let_go()
        await asyncio.gather(busy, admitted)
        assert device(caller, name).encoded == [HELD, 2]


async def test_the_time_after_which_to_retry_is_that_of_the_work_ahead() -> None:
    async with open_door(max_queued=2) as door:
        door.sam.encode_s_per_megapixel = 100
        await door.learn()
        busy = await door.hold()
        admitted = door.start(image(image_bytes(1)), prompted(BOX))
        await door.runner.images.reach(2)
        for answer in (
            await door.post(image(image_bytes(2)), prompted(BOX)),
            await door.post(image(image_bytes(2)), path="/v1/embed"),
        ):
            problem(answer, "overloaded")
            # The image on the device and the one that waits.
            assert int(answer.headers["retry-after"]) == pytest.approx(2 * SECONDS, abs=PATIENCE_S)
        door.let_go()
        await busy
        assert only(checked(await admitted, schema.SegmentResponse)).box == (32, 16, 64, 48)
        assert only(await door.segment(image(image_bytes(2)), prompted(BOX))).box == (32, 16, 64, 48)


async def test_a_request_that_would_make_an_earlier_one_late_is_refused(door: Door) -> None:
    door.sam.encode_s_per_megapixel = 100
    await door.learn()
    busy = await door.hold()
    admitted = door.start(image(image_bytes(1)), prompted(BOX), headers=within(200_000))
    await door.runner.images.reach(2)
    urgent = {"priority": "u=0"}
    problem(await door.post(image(image_bytes(2)), prompted(BOX), headers=urgent), "overloaded")
    door.let_go()
    await busy
    assert only(checked(await admitted, schema.SegmentResponse)).box == (32, 16, 64, 48)
    assert only(await door.segment(image(image_bytes(2)), prompted(BOX), headers=urgent)).box == (32, 16, 64, 48)
    assert door.sam.encoded == [HELD, 1, 2]


# Priorities.


@every_operation
async def test_the_more_urgent_go_first(caller: Caller, name: Name) -> None:
    busy = await hold(caller, name)
    calls = []
    for mark, (urgency, way) in enumerate(((7, "HTTP"), (0, "gRPC"), (4, "HTTP, raw body"), (2, "gRPC"))):
        request = good(name, mark)
        request = Request(name, request.fields, request.image, headers={"priority": f"u={urgency}"})
        calls.append(asyncio.create_task(doors(request)[way](caller, request)))
        await runner(caller, name).images.reach(1 + len(calls))
    caller.door.let_go()
    await asyncio.gather(busy, *calls)
    assert device(caller, name).encoded == [HELD, 1, 3, 2, 0]


async def order(door: Door, *headers: dict[str, str]) -> list[int]:
    """Return the order in which a busy device takes requests with these headers, numbered from 0."""
    busy = await door.hold()
    calls = []
    for number, header in enumerate(headers):
        calls.append(door.start(image(image_bytes(number)), path="/v1/embed", headers=header))
        await door.runner.images.reach(1 + len(calls))
    door.let_go()
    for answer in await asyncio.gather(*calls):
        checked(answer, schema.EmbedResponse)
    await busy
    held, *others = door.sam.encoded
    assert held == HELD
    return others


@pytest.mark.parametrize("text", ["u=1", "u=1, i", "i, u=1", "i,u=1;x", "u = 1"])
async def test_the_urgency_is_found_among_other_parameters(door: Door, text: str) -> None:
    assert await order(door, {"priority": "u=2"}, {"priority": text}) == [1, 0]


@pytest.mark.parametrize("text", ["u=8", "u=-1", "u=11", "urgent", "=", "", "U=0", "menu=0", "7"])
async def test_a_priority_that_cannot_be_read_is_as_if_absent(door: Door, text: str) -> None:
    assert await order(door, {"priority": "u=4"}, {"priority": text}, {}, {"priority": "u=2"}) == [3, 1, 2, 0]


async def test_of_equally_urgent_requests_the_earliest_deadline_goes_first(door: Door) -> None:
    headers = [{}, within(60_000), within(30_000), within(40_000) | {"priority": "u=2"}]
    assert await order(door, *headers) == [3, 2, 1, 0]


async def oip_order(caller: Caller, way: str, *options: dict[str, Any]) -> list[int]:
    """Return the order in which a busy device takes requests with these parameters and headers."""
    busy = await caller.door.hold()
    calls = []
    for number, given in enumerate(options):
        calls.append(asyncio.create_task(infer(caller, way, boxed(image_bytes(number)), "areas", **given)))
        await caller.door.runner.images.reach(1 + len(calls))
    caller.door.let_go()
    await asyncio.gather(busy, *calls)
    return caller.door.sam.encoded[1:]


@pytest.mark.parametrize("way", WAYS)
async def test_a_priority_of_one_goes_first_and_zero_is_the_default(caller: Caller, way: str) -> None:
    options: list[dict[str, Any]] = [{"priority": priority} for priority in (900, 1, 5, 0, 4)]
    assert await oip_order(caller, way, *options) == [1, 3, 4, 2, 0]


@pytest.mark.parametrize("way", [HTTP_BINARY, GRPC_RAW])
async def test_the_parameter_priority_counts_before_the_header(caller: Caller, way: str) -> None:
    urgent = {"headers": {"priority": "u=1"}}
    options: list[dict[str, Any]] = [{**urgent, "priority": 6}, {}, urgent, {**urgent, "priority": 0}]
    assert await oip_order(caller, way, *options) == [2, 3, 1, 0]


# Callers who leave.


@every_operation
async def test_a_caller_who_leaves_the_queue_is_dropped_before_anything_runs(
    caller: Caller, name: Name, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="pomona")
    busy = await hold(caller, name)
    images = runner(caller, name).images
    over_http, over_grpc = good(name, 1), good(name, 2)
    visitor = Visitor(image(over_http.image or b""), fields(**over_http.fields), path=over_http.path)
    hanging_up = visitor.start(caller.door)
    await images.reach(2)
    leaving = asyncio.create_task(doors(over_grpc)["gRPC"](caller, over_grpc))
    await images.reach(3)
    staying = asyncio.create_task(doors(good(name, 3))["HTTP"](caller, good(name, 3)))
    await images.reach(4)
    visitor.hang_up()
    await hanging_up
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    # A later call finds that the earlier one left.
    await caller.stub.ListModels(pb.ListModelsRequest())
    assert not busy.done()
    caller.door.let_go()
    await asyncio.gather(busy, staying)
    assert device(caller, name).encoded == [HELD, 3]
    lines = [vars(record) for record in caplog.records if vars(record).get("message") == "request"]
    assert [line["status"] for line in lines if line.get("status", 200) != 200] == [499]
    assert [line["grpc_status"] for line in lines if line.get("grpc_status", "OK") != "OK"] == ["CANCELLED"]


async def test_a_caller_who_stays_is_answered_while_the_server_listens_for_the_disconnect(door: Door) -> None:
    visitor = Visitor(image(), prompted(BOX))
    await visitor.start(door)
    start, *bodies = visitor.sent
    assert start["status"] == 200
    answer = schema.SegmentResponse.model_validate_json(b"".join(body["body"] for body in bodies))
    assert only(answer).box == (32, 16, 64, 48)


async def test_an_image_that_another_request_waits_for_is_encoded_though_its_sender_left(door: Door) -> None:
    busy = await door.hold()
    leaving = [Visitor(image(image_bytes(1)), path="/v1/embed"), Visitor(image(image_bytes(3)), prompted(POINT))]
    calls = [visitor.start(door) for visitor in leaving]
    await door.runner.images.reach(3)
    staying = door.start(image(image_bytes(3)), prompted(BOX))
    await door.cache.lookups.reach(4)
    for visitor in leaving:
        visitor.hang_up()
    await asyncio.gather(*calls)
    door.let_go()
    await busy
    async with asyncio.timeout(PATIENCE_S):
        assert only(checked(await staying, schema.SegmentResponse)).box == (32, 16, 64, 48)
    assert door.sam.encoded == [HELD, 3]
    assert door.sam.decodes == [DecodeCall(1, with_masks=False)]


async def test_callers_who_leave_an_inference_are_dropped_before_anything_runs(caller: Caller) -> None:
    busy = await caller.door.hold()
    message = grpc_message(boxed(image_bytes(1)), (), {}, raw=True)
    message.model_name = LOADED.name
    stub: Any = GRPCInferenceServiceStub(caller.channel)
    leaving = stub.ModelInfer(message)
    await caller.door.runner.images.reach(2)
    content, _ = http_body(boxed(image_bytes(2)), (), {}, request_id="", raw=False)
    visitor = Visitor(path=f"/v2/models/{LOADED.name}/infer", content=content)
    hanging_up = visitor.start(caller.door)
    await caller.door.runner.images.reach(3)
    visitor.hang_up()
    await hanging_up
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    # A later call finds that the earlier one left.
    assert (await stub.ServerReady(oip.ServerReadyRequest())).ready
    caller.door.let_go()
    await busy
    assert (await infer(caller, GRPC_RAW, boxed(), "areas")).outputs["areas"].tolist() == [[1024]]
    assert caller.door.sam.encoded == [HELD, 0]


# Failures.


@every_operation
@pytest.mark.parametrize("failure", [BackendError("secret"), ZeroDivisionError("secret"), DeviceBroken("secret")])
async def test_a_failure_of_the_server_is_logged_and_leaks_at_no_door(
    caller: Caller, name: Name, failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    device(caller, name).fails = failure
    for refusal in (await refused_everywhere(caller, good(name), "internal_error")).values():
        assert "secret" not in refusal.detail
        assert type(failure).__name__ not in refusal.detail
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert any("secret" in str(vars(record)) for record in errors)
    device(caller, name).fails = None
    if not isinstance(failure, DeviceBroken):
        await everywhere(caller, good(name))


async def test_a_broken_device_fails_every_request_and_is_reported(
    caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    door = caller.door
    busy = await door.hold()
    waiting = [door.start(image(), prompted(BOX)), caller.start(caller.segment(image_bytes(1)))]
    await door.runner.images.reach(3)
    before = door.pipelines.engine.broken
    door.sam.fails = DeviceBroken("CUDA error at /srv/weights")
    door.let_go()
    for answer in (
        await waiting[0],
        await door.post(image(), prompted(BOX)),
        await door.post(image(), path="/v1/embed"),
    ):
        problem(answer, "internal_error")
        assert "CUDA" not in answer.text
    await refused(waiting[1], "internal_error")
    with pytest.raises(AssertionError, match="internal_error"):
        await busy
    assert (before, door.pipelines.engine.broken) == (False, True)
    assert door.sam.encoded == [HELD]
    assert any("CUDA" in str(vars(record)) for record in caplog.records)


# Batches.


async def test_prompts_of_two_requests_on_two_images_share_a_batch_and_get_their_own_answers(door: Door) -> None:
    ids = [(await door.embed(image_bytes(red))).image.id for red in (0, 255)]
    parts = [
        (plain("image_id", image_id), prompted(box, format="logits"))
        for image_id, box in zip(ids, (UPPER, LOWER), strict=True)
    ]
    alone = [await door.segment(*sent) for sent in parts]
    door.sam.forget()
    busy = await door.hold()
    before = door.runner.requests.count
    calls = [door.start(*sent) for sent in parts]
    await door.runner.requests.reach(before + 2)
    door.let_go()
    await busy
    together = [checked(await call, schema.SegmentResponse) for call in calls]
    assert [answer.batch for answer in together] == [schema.Batch(encode=0, prompt=2, infer=0)] * 2
    assert door.sam.decodes == [DecodeCall(2, with_masks=False)]
    assert [answer.results for answer in together] == [answer.results for answer in alone]
    assert [answer.image.id for answer in together] == ids
    assert [only(answer).box for answer in together] == [(16, 8, 48, 24), (64, 48, 96, 80)]


async def test_images_of_both_doors_share_a_batch_and_get_their_own_answers(caller: Caller) -> None:
    door = caller.door
    door.unet.image_batches = (1, 2, 4)
    door.unet.infer_s_per_batch = 1
    await door.learn()
    busy = await door.hold_unet()
    over_grpc = caller.start(caller.stub.Semantic(pb.SemanticRequest(image=peel_image(1))))
    over_http = [asyncio.create_task(door.semantic(data)) for data in (BLACK, peel_image(2))]
    await door.unet_runner.images.reach(4)
    door.let_go()
    await busy
    first, *others = await asyncio.gather(over_grpc, *over_http)
    assert door.unet.encodes == [1, 3]
    assert [answer.batch.infer for answer in (first, *others)] == [3, 3, 3]
    assert [len(answer.objects) for answer in (first, *others)] == [2, 0, 2]


async def test_inspected_images_share_batches_and_get_their_own_answers(door: Door) -> None:
    door.unet.image_batches = (1, 2, 4)
    door.unet.infer_s_per_batch = 1
    await door.learn()
    busy = await door.hold_unet()
    first = door.unet_runner.images.count
    scenes = (TWO, NO_FRUIT, fruit_image((40, 40, 140, 140)))
    calls = [asyncio.create_task(door.inspect(data, mode="fast")) for data in scenes]
    await door.unet_runner.images.reach(first + 3)
    door.let_go()
    await busy
    together = await asyncio.gather(*calls)
    assert [answer.batch.infer for answer in together] == [3, 3, 3]
    assert [len(answer.fruits) for answer in together] == [2, 0, 1]


async def test_one_bad_prompt_of_a_shared_batch_fails_alone(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    ids = [(await door.embed(image_bytes(red))).image.id for red in (1, 2, 3)]
    door.sam.spoilt = {2}
    busy = await door.hold()
    calls = [door.start(plain("image_id", image_id), prompted(BOX)) for image_id in ids]
    await door.runner.requests.reach(3)
    door.let_go()
    await busy
    first, bad, last = await asyncio.gather(*calls)
    for fine in (first, last):
        assert only(checked(fine, schema.SegmentResponse)).box == (32, 16, 64, 48)
    problem(bad, "internal_error")
    assert door.sam.decodes[0] == DecodeCall(3, with_masks=False)
    failed = [vars(record)["request_id"] for record in caplog.records if record.levelno == logging.ERROR]
    assert failed == [bad.headers["x-request-id"]]
    door.sam.spoilt = set()
    assert only(await door.segment(plain("image_id", ids[1]), prompted(BOX))).box == (32, 16, 64, 48)


async def test_one_bad_image_of_a_shared_batch_fails_alone(door: Door) -> None:
    busy = await door.hold_unet()
    door.unet.spoilt = {2}
    calls = [door.start(image(peel_image(mark)), path="/v1/semantic") for mark in (1, 2, 3)]
    await door.unet_runner.images.reach(4)
    door.let_go()
    await busy
    first, bad, last = await asyncio.gather(*calls)
    for fine in (first, last):
        assert len(checked(fine, schema.SemanticResponse).objects) == 2
    problem(bad, "internal_error")


async def test_models_on_different_devices_do_not_wait_for_each_other(door: Door) -> None:
    busy = await door.hold_unet()
    assert only(await door.segment(image(), prompted(BOX))).box == (32, 16, 64, 48)
    assert not busy.done()
    door.let_go()
    await busy
