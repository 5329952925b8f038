"""Calls as HTTP requests: pure functions, for the sync and the async transport alike."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pomona.asks import Attempt, Call, Embed, Inspect, ListModels, Ready, Segment, Semantic
from pomona.errors import InvalidArgument
from pomona.facts import Capture
from pomona.masks import Logits, Mask
from pomona.shapes import Prompt

_LONGEST_QUERY: Final = 2000
"""Characters of JSON that go into the address; servers and proxies take at least 8000 in all, escaped."""

Parts = list[tuple[str, tuple[str | None, bytes, str]]]


@dataclass(frozen=True)
class HttpRequest:
    """What a transport sends.

    Attributes:
        method: GET or POST.
        path: below the service's address.
        params: of the query.
        headers: beside those that the transport sets.
        content: the body, where the picture is the body.
        parts: of a multipart body, else empty.
    """

    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    parts: Parts = field(default_factory=list)


def request_of(call: Call[Any], attempt: Attempt) -> HttpRequest:
    """The request for a call.

    The picture is the body itself where the rest is short enough for the query, as that is the cheapest for both sides;
    else the body is multipart.

    Raises:
        InvalidArgument: an ask that HTTP does not know.
    """
    headers = _headers(attempt)
    ask = call.ask
    if isinstance(ask, ListModels):
        return HttpRequest("GET", "/v1/models", headers=headers)
    if isinstance(ask, Ready):
        return HttpRequest("GET", "/readyz", headers=headers)
    path, fields = _fields(call)
    text = json.dumps(fields, separators=(",", ":"))
    if call.image_id is not None:
        return HttpRequest(
            "POST", path, headers=headers, parts=[_text("image_id", call.image_id), _text("request", text)]
        )
    if call.picture is None:
        raise InvalidArgument("There is neither a picture nor the id of one.")
    data, media_type = call.picture.data, call.picture.media_type
    if len(text) <= _LONGEST_QUERY:
        return HttpRequest("POST", path, {"request": text}, headers | {"content-type": media_type}, content=data)
    picture = ("image", ("picture", data, media_type))
    return HttpRequest("POST", path, headers=headers, parts=[picture, _text("request", text)])


def _headers(attempt: Attempt) -> dict[str, str]:
    headers = {"x-request-id": attempt.request_id} if attempt.request_id else {}
    if attempt.deadline is not None:
        headers["x-deadline-ms"] = f"{attempt.deadline * 1000:.3f}"
    if attempt.urgency is not None:
        headers["priority"] = f"u={attempt.urgency}"
    return headers


def _text(name: str, value: str) -> tuple[str, tuple[None, bytes, str]]:
    return name, (None, value.encode(), "text/plain; charset=utf-8")


def _fields(call: Call[Any]) -> tuple[str, dict[str, Any]]:
    ask = call.ask
    if isinstance(ask, Segment):
        fields = {
            "prompts": [_prompt(thing) for thing in ask.things],
            "model": ask.model,
            "format": ask.format,
            "overlay": ask.overlay,
            "input_size": ask.input_size,
            "padding": ask.padding,
        }
        return "/v1/segment", _given(fields)
    if isinstance(ask, Semantic):
        return "/v1/semantic", _given({"model": ask.model, "format": ask.format, "overlay": ask.overlay})
    if isinstance(ask, Embed):
        return "/v1/embed", _given({"model": ask.model, "input_size": ask.input_size, "padding": ask.padding})
    if isinstance(ask, Inspect):
        return "/v1/inspect", _given(_inspect(ask, call.capture))
    raise InvalidArgument(f"{type(ask).__name__} cannot be asked over HTTP.")


def _inspect(ask: Inspect, capture: Capture) -> dict[str, Any]:
    grades = ask.grades
    return {
        "model": ask.model,
        "sam_model": ask.sam_model,
        "mode": ask.mode,
        "format": ask.format,
        "grades": grades and [{"grade": name, "max_infected_fraction": float(most)} for name, most in grades.items()],
        "overlay": ask.overlay,
        "frame_id": capture.frame_id,
        "trigger_id": capture.trigger_id,
        "captured_at_ns": capture.captured_at_ns,
    }


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Without what the caller left to the service, so that an older one is not asked what it does not know."""
    return {name: value for name, value in fields.items() if value is not None and value is not False}


def _prompt(prompt: Prompt) -> dict[str, Any]:
    fields: dict[str, Any] = {"multimask": prompt.multimask}
    if prompt.points:
        fields["points"] = [[float(point.x), float(point.y)] for point in prompt.points]
        fields["labels"] = [int(point.label) for point in prompt.points]
    if prompt.box is not None:
        fields["box"] = [float(side) for side in (prompt.box.x0, prompt.box.y0, prompt.box.x1, prompt.box.y1)]
    if prompt.mask is not None:
        fields["mask"] = _mask(prompt.mask)
    return fields


def _mask(mask: Mask) -> dict[str, Any]:
    if isinstance(mask.encoded, Logits):
        data = base64.b64encode(mask.encoded.data).decode()
        return {"shape": list(mask.encoded.shape), "dtype": "float16", "data": data}
    return {"size": list(mask.rle.size), "counts": mask.rle.counts}
