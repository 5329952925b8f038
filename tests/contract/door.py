"""HTTP as callers see it: the real application over the real pipelines, with models that can be worked out by hand."""

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

from service.access import Access
from service.api import detection, schema
from service.api.drain import Drain
from service.api.handler import RequestHandler
from service.errors import PROBLEMS
from service.http.app import HttpApp
from service.label_studio import http as label_studio_http
from service.memory import MemoryBudget
from service.observability.observer import Observer
from service.observability.tracing import Tracing
from service.oip import http as oip_http
from service.pipelines import Pipelines
from tests.contract.scenes import BOX_MASK, IMAGE, PEEL, TWO
from tests.fake_detector import LOADED_DETECTOR, OTHER_DETECTOR, FakeDetector, WatchedDetectorRunner
from tests.fakes import (
    CATALOGUE,
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
)

__all__ = ["BOX_MASK", "IMAGE"]

POINT: Final = {"points": [[64, 48]]}
BOX: Final = {"box": [32, 16, 64, 48], "multimask": False}
LIMITS: Final[dict[str, Any]] = {"max_prompts": 3, "max_points": 4, "max_megapixels": 0.101, "max_upload_mib": 1}
MIB: Final = 1 << 20
HELD: Final = 200
"""Mark of the image that keeps a device busy."""
NEVER: Final = 1e9
"""Seconds after which an idle device is probed: longer than any test."""

ALL_MODELS: Final = {**CATALOGUE, LOADED_DETECTOR.name: LOADED_DETECTOR, OTHER_DETECTOR.name: OTHER_DETECTOR}

Part = tuple[str, Any]
M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")


def image(data: bytes = IMAGE) -> Part:
    return "image", ("orange.png", data, "application/octet-stream")


def plain(name: str, value: str | bytes) -> Part:
    return name, (None, value)


def fields(**values: Any) -> Part:
    """The part `request`."""
    return plain("request", json.dumps(values))


def prompted(*prompts: Mapping[str, Any], **values: Any) -> Part:
    """The part `request` of `/v1/segment`."""
    return fields(prompts=prompts, **values)


def within(milliseconds: float) -> dict[str, str]:
    """The header of a deadline."""
    return {"x-deadline-ms": f"{milliseconds:g}"}


@dataclass
class Door:
    """The application, a client of it, and the backends behind it; the second SAM supports one input size only."""

    app: HttpApp
    client: httpx.AsyncClient
    pipelines: Pipelines
    sam: FakeSam
    second: FakeSam
    unet: FakeUNet
    detector: FakeDetector

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
    def detector_runner(self) -> WatchedDetectorRunner:
        runner = self.pipelines.engine.runners[LOADED_DETECTOR.name]
        assert isinstance(runner, WatchedDetectorRunner)
        return runner

    @property
    def cache(self) -> WatchedCache:
        cache = self.pipelines.segment.cache
        assert isinstance(cache, WatchedCache)
        return cache

    @property
    def encodes(self) -> list[int]:
        """Batches of images that any device was given."""
        return self.sam.encodes + self.second.encodes + self.unet.encodes + self.detector.encodes

    async def post(self, *parts: Part, path: str = "/v1/segment", **options: Any) -> httpx.Response:
        return await self.client.post(path, files=list(parts), **options)

    async def segment(self, *parts: Part, **options: Any) -> schema.SegmentResponse:
        return checked(await self.post(*parts, **options), schema.SegmentResponse)

    async def embed(self, data: bytes = IMAGE, **values: Any) -> schema.EmbedResponse:
        return checked(await self.post(image(data), fields(**values), path="/v1/embed"), schema.EmbedResponse)

    async def semantic(self, data: bytes = PEEL, **values: Any) -> schema.SemanticResponse:
        return checked(await self.post(image(data), fields(**values), path="/v1/semantic"), schema.SemanticResponse)

    async def detect(self, data: bytes = PEEL, **values: Any) -> detection.DetectResponse:
        return checked(await self.post(image(data), fields(**values), path="/v1/detect"), detection.DetectResponse)

    async def inspect(
        self, data: bytes = TWO, headers: Mapping[str, str] | None = None, **values: Any
    ) -> schema.InspectResponse:
        return checked(await self.post_inspect(data, headers, **values), schema.InspectResponse)

    async def post_inspect(
        self, data: bytes = TWO, headers: Mapping[str, str] | None = None, **values: Any
    ) -> httpx.Response:
        return await self.post(image(data), fields(**values), path="/v1/inspect", headers=headers)

    def start(self, *parts: Part, **options: Any) -> asyncio.Task[httpx.Response]:
        return asyncio.create_task(self.post(*parts, **options))

    async def hold(self) -> asyncio.Task[schema.EmbedResponse]:
        """Keep the SAM's device busy with an image until `let_go`."""
        return await self._held(self.sam, self.embed(image_bytes(HELD)))

    async def hold_unet(self) -> asyncio.Task[schema.SemanticResponse]:
        """Keep the U-Net's device busy with an image until `let_go`."""
        return await self._held(self.unet, self.semantic(peel_image(HELD)))

    async def hold_detector(self) -> asyncio.Task[detection.DetectResponse]:
        """Keep the detector's device busy with an image until `let_go`."""
        return await self._held(self.detector, self.detect(peel_image(HELD)))

    async def _held(self, device: FakeDevice, call: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        device.entered.clear()
        device.blocks = threading.Event()
        busy = asyncio.create_task(call)
        assert await asyncio.to_thread(device.entered.wait, PATIENCE_S)
        return busy

    def let_go(self) -> None:
        for device in (self.sam, self.unet, self.detector):
            if device.blocks is not None:
                device.blocks.set()

    async def learn(self) -> None:
        """Warm up as a starting server does, and forget the calls this took."""
        await self.runner.warm_up()
        await self.unet_runner.warm_up()
        await self.detector_runner.warm_up()
        self.forget()

    def forget(self) -> None:
        """Count calls from here."""
        for fake in (self.sam, self.second, self.unet, self.detector):
            fake.forget()


def checked(answer: httpx.Response, model: type[M]) -> M:
    """Return an answer of 200, which must have the documented shape."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    return model.model_validate_json(answer.content)


def problem(answer: httpx.Response, code: str) -> schema.Problem:
    """Return an error, which must have the documented shape and this code."""
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
    *,
    observer: Observer | None = None,
    tracing: Tracing | None = None,
    access: Access | None = None,
    memory: MemoryBudget | None = None,
    **settings: Any,
) -> AsyncIterator[Door]:
    sam, second = FakeSam(), FakeSam(name="openvino", device="fake:1", flexible=False)
    unet = FakeUNet(device="fake:2", clock=sam.clock)
    checked_settings = make_settings(**settings)
    options = replace(checked_settings.queue_options, probe_after=NEVER)
    detector = FakeDetector(device="fake:3", clock=sam.clock)
    pipelines = make_pipelines(
        sam,
        second,
        unet=unet,
        more=lambda queue_of: {
            LOADED_DETECTOR.name: WatchedDetectorRunner(LOADED_DETECTOR, detector, queue_of(detector.device))
        },
        catalogue=ALL_MODELS,
        settings=checked_settings,
        options=options,
        observer=observer,
    )
    handler = RequestHandler(
        observer or Observer(),
        tracing or Tracing(),
        checked_settings.request_timeout_s,
        Drain(checked_settings.drain_timeout_s),
        access or Access.of(checked_settings.api_keys_file),
    )
    app = HttpApp(checked_settings, handler, memory)
    oip_http.mount(app)
    label_studio_http.mount(app)
    app.pipelines = pipelines
    try:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://pomona") as client:
            yield Door(app, client, pipelines, sam, second, unet, detector)
    finally:
        for fake in (sam, second, unet, detector):
            if fake.blocks is not None:
                fake.blocks.set()
        await close(pipelines)


async def close(pipelines: Pipelines) -> None:
    """Finish the work of pipelines, and write what is captured."""
    await pipelines.engine.close(PATIENCE_S)
    if pipelines.captures is not None:
        await asyncio.to_thread(pipelines.captures.close, PATIENCE_S)


@asynccontextmanager
async def serving(door: Door, pipelines: Pipelines) -> AsyncIterator[None]:
    """Put other models behind the door, which are closed at the end."""
    before, door.app.pipelines = door.app.pipelines, pipelines
    try:
        yield
    finally:
        door.app.pipelines = before
        await close(pipelines)


class Visitor:
    """Sends a request as a server hands it to the application, and hangs up when the test says so."""

    def __init__(self, *parts: Part, path: str = "/v1/segment", content: bytes | None = None) -> None:
        request = httpx.Request("POST", f"http://pomona{path}", files=list(parts) or None, content=content)
        self._messages = [{"type": "http.request", "body": request.read(), "more_body": False}]
        self._hung_up = asyncio.Event()
        self.sent: list[Any] = []
        self.scope = scope_of(path, [(name.lower(), value) for name, value in request.headers.raw])

    async def receive(self) -> Any:
        if self._messages:
            return self._messages.pop()
        await self._hung_up.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    def start(self, door: Door) -> asyncio.Task[None]:
        return asyncio.create_task(door.app(self.scope, self.receive, self.send))

    def hang_up(self) -> None:
        self._hung_up.set()


def scope_of(path: str, headers: list[tuple[bytes, bytes]]) -> dict[str, Any]:
    """Return the ASGI scope of a request."""
    return {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": headers,
    }


def only(answer: schema.SegmentResponse) -> schema.ScoredMask:
    assert [len(result.masks) for result in answer.results] == [1]
    return answer.results[0].masks[0]
