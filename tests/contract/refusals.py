"""Requests that are refused, each with its code."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import PIL.Image

from models.masks import encode_logits, encode_rle
from models.types import BinaryMask, Size
from tests.contract.door import IMAGE, POINT, Parts, asked, image, plain
from tests.fakes import (
    LOADED_UNET,
    NOT_LOADED,
    OTHER_UNET,
    SECOND,
    UNPADDED,
    image_bytes,
    rectangle,
)


def gif() -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("P", (4, 4)).save(buffer, "GIF")
    return buffer.getvalue()


def rle_of(mask: BinaryMask) -> dict[str, Any]:
    rle = encode_rle(mask)
    return {"size": rle.size, "counts": rle.counts}


def odd_logits(**changes: Any) -> dict[str, Any]:
    good = encode_logits(np.zeros((256, 256), np.float32))
    return {"shape": good.shape, "dtype": good.dtype, "data": base64.b64encode(good.data).decode()} | changes


def multipart(*lines: str) -> dict[str, Any]:
    return {
        "content": "\r\n".join(lines).encode(),
        "headers": {"content-type": "multipart/form-data; boundary=belt"},
    }


@dataclass(frozen=True)
class Refusal:
    """A request that is refused: with this code, and a detail that says this."""

    name: str
    code: str
    says: str
    parts: Parts = field(default_factory=list)
    path: str = "/v1/segment"
    method: str = "POST"
    raw: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


PROMPTED: Final = [
    # the image_bytes
    Refusal("text", "not_an_image", "no image format", [image(b"an orange"), asked(POINT)]),
    Refusal("no bytes", "not_an_image", "no bytes", [image(b""), asked(POINT)]),
    Refusal("text to embed", "not_an_image", "no image format", [image(b"an orange")], "/v1/embed"),
    Refusal("a cut PNG", "truncated_image", "whole file", [image(IMAGE[:-40]), asked(POINT)]),
    Refusal("a cut JPEG", "truncated_image", "JPEG", [image(image_bytes(file_format="JPEG")[:400]), asked(POINT)]),
    Refusal("a GIF", "unsupported_image_format", "GIF", [image(gif()), asked(POINT)]),
    Refusal("pixels", "too_many_pixels", "401 x 250", [image(image_bytes(size=Size(250, 401))), asked(POINT)]),
    Refusal("no image", "no_image", "image_id", [asked(POINT)]),
    Refusal("nothing to embed", "no_image", "part image", [plain("request", "{}")], "/v1/embed"),
    Refusal("unknown id", "unknown_image_id", "send it again", [plain("image_id", "0" * 32), asked(POINT)]),
    Refusal("both image and id", "malformed_request", "not both", [image(), plain("image_id", "0" * 32), asked(POINT)]),
    Refusal(
        "an overlay without pixels",
        "malformed_request",
        "overlay",
        [plain("image_id", "0" * 32), asked(POINT, overlay=True)],
    ),
    # the prompts
    Refusal("an empty list", "no_prompt", "no prompts", [image(), asked()]),
    Refusal("no list", "no_prompt", "no prompts", [image(), plain("request", "{}")]),
    Refusal("no request", "no_prompt", "no prompts", [image()]),
    Refusal("an empty prompt", "no_prompt", "prompts[1]", [image(), asked(POINT, {})]),
    Refusal("labels alone", "malformed_prompt", "0 points and 1 labels", [image(), asked({"labels": [1]})]),
    Refusal(
        "labels that do not pair",
        "malformed_prompt",
        "prompts[1] has 2 points and 1 labels",
        [image(), asked(POINT, {"points": [[1, 1], [2, 2]], "labels": [1]})],
    ),
    Refusal(
        "an unknown label",
        "malformed_prompt",
        "labels[0] must be 1 (foreground) or 0 (background), got 7",
        [image(), asked({"points": [[1, 1]], "labels": [7]})],
    ),
    Refusal(
        "a label of the model's own",
        "malformed_prompt",
        "got -1",
        [image(), asked({"points": [[1, 1]], "labels": [-1]})],
    ),
    Refusal("an empty box", "malformed_prompt", "x0 < x1", [image(), asked({"box": [8, 8, 8, 16]})]),
    Refusal("a box of three", "malformed_prompt", "prompts[0].box[3]", [image(), asked({"box": [8, 8, 16]})]),
    Refusal("not a number", "malformed_prompt", "finite", [image(), asked({"points": [[float("nan"), 1]]})]),
    Refusal("an endless box", "malformed_prompt", "finite", [image(), asked({"box": [0, 0, float("inf"), 1]})]),
    Refusal(
        "a number as text", "malformed_prompt", "prompts[0].points[0][0]", [image(), asked({"points": [["1", 1]]})]
    ),
    Refusal("a point of three", "malformed_prompt", "prompts[0].points[0]", [image(), asked({"points": [[1, 1, 1]]})]),
    Refusal("prompts that are none", "malformed_prompt", "prompts[0]", [image(), plain("request", '{"prompts": [5]}')]),
    Refusal(
        "a mask of another size",
        "malformed_prompt",
        "must have 128 x 96 cells",
        [image(), asked({"mask": rle_of(rectangle(0, 0, 4, 4, Size(96, 127)))})],
    ),
    Refusal(
        "RLE of odd characters",
        "malformed_prompt",
        "counts",
        [image(), asked({"mask": {"size": [96, 128], "counts": "!"}})],
    ),
    Refusal(
        "RLE that does not add up",
        "malformed_prompt",
        "must add up",
        [image(), asked({"mask": {"size": [96, 128], "counts": "1"}})],
    ),
    Refusal(
        "RLE of more than the limit",
        "malformed_prompt",
        "at most 100000 pixels",
        [image(), asked({"mask": {"size": [100000, 100000], "counts": "0"}})],
    ),
    Refusal(
        "RLE counts as a list",
        "malformed_prompt",
        "counts",
        [image(), asked({"mask": {"size": [96, 128], "counts": [5]}})],
    ),
    Refusal("RLE without counts", "malformed_prompt", "counts", [image(), asked({"mask": {"size": [96, 128]}})]),
    Refusal("a mask of nothing", "malformed_prompt", "prompts[0].mask", [image(), asked({"mask": {}})]),
    Refusal("short logits", "malformed_prompt", "131072", [image(), asked({"mask": odd_logits(data="AAAA")})]),
    Refusal(
        "logits that are no base64", "malformed_prompt", "base64", [image(), asked({"mask": odd_logits(data="*")})]
    ),
    Refusal(
        "logits of a shape that none have",
        "malformed_prompt",
        "1 to 256",
        [image(), asked({"mask": odd_logits(shape=[4, 257])})],
    ),
    Refusal(
        "logits of another frame",
        "malformed_prompt",
        "got 4 x 4",
        [image(), asked({"mask": odd_logits(shape=[4, 4], data=base64.b64encode(bytes(32)).decode())})],
    ),
    Refusal(
        "logits of a square for an image that was not padded to one",
        "malformed_prompt",
        f"must have {UNPADDED.logits.width} x {UNPADDED.logits.height} cells",
        [image(), asked({"mask": odd_logits()})],
    ),
    Refusal(
        "logits of another type", "malformed_prompt", "dtype", [image(), asked({"mask": odd_logits(dtype="float32")})]
    ),
    Refusal(
        "logits that are not finite",
        "malformed_prompt",
        "must be finite",
        [image(), asked({"mask": odd_logits(data=base64.b64encode(b"\x00\x7e" * 65536).decode())})],
    ),
    Refusal("a point outside", "prompt_outside_image", "(128, 48)", [image(), asked({"points": [[128, 48]]})]),
    Refusal("a point above", "prompt_outside_image", "points[0]", [image(), asked({"points": [[64, -0.5]]})]),
    Refusal("a box that reaches out", "prompt_outside_image", "128 x 96", [image(), asked({"box": [0, 0, 128, 97]})]),
    Refusal("prompts", "too_many_prompts", "at most 3", [image(), asked(*[POINT] * 4)]),
    Refusal("points", "too_many_prompts", "at most 4", [image(), asked(POINT, {"points": [[1, 1]] * 5})]),
    # the rest of the request
    Refusal("model", "unknown_model", "'plum-sam'", [image(), asked(POINT, model="plum-sam")]),
    Refusal(
        "model to embed",
        "unknown_model",
        "'plum-sam'",
        [image(), plain("request", '{"model": "plum-sam"}')],
        "/v1/embed",
    ),
    Refusal("model of the catalogue", "model_not_loaded", "melon-sam", [image(), asked(POINT, model=NOT_LOADED.name)]),
    Refusal(
        "a U-Net",
        "wrong_model_family",
        "This takes a SAM, which masks what prompts point at; loaded: orange-sam, lemon-sam",
        [image(), asked(POINT, model=LOADED_UNET.name)],
    ),
    Refusal(
        "a U-Net that is not loaded", "wrong_model_family", "rind-unet", [image(), asked(POINT, model=OTHER_UNET.name)]
    ),
    Refusal(
        "a U-Net to embed",
        "wrong_model_family",
        "orange-sam",
        [image(), plain("request", '{"model": "peel-unet"}')],
        "/v1/embed",
    ),
    Refusal("format", "unsupported_format", "format", [image(), asked(POINT, format="webp")]),
    Refusal("a format that is no text", "unsupported_format", "format", [image(), asked(POINT, format=5)]),
    Refusal("not JSON", "malformed_json", "JSON", [image(), plain("request", '{"prompts": [')]),
    Refusal("empty JSON", "malformed_json", "JSON", [image(), plain("request", "")]),
    Refusal("JSON to embed", "malformed_json", "JSON", [image(), plain("request", "orange")], "/v1/embed"),
    Refusal("not UTF-8", "malformed_json", "JSON", [image(), plain("request", b"\xff\xfe{}")]),
    Refusal(
        "an input size",
        "unsupported_input",
        "leave input_size",
        [image(), asked(POINT, model=SECOND.name, input_size=512)],
    ),
    Refusal(
        "a padding",
        "unsupported_input",
        "padded to a square",
        [image(), asked(POINT, model=SECOND.name, padding="none")],
    ),
    Refusal(
        "an input size to embed",
        "unsupported_input",
        "1024 pixels",
        [image(), plain("request", json.dumps({"model": SECOND.name, "input_size": 768}))],
        "/v1/embed",
    ),
    Refusal("an input size of no model", "malformed_request", "input_size", [image(), asked(POINT, input_size=640)]),
    Refusal("an input size as text", "malformed_request", "input_size", [image(), asked(POINT, input_size="512")]),
    Refusal("a padding of no model", "malformed_request", "padding", [image(), asked(POINT, padding="mirror")]),
    *(
        Refusal(
            f"a deadline of {text or 'nothing'}",
            "malformed_request",
            "X-Deadline-Ms",
            [image(), asked(POINT)],
            headers={"x-deadline-ms": text},
        )
        for text in ("soon", "0", "-1", "", "nan", "inf", "3600001", "50ms", "10, 20")
    ),
    Refusal(
        "a deadline to embed",
        "malformed_request",
        "milliseconds",
        [image()],
        "/v1/embed",
        headers={"x-deadline-ms": "-0.5"},
    ),
    Refusal("a list", "malformed_request", "object", [image(), plain("request", "[]")]),
    Refusal("overlay as text", "malformed_request", "overlay", [image(), asked(POINT, overlay="yes")]),
    Refusal("a field", "unknown_field", "promts", [image(), plain("request", '{"promts": []}')]),
    Refusal("a field of a prompt", "unknown_field", "prompts[0].point", [image(), asked({"point": [1, 1]})]),
    Refusal(
        "a field of a mask",
        "unknown_field",
        "order",
        [image(), asked({"mask": {"size": [96, 128], "counts": "0", "order": "C"}})],
    ),
    Refusal("a field to embed", "unknown_field", "prompts", [image(), asked(POINT)], "/v1/embed"),
    Refusal("a part", "unknown_field", "'image'", [("image", ("a.png", IMAGE)), asked(POINT)]),
    Refusal("a part to embed", "unknown_field", "'image_id'", [plain("image_id", "0" * 32)], "/v1/embed"),
    Refusal("a part twice", "malformed_request", "image was sent twice", [image(), image(), asked(POINT)]),
    Refusal("a field twice", "malformed_request", "request was sent twice", [image(), asked(POINT), asked(POINT)]),
    Refusal("many parts", "malformed_request", "damaged", [image()] * 9),
    Refusal("no body", "malformed_request", "of no type", raw={}),
    Refusal("JSON as the body", "malformed_request", "application/json", raw={"json": {"prompts": []}}),
    Refusal(
        "no boundary",
        "malformed_request",
        "boundary",
        raw={"content": b"", "headers": {"content-type": "multipart/form-data"}},
    ),
    Refusal("an empty body", "malformed_request", "closing boundary", raw=multipart("")),
    Refusal("bytes that are no parts", "malformed_request", "damaged", raw=multipart("oranges", "and", "lemons")),
    Refusal(
        "a part without a name",
        "malformed_request",
        "name",
        raw=multipart("--belt", "Content-Type: a/b", "", "x", "--belt--", ""),
    ),
    Refusal(
        "a body that ends early",
        "malformed_request",
        "closing boundary",
        raw=multipart("--belt", 'Content-Disposition: form-data; name="image"; filename="a.png"', "", "half an or"),
    ),
    Refusal(
        "an odd character set",
        "malformed_request",
        "damaged",
        raw={
            "content": multipart("--belt", 'Content-Disposition: form-data; name="request"', "", "{}", "--belt--", "")[
                "content"
            ],
            "headers": {"content-type": "multipart/form-data; boundary=belt; charset=undefined"},
        },
    ),
    Refusal("path", "not_found", "/v1/segmnet", [image()], "/v1/segmnet"),
    Refusal("path to get", "not_found", "/v1/oranges", path="/v1/oranges", method="GET", raw={}),
    Refusal("path with a slash too many", "not_found", "/v1/segment/", [image()], "/v1/segment/"),
    Refusal("path elsewhere", "not_found", "/oranges", path="/oranges", method="GET", raw={}),
    Refusal("segment to get", "method_not_allowed", "POST would be right", method="GET", raw={}),
    Refusal("embed to put", "method_not_allowed", "POST would be right", path="/v1/embed", method="PUT", raw={}),
    Refusal("models to post", "method_not_allowed", "GET", [image()], "/v1/models"),
    Refusal("page to delete", "method_not_allowed", "GET", path="/", method="DELETE", raw={}),
]

_ABOUT_THE_IMAGE: Final = {"not_an_image", "truncated_image", "unsupported_image_format", "too_many_pixels"}


def _without_prompts(refusal: Refusal, path: str) -> Refusal:
    return replace(
        refusal,
        path=path,
        parts=[part for part in refusal.parts if isinstance(part[1], tuple) and part[1][0]],
    )


def _options(**fields: Any) -> Parts:
    return [image(), plain("request", json.dumps(fields))]


def _whatever_is_asked(path: str) -> list[Refusal]:
    """What is wrong with a image_bytes, a body or a deadline is so whatever is asked of it."""
    return [
        _without_prompts(refusal, path)
        for refusal in PROMPTED
        if (refusal.path, refusal.method) == ("/v1/segment", "POST")
        and (refusal.code in _ABOUT_THE_IMAGE or refusal.raw is not None or refusal.headers)
    ]


SEMANTIC: Final = [
    *_whatever_is_asked("/v1/semantic"),
    *(
        Refusal(name, code, says, parts, "/v1/semantic")
        for name, code, says, parts in (
            ("nothing", "no_image", "part image", [plain("request", "{}")]),
            ("an id", "unknown_field", "'image_id'", [plain("image_id", "0" * 32)]),
            ("prompts", "unknown_field", "prompts", _options(prompts=[POINT])),
            ("an input size", "unknown_field", "input_size", _options(input_size=512)),
            ("logits", "unsupported_format", "'rle', 'png' or 'polygons'", _options(format="logits")),
            ("overlay as text", "malformed_request", "overlay", _options(overlay="yes")),
            ("not JSON", "malformed_json", "JSON", [image(), plain("request", "{")]),
            ("model", "unknown_model", "'plum-unet'; loaded: peel-unet", _options(model="plum-unet")),
            (
                "model of the catalogue",
                "model_not_loaded",
                "POMONA_MODELS=orange-sam,lemon-sam,peel-unet,rind-unet would load it",
                _options(model=OTHER_UNET.name),
            ),
            (
                "a SAM",
                "wrong_model_family",
                "which tells healthy from infected fruit; loaded: peel-unet",
                _options(model=SECOND.name),
            ),
            ("a SAM that is not loaded", "wrong_model_family", "melon-sam is a SAM", _options(model=NOT_LOADED.name)),
        )
    ),
    Refusal("semantic to get", "method_not_allowed", "POST would be right", path="/v1/semantic", method="GET", raw={}),
]


def _grades(*grades: Any) -> Parts:
    return _options(grades=[{"grade": name, "max_infected_fraction": most} for name, most in grades])


INSPECT: Final = [
    *_whatever_is_asked("/v1/inspect"),
    *(
        Refusal(name, code, says, parts, "/v1/inspect")
        for name, code, says, parts in (
            ("nothing", "no_image", "part image", [plain("request", "{}")]),
            ("an id", "unknown_field", "'image_id'", [plain("image_id", "0" * 32)]),
            ("prompts", "unknown_field", "prompts", _options(prompts=[POINT])),
            ("logits", "unsupported_format", "'rle', 'png' or 'polygons'", _options(format="logits")),
            ("a mode", "malformed_request", "'fast', 'accurate' or 'auto'", _options(mode="best")),
            ("overlay as text", "malformed_request", "overlay", _options(overlay="yes")),
            ("not JSON", "malformed_json", "JSON", [image(), plain("request", "{")]),
            ("model", "unknown_model", "'plum-unet'; loaded: peel-unet", _options(model="plum-unet")),
            ("a SAM", "wrong_model_family", "loaded: peel-unet", _options(model=SECOND.name)),
            (
                "SAM",
                "unknown_model",
                "'plum-sam'; loaded: orange-sam, lemon-sam",
                _options(sam_model="plum-sam"),
            ),
            ("SAM of the catalogue", "model_not_loaded", "melon-sam", _options(sam_model=NOT_LOADED.name)),
            (
                "a U-Net for a SAM",
                "wrong_model_family",
                "which masks what prompts point at",
                _options(mode="accurate", sam_model=LOADED_UNET.name),
            ),
            ("no grades", "malformed_request", "grades: ", _grades()),
            ("grades that fall", "malformed_request", "rising numbers", _grades(("A", 0.2), ("B", 0.1))),
            ("grades that stay", "malformed_request", "rising numbers", _grades(("A", 0.1), ("B", 0.1))),
            ("a grade twice", "malformed_request", "a name of its own", _grades(("A", 0.1), ("A", 0.2))),
            ("a grade called reject", "malformed_request", "'reject'", _grades(("reject", 0.1))),
            ("a grade without a name", "malformed_request", "grades[0].grade", _grades(("", 0.1))),
            (
                "a grade of more than all",
                "malformed_request",
                "grades[1].max_infected_fraction",
                _grades(("A", 0.1), ("B", 1.1)),
            ),
            (
                "a grade of less than nothing",
                "malformed_request",
                "grades[0].max_infected_fraction",
                _grades(("A", -0.1)),
            ),
            (
                "a grade that is not a number",
                "malformed_request",
                "grades[0].max_infected_fraction",
                _grades(("A", float("nan"))),
            ),
            ("a grade as text", "malformed_request", "grades[0].max_infected_fraction", _grades(("A", "0.1"))),
            ("many grades", "malformed_request", "16", _grades(*((str(n), n / 20) for n in range(17)))),
            ("a field of a grade", "unknown_field", "grades[0].max", _options(grades=[{"grade": "A", "max": 1}])),
            ("grades as a mapping", "malformed_request", "grades", _options(grades={"A": 0.1})),
            ("a long frame id", "malformed_request", "frame_id: ", _options(frame_id="7" * 129)),
            ("a frame id that is a number", "malformed_request", "frame_id: ", _options(frame_id=7)),
            ("a long trigger id", "malformed_request", "trigger_id: ", _options(trigger_id="7" * 129)),
            ("a time before all times", "malformed_request", "captured_at_ns: ", _options(captured_at_ns=-1)),
            ("a time beyond 64 bits", "malformed_request", "captured_at_ns: ", _options(captured_at_ns=2**63)),
            ("a time in fractions", "malformed_request", "captured_at_ns: ", _options(captured_at_ns=1.5)),
        )
    ),
    Refusal("inspect to get", "method_not_allowed", "POST would be right", path="/v1/inspect", method="GET", raw={}),
]

REFUSALS: Final = [*PROMPTED, *SEMANTIC, *INSPECT]
