"""The HTTP door as callers see it: the real app over the real pipeline, with models that can be worked out by hand."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import httpx
from pydantic import BaseModel

from service.api import schema
from service.errors import PROBLEMS
from service.http.app import HttpApp
from service.observability.observer import Observer
from service.observability.tracing import Tracing
from service.oip import http as oip_http
from service.pipelines import Pipelines
from tests.fakes import (
    LOADED,
    LOADED_UNET,
    PATIENCE_S,
    FakeDevice,
    FakeSam,
    FakeUNet,
    WatchedCache,
    WatchedRunner,
    WatchedUNetRunner,
    image_bytes,
    make_pipelines,
    make_settings,
    peel_image,
    rectangle,
)

IMAGE: Final = image_bytes()
POINT: Final = {"points": [[64, 48]]}
BOX: Final = {"box": [32, 16, 64, 48], "multimask": False}
BOX_MASK: Final = rectangle(32, 16, 64, 48)
LIMITS: Final = {"max_prompts": 3, "max_points": 4, "max_megapixels": 0.1, "max_upload_mib": 1}
MIB: Final = 1 << 20
HELD: Final = 200
"""Mean red of the image that keeps the device busy."""
NEVER: Final = 1e9
"""Seconds after which an idle device is tried anew: no test waits for that."""

Parts = list[tuple[str, Any]]
M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")


def image(data: bytes = IMAGE) -> tuple[str, Any]:
    return "image", ("orange.png", data, "application/octet-stream")


def plain(name: str, value: str | bytes) -> tuple[str, Any]:
    return name, (None, value)


def asked(*prompts: Mapping[str, Any], **fields: Any) -> tuple[str, Any]:
    return plain("request", json.dumps({"prompts": prompts, **fields}))


@dataclass
class Door:
    """The app, its client, and the backends behind it; the second SAM takes images in one size only."""

    app: HttpApp
    client: httpx.AsyncClient
    pipelines: Pipelines
    sam: FakeSam
    second: FakeSam
    unet: FakeUNet

    @property
    def runner(self) -> WatchedRunner:
        runner = self.pipelines.engine.runners[LOADED.name]
        assert isinstance(runner, WatchedRunner)
        return runner

    @property
    def unet_runner(self) -> WatchedUNetRunner:
        runner = self.pipelines.engine.runners[LOADED_UNET.name]
        assert isinstance(runner, WatchedUNetRunner)
        return runner

    @property
    def cache(self) -> WatchedCache:
        cache = self.pipelines.segment.cache
        assert isinstance(cache, WatchedCache)
        return cache

    async def post(self, *parts: tuple[str, Any], path: str = "/v1/segment", **options: Any) -> httpx.Response:
        return await self.client.post(path, files=list(parts), **options)

    async def segment(self, *parts: tuple[str, Any], **options: Any) -> schema.SegmentResponse:
        answer = await self.post(*parts, **options)
        return checked(answer, schema.SegmentResponse)

    async def embed(self, data: bytes = IMAGE, **fields: Any) -> schema.EmbedResponse:
        return checked(
            await self.post(image(data), plain("request", json.dumps(fields)), path="/v1/embed"), schema.EmbedResponse
        )

    async def semantic(self, data: bytes | None = None, **fields: Any) -> schema.SemanticResponse:
        parts = [image(peel_image() if data is None else data), plain("request", json.dumps(fields))]
        return checked(await self.post(*parts, path="/v1/semantic"), schema.SemanticResponse)

    def start(self, *parts: tuple[str, Any], **options: Any) -> asyncio.Task[httpx.Response]:
        return asyncio.create_task(self.post(*parts, **options))

    async def hold(self) -> asyncio.Task[schema.EmbedResponse]:
        """Keep the SAM's device busy with an image until it is let go."""
        return await self._held(self.sam, self.embed(image_bytes(HELD)))

    async def hold_unet(self) -> asyncio.Task[schema.SemanticResponse]:
        """Keep the U-Net's device busy with an image until it is let go."""
        return await self._held(self.unet, self.semantic(peel_image(HELD)))

    async def _held(self, device: FakeDevice, call: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        device.entered.clear()
        device.blocks = threading.Event()
        busy = asyncio.create_task(call)
        assert await asyncio.to_thread(device.entered.wait, PATIENCE_S)
        return busy

    def let_go(self) -> None:
        for device in (self.sam, self.unet):
            if device.blocks is not None:
                device.blocks.set()

    async def learn(self) -> None:
        """Warm up as at the start, and count from here."""
        await self.runner.warm_up()
        self.sam.forget()


def checked(answer: httpx.Response, model: type[M]) -> M:
    """An answer of 200 that has the documented shape."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    return model.model_validate_json(answer.content)


def problem(answer: httpx.Response, code: str) -> schema.Problem:
    """An error in the documented shape, of this code."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    body = schema.Problem.model_validate_json(answer.content)
    row = next(row for row in PROBLEMS.values() if row.code == code)
    assert (body.code, body.status, body.title) == (code, row.status, row.title), body
    assert answer.status_code == body.status
    assert body.type == f"urn:pomona:problem:{code}"
    assert body.detail
    assert body.request_id == answer.headers["x-request-id"]
    return body


@asynccontextmanager
async def open_door(
    *, observer: Observer | None = None, tracing: Tracing | None = None, **settings: Any
) -> AsyncIterator[Door]:
    sam, second = FakeSam(), FakeSam(name="openvino", device="fake:1", flexible=False)
    unet = FakeUNet(device="fake:2", clock=sam.clock)
    checked_settings = make_settings(**settings)
    options = replace(checked_settings.queue_options, probe_after=NEVER)
    pipelines = make_pipelines(sam, second, unet=unet, settings=checked_settings, options=options)
    app = HttpApp(checked_settings, observer, tracing)
    oip_http.mount(app)
    app.pipelines = pipelines
    try:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://pomona") as client:
            yield Door(app, client, pipelines, sam, second, unet)
    finally:
        for fake in (sam, second, unet):
            if fake.blocks is not None:
                fake.blocks.set()
        await pipelines.engine.close(PATIENCE_S)


def only(answer: schema.SegmentResponse) -> schema.ScoredMask:
    assert [len(result.masks) for result in answer.results] == [1]
    return answer.results[0].masks[0]
