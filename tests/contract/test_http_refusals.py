from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
import pytest

from models.errors import BackendError, DeviceBroken
from tests.contract.door import BOX, HELD, IMAGE, MIB, POINT, Door, asked, image, only, open_door, plain, problem
from tests.contract.refusals import REFUSALS, Refusal
from tests.file_server import serving


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: f"{refusal.path} {refusal.code}: {refusal.name}")
async def test_a_bad_request_is_refused_with_its_code_and_costs_no_encoding(door: Door, refusal: Refusal) -> None:
    raw = {"files": refusal.parts} if refusal.raw is None else refusal.raw
    answer = await door.client.request(refusal.method, refusal.path, **{"headers": refusal.headers, **raw})
    body = problem(answer, refusal.code)
    assert refusal.says in body.detail
    assert door.sam.encodes == door.second.encodes == door.unet.encodes == []
    # The next caller notices nothing.
    assert only(await door.segment(image(), asked(BOX))).box == (32, 16, 64, 48)


async def test_a_refused_method_says_which_is_taken(door: Door) -> None:
    answer = await door.client.get("/v1/segment")
    problem(answer, "method_not_allowed")
    assert answer.headers["allow"] == "POST"


async def test_a_url_instead_of_a_image_is_never_fetched(door: Door) -> None:
    with serving() as server:
        server.files["/orange.png"] = IMAGE
        url = server.url("/orange.png")
        for part in (image(url.encode()), plain("image", url)):
            problem(await door.post(part, asked(POINT)), "not_an_image")
        problem(await door.post(plain("image_id", url), asked(POINT)), "unknown_image_id")
        assert server.seen == []


async def test_before_the_models_are_loaded_the_answer_is_to_come_back_later(door: Door) -> None:
    pipeline, door.app.pipelines = door.app.pipelines, None
    for answer in (
        await door.post(image(), asked(POINT)),
        await door.post(image(), path="/v1/embed"),
        await door.post(image(), path="/v1/semantic"),
        await door.post(image(), path="/v1/inspect"),
        await door.client.get("/v1/models"),
    ):
        problem(answer, "not_ready")
        assert int(answer.headers["retry-after"]) > 0
    assert (await door.client.get("/docs.json")).status_code == 200
    door.app.pipelines = pipeline
    assert only(await door.segment(image(), asked(BOX))).box == (32, 16, 64, 48)


async def test_a_request_that_takes_too_long_is_told_so_and_the_next_is_answered() -> None:
    async with open_door(request_timeout_s=0.2) as door:
        door.sam.blocks = threading.Event()
        body = problem(await door.post(image(), asked(BOX)), "timed_out")
        assert "POMONA_REQUEST_TIMEOUT_S" in body.detail
        problem(await door.post(image(), path="/v1/embed"), "timed_out")
        door.sam.blocks.set()
        assert only(await door.segment(image(), asked(BOX))).box == (32, 16, 64, 48)


async def test_the_time_limit_covers_the_reading_of_the_body() -> None:
    never = asyncio.Event()

    async def stuck() -> AsyncIterator[bytes]:
        yield b"--belt\r\n"
        await never.wait()

    async with open_door(request_timeout_s=0.2) as door:
        headers = {"content-type": "multipart/form-data; boundary=belt"}
        answer = await door.client.post("/v1/segment", content=stuck(), headers=headers)
        problem(answer, "timed_out")


@pytest.mark.parametrize("failure", [BackendError("CUDA: secret path /srv/weights"), ZeroDivisionError("secret path")])
async def test_a_failure_of_the_server_leaks_nothing_and_is_logged(
    door: Door, failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    door.sam.fails = failure
    answer = await door.post(image(), asked(POINT))
    body = problem(answer, "internal_error")
    assert "secret" not in answer.text
    assert type(failure).__name__ not in answer.text
    logged = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [vars(record)["request_id"] for record in logged] == [body.request_id]
    assert any("secret" in str(vars(record)) for record in logged)
    door.sam.fails = None
    assert only(await door.segment(image(), asked(BOX))).box == (32, 16, 64, 48)


@dataclass
class Upload:
    """A multipart body of many chunks that counts how many were taken."""

    size: int
    taken: int = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        head = b'--belt\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
        tail = b"\r\n--belt--\r\n"
        for chunk in (head, *[b"\0" * 65536] * (self.size // 65536), tail):
            self.taken += len(chunk)
            yield chunk


async def test_a_body_without_a_length_is_read_no_further_than_the_limit(door: Door) -> None:
    upload = Upload(64 * MIB)
    headers = {"content-type": "multipart/form-data; boundary=belt"}
    answer = await door.client.post("/v1/segment", content=upload, headers=headers)
    assert "1 MiB" in problem(answer, "upload_too_large").detail
    assert MIB < upload.taken <= MIB + 65536
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("path", ["/v1/segment", "/v1/embed", "/v1/semantic", "/v1/inspect"])
async def test_a_body_that_announces_too_much_is_not_read_at_all(door: Door, path: str) -> None:
    upload = Upload(MIB // 2)
    headers = {"content-type": "multipart/form-data; boundary=belt", "content-length": str(MIB + 1)}
    answer = await door.client.post(path, content=upload, headers=headers)
    problem(answer, "upload_too_large")
    assert upload.taken == 0


@pytest.mark.parametrize("length", ["10", "-1", "many", "²"])
async def test_a_body_that_announces_too_little_or_nonsense_is_held_to_the_limit_all_the_same(
    door: Door, length: str
) -> None:
    upload = Upload(2 * MIB)
    headers = {
        b"content-type": b"multipart/form-data; boundary=belt",
        b"content-length": length.encode("latin-1"),
    }
    problem(await door.client.post("/v1/segment", content=upload, headers=headers), "upload_too_large")
    assert upload.taken <= MIB + 65536


async def test_a_body_of_exactly_the_limit_is_taken() -> None:
    parts = [image(), asked(BOX)]
    length = int(httpx.Request("POST", "http://pomona", files=parts).headers["content-length"])
    async with open_door(max_upload_mib=length / MIB) as door:
        assert only(await door.segment(*parts)).box == (32, 16, 64, 48)
    async with open_door(max_upload_mib=(length - 1) / MIB) as door:
        problem(await door.post(*parts), "upload_too_large")


async def test_a_device_that_broke_answers_everybody_that_the_server_failed(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    busy = await door.hold()
    waiting = door.start(image(), asked(BOX))
    await door.runner.images.reach(2)
    told = [door.pipeline.broken]
    door.sam.fails = DeviceBroken("CUDA error at /srv/weights")
    door.let_go()
    for answer in (await waiting, await door.post(image(), asked(BOX)), await door.post(image(), path="/v1/embed")):
        problem(answer, "internal_error")
        assert "CUDA" not in answer.text
    with pytest.raises(AssertionError, match="internal_error"):
        await busy
    told.append(door.pipeline.broken)
    assert told == [False, True]
    assert door.sam.encoded == [HELD]
    assert any("CUDA" in str(vars(record)) for record in caplog.records)


async def test_a_detail_that_quotes_a_caller_stays_short(door: Door) -> None:
    body = problem(await door.post(plain("image_id", "a" * 100_000), asked(POINT)), "unknown_image_id")
    assert len(body.detail) == 600


async def test_a_image_without_a_file_name_is_refused_with_the_right_way_to_send_it(door: Door) -> None:
    body = problem(await door.post(plain("image", IMAGE), asked(POINT)), "not_an_image")
    assert "curl -F image=@" in body.detail
