"""Deadlines, priorities, cancellation and load over gRPC."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import grpc
import pytest

from service.proto.generated.pomona.v1 import segmentation_pb2 as pb
from tests.contract.door import HELD
from tests.contract.grpc_door import BOX, IMAGE, PEEL, Caller, corners, only, open_grpc, refused
from tests.fakes import PATIENCE_S, UNPADDED, image_bytes, peel_image

SECONDS = UNPADDED.padded.pixels / 1e4
"""Of the encoder for a image_bytes, where a megapixel takes 100."""


def segment(data: bytes = IMAGE) -> pb.SegmentRequest:
    return pb.SegmentRequest(image=data, prompts=[BOX])


def within(milliseconds: float) -> tuple[tuple[str, str], ...]:
    return (("x-deadline-ms", f"{milliseconds:g}"),)


async def test_a_deadline_that_passes_in_the_queue_is_answered_at_once_and_nothing_is_run(caller: Caller) -> None:
    busy = await caller.hold()
    began = time.monotonic()
    for call in (
        caller.stub.Segment(segment(image_bytes(1)), metadata=within(200)),
        caller.stub.Embed(pb.EmbedRequest(image=image_bytes(2)), metadata=within(200), timeout=60),
    ):
        await refused(call, "deadline_exceeded")
    assert 0.2 <= time.monotonic() - began < PATIENCE_S / 2
    assert not busy.done()
    caller.door.let_go()
    await busy
    assert caller.door.sam.encoded == [HELD]


@pytest.mark.parametrize("metadata", [(), within(60_000)])
async def test_the_calls_own_deadline_is_the_pipelines(
    caller: Caller, metadata: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="pomona.grpc")
    busy = await caller.hold()
    # Who waits ends the call at the same time, whoever of the two is first.
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await caller.stub.Segment(segment(image_bytes(1)), timeout=0.2, metadata=metadata)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert not busy.done()
    caller.door.let_go()
    await busy
    assert only(await caller.segment()).area == 1024
    assert caller.door.sam.encoded == [HELD, 0]
    assert [vars(record)["grpc_status"] for record in caplog.records] == ["DEADLINE_EXCEEDED", "OK"]


async def test_a_deadline_that_cannot_be_met_is_refused_before_anything_is_run(caller: Caller) -> None:
    caller.door.sam.encode_s_per_megapixel = 100
    await caller.door.learn()
    for call in (
        caller.stub.Segment(segment(), timeout=60),
        caller.stub.Embed(pb.EmbedRequest(image=IMAGE), timeout=60),
        caller.stub.Segment(segment(), metadata=within(60_000)),
    ):
        await refused(call, "deadline_unreachable")
    assert (caller.door.sam.prepares, caller.door.sam.encodes) == (0, [])
    answer = await caller.stub.Segment(segment(), timeout=120)
    assert answer.timing.encode_ms == pytest.approx(1000 * SECONDS, abs=1000 * PATIENCE_S)


@pytest.mark.parametrize("method", ["Semantic", "Inspect"])
async def test_a_deadline_reaches_the_u_net_too(caller: Caller, method: str) -> None:
    caller.door.unet.infer_s_per_megapixel = 1000
    await caller.door.unet_runner.warm_up()
    caller.door.unet.forget()
    request = pb.SemanticRequest(image=PEEL) if method == "Semantic" else pb.InspectRequest(image=PEEL)
    await refused(getattr(caller.stub, method)(request, timeout=60), "deadline_unreachable")
    assert caller.door.unet.encodes == []


@pytest.mark.parametrize("text", ["60000", "6e4", "3600000"])
async def test_a_deadline_that_is_far_away_changes_nothing(caller: Caller, text: str) -> None:
    answer = await caller.stub.Segment(segment(), metadata=(("x-deadline-ms", text),), timeout=3600)
    assert corners(only(answer).box) == (32, 16, 64, 48)


async def test_a_call_beyond_a_full_queue_is_refused_and_told_when_to_come_back() -> None:
    async with open_grpc(max_queued=2) as caller:
        caller.door.sam.encode_s_per_megapixel = 100
        await caller.door.learn()
        busy = await caller.hold()
        admitted = asyncio.create_task(caller.segment(image_bytes(1)))
        await caller.door.runner.images.reach(2)
        told = await refused(caller.segment(image_bytes(2)), "overloaded")
        assert told.status is grpc.StatusCode.RESOURCE_EXHAUSTED
        # The image on the device and the one that waits.
        assert told.retry_after_s == pytest.approx(2 * SECONDS, abs=PATIENCE_S)
        caller.door.let_go()
        await busy
        assert only(await admitted).area == 1024
        assert caller.door.sam.encoded == [HELD, 1]


async def test_a_caller_who_leaves_the_queue_is_dropped_before_anything_is_run(
    caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="pomona.grpc")
    busy = await caller.hold()
    leaving = caller.stub.Segment(segment(image_bytes(1)))
    await caller.door.runner.images.reach(2)
    staying = asyncio.create_task(caller.segment(image_bytes(2)))
    await caller.door.runner.images.reach(3)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    # Whoever comes after it finds that it left.
    await caller.stub.ListModels(pb.ListModelsRequest())
    caller.door.let_go()
    await busy
    assert only(await staying).area == 1024
    assert caller.door.sam.encoded == [HELD, 2]
    statuses = {vars(record)["path"]: vars(record)["grpc_status"] for record in reversed(caplog.records)}
    assert statuses["/pomona.v1.Segmentation/Segment"] == "CANCELLED"


async def test_the_more_urgent_go_first(caller: Caller) -> None:
    busy = await caller.hold_unet()
    calls: list[asyncio.Task[Any]] = []
    for mark, urgency in enumerate((7, 0, 4)):
        request = pb.SemanticRequest(image=peel_image(mark))
        calls.append(caller.start(caller.stub.Semantic(request, metadata=(("priority", f"u={urgency}"),))))
        await caller.door.unet_runner.images.reach(1 + len(calls))
    caller.door.let_go()
    await asyncio.gather(busy, *calls)
    assert caller.door.unet.encoded == [HELD, 1, 2, 0]


async def test_calls_of_both_doors_share_a_batch(caller: Caller) -> None:
    door = caller.door
    door.unet.image_batches = (1, 2)
    door.unet.infer_s_per_batch = 1
    await door.unet_runner.warm_up()
    door.unet.forget()
    busy = await caller.hold_unet()
    over_grpc = caller.start(caller.stub.Semantic(pb.SemanticRequest(image=peel_image(1))))
    over_http = asyncio.create_task(door.semantic(peel_image(2)))
    await door.unet_runner.images.reach(3)
    door.let_go()
    await busy
    assert (await over_grpc).batch.infer == (await over_http).batch.infer == 2
    assert door.unet.encodes == [1, 2]
