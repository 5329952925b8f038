"""Requests that are refused, each with its code: first those that every door can send, then those of single doors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from models.types import Size
from service.proto.generated.pomona.v1 import segmentation_pb2 as pb
from tests.contract.door import POINT, Part, fields, image, plain, prompted
from tests.contract.doors import (
    Name,
    Request,
    detect,
    embed,
    inspect,
    instances,
    logits_of,
    rle_of,
    segment,
    semantic,
    text,
)
from tests.contract.grpc_door import segment_request
from tests.contract.messages import to_message
from tests.contract.scenes import IMAGE, PEEL, gif
from tests.fake_detector import LOADED_DETECTOR, OTHER_DETECTOR
from tests.fakes import LOADED, LOADED_UNET, NOT_LOADED, OTHER_UNET, SECOND, UNPADDED, image_bytes, rectangle

NAN, INF = float("nan"), float("inf")


@dataclass(frozen=True)
class Refusal:
    """A request that is refused.

    Attributes:
        name: what is wrong with it.
        code: of the error.
        says: part of its detail.
        request: what is sent.
        oip: tensors can be wrong in the same way.
    """

    name: str
    code: str
    says: str
    request: Request
    oip: bool = False

    @property
    def id(self) -> str:
        return f"{self.request.operation} {self.code}: {self.name}"


# Through every door.

_BAD_IMAGES: Final = [
    ("text", "not_an_image", "image format", b"an orange"),
    ("a URL", "not_an_image", "image format", b"http://localhost/orange.png"),
    ("no bytes", "not_an_image", "no bytes", b""),
    ("a cut PNG", "truncated_image", "whole file", IMAGE[:-40]),
    ("a cut JPEG", "truncated_image", "JPEG", image_bytes(file_format="JPEG")[:400]),
    ("a GIF", "unsupported_image_format", "GIF", gif()),
    ("pixels", "too_many_pixels", "400 x 300", image_bytes(size=Size(300, 400))),
    ("endless segments", "image_too_complex", "more than 4096 parts", b"\xff\xd8" + b"\xff\xe5\0\2" * 5000),
    ("no image", "no_image", "image", None),
]
_BAD_DEADLINES: Final = ("soon", "0", "-1", "-0.5", "nan", "inf", "3600001", "50ms", "10, 20", "")
_GOOD: Final = (segment(POINT), embed(), semantic(), inspect())
_BY_DETECTOR: Final = (detect(), instances(), text("oranges"))


def _of_every_operation() -> list[Refusal]:
    found = []
    for good in (*_GOOD, *_BY_DETECTOR):
        oip = good.operation in ("segment", "semantic", "detect")
        found += [Refusal(name, code, says, replace(good, image=data), oip) for name, code, says, data in _BAD_IMAGES]
        found += [
            Refusal(f"a deadline of {text!r}", "malformed_request", "X-Deadline-Ms", replace(good, deadline=text), oip)
            for text in _BAD_DEADLINES
        ]
    return found


def _prompted(name: str, code: str, says: str, *prompts: Mapping[str, Any], oip: bool = False) -> Refusal:
    return Refusal(name, code, says, segment(*prompts), oip)


def _point(x: float, y: float, *labels: int) -> dict[str, Any]:
    return {"points": [[x, y]], **({"labels": labels} if labels else {})}


def _graded(name: str, says: str, *grades: tuple[Any, Any]) -> Refusal:
    given = [{"grade": grade, "max_infected_fraction": most} for grade, most in grades]
    return Refusal(name, "malformed_request", says, inspect(grades=given))


_SQUARE: Final = np.zeros((256, 256), np.float32)
_GUESS: Final = rle_of(rectangle(0, 0, 4, 4))
_BY_ID: Final = replace(segment(POINT, data=None), image_id="0" * 32)

EVERYWHERE: Final = [
    *_of_every_operation(),
    # segment: the image
    Refusal("an unknown id", "unknown_image_id", "send the image again", _BY_ID),
    Refusal("both an image and an id", "malformed_request", "not both", replace(_BY_ID, image=IMAGE)),
    Refusal(
        "an overlay without pixels",
        "malformed_request",
        "overlay",
        replace(segment(POINT, data=None, overlay=True), image_id="0" * 32),
    ),
    # segment: the prompts
    _prompted("no prompts", "no_prompt", "at least one prompt", oip=False),
    Refusal("no prompts and no list of them", "no_prompt", "at least one prompt", Request("segment")),
    _prompted("an empty prompt", "no_prompt", "prompts[1]", POINT, {}),
    _prompted("labels alone", "malformed_prompt", "got 0 points and 1 labels", {"labels": [1]}),
    _prompted(
        "labels that do not pair",
        "malformed_prompt",
        "prompts[1] must have one label per point, got 2 points and 1 labels",
        POINT,
        {"points": [[1, 1], [2, 2]], "labels": [1]},
    ),
    _prompted("an unknown label", "malformed_prompt", "labels[0]", _point(1, 1, 7), oip=True),
    _prompted("a label of the model's own", "malformed_prompt", "labels[0]", _point(1, 1, -1)),
    _prompted("an empty box", "malformed_prompt", "x0 < x1", {"box": [8, 8, 8, 16]}, oip=True),
    _prompted("not a number", "malformed_prompt", "finite", _point(NAN, 1), oip=True),
    _prompted("an endless box", "malformed_prompt", "finite", {"box": [0, 0, INF, 1]}, oip=True),
    _prompted(
        "a mask of another size",
        "malformed_prompt",
        "128 x 96",
        {"mask": rle_of(rectangle(0, 0, 4, 4, Size(96, 127)))},
        oip=True,
    ),
    _prompted("RLE of odd characters", "malformed_prompt", "counts", {"mask": _GUESS | {"counts": "!"}}),
    _prompted("RLE beyond ASCII", "malformed_prompt", "ASCII", {"mask": _GUESS | {"counts": "ÿ"}}),
    _prompted("RLE that does not add up", "malformed_prompt", "add up", {"mask": _GUESS | {"counts": "1"}}),
    _prompted(
        "RLE of more than the limit",
        "malformed_prompt",
        "128 x 96",
        {"mask": {"size": [100_000, 100_000], "counts": "0"}},
    ),
    _prompted("the second mask", "malformed_prompt", "prompts[1].mask", POINT, {"mask": _GUESS | {"counts": ""}}),
    _prompted("short logits", "malformed_prompt", "131072", {"mask": logits_of(_SQUARE, data="AAAA")}),
    _prompted("wide logits", "malformed_prompt", "1 to 256", {"mask": logits_of(_SQUARE, shape=[4, 257])}),
    _prompted("logits of another image", "malformed_prompt", "4 x 4", {"mask": logits_of(_SQUARE[:4, :4])}, oip=True),
    _prompted(
        "logits of a square for an image that was not padded to one",
        "malformed_prompt",
        f"{UNPADDED.logits.width} x {UNPADDED.logits.height}",
        {"mask": logits_of(_SQUARE)},
        oip=True,
    ),
    _prompted("logits of another type", "malformed_prompt", "dtype", {"mask": logits_of(_SQUARE, dtype="float32")}),
    _prompted(
        "logits that are not finite",
        "malformed_prompt",
        "finite",
        {"mask": logits_of(np.full((UNPADDED.logits.height, UNPADDED.logits.width), INF, np.float32))},
        oip=True,
    ),
    _prompted("a point outside", "prompt_outside_image", "(128, 48)", _point(128, 48), oip=True),
    _prompted("a point above", "prompt_outside_image", "prompts[1]: points[0]", POINT, _point(64, -0.5), oip=True),
    _prompted("a box that reaches out", "prompt_outside_image", "128 x 96", {"box": [0, 0, 128, 97]}, oip=True),
    _prompted("prompts", "too_many_prompts", "at most 3 prompts, got 4", *[POINT] * 4, oip=True),
    _prompted(
        "points", "too_many_prompts", "prompts[0].points must have at most 4", {"points": [[1, 1]] * 5}, oip=True
    ),
    # models
    Refusal("model", "unknown_model", "'plum-sam'", segment(POINT, model="plum-sam"), oip=True),
    Refusal("model", "unknown_model", "'plum-sam'; loaded: orange-sam, lemon-sam", embed(model="plum-sam")),
    Refusal("model", "unknown_model", "'plum-unet'", semantic(model="plum-unet"), oip=True),
    Refusal("model", "unknown_model", "'plum-unet'; loaded: peel-unet", inspect(model="plum-unet")),
    Refusal("SAM", "unknown_model", "'plum-sam'; loaded: orange-sam, lemon-sam", inspect(sam_model="plum-sam")),
    Refusal("model", "model_not_loaded", "melon-sam", segment(POINT, model=NOT_LOADED.name), oip=True),
    Refusal(
        "model",
        "model_not_loaded",
        "POMONA_MODELS=orange-sam,lemon-sam,peel-unet,fruit-detector,rind-unet loads it",
        semantic(model=OTHER_UNET.name),
        oip=True,
    ),
    Refusal("model", "model_not_loaded", "rind-unet", inspect(model=OTHER_UNET.name)),
    Refusal("SAM", "model_not_loaded", "melon-sam", inspect(sam_model=NOT_LOADED.name)),
    Refusal(
        "a U-Net",
        "wrong_model_family",
        "needs a SAM, which masks what prompts point at; loaded: orange-sam, lemon-sam",
        segment(POINT, model=LOADED_UNET.name),
    ),
    Refusal("a U-Net that is not loaded", "wrong_model_family", "rind-unet", segment(POINT, model=OTHER_UNET.name)),
    Refusal("a U-Net", "wrong_model_family", "orange-sam", embed(model=LOADED_UNET.name)),
    Refusal("a SAM", "wrong_model_family", "infected fruit; loaded: peel-unet", semantic(model=SECOND.name)),
    Refusal("a SAM that is not loaded", "wrong_model_family", "melon-sam is a SAM", semantic(model=NOT_LOADED.name)),
    Refusal("a SAM to find fruit", "wrong_model_family", "loaded: peel-unet", inspect(model=LOADED.name)),
    Refusal(
        "a U-Net to outline it",
        "wrong_model_family",
        "which masks what prompts point at",
        inspect(mode="accurate", sam_model=LOADED_UNET.name),
    ),
    Refusal(
        "an input size",
        "unsupported_input",
        "input_size must be 1024",
        segment(POINT, model=SECOND.name, input_size=512),
        oip=True,
    ),
    Refusal("an input size", "unsupported_input", "got 768", embed(model=SECOND.name, input_size=768)),
    Refusal(
        "a padding",
        "unsupported_input",
        "padding square",
        segment(POINT, model=SECOND.name, padding="none"),
        oip=True,
    ),
    # detect, instances, text
    Refusal("model", "unknown_model", "'plum-detector'; loaded: fruit-detector", detect(model="plum-detector")),
    Refusal("model", "model_not_loaded", "nut-detector", detect(model=OTHER_DETECTOR.name), oip=True),
    Refusal("a SAM to detect", "wrong_model_family", "objects of known classes", detect(model=LOADED.name)),
    Refusal("a detector to segment", "wrong_model_family", "needs a SAM", segment(POINT, model=LOADED_DETECTOR.name)),
    Refusal("SAM", "unknown_model", "'plum-sam'", instances(sam_model="plum-sam")),
    Refusal("a detector to outline", "wrong_model_family", "needs a SAM", instances(sam_model=LOADED_DETECTOR.name)),
    Refusal("a class", "unknown_class", "knows no class 'plum'", detect(classes=["plum"])),
    Refusal("a class that is spelt like one", "unknown_class", "'orangse', but 'orange'", detect(classes=["orangse"])),
    Refusal("a class", "unknown_class", "Known: orange, apple.", instances(classes=["apples", "plums"])),
    Refusal("a noun", "unknown_class", "knows no class 'plums'", text("oranges, plums")),
    Refusal("a noun", "unknown_class", "(grounding-dino or clipseg)", text("plums")),
    Refusal("many nouns", "malformed_prompt", "at most 16 things, got 17", text(",".join("abcdefghijklmnopq"))),
    Refusal("a text without nouns", "unknown_class", "must name what to segment", text(" . , ")),
    Refusal("an empty text", "malformed_request", "text: ", text("")),
    Refusal("a long text", "malformed_request", "text: ", text("orange," * 37)),
    Refusal("a score above 1", "malformed_request", "score_threshold: ", detect(score_threshold=1.5), oip=True),
    Refusal("a score that is no number", "malformed_request", "score_threshold: ", detect(score_threshold=NAN)),
    Refusal("an IoU below 0", "malformed_request", "nms_threshold: ", instances(nms_threshold=-0.1)),
    Refusal("no detections", "malformed_request", "max_detections: ", detect(max_detections=0), oip=True),
    Refusal("many detections", "malformed_request", "max_detections: ", detect(max_detections=301), oip=True),
    Refusal("many classes", "malformed_request", "classes: ", detect(classes=["orange"] * 101)),
    Refusal("a class without a name", "malformed_request", "classes[1]: ", detect(classes=["orange", ""])),
    Refusal("instances", "too_many_prompts", "max_instances must be at most 3, got 4", instances(max_instances=4)),
    Refusal("no instances", "malformed_request", "max_instances: ", text("apples", max_instances=0)),
    Refusal(
        "an input size that the SAM has not",
        "unsupported_input",
        "got 512",
        instances(sam_model=SECOND.name, input_size=512),
    ),
    Refusal("a click outside", "prompt_outside_image", "(300, 40)", text("oranges", points=[[300, 40]])),
    Refusal("clicks", "too_many_prompts", "at most 4 points, got 5", text("oranges", points=[[40, 40]] * 5)),
    Refusal("a click not a number", "malformed_request", "points[0][0]", text("oranges", points=[[NAN, 40]])),
    Refusal("a label", "malformed_prompt", "labels[0]", text("oranges", points=[[40, 40]], labels=[7])),
    Refusal(
        "labels that do not pair",
        "malformed_prompt",
        "got 2 points and 1 labels",
        text("oranges", points=[[40, 40], [41, 41]], labels=[1]),
    ),
    # inspect
    _graded("grades that fall", "must rise", ("A", 0.2), ("B", 0.1)),
    _graded("grades that stay", "must rise", ("A", 0.1), ("B", 0.1)),
    _graded("a grade twice", "different names", ("A", 0.1), ("A", 0.2)),
    _graded("a grade called reject", "'reject'", ("reject", 0.1)),
    _graded("a grade without a name", "grades[0].grade", ("", 0.1)),
    _graded("a limit above 1", "grades[1].max_infected_fraction", ("A", 0.1), ("B", 1.1)),
    _graded("a limit below 0", "grades[0].max_infected_fraction", ("A", -0.1)),
    _graded("a limit that is not a number", "grades[0].max_infected_fraction", ("A", NAN)),
    _graded("many grades", "16", *((str(number), number / 20) for number in range(17))),
    Refusal("a long frame id", "malformed_request", "frame_id: ", inspect(frame_id="7" * 129)),
    Refusal("a long trigger id", "malformed_request", "trigger_id: ", inspect(trigger_id="7" * 129)),
    Refusal("a time below 0", "malformed_request", "captured_at_ns: ", inspect(captured_at_ns=-1)),
]

# What only JSON can get wrong.


def _wrong(request: Request, **changes: Any) -> Request:
    return replace(request, fields={**request.fields, **changes})


_SEGMENT, _EMBED, _SEMANTIC, _INSPECT = _GOOD
_DETECT, _INSTANCES, _TEXT = _BY_DETECTOR

IN_JSON: Final = [
    _prompted("a box of three", "malformed_prompt", "prompts[0].box[3]", {"box": [8, 8, 16]}),
    _prompted("a number as text", "malformed_prompt", "prompts[0].points[0][0]", {"points": [["1", 1]]}),
    _prompted("a point of three", "malformed_prompt", "prompts[0].points[0]", {"points": [[1, 1, 1]]}),
    Refusal("prompts that are none", "malformed_prompt", "prompts[0]", Request("segment", {"prompts": [5]})),
    _prompted("counts as a list", "malformed_prompt", "counts", {"mask": _GUESS | {"counts": [5]}}),
    _prompted("RLE without counts", "malformed_prompt", "counts", {"mask": {"size": [96, 128]}}),
    _prompted("a mask of nothing", "malformed_prompt", "prompts[0].mask", {"mask": {}}),
    _prompted("logits that are not base64", "malformed_prompt", "base64", {"mask": logits_of(_SQUARE, data="*")}),
    Refusal("a format", "unsupported_format", "format", _wrong(_SEGMENT, format="webp")),
    Refusal("a format that is no text", "unsupported_format", "format", _wrong(_SEGMENT, format=5)),
    Refusal("logits", "unsupported_format", "'rle', 'png' or 'polygons'", _wrong(_SEMANTIC, format="logits")),
    Refusal("logits", "unsupported_format", "'rle', 'png' or 'polygons'", _wrong(_INSPECT, format="logits")),
    Refusal("an input size", "malformed_request", "input_size", _wrong(_SEGMENT, input_size=640)),
    Refusal("an input size as text", "malformed_request", "input_size", _wrong(_SEGMENT, input_size="512")),
    Refusal("a padding", "malformed_request", "padding", _wrong(_SEGMENT, padding="mirror")),
    Refusal("a mode", "malformed_request", "'fast', 'accurate' or 'auto'", _wrong(_INSPECT, mode="best")),
    *(
        Refusal("overlay as text", "malformed_request", "overlay", _wrong(good, overlay="yes"))
        for good in (_SEGMENT, _SEMANTIC, _INSPECT)
    ),
    Refusal("a misspelt field", "unknown_field", "promts", Request("segment", {"promts": []})),
    _prompted("a field of a prompt", "unknown_field", "prompts[0].point ", {"point": [1, 1]}),
    _prompted("a field of a mask", "unknown_field", "order", {"mask": _GUESS | {"order": "C"}}),
    *(
        Refusal("prompts", "unknown_field", "prompts", _wrong(good, prompts=[POINT]))
        for good in (_EMBED, _SEMANTIC, _INSPECT)
    ),
    Refusal("an input size", "unknown_field", "input_size", _wrong(_SEMANTIC, input_size=512)),
    _graded("no grades", "1 to 16 grades"),
    _graded("a limit as text", "grades[0].max_infected_fraction", ("A", "0.1")),
    Refusal("grades as a mapping", "malformed_request", "grades", _wrong(_INSPECT, grades={"A": 0.1})),
    Refusal(
        "a field of a grade", "unknown_field", "grades[0].max", _wrong(_INSPECT, grades=[{"grade": "A", "max": 1}])
    ),
    Refusal("classes as text", "malformed_request", "classes", _wrong(_DETECT, classes="orange")),
    Refusal("a format", "unsupported_format", "format", _wrong(_INSTANCES, format="webp")),
    Refusal("a number as a text", "malformed_request", "text: ", _wrong(_TEXT, text=5)),
    Refusal("no text", "malformed_request", "text: ", Request("text", image=PEEL)),
    Refusal("masks of boxes", "unknown_field", "format", _wrong(_DETECT, format="rle")),
    Refusal("a number as a frame id", "malformed_request", "frame_id: ", _wrong(_INSPECT, frame_id=7)),
    Refusal("a time beyond 64 bits", "malformed_request", "captured_at_ns: ", _wrong(_INSPECT, captured_at_ns=2**63)),
    Refusal("a time in fractions", "malformed_request", "captured_at_ns: ", _wrong(_INSPECT, captured_at_ns=1.5)),
]

TEXTS: Final = [
    ("half", "malformed_json", "JSON", b'{"prompts": ['),
    ("nothing", "malformed_json", "JSON", b""),
    ("a word", "malformed_json", "JSON", b"orange"),
    ("not UTF-8", "malformed_json", "JSON", b"\xff\xfe{}"),
    ("a list", "malformed_request", "object", b"[]"),
]
"""In place of the JSON."""

# What only a body of HTTP can get wrong.


def _multipart(*lines: str, **headers: str) -> dict[str, Any]:
    content = "\r\n".join(lines).encode()
    return {"content": content, "headers": {"content-type": "multipart/form-data; boundary=belt", **headers}}


_WHOLE: Final = ("--belt", 'Content-Disposition: form-data; name="request"', "", "{}", "--belt--", "")

BODIES: Final[list[tuple[str, str, str, Mapping[str, Any]]]] = [
    ("no body", "malformed_request", "no content type", {}),
    ("JSON as the body", "malformed_request", "application/json", {"json": {"prompts": []}}),
    (
        "text as the body",
        "malformed_request",
        "text/plain",
        {"content": IMAGE, "headers": {"content-type": "text/plain"}},
    ),
    (
        "no boundary",
        "malformed_request",
        "boundary",
        {"content": b"", "headers": {"content-type": "multipart/form-data"}},
    ),
    ("an empty body", "malformed_request", "closing boundary", _multipart("")),
    ("bytes that are no parts", "malformed_request", "damaged", _multipart("oranges", "and", "lemons")),
    (
        "a nameless part",
        "malformed_request",
        "name",
        _multipart("--belt", "Content-Type: a/b", "", "x", "--belt--", ""),
    ),
    (
        "a body that ends early",
        "malformed_request",
        "closing boundary",
        _multipart("--belt", 'Content-Disposition: form-data; name="image"; filename="a.png"', "", "half an or"),
    ),
    ("an unknown part", "unknown_field", "'picture'", {"files": [("picture", ("a.png", IMAGE))]}),
    ("a part twice", "malformed_request", "image was sent twice", {"files": [image(), image()]}),
    ("a field twice", "malformed_request", "request was sent twice", {"files": [image(), fields(), fields()]}),
    ("an image without a file name", "not_an_image", "curl -F image=@", {"files": [plain("image", IMAGE), fields()]}),
    (
        "a query parameter",
        "unknown_field",
        "image_id",
        {"content": IMAGE, "headers": {"content-type": "image/png"}, "params": {"image_id": "a"}},
    ),
]

PLACES: Final[list[tuple[str, str, str, str]]] = [
    ("POST", "/v1/segmnet", "not_found", "/v1/segmnet"),
    ("GET", "/v1/oranges", "not_found", "/v1/oranges"),
    ("POST", "/v1/segment/", "not_found", "/v1/segment/"),
    ("GET", "/oranges", "not_found", "/oranges"),
    *(
        ("GET", f"/v1/{name}", "method_not_allowed", "allows POST, got GET")
        for name in ("segment", "semantic", "inspect", "detect", "instances", "text")
    ),
    ("PUT", "/v1/embed", "method_not_allowed", "allows POST, got PUT"),
    ("POST", "/v1/models", "method_not_allowed", "GET"),
    ("DELETE", "/", "method_not_allowed", "GET"),
]
"""Method, path, code, part of the detail."""

ONLY_ID: Final[Mapping[Name, list[Part]]] = {
    "embed": [plain("image_id", "0" * 32)],
    "semantic": [plain("image_id", "0" * 32)],
    "inspect": [plain("image_id", "0" * 32)],
    "detect": [plain("image_id", "0" * 32)],
    "instances": [plain("image_id", "0" * 32)],
    "text": [plain("image_id", "0" * 32)],
}
"""Operations that take no image id."""

QUOTING: Final = [plain("image_id", "a" * 100_000), prompted(POINT)]
"""Its error would quote the whole of it."""

# What only a message of gRPC can get wrong.


def _odd(name: str, **numbers: int) -> Any:
    """A good request with numbers that its enumerations do not have, or not here."""
    message = segment_request(IMAGE, POINT) if name == "SegmentRequest" else to_message(name, {}, image=PEEL)
    for field, number in numbers.items():
        setattr(message, field, number)
    return message


MESSAGES: Final[list[tuple[str, str, Any]]] = [
    ("unsupported_format", "MASK_FORMAT_LOGITS, got the number 9", _odd("SegmentRequest", format=9)),
    ("unsupported_input", "input_size must be one of", _odd("SegmentRequest", input_size=9)),
    ("unsupported_input", "padding must be one of", _odd("SegmentRequest", padding=9)),
    ("unsupported_input", "input_size must be one of", _odd("EmbedRequest", input_size=7)),
    ("unsupported_format", "MASK_FORMAT_POLYGONS, got the number 4", _odd("SemanticRequest", format=4)),
    ("unsupported_format", "MASK_FORMAT_POLYGONS, got the number 4", _odd("InspectRequest", format=4)),
    ("malformed_request", "mode must be one of", _odd("InspectRequest", mode=9)),
    ("unsupported_format", "MASK_FORMAT_LOGITS, got the number 9", _odd("InstancesRequest", format=9)),
    ("unsupported_input", "padding must be one of", _odd("TextRequest", padding=9)),
    (
        "malformed_prompt",
        "MaskPrompt must have one of rle, logits",
        pb.SegmentRequest(image=IMAGE, prompts=[pb.Prompt(mask=pb.MaskPrompt())]),
    ),
    (
        "malformed_prompt",
        "size",
        pb.SegmentRequest(image=IMAGE, prompts=[pb.Prompt(mask=pb.MaskPrompt(rle=pb.RleMask(size=[96], counts="0")))]),
    ),
]
"""Code, part of the detail, the message."""
