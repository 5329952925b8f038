"""One question, the same through every door: asked as each has it, and the answers made comparable."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import grpc
import httpx
import numpy as np
import PIL.Image
from numpy.typing import NDArray

from models.masks import Rle, decode_png, decode_rle, encode_rle
from models.types import BinaryMask
from service.errors import PROBLEMS
from service.proto.generated.pomona.v1 import segmentation_pb2 as pb
from tests.contract import oip_door
from tests.contract.door import IMAGE, image, plain, problem
from tests.contract.grpc_door import Caller, corners, frames_of
from tests.contract.oip_door import GRPC_RAW, HTTP_BINARY, WAYS, Refused, refusal_of, retry_after_s
from tests.contract.test_grpc_answers import mask_of
from tests.fakes import LOADED, LOADED_UNET

CLASSES: Final = {"healthy": 1, "infected": 2}
_CLASS_NAMES: Final = {pb.PIXEL_CLASS_HEALTHY: "healthy", pb.PIXEL_CLASS_INFECTED: "infected"}


@dataclass(frozen=True)
class Ask:
    """What is asked.

    Attributes:
        prompts: as the JSON of HTTP has them, but a mask is an array: bool of the image, or float32 logits.
        data: the image; None for none.
        fields: `model`, `input_size`, `padding` and whatever else the JSON of HTTP has.
        deadline: milliseconds in the words of HTTP; None for none.
    """

    prompts: Sequence[Mapping[str, Any]] = ()
    data: bytes | None = IMAGE
    fields: Mapping[str, Any] = field(default_factory=dict)
    deadline: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.deadline is None else {"x-deadline-ms": self.deadline}

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return tuple(self.headers.items())


@dataclass(frozen=True)
class Seen:
    """What came back.

    Attributes:
        arrays: by name, with the same names, types and shapes from every door.
        told: everything else that every door tells.
    """

    arrays: dict[str, NDArray[Any]]
    told: dict[str, Any]


Send: TypeAlias = Callable[[Caller, Ask], Coroutine[Any, Any, Seen]]


def same(seen: Mapping[str, Seen]) -> Seen:
    """The one answer that all doors gave; an assertion fails where they did not."""
    first_name, first = next(iter(seen.items()))
    for name, other in seen.items():
        assert other.told == first.told, (first_name, name)
        assert list(other.arrays) == list(first.arrays)
        for array, values in other.arrays.items():
            assert values.dtype == first.arrays[array].dtype, (name, array)
            assert np.array_equal(values, first.arrays[array]), (first_name, name, array)
    return first


def answered(response: httpx.Response) -> Any:
    """An answer of HTTP.

    Raises:
        Refused: it is a problem, of the shape and the status that the table has.
    """
    if response.status_code != 200:
        body = problem(response, response.json()["code"])
        raise Refused(body.code, body.detail, retry_after_s(response))
    return response.json()


async def called(call: Any) -> Any:
    """An answer of gRPC.

    Raises:
        Refused: it was, with the details and the status that the table has.
    """
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise refusal_of(error) from error


async def streamed(call: Any) -> Any:
    """The answer to the one frame of a stream.

    Raises:
        Refused: it has a problem instead, and the outcome that the table means.
    """

    async def read() -> list[Any]:
        return [reply async for reply in call]

    (reply,) = await called(read())
    if reply.outcome == pb.FRAME_OUTCOME_ANSWERED:
        return reply.response
    assert not reply.HasField("response")
    row = next(row for row in PROBLEMS.values() if row.code == reply.problem.code)
    late = row.code in {"deadline_exceeded", "deadline_unreachable"}
    assert reply.outcome == (pb.FRAME_OUTCOME_LATE if late else pb.FRAME_OUTCOME_FAILED)
    assert reply.problem.title == row.title
    again = reply.problem.retry_after_ms // 1000 if reply.problem.HasField("retry_after_ms") else None
    raise Refused(reply.problem.code, reply.problem.detail, again)


async def refused_by(send: Send, caller: Caller, ask: Ask) -> Refused:
    """The refusal that a question meets."""
    try:
        await send(caller, ask)
    except Refused as refused:
        return refused
    raise AssertionError("it was answered")


# Segmentation


def _segment_json(ask: Ask, **more: Any) -> str:
    return json.dumps({"prompts": [_prompt_json(prompt) for prompt in ask.prompts], **ask.fields, **more})


def _prompt_json(prompt: Mapping[str, Any]) -> dict[str, Any]:
    mask = prompt.get("mask")
    if mask is None:
        return dict(prompt)
    if mask.dtype == np.bool_:
        rle = encode_rle(mask)
        return {**prompt, "mask": {"size": rle.size, "counts": rle.counts}}
    data = base64.b64encode(mask.astype("<f2").tobytes()).decode()
    return {**prompt, "mask": {"shape": mask.shape, "dtype": "float16", "data": data}}


def _over_http(path: str, request: Callable[[Ask], str], see: Callable[[Any], Seen], *, raw: bool = False) -> Send:
    async def send(caller: Caller, ask: Ask) -> Seen:
        # A mask may be longer than an address.
        if raw and ask.data is not None and not any("mask" in prompt for prompt in ask.prompts):
            response = await caller.door.client.post(
                path,
                content=ask.data,
                params={"request": request(ask)},
                headers={"content-type": "application/octet-stream", **ask.headers},
            )
        else:
            parts = [] if ask.data is None else [image(ask.data)]
            response = await caller.door.post(*parts, plain("request", request(ask)), path=path, headers=ask.headers)
        return see(answered(response))

    return send


def _pixels(mask: Mapping[str, Any]) -> BinaryMask:
    if "png" in mask:
        return decode_png(base64.b64decode(mask["png"]))
    return decode_rle(Rle(tuple(mask["size"]), mask["counts"]))


def _see_segmented(body: Any) -> Seen:
    masks = [result["masks"] for result in body["results"]]

    def of(name: str, dtype: type) -> NDArray[Any]:
        return np.array([[mask[name] for mask in some] for some in masks], dtype)

    arrays = {
        "masks": np.array([[_pixels(mask["mask"]) for mask in some] for some in masks]),
        "scores": of("score", np.float32),
        "stability_scores": of("stability_score", np.float32),
        "boxes": of("box", np.int64),
        "areas": of("area", np.int64),
    }
    return Seen(arrays, {"model": (body["model"]["name"], body["model"]["revision"]), "degraded": body["degraded"]})


def _segment_message(ask: Ask, **more: Any) -> pb.SegmentRequest:
    fields = dict(ask.fields)
    if "input_size" in fields:
        fields["input_size"] = pb.InputSize.Value(f"INPUT_SIZE_{fields['input_size']}".upper())
    if "padding" in fields:
        fields["padding"] = pb.Padding.Value(f"PADDING_{fields['padding']}".upper())
    if ask.data is not None:
        fields["image"] = ask.data
    return pb.SegmentRequest(prompts=map(_prompt_message, ask.prompts), **fields, **more)


def _prompt_message(prompt: Mapping[str, Any]) -> pb.Prompt:
    points = prompt.get("points", [])
    labels = prompt.get("labels", [None] * len(points))
    message = pb.Prompt(
        points=[pb.Point(x=x, y=y, label=label) for (x, y), label in zip(points, labels, strict=True)],
        multimask=prompt.get("multimask"),
    )
    if "box" in prompt:
        x0, y0, x1, y1 = prompt["box"]
        message.box.CopyFrom(pb.Box(x0=x0, y0=y0, x1=x1, y1=y1))
    mask = prompt.get("mask")
    if mask is not None:
        height, width = mask.shape
        if mask.dtype == np.bool_:
            message.rle.CopyFrom(pb.RleMask(height=height, width=width, counts=encode_rle(mask).counts.encode()))
        else:
            message.logits.CopyFrom(pb.LogitsMask(height=height, width=width, data=mask.astype("<f2").tobytes()))
    return message


def _segmented_json(answer: pb.SegmentResponse) -> Any:
    """As HTTP has it, as far as answers are compared."""
    return {
        "model": {"name": answer.model.name, "revision": answer.model.revision},
        "degraded": answer.degraded,
        "results": [
            {
                "masks": [
                    {
                        "mask": mask_of(mask.mask),
                        "score": mask.score,
                        "stability_score": mask.stability_score,
                        "box": corners(mask.box),
                        "area": mask.area,
                    }
                    for mask in result.masks
                ]
            }
            for result in answer.results
        ],
    }


async def _segment_call(caller: Caller, ask: Ask) -> Seen:
    answer = await called(caller.stub.Segment(_segment_message(ask), metadata=ask.metadata))
    return _see_segmented(_segmented_json(answer))


async def _segment_stream(caller: Caller, ask: Ask) -> Seen:
    frame = pb.SegmentStreamRequest(request=_segment_message(ask, format=pb.MASK_FORMAT_PNG))
    answer = await streamed(caller.stub.SegmentStream(frames_of([frame]), metadata=ask.metadata))
    return _see_segmented(_segmented_json(answer))


def tensors_of(ask: Ask) -> dict[str, NDArray[Any] | bytes]:
    """The tensors of prompts that are all of one kind; points are filled up to the longest row."""
    tensors: dict[str, NDArray[Any] | bytes] = {} if ask.data is None else {"image": ask.data}
    prompts = ask.prompts
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
        tensors["mask_input"] = np.array([prompt["mask"] for prompt in prompts])
    if prompts and "multimask" in prompts[0]:
        tensors["multimask"] = np.array([prompts[0]["multimask"]])
    return tensors


def _segment_oip(way: str, mask_format: str) -> Send:
    async def send(caller: Caller, ask: Ask) -> Seen:
        fields = dict(ask.fields)
        model = fields.pop("model", LOADED.name)
        names = ("masks", "scores", "stability_scores", "boxes", "areas")
        answer = await oip_door.infer(
            caller, way, tensors_of(ask), *names, model=model, headers=ask.headers, mask_format=mask_format, **fields
        )
        arrays = dict(answer.outputs)
        if mask_format == "rle":
            texts = arrays["masks"]
            masks = np.array([_pixels(json.loads(text)) for text in texts.ravel()])
            arrays["masks"] = masks.reshape(*texts.shape, *masks.shape[1:])
        told = {"model": (answer.model, answer.version), "degraded": answer.parameters["degraded"]}
        return Seen(arrays, told)

    return send


_PNG: Final = {"format": "png"}

SEGMENT: Final[Mapping[str, Send]] = {
    "HTTP": _over_http("/v1/segment", _segment_json, _see_segmented),
    "HTTP as PNG": _over_http("/v1/segment", lambda ask: _segment_json(ask, **_PNG), _see_segmented),
    "HTTP, raw body": _over_http("/v1/segment", _segment_json, _see_segmented, raw=True),
    "gRPC": _segment_call,
    "gRPC stream as PNG": _segment_stream,
    **{f"OIP, {way}": _segment_oip(way, "pixels") for way in WAYS},
    **{f"OIP as RLE, {way}": _segment_oip(way, "rle") for way in (HTTP_BINARY, GRPC_RAW)},
}
"""All ways to masks."""


# Classes


def _fields_json(ask: Ask, **more: Any) -> str:
    return json.dumps({**ask.fields, **more})


def _see_classified(body: Any) -> Seen:
    if body["class_map"] is None:
        size = body["image"]["height"], body["image"]["width"]
        class_map = np.zeros(size, np.uint8)
        for one in body["classes"]:
            class_map[_pixels(one["mask"])] = CLASSES[one["class"]]
    else:
        with PIL.Image.open(io.BytesIO(base64.b64decode(body["class_map"]))) as drawn:
            class_map = np.asarray(drawn)
    assert [one["area"] for one in body["classes"]] == [(class_map == number).sum() for number in CLASSES.values()]
    found = body["objects"]
    arrays = {
        "class_map": class_map,
        "object_boxes": np.array([one["box"] for one in found], np.int64).reshape(-1, 4),
        "object_classes": np.array([CLASSES[one["class"]] for one in found], np.uint8),
        "object_scores": np.array([one["score"] for one in found], np.float32),
        "object_areas": np.array([one["area"] for one in found], np.int64),
    }
    return Seen(arrays, {"model": (body["model"]["name"], body["model"]["revision"])})


async def _semantic_call(caller: Caller, ask: Ask, **more: Any) -> Seen:
    request = pb.SemanticRequest(image=ask.data, **ask.fields, **more)
    answer = await called(caller.stub.Semantic(request, metadata=ask.metadata))
    return _see_classified(
        {
            "image": {"width": answer.image.width, "height": answer.image.height},
            "model": {"name": answer.model.name, "revision": answer.model.revision},
            "classes": [
                {"class": _CLASS_NAMES[one.pixel_class], "area": one.area, "mask": mask_of(one.mask)}
                for one in answer.classes
            ],
            "class_map": base64.b64encode(answer.class_map).decode() if answer.HasField("class_map") else None,
            "objects": [
                {"class": _CLASS_NAMES[one.pixel_class], "box": corners(one.box), "area": one.area, "score": one.score}
                for one in answer.objects
            ],
        }
    )


async def _semantic_call_as_png(caller: Caller, ask: Ask) -> Seen:
    return await _semantic_call(caller, ask, format=pb.MASK_FORMAT_PNG)


def _semantic_oip(way: str) -> Send:
    async def send(caller: Caller, ask: Ask) -> Seen:
        fields = dict(ask.fields)
        model = fields.pop("model", LOADED_UNET.name)
        tensors = {} if ask.data is None else {"image": ask.data}
        answer = await oip_door.infer(caller, way, tensors, model=model, headers=ask.headers, **fields)
        return Seen(answer.outputs, {"model": (answer.model, answer.version)})

    return send


SEMANTIC: Final[Mapping[str, Send]] = {
    "HTTP": _over_http("/v1/semantic", _fields_json, _see_classified),
    "HTTP as PNG": _over_http("/v1/semantic", lambda ask: _fields_json(ask, **_PNG), _see_classified),
    "HTTP, raw body": _over_http("/v1/semantic", _fields_json, _see_classified, raw=True),
    "gRPC": _semantic_call,
    "gRPC as PNG": _semantic_call_as_png,
    **{f"OIP, {way}": _semantic_oip(way) for way in WAYS},
}
"""All ways to the class of every pixel."""


# Fruits


def _see_inspected(body: Any) -> Seen:
    fruits = body["fruits"]
    arrays = {
        **{name: np.array([_pixels(fruit[name]) for fruit in fruits]) for name in ("mask", "infected_mask")},
        **{name: np.array([fruit[name] for fruit in fruits]) for name in _FRUIT},
    }
    return Seen(arrays, {name: body[name] for name in ("models", "mode", "degraded", "reason", "frame")})


_FRUIT: Final = ("id", "box", "area", "infected_fraction", "class", "confidence", "grade", "truncated", "refined")
_MODES: Final = {"fast": pb.INSPECT_MODE_FAST, "accurate": pb.INSPECT_MODE_ACCURATE, "auto": pb.INSPECT_MODE_AUTO}


def _inspect_message(ask: Ask, **more: Any) -> pb.InspectRequest:
    fields = dict(ask.fields)
    frame = {name: fields.pop(name) for name in ("frame_id", "trigger_id", "captured_at_ns") if name in fields}
    grades = [pb.Grade(**one) for one in fields.pop("grades", [])]
    mode = _MODES[fields.pop("mode", "auto")]
    return pb.InspectRequest(image=ask.data, frame=pb.Frame(**frame), grades=grades, mode=mode, **fields, **more)


def _inspected_json(answer: pb.InspectResponse) -> Any:
    """As HTTP has it, as far as answers are compared."""
    unet, frame = answer.unet, answer.frame
    sam = {
        "name": answer.sam.name,
        "revision": answer.sam.revision,
        "input_size": answer.sam.input_size,
        "padding": "none" if answer.sam.padding == pb.PADDING_NONE else "square",
    }
    return {
        "models": {
            "unet": {
                "name": unet.name,
                "revision": unet.revision,
                "input_width": unet.input_width,
                "input_height": unet.input_height,
            },
            "sam": sam if answer.HasField("sam") else None,
        },
        "mode": "fast" if answer.mode == pb.INSPECT_MODE_FAST else "accurate",
        "degraded": answer.degraded,
        "reason": answer.reason if answer.HasField("reason") else None,
        "frame": {
            name: getattr(frame, name) if frame.HasField(name) else None
            for name in ("frame_id", "trigger_id", "captured_at_ns")
        },
        "fruits": [
            {
                **{name: getattr(fruit, name) for name in _FRUIT if name not in ("box", "class")},
                "box": corners(fruit.box),
                "class": _CLASS_NAMES[fruit.pixel_class],
                "mask": mask_of(fruit.mask),
                "infected_mask": mask_of(fruit.infected_mask),
            }
            for fruit in answer.fruits
        ],
    }


async def _inspect_call(caller: Caller, ask: Ask) -> Seen:
    answer = await called(caller.stub.Inspect(_inspect_message(ask), metadata=ask.metadata))
    return _see_inspected(_inspected_json(answer))


async def _inspect_stream(caller: Caller, ask: Ask) -> Seen:
    frame = pb.InspectStreamRequest(request=_inspect_message(ask, format=pb.MASK_FORMAT_PNG))
    answer = await streamed(caller.stub.InspectStream(frames_of([frame]), metadata=ask.metadata))
    return _see_inspected(_inspected_json(answer))


INSPECT: Final[Mapping[str, Send]] = {
    "HTTP": _over_http("/v1/inspect", _fields_json, _see_inspected),
    "HTTP as PNG": _over_http("/v1/inspect", lambda ask: _fields_json(ask, **_PNG), _see_inspected),
    "HTTP, raw body": _over_http("/v1/inspect", _fields_json, _see_inspected, raw=True),
    "gRPC": _inspect_call,
    "gRPC stream as PNG": _inspect_stream,
}
"""All ways to fruits; the Open Inference Protocol has models, and this is the work of two."""
