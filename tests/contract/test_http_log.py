from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import numpy as np
import pytest

from models.errors import BackendError
from service.api import schema
from tests.contract.door import BOX, IMAGE, POINT, Door, asked, checked, image, problem
from tests.fakes import (
    LOADED,
    PATIENCE_S,
    image_bytes,
)


@pytest.mark.parametrize("request_id", ["belt-7:frame_00.1", "x", "7" * 128])
async def test_a_request_id_is_taken_and_returned_with_answers_and_errors(door: Door, request_id: str) -> None:
    headers = {"x-request-id": request_id}
    answer = await door.post(image(), asked(POINT), headers=headers)
    assert answer.headers["x-request-id"] == request_id
    assert checked(answer, schema.SegmentResponse).request_id == request_id
    embedded = await door.post(image(), path="/v1/embed", headers=headers)
    assert checked(embedded, schema.EmbedResponse).request_id == request_id
    assert (await door.client.get("/v1/models", headers=headers)).headers["x-request-id"] == request_id
    for refused in (
        await door.post(asked(POINT), headers=headers),
        await door.client.get("/v1/segment", headers=headers),
        await door.client.get("/v1/oranges", headers=headers),
    ):
        assert refused.json()["request_id"] == refused.headers["x-request-id"] == request_id


@pytest.mark.parametrize("request_id", [None, "", "two words", "7" * 129, "or\tange", "<b>", "größe"])
async def test_a_missing_or_odd_request_id_is_replaced(door: Door, request_id: str | None) -> None:
    headers = {} if request_id is None else {b"x-request-id": request_id.encode()}
    answers = [await door.post(image(), asked(POINT), headers=headers), await door.post(headers=headers)]
    made = [answer.headers["x-request-id"] for answer in answers]
    assert made == [answer.json()["request_id"] for answer in answers]
    assert len(set(made)) == 2
    assert all(len(bytes.fromhex(one)) == 16 for one in made)


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [vars(record) for record in caplog.records if record.name == "pomona.http" and record.msg == "request"]


async def test_an_answer_leaves_one_line_with_its_facts(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="pomona")
    answer = await door.segment(image(), asked(BOX, POINT), headers={"x-request-id": "frame-1"})
    (line,) = lines(caplog)
    assert (line["request_id"], line["status"], line["model"]) == ("frame-1", 200, LOADED.name)
    assert (line["method"], line["path"], line["prompts"]) == ("POST", "/v1/segment", 2)
    assert line["timing_ms"] == answer.timing_ms.model_dump()
    assert line["ms"] >= answer.timing_ms.total
    caplog.clear()
    await door.embed()
    (line,) = lines(caplog)
    assert (line["path"], line["status"], line["model"]) == ("/v1/embed", 200, LOADED.name)
    assert set(line["timing_ms"]) >= {"decode", "queue", "encode", "total"}


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


async def test_a_caller_who_left_leaves_a_line_too(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="pomona")
    door.sam.blocks = threading.Event()
    call = asyncio.create_task(door.post(image(), asked(BOX)))
    assert await asyncio.to_thread(door.sam.entered.wait, PATIENCE_S)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    (line,) = lines(caplog)
    assert line["status"] == 499


async def test_a_caller_who_hangs_up_while_sending_leaves_a_line_and_no_complaint(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="pomona")
    messages = iter([{"type": "http.request", "body": b"--belt\r\n", "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        assert message["type"].startswith("http.response")

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/segment",
        "raw_path": b"/v1/segment",
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", b"multipart/form-data; boundary=belt")],
    }
    await door.app(scope, receive, send)
    (line,) = lines(caplog)
    assert (line["status"], line["path"]) == (499, "/v1/segment")
    assert [record.levelname for record in caplog.records] == ["INFO"]


async def test_no_line_carries_any_of_the_image(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    text = b"a secret photograph " * 4
    await door.segment(image(), asked(BOX, format="png", overlay=True))
    problem(await door.post(image(text), asked(POINT)), "not_an_image")
    problem(await door.post(image(IMAGE[:-40]), asked(POINT)), "truncated_image")
    door.sam.fails = BackendError("the device failed")
    problem(await door.post(image(image_bytes(9)), asked(POINT)), "internal_error")
    ours = [record for record in caplog.records if record.name.startswith("pomona")]
    assert len(ours) == 5
    for record in ours:
        told = str(vars(record))
        assert "secret" not in told
        assert len(told) < 2000
        assert not any(isinstance(value, (bytes, np.ndarray)) for value in vars(record).values())
