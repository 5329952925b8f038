"""The second form of /v1/segment: the image is the body, the JSON a query parameter."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from service.api import schema
from tests.contract.door import BOX, IMAGE, MIB, Door, asked, checked, image, only, problem


async def send(door: Door, body: bytes, content_type: str = "image/png", **query: Any) -> httpx.Response:
    return await door.client.post("/v1/segment", content=body, params=query, headers={"content-type": content_type})


@pytest.mark.parametrize("content_type", ["image/png", "image/jpeg; charset=binary", "application/octet-stream"])
async def test_a_image_as_the_body_is_answered_as_a_part_is(door: Door, content_type: str) -> None:
    raw = checked(await send(door, IMAGE, content_type, request=json.dumps({"prompts": [BOX]})), schema.SegmentResponse)
    part = await door.segment(image(), asked(BOX))
    assert only(raw) == only(part)
    assert raw.image == part.image


async def test_a_image_as_the_body_may_be_embedded(door: Door) -> None:
    answer = await door.client.post("/v1/embed", content=IMAGE, headers={"content-type": "image/png"})
    assert checked(answer, schema.EmbedResponse).image == (await door.embed()).image


async def test_what_is_wrong_with_it_is_told_by_the_same_codes(door: Door) -> None:
    good = json.dumps({"prompts": [BOX]})
    problem(await send(door, b"no image", request=good), "not_an_image")
    problem(await send(door, b"", request=good), "not_an_image")
    problem(await send(door, IMAGE), "no_prompt")
    problem(await send(door, IMAGE, request="{"), "malformed_json")
    problem(await send(door, IMAGE, request=good, image_id="a"), "unknown_field")
    problem(await send(door, IMAGE, "text/plain", request=good), "malformed_request")
    problem(await send(door, bytes(MIB + 1), request=good), "upload_too_large")
    assert door.sam.encodes == []
