"""Deadlines, priorities, load and shared batches, as callers meet them."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import httpx
import pytest

from service.api import schema
from tests.contract.door import BOX, HELD, POINT, Door, asked, checked, image, only, open_door, plain, problem
from tests.fakes import PATIENCE_S, UNPADDED, DecodeCall, image_bytes

UPPER = {"box": [16, 8, 48, 24], "multimask": False}
LOWER = {"box": [64, 48, 96, 80], "multimask": False}
SECONDS = UNPADDED.padded.pixels / 1e4
"""Of the encoder for a image_bytes, where a megapixel takes 100: 79 at least and 85 at most."""


def within(milliseconds: float) -> dict[str, str]:
    return {"x-deadline-ms": f"{milliseconds:g}"}


async def test_a_deadline_that_passes_in_the_queue_is_answered_at_once_and_nothing_is_run(door: Door) -> None:
    busy = await door.hold()
    began = time.monotonic()
    answers = await asyncio.gather(
        door.post(image(image_bytes(1)), asked(BOX), headers=within(300)),
        door.post(image(image_bytes(2)), path="/v1/embed", headers=within(300)),
    )
    for answer in answers:
        problem(answer, "deadline_exceeded")
    assert 0.3 <= time.monotonic() - began < PATIENCE_S / 2
    assert not busy.done()
    door.let_go()
    await busy
    assert door.sam.encoded == [HELD]
    assert door.sam.decodes == []


async def test_a_deadline_that_passes_on_the_device_is_answered_at_once(door: Door) -> None:
    await door.embed(image_bytes(1))
    busy = await door.hold()
    answer = await door.post(image(image_bytes(HELD)), asked(BOX), headers=within(50))
    problem(answer, "deadline_exceeded")
    assert not busy.done()
    door.let_go()
    await busy
    assert only(await door.segment(image(image_bytes(HELD)), asked(BOX))).box == (32, 16, 64, 48)


@pytest.mark.parametrize("path", ["/v1/segment", "/v1/embed"])
async def test_a_deadline_counts_from_the_arrival_of_the_request(door: Door, path: str) -> None:
    parts = [image()] if path == "/v1/embed" else [image(), asked(BOX)]
    # No body is read within a microsecond.
    problem(await door.post(*parts, path=path, headers=within(0.001)), "deadline_exceeded")
    assert door.sam.encodes == []


@pytest.mark.parametrize("text", ["60000", "6e4", "59999.5", "3600000"])
async def test_a_deadline_that_is_far_away_changes_nothing(door: Door, text: str) -> None:
    headers = {"x-deadline-ms": text}
    assert only(await door.segment(image(), asked(BOX), headers=headers)).box == (32, 16, 64, 48)
    checked(await door.post(image(image_bytes(1)), path="/v1/embed", headers=headers), schema.EmbedResponse)


async def test_a_deadline_that_cannot_be_met_is_refused_before_anything_is_run(door: Door) -> None:
    door.sam.encode_s_per_megapixel = 100
    await door.learn()
    for answer in (
        await door.post(image(), asked(BOX), headers=within(60_000)),
        await door.post(image(), path="/v1/embed", headers=within(60_000)),
    ):
        problem(answer, "deadline_unreachable")
    assert (door.sam.prepares, door.sam.encodes, door.sam.decodes) == (0, [], [])
    # What can be in time is taken, and an image that is known needs no encoder.
    embedded = await door.segment(image(), asked(BOX), headers=within(120_000))
    assert embedded.timing_ms.encode == pytest.approx(1000 * SECONDS, abs=1000 * PATIENCE_S)
    assert only(await door.segment(image(), asked(BOX), headers=within(60_000))).box == (32, 16, 64, 48)


async def test_the_work_ahead_counts_against_a_deadline(door: Door) -> None:
    door.sam.encode_s_per_megapixel = 100
    await door.learn()
    busy = await door.hold()
    problem(await door.post(image(), asked(BOX), headers=within(120_000)), "deadline_unreachable")
    door.let_go()
    await busy
    assert only(await door.segment(image(), asked(BOX), headers=within(120_000))).box == (32, 16, 64, 48)


async def test_who_waits_for_a_image_is_answered_though_the_one_who_sent_it_first_ran_out_of_time(
    door: Door,
) -> None:
    busy = await door.hold()
    first = door.start(image(), asked(BOX), headers=within(200))
    await door.runner.images.reach(2)
    second = door.start(image(), asked(BOX))
    await door.cache.asked.reach(3)
    problem(await first, "deadline_exceeded")
    door.let_go()
    await busy
    async with asyncio.timeout(PATIENCE_S):
        assert only(checked(await second, schema.SegmentResponse)).box == (32, 16, 64, 48)
    assert door.sam.encoded == [HELD, 0]


async def test_a_request_beyond_a_full_queue_is_refused_and_told_when_to_come_back() -> None:
    async with open_door(max_queued=2) as door:
        busy = await door.hold()
        admitted = door.start(image(image_bytes(1)), asked(BOX))
        await door.runner.images.reach(2)
        for answer in (
            await door.post(image(image_bytes(2)), asked(BOX)),
            await door.post(image(image_bytes(2)), path="/v1/embed"),
        ):
            problem(answer, "overloaded")
            assert int(answer.headers["retry-after"]) >= 1
        door.let_go()
        await busy
        assert only(checked(await admitted, schema.SegmentResponse)).box == (32, 16, 64, 48)
        assert door.sam.encoded == [HELD, 1]
        assert only(await door.segment(image(image_bytes(2)), asked(BOX))).box == (32, 16, 64, 48)


async def test_who_is_refused_is_told_how_long_the_queue_will_take() -> None:
    async with open_door(max_queued=2) as door:
        door.sam.encode_s_per_megapixel = 100
        await door.learn()
        busy = await door.hold()
        admitted = door.start(image(image_bytes(1)), asked(BOX))
        await door.runner.images.reach(2)
        refused = await door.post(image(image_bytes(2)), asked(BOX))
        problem(refused, "overloaded")
        # The image on the device and the one that waits.
        assert int(refused.headers["retry-after"]) == pytest.approx(2 * SECONDS, abs=PATIENCE_S)
        door.let_go()
        await asyncio.gather(busy, admitted)


async def test_a_request_that_would_make_an_earlier_one_late_is_refused(door: Door) -> None:
    door.sam.encode_s_per_megapixel = 100
    await door.learn()
    busy = await door.hold()
    admitted = door.start(image(image_bytes(1)), asked(BOX), headers=within(200_000))
    await door.runner.images.reach(2)
    urgent = {"priority": "u=0"}
    problem(await door.post(image(image_bytes(2)), asked(BOX), headers=urgent), "overloaded")
    door.let_go()
    await busy
    assert only(checked(await admitted, schema.SegmentResponse)).box == (32, 16, 64, 48)
    assert only(await door.segment(image(image_bytes(2)), asked(BOX), headers=urgent)).box == (32, 16, 64, 48)
    assert door.sam.encoded == [HELD, 1, 2]


async def in_which_order(door: Door, *headers: dict[str, str]) -> list[int]:
    """Requests with these headers, numbered from 0, come while the device is busy: the order in which it took them."""
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


async def test_the_more_urgent_go_first(door: Door) -> None:
    urgencies = [{"priority": f"u={urgency}"} for urgency in (7, 0, 4)]
    assert await in_which_order(door, *urgencies) == [1, 2, 0]


@pytest.mark.parametrize("text", ["u=1", "u=1, i", "i, u=1", "i,u=1;x", "u = 1"])
async def test_the_urgency_is_found_among_other_parameters(door: Door, text: str) -> None:
    assert await in_which_order(door, {"priority": "u=2"}, {"priority": text}) == [1, 0]


@pytest.mark.parametrize("text", ["u=8", "u=-1", "u=11", "urgent", "=", "", "U=0", "menu=0", "7"])
async def test_a_priority_that_cannot_be_read_is_as_if_absent(door: Door, text: str) -> None:
    assert await in_which_order(door, {"priority": "u=4"}, {"priority": text}, {}, {"priority": "u=2"}) == [3, 1, 2, 0]


async def test_of_the_equally_urgent_the_earliest_deadline_goes_first(door: Door) -> None:
    headers = [{}, within(60_000), within(30_000), within(40_000) | {"priority": "u=2"}]
    assert await in_which_order(door, *headers) == [3, 2, 1, 0]


async def test_prompts_of_two_requests_on_two_images_share_a_batch_and_each_gets_its_own_answer(door: Door) -> None:
    ids = [(await door.embed(image_bytes(red))).image.id for red in (0, 255)]
    parts = [
        (plain("image_id", image_id), asked(box, format="logits"))
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
    assert [answer.batch for answer in together] == [schema.SegmentBatch(encode=0, prompt=2)] * 2
    assert door.sam.decodes == [DecodeCall(2, with_masks=False)]
    assert [answer.results for answer in together] == [answer.results for answer in alone]
    assert [answer.image.id for answer in together] == ids
    assert [only(answer).box for answer in together] == [(16, 8, 48, 24), (64, 48, 96, 80)]


async def test_one_bad_item_of_a_shared_batch_fails_alone(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    ids = [(await door.embed(image_bytes(red))).image.id for red in (1, 2, 3)]
    door.sam.spoilt = {2}
    busy = await door.hold()
    calls = [door.start(plain("image_id", image_id), asked(BOX)) for image_id in ids]
    await door.runner.requests.reach(3)
    door.let_go()
    await busy
    first, bad, last = await asyncio.gather(*calls)
    for good in (first, last):
        assert only(checked(good, schema.SegmentResponse)).box == (32, 16, 64, 48)
    problem(bad, "internal_error")
    assert door.sam.decodes[0] == DecodeCall(3, with_masks=False)
    told = [vars(record)["request_id"] for record in caplog.records if record.levelno == logging.ERROR]
    assert told == [bad.headers["x-request-id"]]
    door.sam.spoilt = set()
    assert only(await door.segment(plain("image_id", ids[1]), asked(BOX))).box == (32, 16, 64, 48)


class Caller:
    """Sends a request as a server hands it to the app, and hangs up when told to."""

    def __init__(self, *parts: tuple[str, Any], path: str = "/v1/segment", content: bytes | None = None) -> None:
        request = httpx.Request("POST", f"http://pomona{path}", files=list(parts) or None, content=content)
        self._messages = [{"type": "http.request", "body": request.read(), "more_body": False}]
        self._hung_up = asyncio.Event()
        self.sent: list[Any] = []
        self.scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [(name.lower(), value) for name, value in request.headers.raw],
        }

    async def receive(self) -> Any:
        if self._messages:
            return self._messages.pop()
        await self._hung_up.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    def hang_up(self) -> None:
        self._hung_up.set()


async def test_a_caller_who_leaves_the_queue_is_dropped_before_anything_is_run(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="pomona.http")
    busy = await door.hold()
    leaving = [
        Caller(image(image_bytes(1)), asked(BOX)),
        Caller(image(image_bytes(2)), path="/v1/embed"),
        Caller(image(image_bytes(3)), asked(POINT)),
    ]
    calls = [asyncio.create_task(door.app(one.scope, one.receive, one.send)) for one in leaving]
    await door.runner.images.reach(4)
    staying = door.start(image(image_bytes(3)), asked(BOX))
    await door.cache.asked.reach(5)
    for one in leaving:
        one.hang_up()
    await asyncio.gather(*calls)
    assert [vars(record)["status"] for record in caplog.records] == [499] * 3
    assert not busy.done()
    door.let_go()
    await busy
    async with asyncio.timeout(PATIENCE_S):
        assert only(checked(await staying, schema.SegmentResponse)).box == (32, 16, 64, 48)
    assert door.sam.encoded == [HELD, 3]
    assert door.sam.decodes == [DecodeCall(1, with_masks=False)]


async def test_a_caller_who_stays_is_answered_though_the_server_listens_for_a_hanging_up(door: Door) -> None:
    caller = Caller(image(), asked(BOX))
    await door.app(caller.scope, caller.receive, caller.send)
    start, *bodies = caller.sent
    assert start["status"] == 200
    answer = schema.SegmentResponse.model_validate_json(b"".join(body["body"] for body in bodies))
    assert only(answer).box == (32, 16, 64, 48)
