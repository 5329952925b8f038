"""What the callers of the soak do: every operation in all its forms, over every transport, and what goes wrong in them.

An action sends one request, or one stream, about an image, and returns how it was answered: see `loadtest.answers`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import grpc
import httpx
import numpy as np
from google.protobuf.message import Message

from loadtest.answers import PASSED, UNPROVOKED, Violation, code_of, judged
from loadtest.images import RenderedImage
from loadtest.wire import DEADLINE_HEADER
from models.masks import encode_rle
from service.oip.openapi import LENGTH_HEADER
from service.proto.generated.inference import open_inference_pb2 as oip_pb
from service.proto.generated.inference.open_inference_pb2_grpc import GRPCInferenceServiceStub
from service.proto.generated.pomona.v1 import segmentation_pb2 as pb
from service.proto.generated.pomona.v1.segmentation_pb2_grpc import SegmentationStub

LEFT: Final = "left"
"""Outcome of a caller who did not wait for the answer."""

LONGEST_S: Final = 90.0
"""Until an answer; the server gives up after 60 s by itself."""

SAM: Final = "mobile-sam"
UNET: Final = "unet-mobilenetv2-citrus"
FRAMES: Final = 6
"""Of a stream."""


class Service:
    """A server's addresses, and connections to it that all callers share."""

    def __init__(self, address: str, grpc_port: int) -> None:
        limits = httpx.Limits(max_connections=100, max_keepalive_connections=32)
        self.http = httpx.Client(base_url=address, timeout=LONGEST_S, limits=limits)
        self._channel = grpc.insecure_channel(
            f"127.0.0.1:{grpc_port}", options=[("grpc.max_receive_message_length", -1)]
        )
        channel: Any = self._channel  # the stubs' types know asynchronous channels only
        self.segmentation: Any = SegmentationStub(channel)
        self.oip: Any = GRPCInferenceServiceStub(channel)

    def close(self) -> None:
        """Close the connections."""
        self.http.close()
        self._channel.close()

    def post(
        self,
        path: str,
        image: bytes | None,
        request: Mapping[str, Any],
        *,
        headers: Mapping[str, str] | None = None,
        image_id: str | None = None,
        timeout_s: float = LONGEST_S,
    ) -> httpx.Response:
        """Send a form."""
        fields: dict[str, Any] = {"request": (None, json.dumps(request))}
        if image is not None:
            fields["image"] = ("frame.jpg", image)
        if image_id is not None:
            fields["image_id"] = (None, image_id)
        return self.http.post(path, files=fields, headers=headers or {}, timeout=timeout_s)


@dataclass(frozen=True, slots=True)
class Scene:
    """An image, made new to the embedding cache, and a fruit in it.

    Attributes:
        data: JPEG.
        x: of a point in the fruit.
        y: of it.
        width: of the image.
        height: of it.
    """

    data: bytes
    x: float
    y: float
    width: int
    height: int

    @classmethod
    def of(cls, image: RenderedImage, number: int) -> Scene:
        """Return a rendered image with bytes after its end, which only the cache notices."""
        width, height = map(int, image.name.split(" x "))
        return cls(image.data + number.to_bytes(4, "big"), image.point.x, image.point.y, width, height)

    @property
    def box(self) -> list[float]:
        """A box around the point, within the image."""
        return [
            max(0, self.x - 30),
            max(0, self.y - 30),
            min(self.width, self.x + 30),
            min(self.height, self.y + 30),
        ]

    def prompt(self, kind: str) -> dict[str, Any]:
        """Return a prompt of a kind."""
        point = [self.x, self.y]
        match kind:
            case "box":
                return {"box": self.box, "multimask": False}
            case "points":
                return {"points": [point, [1, 1]], "labels": [1, 0]}
            case "mask":
                mask = np.zeros((self.height, self.width), np.bool_)
                x0, y0, x1, y1 = (int(side) for side in self.box)
                mask[y0:y1, x0:x1] = True
                return {"mask": {"size": [self.height, self.width], "counts": encode_rle(mask).counts}}
        return {"points": [point]}


Action = Callable[[Service, Scene, random.Random], str]


def _segment(service: Service, scene: Scene, dice: random.Random, *, kind: str, **options: Any) -> str:
    del dice
    return judged(service.post("/v1/segment", scene.data, {"prompts": [scene.prompt(kind)], **options}))


def _segment_raw(service: Service, scene: Scene, dice: random.Random) -> str:
    """Send the image as the body."""
    prompts = [scene.prompt(dice.choice(("point", "box"))) for _ in range(dice.randint(1, 4))]
    params = {"request": json.dumps({"prompts": prompts})}
    headers = {"content-type": "image/jpeg"}
    return judged(service.http.post("/v1/segment", content=scene.data, params=params, headers=headers))


def _refine(service: Service, scene: Scene, dice: random.Random) -> str:
    """Send the logits of an answer back with one more point."""
    del dice
    first = service.post("/v1/segment", scene.data, {"prompts": [scene.prompt("box")], "format": "logits"})
    if (outcome := judged(first)) != PASSED:
        return outcome
    mask = first.json()["results"][0]["masks"][0]["mask"]
    prompt = {"points": [[scene.x, scene.y]], "mask": mask, "multimask": False}
    return judged(service.post("/v1/segment", scene.data, {"prompts": [prompt]}))


def _clicks(service: Service, scene: Scene, dice: random.Random) -> str:
    """Embed an image, and click in it by its id; send the image again where it was forgotten."""
    embedded = service.post("/v1/embed", scene.data, {})
    if (outcome := judged(embedded)) != PASSED:
        return outcome
    image_id = embedded.json()["image"]["id"]
    for _ in range(dice.randint(1, 4)):
        request = {"prompts": [scene.prompt("point")]}
        outcome = judged(service.post("/v1/segment", None, request, image_id=image_id))
        if outcome == "unknown_image_id":
            outcome = judged(service.post("/v1/segment", scene.data, request))
        if outcome != PASSED:
            break
    return outcome


def _semantic(service: Service, scene: Scene, dice: random.Random) -> str:
    request = {"format": dice.choice(("rle", "png", "polygons")), "overlay": dice.random() < 0.3}
    return judged(service.post("/v1/semantic", scene.data, request))


def _inspect(service: Service, scene: Scene, dice: random.Random, *, mode: str, deadline_ms: int | None = None) -> str:
    request = {"mode": mode, "format": dice.choice(("rle", "png", "polygons")), "overlay": dice.random() < 0.2}
    headers = {} if deadline_ms is None else {DEADLINE_HEADER: str(deadline_ms)}
    return judged(service.post("/v1/inspect", scene.data, request, headers=headers))


def _grpc_call(service: Service, scene: Scene, dice: random.Random, *, method: str) -> str:
    point = pb.Prompt(points=[pb.Point(x=scene.x, y=scene.y)])
    requests: dict[str, Message] = {
        "Segment": pb.SegmentRequest(image=scene.data, prompts=[point], overlay=dice.random() < 0.2),
        "Embed": pb.EmbedRequest(image=scene.data),
        "Semantic": pb.SemanticRequest(image=scene.data),
        "Inspect": pb.InspectRequest(image=scene.data, frame_id="7"),
    }
    return _called(getattr(service.segmentation, method), requests[method])


def _called(method: Any, request: Message) -> str:
    try:
        method(request, timeout=LONGEST_S)
    except grpc.RpcError as error:
        return code_of(error)
    return PASSED


def _stream(service: Service, scene: Scene, dice: random.Random, *, method: str) -> str:
    """Send a few frames; all must be answered, or refused for their deadlines or the load."""

    def frames() -> Iterator[Message]:
        settings = pb.StreamSettings(max_in_flight=dice.choice((1, 4, 8)))
        for number in range(FRAMES):
            data = scene.data + bytes((number,))
            first = settings if number == 0 else None
            if method == "InspectStream":
                inspect = pb.InspectRequest(image=data, frame_id=str(number))
                yield pb.InspectStreamRequest(settings=first, request=inspect, deadline_ms=10_000)
            else:
                point = pb.Prompt(points=[pb.Point(x=scene.x, y=scene.y)], multimask=False)
                segment = pb.SegmentRequest(image=data, prompts=[point])
                yield pb.SegmentStreamRequest(settings=first, request=segment, frame=pb.Frame(frame_id=str(number)))

    try:
        replies = list(getattr(service.segmentation, method)(frames(), timeout=LONGEST_S))
    except grpc.RpcError as error:
        return code_of(error)
    codes = [reply.problem.code for reply in replies]
    if len(replies) != FRAMES or UNPROVOKED & set(codes):
        raise Violation(f"{FRAMES} frames were answered with {codes}")
    return next(filter(None, codes), PASSED)


def _oip_http(service: Service, scene: Scene, dice: random.Random) -> str:
    """Send the encoded image as a binary tensor, to either model."""
    model = dice.choice((SAM, UNET))
    data = len(scene.data).to_bytes(4, "little") + scene.data
    inputs: list[dict[str, Any]] = [
        {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(data)}}
    ]
    outputs = [{"name": "class_map", "parameters": {"binary_data": True}}]
    if model == SAM:
        inputs.append({"name": "points", "datatype": "FP32", "shape": [1, 1, 2], "data": [scene.x, scene.y]})
        outputs = [{"name": "masks", "parameters": {"binary_data": dice.random() < 0.5}}, {"name": "scores"}]
    head = json.dumps(
        {"inputs": inputs, "outputs": outputs, "parameters": {"mask_format": "rle"} if model == SAM else {}}
    )
    headers = {LENGTH_HEADER: str(len(head.encode())), "content-type": "application/octet-stream"}
    return judged(service.http.post(f"/v2/models/{model}/infer", content=head.encode() + data, headers=headers))


def _oip_grpc(service: Service, scene: Scene, dice: random.Random) -> str:
    """Send raw tensors."""
    del dice
    tensor = oip_pb.ModelInferRequest.InferInputTensor
    request = oip_pb.ModelInferRequest(
        model_name=SAM,
        inputs=[
            tensor(name="image", datatype="BYTES", shape=[1]),
            tensor(name="points", datatype="FP32", shape=[1, 1, 2]),
        ],
        raw_input_contents=[
            len(scene.data).to_bytes(4, "little") + scene.data,
            np.array([scene.x, scene.y], "<f4").tobytes(),
        ],
        parameters={"mask_format": oip_pb.InferParameter(string_param="rle")},
    )
    return _called(service.oip.ModelInfer, request)


def _damaged(service: Service, scene: Scene, dice: random.Random) -> str:
    return judged(service.post(dice.choice(("/v1/inspect", "/v1/embed")), scene.data[: len(scene.data) // 2], {}))


def _outside(service: Service, scene: Scene, dice: random.Random) -> str:
    del dice
    return judged(service.post("/v1/segment", scene.data, {"prompts": [{"points": [[99_999, 3]]}]}))


def _late(service: Service, scene: Scene, dice: random.Random) -> str:
    request = {"prompts": [scene.prompt("point")]}
    return judged(
        service.post("/v1/segment", scene.data, request, headers={DEADLINE_HEADER: str(dice.choice((1, 20, 100)))})
    )


def _leaves(service: Service, scene: Scene, dice: random.Random) -> str:
    try:
        return judged(service.post("/v1/inspect", scene.data, {}, timeout_s=dice.choice((0.005, 0.02, 0.1))))
    except httpx.TimeoutException:
        return LEFT


def _others(service: Service, scene: Scene, dice: random.Random) -> str:
    del scene
    return judged(service.http.get(dice.choice(("/livez", "/readyz", "/metrics", "/v1/models", "/v2", "/docs.json"))))


@dataclass(frozen=True, slots=True)
class Kind:
    """An action.

    Attributes:
        act: it.
        weight: how often it is chosen, beside the others' weights.
        expected: outcomes that it may have, beside those of a server under load.
    """

    act: Action
    weight: int
    expected: frozenset[str] = frozenset({PASSED})


_MISSED: Final = frozenset({PASSED, "deadline_unreachable", "deadline_exceeded"})

KINDS: Final[Mapping[str, Kind]] = {
    "segment: point, RLE": Kind(partial(_segment, kind="point"), 8),
    "segment: box, PNG": Kind(partial(_segment, kind="box", format="png"), 5),
    "segment: points, polygons, overlay": Kind(partial(_segment, kind="points", format="polygons", overlay=True), 5),
    "segment: mask, RLE": Kind(partial(_segment, kind="mask"), 5),
    "segment: body is the image": Kind(_segment_raw, 8),
    "segment: logits sent back": Kind(_refine, 4),
    "embed and clicks by image_id": Kind(_clicks, 8),
    "semantic": Kind(_semantic, 8),
    "inspect: fast": Kind(partial(_inspect, mode="fast"), 10),
    "inspect: accurate": Kind(partial(_inspect, mode="accurate"), 5),
    "inspect: auto, deadline of 2 s": Kind(partial(_inspect, mode="auto", deadline_ms=2_000), 8, _MISSED),
    "gRPC: Segment": Kind(partial(_grpc_call, method="Segment"), 5),
    "gRPC: Embed": Kind(partial(_grpc_call, method="Embed"), 3),
    "gRPC: Semantic": Kind(partial(_grpc_call, method="Semantic"), 4),
    "gRPC: Inspect": Kind(partial(_grpc_call, method="Inspect"), 5),
    "gRPC: SegmentStream": Kind(partial(_stream, method="SegmentStream"), 2),
    "gRPC: InspectStream": Kind(partial(_stream, method="InspectStream"), 2, _MISSED),
    "OIP over HTTP": Kind(_oip_http, 5),
    "OIP over gRPC": Kind(_oip_grpc, 4),
    "damaged image": Kind(_damaged, 4, frozenset({"truncated_image"})),
    "prompt outside the image": Kind(_outside, 3, frozenset({"prompt_outside_image"})),
    "deadline that cannot be met": Kind(_late, 4, _MISSED),
    "caller leaves": Kind(_leaves, 4, frozenset({PASSED, LEFT})),
    "probes and descriptions": Kind(_others, 3),
}
"""What is done, by name."""
