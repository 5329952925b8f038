"""Callers of every door, each with the library that its callers have: one photo with one point, asked over and over.

What a caller does for every photo is done for every request: the message is built, the answer read as far as its
library reads it. Masks as RLE or PNG stay as they are. `clients/python/src` must be on the path.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import quote

import grpc
import httpx
import numpy as np

import pomona
from loadtest.client import Pool
from loadtest.wire import CONTENT_TYPE, multipart, post
from models.types import Point
from service.proto.generated.pomona.v1 import segmentation_pb2 as pb
from service.proto.generated.pomona.v1.segmentation_pb2_grpc import SegmentationStub

Masks = Literal["RLE", "PNG", "pixels"]
Ask: TypeAlias = Callable[[], Awaitable[None]]
"""One request and its answer."""

_PATIENCE_S: Final = 60.0
_MOST_IN_FLIGHT: Final = 64
_ANY_SIZE: Final = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
_FORMATS: Final[Mapping[str, pb.MaskFormat.ValueType]] = {"RLE": pb.MASK_FORMAT_RLE, "PNG": pb.MASK_FORMAT_PNG}


class Unanswered(Exception):
    """A door did not answer where nothing could have been in its way."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked where.

    Attributes:
        http_port: of the server, on 127.0.0.1.
        grpc_port: likewise.
        model: a SAM.
        photo: encoded.
        point: in it.
        multimask: three masks, or one.
    """

    http_port: int
    grpc_port: int
    model: str
    photo: bytes
    point: Point
    multimask: bool

    @property
    def masks(self) -> int:
        """That an answer has."""
        return 3 if self.multimask else 1

    def request(self, masks: Masks) -> str:
        """The JSON of HTTP."""
        prompt = {"points": [[self.point.x, self.point.y]], "multimask": self.multimask}
        return json.dumps({"prompts": [prompt], "model": self.model, "format": masks.lower()})

    def message(self, masks: Masks) -> pb.SegmentRequest:
        """The message of gRPC."""
        prompt = pb.Prompt(points=[pb.Point(x=self.point.x, y=self.point.y)], multimask=self.multimask)
        return pb.SegmentRequest(image=self.photo, prompts=[prompt], model=self.model, format=_FORMATS[masks])

    def check(self, masks: int) -> None:
        """See that an answer has them.

        Raises:
            Unanswered: it has not.
        """
        if masks != self.masks:
            raise Unanswered(f"{masks} masks instead of {self.masks}")


Caller: TypeAlias = Callable[[Target, Masks], AbstractAsyncContextManager[Ask]]


@contextlib.asynccontextmanager
async def _over_http(target: Target, masks: Masks, *, raw: bool) -> AsyncIterator[Ask]:
    pool, request = Pool(target.http_port), target.request(masks)

    async def ask() -> None:
        if raw:
            chunks = post(f"/v1/segment?request={quote(request)}", "image/jpeg", target.photo)
        else:
            chunks = post("/v1/segment", CONTENT_TYPE, multipart({"request": request}, target.photo))
        answer = await pool.ask(chunks, _PATIENCE_S)
        if answer.status != 200:
            raise Unanswered(f"{answer.status}: {answer.body[:500]!r}")
        target.check(len(json.loads(answer.body)["results"][0]["masks"]))

    try:
        yield ask
    finally:
        pool.close()


@contextlib.asynccontextmanager
async def _stub(target: Target) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{target.grpc_port}", options=_ANY_SIZE) as channel:
        yield SegmentationStub(channel)


@contextlib.asynccontextmanager
async def _unary(target: Target, masks: Masks) -> AsyncIterator[Ask]:
    async with _stub(target) as stub:

        async def ask() -> None:
            answer = await stub.Segment(target.message(masks), timeout=_PATIENCE_S)
            target.check(len(answer.results[0].masks))

        yield ask


@contextlib.asynccontextmanager
async def _stream(target: Target, masks: Masks) -> AsyncIterator[Ask]:
    """All callers share one stream, as the frames of one camera do."""
    async with _stub(target) as stub:
        call, writing = stub.SegmentStream(), asyncio.Lock()
        waiting: dict[str, asyncio.Future[pb.SegmentStreamResponse]] = {}
        number = 0

        async def read() -> None:
            while (reply := await call.read()) is not grpc.aio.EOF:
                waiting.pop(reply.frame.frame_id).set_result(reply)

        async def write(message: pb.SegmentStreamRequest) -> None:
            async with writing:
                await call.write(message)

        async def ask() -> None:
            nonlocal number
            number += 1
            name = str(number)
            waiting[name] = asyncio.get_running_loop().create_future()
            answered = waiting[name]
            await write(pb.SegmentStreamRequest(request=target.message(masks), frame=pb.Frame(frame_id=name)))
            async with asyncio.timeout(_PATIENCE_S):
                reply = await answered
            if reply.outcome != pb.FRAME_OUTCOME_ANSWERED:
                raise Unanswered(f"{pb.FrameOutcome.Name(reply.outcome)}: {reply.problem.detail}")
            target.check(len(reply.response.results[0].masks))

        await write(pb.SegmentStreamRequest(settings=pb.StreamSettings(max_in_flight=_MOST_IN_FLIGHT)))
        reading = asyncio.create_task(read())
        try:
            yield ask
            await call.done_writing()
            await reading
        finally:
            call.cancel()
            reading.cancel()


@contextlib.asynccontextmanager
async def _httpx(target: Target, masks: Masks) -> AsyncIterator[Ask]:
    """The raw body by the library that the Python client is made with."""
    url, headers = f"http://127.0.0.1:{target.http_port}/v1/segment", {"Content-Type": "image/jpeg"}
    params = {"request": target.request(masks)}
    async with httpx.AsyncClient(timeout=_PATIENCE_S) as client:

        async def ask() -> None:
            answer = await client.post(url, content=target.photo, params=params, headers=headers)
            if answer.status_code != httpx.codes.OK:
                raise Unanswered(f"{answer.status_code}: {answer.text[:500]}")
            target.check(len(answer.json()["results"][0]["masks"]))

        yield ask


@contextlib.asynccontextmanager
async def _client(
    target: Target,
    masks: Masks,  # noqa: ARG001 (the client always gets RLE)
    *,
    kind: Literal["http", "grpc"],
) -> AsyncIterator[Ask]:
    """Our own: what it adds is the difference to the bare callers."""
    port = target.http_port if kind == "http" else target.grpc_port
    point = pomona.Point(target.point.x, target.point.y)
    async with pomona.AsyncClient(f"{kind}://127.0.0.1:{port}") as client:

        async def ask() -> None:
            answer = await client.segment(target.photo, point, model=target.model, multimask=target.multimask)
            target.check(len(answer.masks))

        yield ask


@contextlib.asynccontextmanager
async def _triton(target: Target, masks: Masks, *, kind: Literal["http", "grpc"]) -> AsyncIterator[Ask]:
    # Imported here: its messages have the names of the server's own, of which a process holds one only.
    library: Any = importlib.import_module(f"tritonclient.{kind}.aio")
    port = target.http_port if kind == "http" else target.grpc_port
    point = np.array([[[target.point.x, target.point.y]]], np.float32)
    multimask = np.array([target.multimask])
    parameters = {"mask_format": masks.lower()}
    names = ("masks", "scores", "stability_scores", "boxes", "areas")  # as the other doors tell

    def tensor(name: str, datatype: str, array: Any) -> Any:
        made = library.InferInput(name, list(array.shape), datatype)
        made.set_data_from_numpy(array)
        return made

    async with library.InferenceServerClient(f"127.0.0.1:{port}") as client:

        async def ask() -> None:
            inputs = [
                tensor("image", "BYTES", np.array([target.photo], object)),
                tensor("points", "FP32", point),
                tensor("multimask", "BOOL", multimask),
            ]
            outputs = [library.InferRequestedOutput(name) for name in names]
            answer = await client.infer(target.model, inputs, outputs=outputs, parameters=parameters)
            arrays = [answer.as_numpy(name) for name in names]
            target.check(arrays[0].shape[1])

        yield ask


BARE: Final = "gRPC"
"""The door that is measured with nothing behind it, too."""

DOORS: Final[Mapping[str, tuple[Caller, tuple[Masks, ...]]]] = {
    "HTTP, multipart": (partial(_over_http, raw=False), ("RLE", "PNG")),
    "HTTP, raw body": (partial(_over_http, raw=True), ("RLE", "PNG")),
    BARE: (_unary, ("RLE", "PNG")),
    "gRPC stream": (_stream, ("RLE", "PNG")),
    "HTTP, raw body by httpx": (_httpx, ("RLE",)),
    "HTTP, Python client": (partial(_client, kind="http"), ("RLE",)),
    "gRPC, Python client": (partial(_client, kind="grpc"), ("RLE",)),
    "OIP over HTTP, tritonclient": (partial(_triton, kind="http"), ("RLE", "pixels")),
    "OIP over gRPC, tritonclient": (partial(_triton, kind="grpc"), ("RLE", "pixels")),
}
"""By name: who calls, and which masks are to be had."""
