"""The HTTP door as callers see it: the real app over the real pipeline, with a SAM that can be worked out by hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import httpx
from pydantic import BaseModel
from starlette.applications import Starlette

from service.errors import PROBLEMS
from service.http import schema
from service.http.app import create_app
from tests.fakes import (
    FakeSam,
    make_pipeline,
    make_settings,
    picture,
    rectangle,
)

PICTURE: Final = picture()
POINT: Final = {"points": [[64, 48]]}
BOX: Final = {"box": [32, 16, 64, 48], "multimask": False}
BOX_MASK: Final = rectangle(32, 16, 64, 48)
LIMITS: Final = {"max_prompts": 3, "max_points": 4, "max_megapixels": 0.1, "max_upload_mib": 1}
MIB: Final = 1 << 20

Parts = list[tuple[str, Any]]
M = TypeVar("M", bound=BaseModel)


def image(data: bytes = PICTURE) -> tuple[str, Any]:
    return "image", ("orange.png", data, "application/octet-stream")


def plain(name: str, value: str | bytes) -> tuple[str, Any]:
    return name, (None, value)


def asked(*prompts: Mapping[str, Any], **fields: Any) -> tuple[str, Any]:
    return plain("request", json.dumps({"prompts": prompts, **fields}))


@dataclass
class Door:
    """The app, its client, and the backends behind it."""

    app: Starlette
    client: httpx.AsyncClient
    sam: FakeSam
    second: FakeSam

    async def post(self, *parts: tuple[str, Any], path: str = "/v1/segment", **options: Any) -> httpx.Response:
        return await self.client.post(path, files=list(parts), **options)

    async def segment(self, *parts: tuple[str, Any], **options: Any) -> schema.SegmentOut:
        answer = await self.post(*parts, **options)
        return checked(answer, schema.SegmentOut)

    async def embed(self, data: bytes = PICTURE) -> schema.EmbedOut:
        return checked(await self.post(image(data), path="/v1/embed"), schema.EmbedOut)


def checked(answer: httpx.Response, model: type[M]) -> M:
    """An answer of 200 that has the documented shape."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    return model.model_validate_json(answer.content)


def problem(answer: httpx.Response, code: str) -> schema.ProblemOut:
    """An error in the documented shape, of this code."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    body = schema.ProblemOut.model_validate_json(answer.content)
    row = next(row for row in PROBLEMS.values() if row.code == code)
    assert (body.code, body.status, body.title) == (code, row.status, row.title), body
    assert answer.status_code == body.status
    assert body.type == f"urn:pomona:problem:{code}"
    assert body.detail
    assert body.request_id == answer.headers["x-request-id"]
    return body


@asynccontextmanager
async def open_door(**settings: Any) -> AsyncIterator[Door]:
    sam, second = FakeSam(), FakeSam(name="openvino", device="fake:1")
    checked_settings = make_settings(**settings)
    pipeline = make_pipeline(sam, second, settings=checked_settings)
    app = create_app(checked_settings)
    app.state.pipeline = pipeline
    try:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://pomona") as client:
            yield Door(app, client, sam, second)
    finally:
        for fake in (sam, second):
            if fake.blocks is not None:
                fake.blocks.set()
        await asyncio.to_thread(pipeline.close)


def only(answer: schema.SegmentOut) -> schema.MaskOut:
    assert [len(result.masks) for result in answer.results] == [1]
    return answer.results[0].masks[0]
