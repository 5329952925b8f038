"""One request through every door: sent as each of them has it, and its answer as the JSON of HTTP."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

import grpc
import httpx
import numpy as np
from numpy.typing import NDArray

from models.masks import Rle, decode_png, decode_rle, encode_rle
from models.polygons import decode_polygons
from models.types import BinaryMask, Logits, Size
from service.api.operations import OPERATIONS
from service.errors import PROBLEMS
from service.proto.generated.pomona.v1 import segmentation_pb2 as pb
from tests.contract import oip_door
from tests.contract.door import POINT, Door, image, plain, problem
from tests.contract.grpc_door import Caller, frames_of
from tests.contract.messages import to_json, to_message
from tests.contract.oip_door import GRPC_RAW, HTTP_BINARY, WAYS, Refused, refusal_of, retry_after_s
from tests.contract.scenes import IMAGE, PEEL
from tests.fake_detector import LOADED_DETECTOR, WatchedDetectorRunner
from tests.fakes import LOADED, LOADED_UNET, FakeDevice, WatchedRunner, WatchedUNetRunner, image_bytes, peel_image

Name = Literal["segment", "embed", "semantic", "inspect", "automatic", "edges", "detect", "instances", "text"]
CLASSES: Final = {"healthy": 1, "infected": 2}
_BY_NAME: Final = {operation.name: operation for operation in OPERATIONS}
_LONGEST_QUERY: Final = 60_000


@dataclass(frozen=True)
class Request:
    """A request of the API, whichever door it goes through.

    Attributes:
        operation: its name.
        fields: the JSON.
        image: the file; None for none.
        image_id: of an image that was sent before; None for none.
        deadline: milliseconds as text; None for none.
        headers: further headers, or metadata of gRPC.
    """

    operation: Name = "segment"
    fields: Mapping[str, Any] = field(default_factory=dict)
    image: bytes | None = IMAGE
    image_id: str | None = None
    deadline: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def path(self) -> str:
        return f"/v1/{self.operation}"

    @property
    def all_headers(self) -> dict[str, str]:
        return {**self.headers, **({} if self.deadline is None else {"x-deadline-ms": self.deadline})}


Send: TypeAlias = Callable[[Caller, Request], Coroutine[Any, Any, Any]]
"""Send a request; return the JSON of its answer, or raise `Refused`."""


def segment(
    *prompts: Mapping[str, Any], data: bytes | None = IMAGE, deadline: str | None = None, **fields: Any
) -> Request:
    return Request("segment", {"prompts": prompts, **fields}, data, deadline=deadline)


def semantic(data: bytes | None = PEEL, deadline: str | None = None, **fields: Any) -> Request:
    return Request("semantic", fields, data, deadline=deadline)


def inspect(data: bytes | None = PEEL, deadline: str | None = None, **fields: Any) -> Request:
    return Request("inspect", fields, data, deadline=deadline)


def detect(data: bytes | None = PEEL, deadline: str | None = None, **fields: Any) -> Request:
    return Request("detect", fields, data, deadline=deadline)


def instances(data: bytes | None = PEEL, deadline: str | None = None, **fields: Any) -> Request:
    return Request("instances", fields, data, deadline=deadline)


def text(words: str, data: bytes | None = PEEL, deadline: str | None = None, **fields: Any) -> Request:
    return Request("text", {"text": words, **fields}, data, deadline=deadline)


def embed(data: bytes | None = IMAGE, deadline: str | None = None, **fields: Any) -> Request:
    return Request("embed", fields, data, deadline=deadline)


# Ways to send.


def answered(response: httpx.Response) -> Any:
    """Return an answer of HTTP.

    Raises:
        Refused: it is a problem.
    """
    if response.status_code != 200:
        body = problem(response, response.json()["code"])
        raise Refused(body.code, body.detail, retry_after_s(response))
    return response.json()


async def _multipart(caller: Caller, request: Request) -> Any:
    parts = [] if request.image is None else [image(request.image)]
    if request.image_id is not None:
        parts.append(plain("image_id", request.image_id))
    parts.append(plain("request", json.dumps(request.fields)))
    return answered(await caller.door.post(*parts, path=request.path, headers=request.all_headers))


async def _raw_body(caller: Caller, request: Request) -> Any:
    headers = {"content-type": "application/octet-stream", **request.all_headers}
    query = {"request": json.dumps(request.fields)}
    return answered(await caller.door.client.post(request.path, content=request.image, params=query, headers=headers))


async def _unary(caller: Caller, request: Request) -> Any:
    call = getattr(caller.stub, _BY_NAME[request.operation].rpc)
    try:
        return to_json(await call(_message(request), metadata=tuple(request.all_headers.items())))
    except grpc.aio.AioRpcError as error:
        raise refusal_of(error) from error


async def _stream(caller: Caller, request: Request) -> Any:
    rpc = f"{_BY_NAME[request.operation].rpc}Stream"
    frame = to_message(f"{rpc}Request", {}, request=_message(request))
    call = getattr(caller.stub, rpc)(frames_of([frame]), metadata=tuple(request.all_headers.items()))
    try:
        (reply,) = [reply async for reply in call]
    except grpc.aio.AioRpcError as error:
        raise refusal_of(error) from error
    if reply.outcome == pb.FRAME_OUTCOME_ANSWERED:
        return to_json(reply.response)
    assert not reply.HasField("response")
    row = next(row for row in PROBLEMS.values() if row.code == reply.problem.code)
    late = row.code in {"deadline_exceeded", "deadline_unreachable"}
    assert reply.outcome == (pb.FRAME_OUTCOME_LATE if late else pb.FRAME_OUTCOME_FAILED)
    assert reply.problem.title == row.title
    again = reply.problem.retry_after_ms // 1000 if reply.problem.HasField("retry_after_ms") else None
    raise Refused(reply.problem.code, reply.problem.detail, again)


def _message(request: Request) -> Any:
    given = {"image": request.image, "image_id": request.image_id}
    more = {name: value for name, value in given.items() if value is not None}
    return to_message(_BY_NAME[request.operation].request.__name__, request.fields, **more)


def doors(request: Request) -> dict[str, Send]:
    """Return every door of the API itself that can carry a request, by name."""
    ways: dict[str, Send] = {"HTTP": _multipart}
    if request.image is not None and request.image_id is None and len(json.dumps(request.fields)) < _LONGEST_QUERY:
        ways["HTTP, raw body"] = _raw_body
    ways["gRPC"] = _unary
    if _BY_NAME[request.operation].streams:
        ways["gRPC stream"] = _stream
    return ways


# Open Inference Protocol.


def oip_doors(request: Request, mask_format: str = "pixels") -> dict[str, Send]:
    """Return the ways of the Open Inference Protocol; they answer with `Seen`."""
    ways = WAYS if mask_format == "pixels" else (HTTP_BINARY, GRPC_RAW)
    return {f"OIP {mask_format}, {way}": _infer(way, mask_format) for way in ways} if _has_tensors(request) else {}


def _has_tensors(request: Request) -> bool:
    listed = "classes" in request.fields
    return request.operation in ("segment", "semantic", "detect") and request.image_id is None and not listed


_DEFAULT_MODELS: Final[Mapping[str, str]] = {
    "segment": LOADED.name,
    "semantic": LOADED_UNET.name,
    "detect": LOADED_DETECTOR.name,
}


def _infer(way: str, mask_format: str) -> Send:
    async def send(caller: Caller, request: Request) -> Seen:
        fields = dict(request.fields)
        masks_wanted = request.operation == "segment"
        model = fields.pop("model", _DEFAULT_MODELS[request.operation])
        prompts = fields.pop("prompts", [])
        names = ("masks", "scores", "stability_scores", "boxes", "areas") if masks_wanted else ()
        more = {"mask_format": mask_format} if masks_wanted else {}
        tensors = tensors_of(request.image, prompts)
        answer = await oip_door.infer(
            caller, way, tensors, *names, model=model, headers=request.all_headers, **more, **fields
        )
        arrays = dict(answer.outputs)
        if mask_format == "rle" and masks_wanted:
            texts = arrays["masks"]
            masks = np.array([pixels_of(json.loads(text)) for text in texts.ravel()])
            arrays["masks"] = masks.reshape(*texts.shape, *masks.shape[1:])
        return Seen(arrays, (answer.model, answer.version), answer.parameters.get("degraded", False))

    return send


def tensors_of(data: bytes | None, prompts: Any) -> dict[str, NDArray[Any] | bytes]:
    """Return the tensors of prompts that are all of one kind; points are filled up to the longest row."""
    tensors: dict[str, NDArray[Any] | bytes] = {} if data is None else {"image": data}
    longest = max((len(prompt.get("points", [])) for prompt in prompts), default=0)
    if longest:
        points = np.zeros((len(prompts), longest, 2), np.float64)
        labels = np.full((len(prompts), longest), -1, np.int64)
        for row, prompt in enumerate(prompts):
            count = len(prompt["points"])
            points[row, :count] = prompt["points"]
            labels[row, :count] = prompt.get("labels", [1] * count)
        tensors |= {"points": points, "labels": labels}
    if prompts and "box" in prompts[0]:
        tensors["boxes"] = np.array([prompt["box"] for prompt in prompts], np.float64)
    if prompts and "mask" in prompts[0]:
        tensors["mask_input"] = np.array([mask_array(prompt["mask"]) for prompt in prompts])
    if prompts and "multimask" in prompts[0]:
        tensors["multimask"] = np.array([prompts[0]["multimask"]])
    return tensors


# Masks in JSON.


def rle_of(mask: BinaryMask, **changes: Any) -> dict[str, Any]:
    rle = encode_rle(mask)
    return {"size": list(rle.size), "counts": rle.counts, **changes}


def logits_of(logits: Logits, **changes: Any) -> dict[str, Any]:
    data = base64.b64encode(logits.astype("<f2").tobytes()).decode()
    return {"shape": list(logits.shape), "dtype": "float16", "data": data, **changes}


def mask_array(mask: Mapping[str, Any]) -> NDArray[Any]:
    """Return what a mask in JSON holds: bool pixels, or float32 logits."""
    if "data" in mask:
        halves = np.frombuffer(base64.b64decode(mask["data"]), "<f2")
        return halves.astype(np.float32).reshape(mask["shape"])
    return pixels_of(mask)


def pixels_of(mask: Mapping[str, Any], size: Size | None = None) -> BinaryMask:
    """Decode a mask of an answer; polygons need the image's size."""
    if "png" in mask:
        return decode_png(base64.b64decode(mask["png"], validate=True))
    if "polygons" in mask:
        assert size is not None
        return decode_polygons(mask["polygons"], size)
    return decode_rle(Rle((mask["size"][0], mask["size"][1]), mask["counts"]))


# Answers.


@dataclass(frozen=True)
class Seen:
    """What the Open Inference Protocol returns of an answer: arrays by name, name and revision of the model."""

    arrays: dict[str, NDArray[Any]]
    model: tuple[str, str]
    degraded: bool = False


def seen_in(body: Any, class_map: NDArray[np.uint8] | None = None) -> Seen:
    """Return the same of an answer in JSON with masks as RLE."""
    model = (body["model"]["name"], body["model"]["revision"])
    if "results" in body:
        masks = [result["masks"] for result in body["results"]]

        def of(name: str, dtype: type) -> NDArray[Any]:
            return np.array([[mask[name] for mask in some] for some in masks], dtype)

        arrays = {
            "masks": np.array([[pixels_of(mask["mask"]) for mask in some] for some in masks]),
            "scores": of("score", np.float32),
            "stability_scores": of("stability_score", np.float32),
            "boxes": of("box", np.int64),
            "areas": of("area", np.int64),
        }
        return Seen(arrays, model, body["degraded"])
    if "detections" in body:
        objects = body["detections"]
        return Seen(
            {
                "boxes": np.array([one["box"] for one in objects], np.float32).reshape(-1, 4),
                "scores": np.array([one["score"] for one in objects], np.float32),
                "class_ids": np.array([one["class_id"] for one in objects], np.int64),
                "classes": np.array([one["class"].encode() for one in objects], object),
            },
            model,
        )
    if class_map is None:
        class_map = np.zeros((body["image"]["height"], body["image"]["width"]), np.uint8)
        for one in body["classes"]:
            class_map[pixels_of(one["mask"])] = CLASSES[one["class"]]
    found = body["objects"]
    return Seen(
        {
            "class_map": class_map,
            "object_boxes": np.array([one["box"] for one in found], np.int64).reshape(-1, 4),
            "object_classes": np.array([CLASSES[one["class"]] for one in found], np.uint8),
            "object_scores": np.array([one["score"] for one in found], np.float32),
            "object_areas": np.array([one["area"] for one in found], np.int64),
        },
        model,
    )


def comparable(body: Any) -> Any:
    """Return an answer without what differs from one request to the next."""
    return {name: value for name, value in body.items() if name not in ("request_id", "timing_ms", "batch")}


async def everywhere(caller: Caller, request: Request) -> Any:
    """Send a request through every door, and return the one answer that all of them gave."""
    bodies = {name: await send(caller, request) for name, send in doors(request).items()}
    first = bodies["HTTP"]
    for name, body in bodies.items():
        assert comparable(body) == comparable(first), name
        assert set(body) == set(first), name
    if _has_tensors(request) and request.fields.get("format", "rle") == "rle" and not request.fields.get("overlay"):
        expected = seen_in(first)
        for mask_format in ("pixels", "rle"):
            for name, send in oip_doors(request, mask_format).items():
                _check_same(name, await send(caller, request), expected)
    return first


def _check_same(name: str, seen: Seen, expected: Seen) -> None:
    assert (seen.model, seen.degraded) == (expected.model, expected.degraded), name
    assert list(seen.arrays) == list(expected.arrays)
    for array, values in seen.arrays.items():
        assert values.dtype == expected.arrays[array].dtype, (name, array)
        assert np.array_equal(values, expected.arrays[array]), (name, array)


async def refusal_by(send: Send, caller: Caller, request: Request) -> Refused:
    """Return the error that a request meets."""
    try:
        await send(caller, request)
    except Refused as refused:
        return refused
    raise AssertionError("it was answered")


_BY_DETECTOR: Final = ("detect", "instances", "text")

# The same kind of request for every operation, and the device that works for it.


def good(name: Name, mark: int = 1, deadline: str | None = None) -> Request:
    """Return a good request; another mark is another image."""
    if name == "segment":
        return segment(POINT, data=image_bytes(mark), deadline=deadline)
    if name == "semantic":
        return semantic(peel_image(mark), deadline=deadline)
    if name == "detect":
        return detect(peel_image(mark), deadline=deadline)
    if name == "instances":
        return instances(peel_image(mark), deadline=deadline)
    if name == "text":
        return text("oranges", peel_image(mark), deadline=deadline)
    return inspect(peel_image(mark), deadline=deadline, mode="fast", finder="unet")


def device(caller: Caller, name: Name) -> FakeDevice:
    door = caller.door
    return door.detector if name in _BY_DETECTOR else door.sam if name == "segment" else door.unet


def runner(caller: Caller, name: Name) -> WatchedRunner | WatchedUNetRunner | WatchedDetectorRunner:
    door = caller.door
    if name in _BY_DETECTOR:
        return door.detector_runner
    return door.runner if name == "segment" else door.unet_runner


async def hold(caller: Caller, name: Name) -> asyncio.Task[Any]:
    """Keep the device busy until `let_go`."""
    door = caller.door
    if name in _BY_DETECTOR:
        return await door.hold_detector()
    return await (door.hold() if name == "segment" else door.hold_unet())


def slow(door: Door) -> None:
    """Make images take minutes by a clock that leaps."""
    door.sam.encode_s_per_megapixel = 1000
    door.unet.infer_s_per_megapixel = 1000
    door.detector.infer_s_per_image = 1000


async def refused_everywhere(caller: Caller, request: Request, code: str) -> dict[str, Refused]:
    """Return the errors of all doors, which are sent the request at the same time."""
    ways = doors(request) | oip_doors(request)
    refusals = await asyncio.gather(*(refusal_by(send, caller, request) for send in ways.values()))
    found = dict(zip(ways, refusals, strict=True))
    assert {name: refusal.code for name, refusal in found.items()} == dict.fromkeys(ways, code)
    return found
