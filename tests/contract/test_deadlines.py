"""Deadlines at every door: what cannot be in time is refused at once, before anything runs."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import Any, Final

import grpc
import pytest

from service.api import schema
from service.proto.generated.pomona.v1 import segmentation_pb2 as pb
from tests.contract.door import (
    BOX,
    HELD,
    Door,
    checked,
    image,
    only,
    problem,
    prompted,
    within,
)
from tests.contract.doors import (
    Name,
    device,
    everywhere,
    good,
    hold,
    refused_everywhere,
    slow,
)
from tests.contract.grpc_door import Caller, open_grpc, refused, segment_request
from tests.contract.grpc_door import only as only_mask
from tests.contract.oip_door import (
    GRPC_RAW,
    GRPC_TYPED,
    HTTP_BINARY,
    HTTP_JSON,
    WAYS,
    Refused,
    boxed,
    infer,
)
from tests.contract.scenes import IMAGE, PEEL
from tests.fakes import (
    PATIENCE_S,
    PEEL_FRAME,
    UNPADDED,
    image_bytes,
)

SECONDS: Final = UNPADDED.padded.pixels / 1e4
"""Of the encoder for an image of `image_bytes`, where a megapixel takes 100: about 80."""

every_operation = pytest.mark.parametrize("name", ["segment", "semantic", "inspect", "detect"])


@every_operation
async def test_a_deadline_that_cannot_be_met_is_refused_before_anything_runs(caller: Caller, name: Name) -> None:
    slow(caller.door)
    await caller.door.learn()
    await refused_everywhere(caller, good(name, deadline="10000"), "deadline_unreachable")
    assert (device(caller, name).prepares, device(caller, name).encodes) == (0, [])


@every_operation
async def test_a_deadline_that_passes_in_the_queue_is_answered_at_once(caller: Caller, name: Name) -> None:
    busy = await hold(caller, name)
    async with asyncio.timeout(PATIENCE_S / 2):
        await refused_everywhere(caller, good(name, deadline="700"), "deadline_exceeded")
    assert not busy.done()
    caller.door.let_go()
    await busy
    assert device(caller, name).encoded == [HELD]
    await everywhere(caller, good(name))


@every_operation
async def test_a_request_that_takes_too_long_is_refused(name: Name) -> None:
    async with open_grpc(request_timeout_s=0.3) as caller:
        device(caller, name).blocks = threading.Event()
        for refusal in (await refused_everywhere(caller, good(name), "timed_out")).values():
            assert "POMONA_REQUEST_TIMEOUT_S" in refusal.detail


async def test_a_deadline_that_passes_on_the_device_is_answered_at_once(door: Door) -> None:
    await door.embed(image_bytes(1))
    busy = await door.hold()
    answer = await door.post(image(image_bytes(HELD)), prompted(BOX), headers=within(50))
    problem(answer, "deadline_exceeded")
    assert not busy.done()
    door.let_go()
    await busy
    assert only(await door.segment(image(image_bytes(HELD)), prompted(BOX))).box == (32, 16, 64, 48)


@pytest.mark.parametrize("path", ["/v1/segment", "/v1/embed"])
async def test_a_deadline_counts_from_the_arrival_of_the_request(door: Door, path: str) -> None:
    parts = [image()] if path == "/v1/embed" else [image(), prompted(BOX)]
    # No body is read within a microsecond.
    problem(await door.post(*parts, path=path, headers=within(0.001)), "deadline_exceeded")
    assert door.sam.encodes == []


@pytest.mark.parametrize("text", ["60000", "6e4", "59999.5", "3600000"])
async def test_a_distant_deadline_changes_nothing(door: Door, text: str) -> None:
    headers = {"x-deadline-ms": text}
    assert only(await door.segment(image(), prompted(BOX), headers=headers)).box == (32, 16, 64, 48)


async def test_a_request_that_can_be_in_time_is_taken_and_a_known_image_needs_no_encoder(door: Door) -> None:
    door.sam.encode_s_per_megapixel = 100
    await door.learn()
    problem(await door.post(image(), path="/v1/embed", headers=within(60_000)), "deadline_unreachable")
    embedded = await door.segment(image(), prompted(BOX), headers=within(120_000))
    assert embedded.timing_ms.encode == pytest.approx(1000 * SECONDS, abs=1000 * PATIENCE_S)
    assert only(await door.segment(image(), prompted(BOX), headers=within(60_000))).box == (32, 16, 64, 48)


async def test_the_u_nets_time_is_predicted_from_the_size_of_its_input(door: Door) -> None:
    door.unet.infer_s_per_megapixel = 1000
    await door.learn()
    seconds = 1000 * PEEL_FRAME.padded.pixels / 1e6
    parts, late, soon = [image(PEEL)], within(1000 * (seconds - PATIENCE_S)), within(1000 * (seconds + PATIENCE_S))
    problem(await door.post(*parts, path="/v1/semantic", headers=late), "deadline_unreachable")
    in_time = await door.post(*parts, path="/v1/semantic", headers=soon)
    assert len(checked(in_time, schema.SemanticResponse).objects) == 2


async def test_the_work_ahead_counts_against_a_deadline(door: Door) -> None:
    door.sam.encode_s_per_megapixel = 100
    await door.learn()
    busy = await door.hold()
    problem(await door.post(image(), prompted(BOX), headers=within(120_000)), "deadline_unreachable")
    door.let_go()
    await busy
    assert only(await door.segment(image(), prompted(BOX), headers=within(120_000))).box == (32, 16, 64, 48)


async def test_a_request_that_waits_for_an_encoding_is_answered_though_the_first_sender_ran_out_of_time(
    door: Door,
) -> None:
    busy = await door.hold()
    first = door.start(image(), prompted(BOX), headers=within(500))
    await door.runner.images.reach(2)
    second = door.start(image(), prompted(BOX))
    await door.cache.lookups.reach(3)
    problem(await first, "deadline_exceeded")
    door.let_go()
    await busy
    async with asyncio.timeout(PATIENCE_S):
        assert only(checked(await second, schema.SegmentResponse)).box == (32, 16, 64, 48)
    assert door.sam.encoded == [HELD, 0]


@pytest.mark.parametrize("metadata", [(), (("x-deadline-ms", "60000"),)])
async def test_a_calls_own_deadline_counts_too(caller: Caller, metadata: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="pomona.grpc")
    busy = await caller.door.hold()
    # The caller ends the call at the same time, whichever of the two is first.
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await caller.stub.Segment(segment_request(image_bytes(1)), timeout=0.2, metadata=metadata)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert not busy.done()
    caller.door.let_go()
    await busy
    assert only_mask(await caller.segment()).area == 1024
    assert caller.door.sam.encoded == [HELD, 0]
    assert [vars(record)["grpc_status"] for record in caplog.records] == ["DEADLINE_EXCEEDED", "OK"]


@pytest.mark.parametrize("method", ["Segment", "Embed", "Semantic", "Inspect"])
async def test_a_calls_own_deadline_is_refused_where_it_cannot_be_met(caller: Caller, method: str) -> None:
    slow(caller.door)
    await caller.door.learn()
    messages = {
        "Segment": segment_request(),
        "Embed": pb.EmbedRequest(image=IMAGE),
        "Semantic": pb.SemanticRequest(image=PEEL),
        "Inspect": pb.InspectRequest(image=PEEL),
    }
    await refused(getattr(caller.stub, method)(messages[method], timeout=60), "deadline_unreachable")
    assert caller.door.encodes == []


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
async def test_the_earlier_of_timeout_and_deadline_counts(
    caller: Caller, way: str, headers: dict[str, str], microseconds: int
) -> None:
    busy = await caller.door.hold()
    began = time.monotonic()
    # On a busy machine the request may be refused on arrival.
    with pytest.raises(Refused, match=r"deadline_(exceeded|unreachable)"):
        await infer(caller, way, boxed(image_bytes(1)), headers=headers, timeout=microseconds)
    assert time.monotonic() - began < PATIENCE_S / 2
    assert not busy.done()
    caller.door.let_go()
    await busy
    assert caller.door.sam.encoded == [HELD]


@pytest.mark.parametrize("way", WAYS)
async def test_a_timeout_of_zero_is_none_and_one_that_cannot_be_met_is_refused(caller: Caller, way: str) -> None:
    caller.door.sam.encode_s_per_megapixel = 100
    await caller.door.learn()
    with pytest.raises(Refused, match="deadline_unreachable"):
        await infer(caller, way, boxed(), timeout=60_000_000)
    assert (caller.door.sam.prepares, caller.door.sam.encodes) == (0, [])
    assert (await infer(caller, way, boxed(), "areas", timeout=0)).outputs["areas"].tolist() == [[1024]]
