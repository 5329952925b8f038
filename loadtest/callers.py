"""Callers of every endpoint, each with the library that real callers use: one image with one point, over and over.

What a caller does for every image is done for every request: the message is built, and the answer is read as far as
the library reads it. Masks as RLE or PNG are not decoded. `clients/python/src` must be on the path.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal, TypeAlias

import grpc
import httpx
import numpy as np

import pomona
from loadtest import wire
from loadtest.load import Pool, Send, post_ok
from loadtest.wire import Masks, Unanswered
from models.types import Point
from service.proto.generated.pomona.v1.segmentation_pb2_grpc import SegmentationStub

_TIMEOUT_S: Final = 60.0
_MAX_IN_FLIGHT: Final = 64
_ANY_SIZE: Final = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


@dataclass(frozen=True, slots=True)
class Target:
    """What is sent where.

    Attributes:
        http_port: of the server, on 127.0.0.1.
        grpc_port: of the server.
        model: name of a SAM.
        jpeg: the image.
        point: in it.
        multimask: three masks, or one.
    """

    http_port: int
    grpc_port: int
    model: str
    jpeg: bytes
    point: Point
    multimask: bool

    def request(self, masks: Masks) -> str:
        """Return the request as JSON."""
        fields = {"model": self.model, "format": masks.lower()}
        return json.dumps(wire.point_request(self.point, multimask=self.multimask, **fields))

    def message(self, masks: Masks) -> Any:
        """Return the request as a gRPC message."""
        return wire.point_message(self.jpeg, self.point, multimask=self.multimask, model=self.model, masks=masks)

    def check(self, masks: int) -> None:
        """Check the number of masks in an answer.

        Raises:
            Unanswered: it is wrong.
        """
        expected = 3 if self.multimask else 1
        if masks != expected:
            raise Unanswered(f"an answer must have {expected} masks, got {masks}")


Caller: TypeAlias = Callable[[Target, Masks], AbstractAsyncContextManager[Send]]


@contextlib.asynccontextmanager
async def _bare_http(target: Target, masks: Masks, *, raw: bool) -> AsyncIterator[Send]:
    pool, request = Pool(target.http_port), target.request(masks)
    build = wire.as_raw_body if raw else wire.as_form

    async def send() -> None:
        target.check(wire.masks_of(await post_ok(pool, build(request, target.jpeg))))

    try:
        yield send
    finally:
        pool.close()


@contextlib.asynccontextmanager
async def _stub(target: Target) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{target.grpc_port}", options=_ANY_SIZE) as channel:
        yield SegmentationStub(channel)


@contextlib.asynccontextmanager
async def _grpc(target: Target, masks: Masks) -> AsyncIterator[Send]:
    async with _stub(target) as stub:

        async def send() -> None:
            target.check(wire.masks_of_response(await stub.Segment(target.message(masks), timeout=_TIMEOUT_S)))

        yield send


@contextlib.asynccontextmanager
async def _grpc_stream(target: Target, masks: Masks) -> AsyncIterator[Send]:
    """All callers share one stream, as the frames of a camera do."""
    async with _stub(target) as stub:
        stream, writing = stub.SegmentStream(), asyncio.Lock()
        waiting: dict[str, asyncio.Future[Any]] = {}
        number = 0

        async def read() -> None:
            while (reply := await stream.read()) is not grpc.aio.EOF:
                waiting.pop(reply.frame.frame_id).set_result(reply)

        async def write(message: Any) -> None:
            async with writing:
                await stream.write(message)

        async def send() -> None:
            nonlocal number
            number += 1
            frame_id = str(number)
            waiting[frame_id] = answered = asyncio.get_running_loop().create_future()
            await write(wire.stream_frame(target.message(masks), frame_id))
            async with asyncio.timeout(_TIMEOUT_S):
                reply = await answered
            target.check(wire.masks_of_response(wire.stream_answer(reply)))

        await write(wire.stream_settings(_MAX_IN_FLIGHT))
        reading = asyncio.create_task(read())
        try:
            yield send
            await stream.done_writing()
            await reading
        finally:
            stream.cancel()
            reading.cancel()


@contextlib.asynccontextmanager
async def _httpx(target: Target, masks: Masks) -> AsyncIterator[Send]:
    """The raw body by the library that the Python client is built on."""
    url, headers = f"http://127.0.0.1:{target.http_port}{wire.SEGMENT}", {"Content-Type": "image/jpeg"}
    params = {"request": target.request(masks)}
    async with httpx.AsyncClient(timeout=_TIMEOUT_S) as client:

        async def send() -> None:
            answer = await client.post(url, content=target.jpeg, params=params, headers=headers)
            if answer.status_code != httpx.codes.OK:
                raise Unanswered(f"{answer.status_code}: {answer.text[:500]}")
            target.check(wire.masks_of(answer.json()))

        yield send


@contextlib.asynccontextmanager
async def _python_client(target: Target, masks: Masks, *, kind: Literal["http", "grpc"]) -> AsyncIterator[Send]:  # noqa: ARG001 (RLE is the client's default)
    port = target.http_port if kind == "http" else target.grpc_port
    point = pomona.Point(target.point.x, target.point.y)
    async with pomona.AsyncClient(f"{kind}://127.0.0.1:{port}") as client:

        async def send() -> None:
            answer = await client.segment(target.jpeg, point, model=target.model, multimask=target.multimask)
            target.check(len(answer.masks))

        yield send


@contextlib.asynccontextmanager
async def _tritonclient(target: Target, masks: Masks, *, kind: Literal["http", "grpc"]) -> AsyncIterator[Send]:
    # Imported here: its messages have the same names as the server's own, and a process can register only one of them.
    library: Any = importlib.import_module(f"tritonclient.{kind}.aio")
    port = target.http_port if kind == "http" else target.grpc_port
    point = np.array([[[target.point.x, target.point.y]]], np.float32)
    multimask = np.array([target.multimask])
    parameters = {"mask_format": masks.lower()}
    names = ("masks", "scores", "stability_scores", "boxes", "areas")  # what the other endpoints return

    def tensor(name: str, datatype: str, array: Any) -> Any:
        made = library.InferInput(name, list(array.shape), datatype)
        made.set_data_from_numpy(array)
        return made

    async with library.InferenceServerClient(f"127.0.0.1:{port}") as client:

        async def send() -> None:
            inputs = [
                tensor("image", "BYTES", np.array([target.jpeg], object)),
                tensor("points", "FP32", point),
                tensor("multimask", "BOOL", multimask),
            ]
            outputs = [library.InferRequestedOutput(name) for name in names]
            answer = await client.infer(target.model, inputs, outputs=outputs, parameters=parameters)
            arrays = [answer.as_numpy(name) for name in names]
            target.check(arrays[0].shape[1])

        yield send


GRPC: Final = "gRPC"
HTTPX: Final = "HTTP, raw body by httpx"
HTTP_CLIENT: Final = "HTTP, Python client"
GRPC_CLIENT: Final = "gRPC, Python client"

CALLERS: Final[Mapping[str, tuple[Caller, tuple[Masks, ...]]]] = {
    "HTTP, multipart": (partial(_bare_http, raw=False), ("RLE", "PNG")),
    "HTTP, raw body": (partial(_bare_http, raw=True), ("RLE", "PNG")),
    GRPC: (_grpc, ("RLE", "PNG")),
    "gRPC stream": (_grpc_stream, ("RLE", "PNG")),
    HTTPX: (_httpx, ("RLE",)),
    HTTP_CLIENT: (partial(_python_client, kind="http"), ("RLE",)),
    GRPC_CLIENT: (partial(_python_client, kind="grpc"), ("RLE",)),
    "OIP over HTTP, tritonclient": (partial(_tritonclient, kind="http"), ("RLE", "pixels")),
    "OIP over gRPC, tritonclient": (partial(_tritonclient, kind="grpc"), ("RLE", "pixels")),
}
"""By name: who calls, and the formats of masks that it can get."""
